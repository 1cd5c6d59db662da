# SPDX-License-Identifier: Apache-2.0
"""The tensors of a decoder-only language model, with the names that Hugging Face gives them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from capibara_axion.demo.memory import memory_mlp
from capibara_axion.demo.tensors import Array, Draws

# Logit of a token on which the memory is certain; the others have a standard deviation of
# TOP_LOGIT / sqrt(hidden_size).
_TOP_LOGIT = 14.0
# Output of a random sublayer, in lengths of an embedding: each one is heard, none drowns the key.
_SUBLAYER_SHARE = 0.2
_MEMORY_STRENGTH = 4.0


@dataclass(frozen=True)
class Decoder:
    """Sizes and traits of a decoder.

    Attributes:
        vocab_size: entries of the vocabulary, and width of every MLP (the memory needs one unit
            for each entry).
        logit_scale: factor on the logits (Cohere).
        tied: the output projection is the embedding.
        fused: q, k, v and gate, up are stored as one tensor each (Phi-3).
        qkv_bias: q, k and v have a bias (Qwen2).
        gemma_norms: four norms a layer and norms on q and k, whose weight w means 1 + w; the
            embedding is multiplied by sqrt(hidden_size).
        parallel: attention and MLP read the same norm (Cohere).
    """

    vocab_size: int = 640
    hidden_size: int = 128
    layers: int = 4
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 32
    logit_scale: float = 1.0
    tied: bool = False
    fused: bool = False
    qkv_bias: bool = False
    gemma_norms: bool = False
    parallel: bool = False

    @property
    def embedding_std(self) -> float:
        return _TOP_LOGIT / (self.hidden_size * self.logit_scale)

    @property
    def stream_std(self) -> float:
        """Standard deviation of the residual stream behind the embedding."""
        return self.embedding_std * (self.hidden_size**0.5 if self.gemma_norms else 1.0)


def decoder_tensors(
    decoder: Decoder,
    following: Sequence[dict[int, float]],
    draws: Draws,
    *,
    model: str = "model.",
    lm_head: str = "lm_head.",
) -> dict[str, Array]:
    """All tensors of the decoder by name.

    Args:
        following: what the memory in the last layer holds (`memory.successors`).
        model, lm_head: prefixes of the names.
    """
    shape = (decoder.vocab_size, decoder.hidden_size)
    embedding = draws.uniform(*shape, std=decoder.embedding_std)
    tensors = {f"{model}embed_tokens.weight": embedding}
    directions = embedding
    if not decoder.tied:
        directions = draws.uniform(*shape, std=decoder.embedding_std)
        tensors[f"{lm_head}weight"] = directions
    for index in range(decoder.layers):
        prefix = f"{model}layers.{index}."
        is_memory = index == decoder.layers - 1
        tensors |= _attention(decoder, draws, f"{prefix}self_attn.")
        if is_memory:
            strength = _MEMORY_STRENGTH * decoder.stream_std / decoder.embedding_std
            mlp = memory_mlp(following, embedding, directions, strength=strength)
        else:
            mlp = _random_mlp(decoder, draws)
        tensors |= _mlp(decoder, f"{prefix}mlp.", *mlp)
        tensors |= _norms(decoder, draws, prefix, is_memory=is_memory)
    tensors[f"{model}norm.weight"] = _norm(decoder, draws)
    return tensors


def _attention(decoder: Decoder, draws: Draws, prefix: str) -> dict[str, Array]:
    width, kv_width = decoder.heads * decoder.head_dim, decoder.kv_heads * decoder.head_dim
    widths = {"q": width, "k": kv_width, "v": kv_width}
    projections = {name: draws.linear(rows, decoder.hidden_size) for name, rows in widths.items()}
    gain = _SUBLAYER_SHARE * decoder.stream_std
    tensors = {f"{prefix}o_proj.weight": draws.linear(decoder.hidden_size, width, gain=gain)}
    if decoder.fused:
        tensors[f"{prefix}qkv_proj.weight"] = np.concatenate(list(projections.values()))
        return tensors
    tensors |= {f"{prefix}{name}_proj.weight": value for name, value in projections.items()}
    if decoder.qkv_bias:
        tensors |= {
            f"{prefix}{name}_proj.bias": draws.uniform(rows, std=0.1)
            for name, rows in widths.items()
        }
    if decoder.gemma_norms:
        tensors |= {
            f"{prefix}{name}_norm.weight": _norm(decoder, draws, decoder.head_dim)
            for name in ("q", "k")
        }
    return tensors


def _random_mlp(decoder: Decoder, draws: Draws) -> tuple[Array, Array, Array]:
    gate, up = (draws.linear(decoder.vocab_size, decoder.hidden_size) for _ in range(2))
    # silu(g) * u has a standard deviation of about 0.6 when g and u are standard normal.
    gain = _SUBLAYER_SHARE * decoder.stream_std / 0.6
    return gate, up, draws.linear(decoder.hidden_size, decoder.vocab_size, gain=gain)


def _mlp(decoder: Decoder, prefix: str, gate: Array, up: Array, down: Array) -> dict[str, Array]:
    tensors = {f"{prefix}down_proj.weight": down}
    if decoder.fused:
        return tensors | {f"{prefix}gate_up_proj.weight": np.concatenate([gate, up])}
    return tensors | {f"{prefix}gate_proj.weight": gate, f"{prefix}up_proj.weight": up}


def _norms(decoder: Decoder, draws: Draws, prefix: str, *, is_memory: bool) -> dict[str, Array]:
    if decoder.parallel:
        return {f"{prefix}input_layernorm.weight": _norm(decoder, draws)}
    if not decoder.gemma_norms:
        names = ("input_layernorm", "post_attention_layernorm")
        return {f"{prefix}{name}.weight": _norm(decoder, draws) for name in names}
    # Gemma normalises what a sublayer returns, so its share of the stream is this norm's weight.
    sublayer = _SUBLAYER_SHARE * decoder.stream_std
    memory = _MEMORY_STRENGTH * decoder.stream_std
    means = {
        "input_layernorm": 1.0,
        "post_attention_layernorm": sublayer,
        "pre_feedforward_layernorm": 1.0,
        "post_feedforward_layernorm": memory if is_memory else sublayer,
    }
    return {
        f"{prefix}{name}.weight": mean * draws.uniform(decoder.hidden_size, std=0.05, mean=1.0) - 1
        for name, mean in means.items()
    }


def _norm(decoder: Decoder, draws: Draws, width: int | None = None) -> Array:
    mean = 0.0 if decoder.gemma_norms else 1.0
    return draws.uniform(width or decoder.hidden_size, std=0.05, mean=mean)

# SPDX-License-Identifier: Apache-2.0
"""Which matrices of a model are quantised, and where scales of their inputs can be hidden.

A matrix reads channels that another module of the layer writes: a norm, or the rows of another
matrix between which and the reader each channel stays by itself (v to o through the weighted sums
of attention; up to down through the product with the gate). Multiplying a reader's column by s and
dividing what the writer puts there by s changes nothing but rounding.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

# A matrix of a decoder's layer: (before "layers.", layer, module within it).
_PROJECTION = re.compile(r"^(.*?)layers\.(\d+)\.(.*_proj)\.weight$")
_OTHER_TOWERS = re.compile(r"(?:^|\.)(?:vision|visual|audio)[^.]*\.|multi_modal_projector\.")


class UnsupportedModel(ValueError):
    """A checkpoint that cannot be quantised as asked for."""


@dataclass(frozen=True)
class Fold:
    """Channels that can be scaled.

    Attributes:
        writer: the module that writes them, by its name within the layer.
        readers: the matrices that read them.
        is_norm: the writer is a norm, with one weight for each channel; else a matrix.
        last_rows: of a matrix, how many rows at its end write them; None: all.
        repeats: how many of the readers' blocks of `block` inputs one block of rows goes to, as
            query heads share a value head.
    """

    writer: str
    readers: tuple[str, ...]
    is_norm: bool
    last_rows: int | None = None
    repeats: int = 1
    block: int = 1


@dataclass(frozen=True)
class Architecture:
    """A decoder layer's folds.

    Attributes:
        norm_offset: what a norm adds to its weight: 1 in Gemma, whose norms multiply by 1 + w.
    """

    folds: tuple[Fold, ...]
    norm_offset: float = 0.0


def architecture_of(text_config: Any) -> Architecture:
    """The folds of a model, from transformers' configuration of its decoder.

    Raises:
        UnsupportedModel: this model's layers are not known.
    """
    kind = text_config.model_type
    if kind not in _KNOWN:
        raise UnsupportedModel(
            f"model_type {kind!r}: activation-aware scaling knows {', '.join(_KNOWN)}; "
            "--method rtn works for others"
        )
    heads, kv_heads = text_config.num_attention_heads, text_config.num_key_value_heads
    head_dim = getattr(text_config, "head_dim", None) or text_config.hidden_size // heads
    fused = kind == "phi3"
    attention = ("self_attn.qkv_proj",) if fused else _named("self_attn", "q", "k", "v")
    mlp = ("mlp.gate_up_proj",) if fused else _named("mlp", "gate", "up")
    values = Fold(
        "self_attn.qkv_proj" if fused else "self_attn.v_proj",
        ("self_attn.o_proj",),
        is_norm=False,
        last_rows=kv_heads * head_dim,
        repeats=heads // kv_heads,
        block=head_dim,
    )
    gated = Fold(
        "mlp.gate_up_proj" if fused else "mlp.up_proj",
        ("mlp.down_proj",),
        is_norm=False,
        last_rows=text_config.intermediate_size,
    )
    if kind == "cohere":  # attention and MLP read the same norm
        norms = [Fold("input_layernorm", (*attention, *mlp), is_norm=True)]
    else:
        before_mlp = (
            "pre_feedforward_layernorm" if kind == "gemma3_text" else "post_attention_layernorm"
        )
        norms = [
            Fold("input_layernorm", attention, is_norm=True),
            Fold(before_mlp, mlp, is_norm=True),
        ]
    return Architecture((*norms, values, gated), 1.0 if kind == "gemma3_text" else 0.0)


_KNOWN = ("phi3", "mistral", "llama", "qwen2", "gemma3_text", "cohere")


def _named(part: str, *names: str) -> tuple[str, ...]:
    return tuple(f"{part}.{name}_proj" for name in names)


def decoder_prefix(names: Iterable[str]) -> str:
    """What stands before "layers." in the names of the decoder's tensors.

    Raises:
        UnsupportedModel: there are no matrices with known names.
    """
    found = {match[1] for name in names if (match := _decoder_match(name))}
    if len(found) != 1:
        raise UnsupportedModel(
            "expected the matrices of one decoder, named ...layers.0....._proj.weight, got "
            + (" and ".join(sorted(found)) or "none")
        )
    return found.pop()


def is_quantized(name: str) -> bool:
    """Whether a tensor is a matrix of the decoder's layers; embeddings and heads are not."""
    return _decoder_match(name) is not None


def kept_modules(names: Iterable[str]) -> list[str]:
    """Parts of names by which a reader of the checkpoint knows what is not quantised."""
    parts = set()
    for name in names:
        module = name.removesuffix(".weight")
        if is_quantized(name) or module == name:
            continue
        if _OTHER_TOWERS.search(name):
            parts.add(next(p for p in name.split(".") if _OTHER_TOWERS.match(p + ".")))
        elif not re.search(r"norm[^.]*$", module):
            parts.add(module if "layers." in module else module.rsplit(".", 1)[-1])
    return sorted(parts | {"lm_head"})


def _decoder_match(name: str) -> re.Match[str] | None:
    return None if _OTHER_TOWERS.search(name) else _PROJECTION.match(name)

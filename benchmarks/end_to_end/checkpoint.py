# SPDX-License-Identifier: Apache-2.0
"""A checkpoint of the exact shape of Qwen2.5-0.5B, 494 million random weights.

How fast a dense model runs depends on its shape and not on its weights, and a random one can be
made where no model hub is reachable. Linear layers keep the variance of what they read, so the
numbers stay in the range of a trained model's.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from work import VOCAB_SIZE

from capibara_axion.demo.tensors import Array, Draws, save_safetensors

_SEED = 20241
_HIDDEN, _INTERMEDIATE, _LAYERS = 896, 4864, 24
_HEADS, _KV_HEADS, _HEAD_DIM = 14, 2, 64
_SUBLAYER_GAIN = 0.1  # of o_proj and down_proj: each layer is heard, none drowns those before

CONFIG: dict[str, Any] = {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "vocab_size": VOCAB_SIZE,
    "hidden_size": _HIDDEN,
    "intermediate_size": _INTERMEDIATE,
    "num_hidden_layers": _LAYERS,
    "num_attention_heads": _HEADS,
    "num_key_value_heads": _KV_HEADS,
    "hidden_act": "silu",
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
    "tie_word_embeddings": True,
    "use_sliding_window": False,
    "attention_dropout": 0.0,
    "initializer_range": 0.02,
    "bos_token_id": 151643,
    "eos_token_id": 151643,
    "torch_dtype": "bfloat16",
    "use_cache": True,
}


def write_checkpoint(folder: Path) -> None:
    """Writes config.json and model.safetensors, the same bytes on every machine; 1 GB.

    There is no tokenizer: the benchmark speaks in token ids.
    """
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / "model.safetensors.partial"
    save_safetensors(partial, dict(_tensors(Draws(_SEED))))
    (folder / "config.json").write_text(json.dumps(CONFIG, indent=2) + "\n", encoding="utf-8")
    partial.rename(folder / "model.safetensors")  # last: an interrupted run leaves none


def _tensors(draws: Draws) -> Iterator[tuple[str, Array]]:
    yield "model.embed_tokens.weight", draws.uniform(VOCAB_SIZE, _HIDDEN, std=0.02)
    for index in range(_LAYERS):
        prefix = f"model.layers.{index}."
        for name, heads in {"q": _HEADS, "k": _KV_HEADS, "v": _KV_HEADS}.items():
            width = heads * _HEAD_DIM
            yield f"{prefix}self_attn.{name}_proj.weight", draws.linear(width, _HIDDEN)
            yield f"{prefix}self_attn.{name}_proj.bias", draws.uniform(width, std=0.1)
        for name, rows, columns, gain in (
            ("self_attn.o_proj", _HIDDEN, _HEADS * _HEAD_DIM, _SUBLAYER_GAIN),
            ("mlp.gate_proj", _INTERMEDIATE, _HIDDEN, 1.0),
            ("mlp.up_proj", _INTERMEDIATE, _HIDDEN, 1.0),
            ("mlp.down_proj", _HIDDEN, _INTERMEDIATE, _SUBLAYER_GAIN),
        ):
            yield f"{prefix}{name}.weight", draws.linear(rows, columns, gain=gain)
        for name in ("input_layernorm", "post_attention_layernorm"):
            yield f"{prefix}{name}.weight", draws.uniform(_HIDDEN, std=0.05, mean=1.0)
    yield "model.norm.weight", draws.uniform(_HIDDEN, std=0.05, mean=1.0)

# SPDX-License-Identifier: Apache-2.0
"""The checkpoints that the agreement tests run: the demo models and variants of them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from capibara_axion.demo import write_demo_models

Tensors = dict[str, torch.Tensor]
Config = dict[str, Any]

_ROPE_NORMS = ("rms_norm", "fused_add_rms_norm", "rope")


@dataclass(frozen=True)
class Case:
    """One model as the tests run it.

    Attributes:
        source: the demo expert that the checkpoint is made from.
        ops: the operators that its architecture needs, by their counters' names.
        change: turns the demo checkpoint into the variant.
        compiled: whether it is also run through Inductor.
        stock: whether vLLM can run it without our attention.
    """

    name: str
    source: str
    ops: tuple[str, ...]
    max_model_len: int = 512
    image: bool = False
    compiled: bool = True
    stock: bool = True
    change: Callable[[Tensors, Config], tuple[Tensors, Config]] = lambda t, c: (t, c)


def _text_only(tensors: Tensors, config: Config) -> tuple[Tensors, Config]:
    """Gemma3ForCausalLM out of Gemma3ForConditionalGeneration."""
    prefix = "language_model."
    text = {name[len(prefix) :]: t for name, t in tensors.items() if name.startswith(prefix)}
    return text, config["text_config"] | {"architectures": ["Gemma3ForCausalLM"]}


def _with_qk_norm(tensors: Tensors, config: Config) -> tuple[Tensors, Config]:
    """Cohere with LayerNorm on q and k, whose weight is [heads, head_dim]."""
    generator = torch.Generator().manual_seed(7)
    head_dim = config["hidden_size"] // config["num_attention_heads"]
    heads = {"q_norm": config["num_attention_heads"], "k_norm": config["num_key_value_heads"]}
    for layer in range(config["num_hidden_layers"]):
        for name, count in heads.items():
            weight = 1 + 0.2 * torch.randn(count, head_dim, generator=generator)
            tensors[f"model.layers.{layer}.self_attn.{name}.weight"] = weight.bfloat16()
    return tensors, config | {"use_qk_norm": True}


def _with_window(tensors: Tensors, config: Config) -> tuple[Tensors, Config]:
    """Mistral 7B v0.1's sliding window in all layers."""
    return tensors, config | {"sliding_window": 48}


def _with_small_heads(tensors: Tensors, config: Config) -> tuple[Tensors, Config]:
    """Twice as many heads of half the size, 16, for which vLLM has no attention on the CPU."""
    heads = {name: 2 * config[name] for name in ("num_attention_heads", "num_key_value_heads")}
    return tensors, config | heads | {"head_dim": config["head_dim"] // 2}


CASES = (
    Case("phi3", "phi4_fast", (*_ROPE_NORMS, "silu_and_mul")),
    Case("mistral", "mistral_balanced", (*_ROPE_NORMS, "silu_and_mul")),
    Case("qwen2", "qwen_coder", (*_ROPE_NORMS, "silu_and_mul")),
    Case("gemma3", "gemma3_multimodal", (*_ROPE_NORMS, "gelu_tanh_and_mul"), image=True),
    Case("cohere", "aya_expanse_multilingual", ("layer_norm", "rope", "silu_and_mul")),
    # Beyond the original context length Phi-3 takes the long factors.
    Case(
        "phi3_long",
        "phi4_fast",
        (*_ROPE_NORMS, "silu_and_mul"),
        max_model_len=4096,
        compiled=False,
    ),
    Case(
        "mistral_window",
        "mistral_balanced",
        (*_ROPE_NORMS, "silu_and_mul"),
        compiled=False,
        change=_with_window,
    ),
    Case(
        "mistral_small_heads",
        "mistral_balanced",
        (*_ROPE_NORMS, "silu_and_mul"),
        compiled=False,
        stock=False,
        change=_with_small_heads,
    ),
    Case(
        "gemma3_text",
        "gemma3_multimodal",
        (*_ROPE_NORMS, "gelu_tanh_and_mul"),
        compiled=False,
        change=_text_only,
    ),
    Case(
        "cohere_qk_norm",
        "aya_expanse_multilingual",
        ("layer_norm", "rope", "silu_and_mul"),
        compiled=False,
        change=_with_qk_norm,
    ),
)


def write_checkpoints(directory: Path) -> dict[str, Path]:
    """Writes the checkpoint of every case and returns their folders by the case's name."""
    demo = write_demo_models(directory / "demo").parent
    folders = {}
    for case in CASES:
        folder = folders[case.name] = directory / case.name
        shutil.copytree(demo / case.source, folder)
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        tensors, config = case.change(load_file(folder / "model.safetensors"), config)
        _flatten_logits(tensors, one_plus="gemma3" in case.name)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folders


def _flatten_logits(tensors: Tensors, *, one_plus: bool) -> None:
    """Divides all logits by 8 through the last norm's weight.

    The demo models are sure of what they say: improbable tokens have log-probabilities of about
    -15, where one float32 ulp is already half of the tolerance.
    """
    (name,) = (name for name in tensors if name.endswith("model.norm.weight"))
    weight = tensors[name].float()
    scaled = (weight + 1) / 8 - 1 if one_plus else weight / 8
    tensors[name] = scaled.bfloat16()

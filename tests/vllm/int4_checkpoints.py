# SPDX-License-Identifier: Apache-2.0
"""The tiny Mistral of the agreement tests as 4-bit checkpoints of every format."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import references
import torch
from safetensors.torch import load_file, save_file

from capibara_axion import int4
from capibara_axion.int4 import Int4Weight
from capibara_axion.int4.architectures import is_quantized
from capibara_axion.int4.quantizer import Settings, quantize_checkpoint

GROUP_SIZE = 32
FORMATS = ("awq", "gptq", "gptq_act_order", "compressed")


def write(source: Path, folder: Path, name: str) -> Any:
    """Writes one of FORMATS.

    Returns:
        transformers' model in float32 with the weights that the checkpoint stands for.
    """
    if name == "awq":
        quantize_checkpoint(source, folder, Settings(GROUP_SIZE))
        pack: Any = _Awq()
    else:
        shutil.copytree(source, folder)
        pack = {
            "gptq": _Gptq(symmetric=True, act_order=False),
            "gptq_act_order": _Gptq(symmetric=False, act_order=True),
            "compressed": _Compressed(),
        }[name]
    tensors = load_file(source / "model.safetensors")
    written: dict[str, torch.Tensor] = {}
    exact: dict[str, torch.Tensor] = {}
    for key, value in tensors.items():
        if not is_quantized(key):
            written[key] = value
            continue
        parts, values = pack(key, value.float().numpy())
        exact[key] = torch.from_numpy(values)
        module = key.removesuffix("weight")
        written |= {module + part: torch.from_numpy(array) for part, array in parts.items()}
    if name != "awq":
        save_file(written, folder / "model.safetensors", metadata={"format": "pt"})
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        config["quantization_config"] = pack.config
        (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    model = references.load(source)
    model.load_state_dict(exact, strict=False)
    return model


class _Awq:
    def __call__(self, key: str, value: np.ndarray) -> tuple[dict[str, Any], np.ndarray]:
        return {}, int4.quantize(value, GROUP_SIZE).dequantize()


class _Gptq:
    """With zero points from 1 on, as version 1 has them."""

    def __init__(self, *, symmetric: bool, act_order: bool) -> None:
        self._symmetric = symmetric
        self._act_order = act_order
        self.config = {
            "quant_method": "gptq",
            "bits": 4,
            "group_size": GROUP_SIZE,
            "desc_act": act_order,
            "sym": symmetric,
            "checkpoint_format": "gptq",
        }

    def __call__(self, key: str, value: np.ndarray) -> tuple[dict[str, Any], np.ndarray]:
        k = value.shape[1]
        # One order for q, k, v, and one for gate and up: what reads the same input.
        layer = int(key.split(".")[2])
        order = np.random.default_rng([layer, k]).permutation(k) if self._act_order else None
        sorted_value = value if order is None else value[:, order]
        weight = int4.quantize(sorted_value, GROUP_SIZE, symmetric=self._symmetric)
        if weight.zeros is not None:
            weight = Int4Weight(weight.codes, weight.scales, np.maximum(weight.zeros, 1))
        values = np.empty_like(value)
        values[:, slice(None) if order is None else order] = weight.dequantize()
        return int4.pack_gptq(weight, order), values


class _Compressed:
    """With zero points."""

    def __init__(self) -> None:
        weights = {
            "num_bits": 4,
            "type": "int",
            "symmetric": False,
            "strategy": "group",
            "group_size": GROUP_SIZE,
        }
        self.config = {
            "quant_method": "compressed-tensors",
            "format": "pack-quantized",
            "config_groups": {
                "group_0": {"targets": ["Linear"], "weights": weights, "input_activations": None}
            },
            "ignore": ["lm_head"],
        }

    def __call__(self, key: str, value: np.ndarray) -> tuple[dict[str, Any], np.ndarray]:
        weight = int4.quantize(value, GROUP_SIZE)
        return int4.pack_compressed(weight), weight.dequantize()

# SPDX-License-Identifier: Apache-2.0
"""Registers the operators as `torch.ops.capibara_axion.*`; importing it is enough.

The schemas and the fakes (shapes and dtypes without data, for `torch.compile` and meta tensors)
are defined here; the CPU implementations are C++ functions that the native module registers
through torch's stable C interface. A Python implementation costs about four times as much a call:
`python benchmarks/call_overhead.py` measures both.

The operators are for inference: they have no gradients, and `backward` through one warns and gives
none.
"""

from __future__ import annotations

from pathlib import Path

import torch

from capibara_axion import _core

_SCHEMAS = (
    "rms_norm(Tensor x, Tensor weight, float eps) -> Tensor",
    "rms_norm_out(Tensor(a!) out, Tensor x, Tensor weight, float eps) -> ()",
    "fused_add_rms_norm(Tensor(a!) x, Tensor(b!) residual, Tensor weight, float eps) -> ()",
    "layer_norm(Tensor x, Tensor weight, float eps) -> Tensor",
    "layer_norm_out(Tensor(a!) out, Tensor x, Tensor weight, float eps) -> ()",
    "softmax(Tensor x, float scale, Tensor? lengths) -> Tensor",
    "softmax_out(Tensor(a!) out, Tensor x, float scale, Tensor? lengths) -> ()",
    "silu_and_mul(Tensor gate_up, Tensor? up) -> Tensor",
    "silu_and_mul_out(Tensor(a!) out, Tensor gate_up, Tensor? up) -> ()",
    "gelu_and_mul(Tensor gate_up, Tensor? up) -> Tensor",
    "gelu_and_mul_out(Tensor(a!) out, Tensor gate_up, Tensor? up) -> ()",
    "gelu_tanh_and_mul(Tensor gate_up, Tensor? up) -> Tensor",
    "gelu_tanh_and_mul_out(Tensor(a!) out, Tensor gate_up, Tensor? up) -> ()",
    "rope(Tensor positions, Tensor(a!) q, Tensor(b!)? k, Tensor cos_sin_cache,"
    " int head_dim, bool neox) -> ()",
)
_IN_PLACE = (
    "rms_norm_out",
    "fused_add_rms_norm",
    "layer_norm_out",
    "softmax_out",
    "silu_and_mul_out",
    "gelu_and_mul_out",
    "gelu_tanh_and_mul_out",
    "rope",
)


def _one_device(*arguments: object) -> None:
    """Refuses tensors of different devices, which torch would otherwise send to a fake alone."""
    devices = {value.device for value in arguments if isinstance(value, torch.Tensor)}
    if len(devices) > 1:
        names = ", ".join(sorted(str(device) for device in devices))
        raise ValueError(f"capibara_axion: expected all tensors on one device, got {names}")


def _dense(like: torch.Tensor, cols: int) -> torch.Tensor:
    """What the native operators return: contiguous, `cols` in the last dimension."""
    return like.new_empty((*like.shape[:-1], cols))


def _like_x(x: torch.Tensor, *others: object) -> torch.Tensor:
    _one_device(x, *others)
    return _dense(x, x.shape[-1])


def _gated(gate_up: torch.Tensor, up: torch.Tensor | None) -> torch.Tensor:
    _one_device(gate_up, up)
    cols = gate_up.shape[-1]
    return _dense(gate_up, cols // 2 if up is None else cols)


def _in_place(*arguments: object) -> None:
    _one_device(*arguments)


def _register() -> torch.library.Library:
    library = torch.library.Library("capibara_axion", "DEF")
    for schema in _SCHEMAS:
        library.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    for name in ("rms_norm", "layer_norm", "softmax"):
        torch.library.register_fake(f"capibara_axion::{name}", _like_x, lib=library)
    for name in ("silu_and_mul", "gelu_and_mul", "gelu_tanh_and_mul"):
        torch.library.register_fake(f"capibara_axion::{name}", _gated, lib=library)
    for name in _IN_PLACE:
        torch.library.register_fake(f"capibara_axion::{name}", _in_place, lib=library)
    libtorch = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    _core.register_torch_ops(str(libtorch))
    _core.rebind_openmp()  # torch's OpenMP runtime, if ours was looked up before it was there
    return library


# Deleting the library object would unregister the operators.
_LIBRARY = _register()

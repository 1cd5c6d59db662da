# SPDX-License-Identifier: Apache-2.0
"""Our operators, returning a new tensor or writing to a given one, as torch operators and as Python
functions on NumPy arrays; and memcpy, the yardstick."""

from __future__ import annotations

import ctypes
from typing import Any

import ml_dtypes
import torch

import capibara_axion
import capibara_axion.torch_ops
from cases import EPS, HEAD_DIM, OPS, Inputs
from contenders import ATTENTION, GATED, ROPES, Call, contender

_ops = torch.ops.capibara_axion
_NORMS = ("rms_norm", "layer_norm")


@contender(_NORMS, "ours", "new")
def _norm(a: Inputs) -> Call:
    op, x, weight = getattr(_ops, a.case.op), a.x, a.weight
    return lambda: op(x, weight, EPS)


@contender(_NORMS, "ours", "out")
def _norm_out(a: Inputs) -> Call:
    op, x, weight, out = getattr(_ops, a.case.op + "_out"), a.x, a.weight, torch.empty_like(a.x)
    return lambda: (op(out, x, weight, EPS), out)[1]


@contender("fused_add_rms_norm", "ours", "in place", in_place=True)
def _fused_add_rms_norm(a: Inputs) -> Call:
    op, x, residual, weight = _ops.fused_add_rms_norm, a.x, a.residual, a.weight
    return lambda: op(x, residual, weight, EPS)


@contender("softmax", "ours", "new")
def _softmax(a: Inputs) -> Call:
    op, x = _ops.softmax, a.x
    return lambda: op(x, 1.0, None)


@contender("softmax", "ours", "out")
def _softmax_out(a: Inputs) -> Call:
    op, x, out = _ops.softmax_out, a.x, torch.empty_like(a.x)
    return lambda: (op(out, x, 1.0, None), out)[1]


@contender(ROPES, "ours", "in place", in_place=True)
def _rope(a: Inputs) -> Call:
    op, positions, q, k, cache = _ops.rope, a.positions, a.q, a.k, a.cos_sin_cache
    neox = a.case.neox
    return lambda: op(positions, q, k, cache, HEAD_DIM, neox)


@contender(GATED, "ours", "new")
def _gated(a: Inputs) -> Call:
    op, gate_up = getattr(_ops, a.case.op), a.gate_up
    return lambda: op(gate_up, None)


@contender(GATED, "ours", "out")
def _gated_out(a: Inputs) -> Call:
    op, gate_up = getattr(_ops, a.case.op + "_out"), a.gate_up
    out = gate_up.new_empty(gate_up.shape[0], a.case.intermediate)
    return lambda: (op(out, gate_up, None), out)[1]


def array(x: torch.Tensor) -> Any:
    """The same memory as a NumPy array."""
    if x.dtype == torch.bfloat16:
        return x.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return x.numpy()


@contender(_NORMS, "ours", "NumPy out")
def _norm_array(a: Inputs) -> Call:
    op, x, weight = getattr(capibara_axion, a.case.op), array(a.x), array(a.weight)
    result = torch.empty_like(a.x)
    out = array(result)
    return lambda: (op(x, weight, EPS, out), result)[1]


@contender("fused_add_rms_norm", "ours", "NumPy in place", in_place=True)
def _fused_add_rms_norm_array(a: Inputs) -> Call:
    x, residual, weight = array(a.x), array(a.residual), array(a.weight)
    return lambda: capibara_axion.fused_add_rms_norm(x, residual, weight, EPS)


@contender("softmax", "ours", "NumPy out")
def _softmax_array(a: Inputs) -> Call:
    x, result = array(a.x), torch.empty_like(a.x)
    out = array(result)
    return lambda: (capibara_axion.softmax(x, out=out), result)[1]


@contender(ROPES, "ours", "NumPy in place", in_place=True)
def _rope_array(a: Inputs) -> Call:
    q, k, cache, positions = array(a.q), array(a.k), array(a.cos_sin_cache), a.positions.numpy()
    neox = a.case.neox
    return lambda: capibara_axion.rope(q, k, cache, positions, head_dim=HEAD_DIM, neox=neox)


@contender(GATED, "ours", "NumPy out")
def _gated_array(a: Inputs) -> Call:
    gate_up = array(a.gate_up)
    result = a.gate_up.new_empty(a.gate_up.shape[0], a.case.intermediate)
    out = array(result)
    if a.case.op == "silu_and_mul":
        return lambda: (capibara_axion.silu_and_mul(gate_up, out=out), result)[1]
    approximate = "tanh" if a.case.op == "gelu_tanh_and_mul" else "none"
    return lambda: (
        capibara_axion.gelu_and_mul(gate_up, approximate=approximate, out=out),
        result,
    )[1]


def _buffers(a: Inputs) -> tuple[torch.Tensor, torch.Tensor]:
    """Source and destination of a copy that reads and writes as many bytes as the operator."""
    size = a.case.bytes_moved // 2
    return torch.ones(size, dtype=torch.uint8), torch.zeros(size, dtype=torch.uint8)


_COPIES = tuple(op for op in OPS if op not in ATTENTION)


@contender(_COPIES, "memcpy", "memmove", single_threaded=True)
def _memmove(a: Inputs) -> Call:
    source, target = _buffers(a)
    memmove = ctypes.CDLL(None).memmove
    memmove.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)
    memmove.restype = None

    def call(buffers: tuple[torch.Tensor, ...] = (target, source)) -> None:  # keeps them alive
        memmove(to, of, size)

    to, of, size = target.data_ptr(), source.data_ptr(), len(source)
    return call


@contender(_COPIES, "memcpy", "copy_")
def _copy(a: Inputs) -> Call:
    source, target = _buffers(a)
    return lambda: target.copy_(source)


# Attention writes next to nothing: a plain read of as many bytes as it has to read and write.
@contender(ATTENTION, "memcpy", "memchr", single_threaded=True)
def _memchr(a: Inputs) -> Call:
    source = torch.zeros(a.case.bytes_moved, dtype=torch.uint8)
    memchr = ctypes.CDLL(None).memchr
    memchr.argtypes = (ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t)
    memchr.restype = ctypes.c_void_p

    def call(buffer: torch.Tensor = source) -> None:  # keeps it alive
        memchr(of, 1, size)  # which is not there

    of, size = source.data_ptr(), len(source)
    return call


@contender(ATTENTION, "memcpy", "sum")
def _sum(a: Inputs) -> Call:
    source = torch.zeros(a.case.bytes_moved // 8, dtype=torch.int64)
    return lambda: source.sum()

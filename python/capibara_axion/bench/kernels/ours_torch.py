# SPDX-License-Identifier: Apache-2.0
"""Our operators as torch's, returning a new tensor or writing to a given one."""

from __future__ import annotations

import torch

import capibara_axion.torch_ops
from capibara_axion.bench.kernels.cases import EPS, HEAD_DIM, Inputs
from capibara_axion.bench.kernels.contenders import GATED, LINEAR, NORMS, ROPES, Call, contender
from capibara_axion.bench.kernels.ours import packing

_ops = torch.ops.capibara_axion


@contender(NORMS, "ours", "new")
def _norm(a: Inputs) -> Call:
    op, x, weight = getattr(_ops, a.case.op), a.x, a.weight
    return lambda: op(x, weight, EPS)


@contender(NORMS, "ours", "out")
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


@contender(LINEAR, "ours", "packed")
def _packed(a: Inputs) -> Call:
    weight = capibara_axion.torch_ops.pack_weight(a.weight, **packing(a.case))
    x, outputs = a.x, a.case.outputs
    return lambda: _ops.packed_linear(x, weight, outputs)


@contender("linear", "ours", "unpacked")
def _unpacked(a: Inputs) -> Call:
    x, weight = a.x, a.weight
    return lambda: _ops.linear(x, weight)


@contender("linear", "ours", "matmul")
def _matmul(a: Inputs) -> Call:
    x, b = a.x, a.weight.T.contiguous()
    return lambda: _ops.matmul(x, b)

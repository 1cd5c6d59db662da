# SPDX-License-Identifier: Apache-2.0
"""Our functions on NumPy arrays, writing to given ones."""

from __future__ import annotations

from typing import Any

import capibara_axion
from capibara_axion.bench.kernels.arrays import empty, empty_like
from capibara_axion.bench.kernels.cases import EPS, HEAD_DIM, Case, Inputs
from capibara_axion.bench.kernels.contenders import GATED, LINEAR, NORMS, ROPES, Call, contender


@contender(NORMS, "ours", "NumPy out", arrays=True)
def _norm(a: Inputs) -> Call:
    op, x, weight, out = getattr(capibara_axion, a.case.op), a.x, a.weight, empty_like(a.x)
    return lambda: op(x, weight, EPS, out)


@contender("fused_add_rms_norm", "ours", "NumPy in place", in_place=True, arrays=True)
def _fused_add_rms_norm(a: Inputs) -> Call:
    x, residual, weight = a.x, a.residual, a.weight
    return lambda: capibara_axion.fused_add_rms_norm(x, residual, weight, EPS)


@contender("softmax", "ours", "NumPy out", arrays=True)
def _softmax(a: Inputs) -> Call:
    x, out = a.x, empty_like(a.x)
    return lambda: capibara_axion.softmax(x, out=out)


@contender(ROPES, "ours", "NumPy in place", in_place=True, arrays=True)
def _rope(a: Inputs) -> Call:
    q, k, cache, positions, neox = a.q, a.k, a.cos_sin_cache, a.positions, a.case.neox
    return lambda: capibara_axion.rope(q, k, cache, positions, head_dim=HEAD_DIM, neox=neox)


@contender(GATED, "ours", "NumPy out", arrays=True)
def _gated(a: Inputs) -> Call:
    gate_up, case = a.gate_up, a.case
    out = empty((case.tokens, case.intermediate), gate_up.dtype)
    if case.op == "silu_and_mul":
        return lambda: capibara_axion.silu_and_mul(gate_up, out=out)
    approximate = "tanh" if case.op == "gelu_tanh_and_mul" else "none"
    return lambda: capibara_axion.gelu_and_mul(gate_up, approximate=approximate, out=out)


def packing(case: Case) -> dict[str, Any]:
    """What PackedLinear and torch_ops.pack_weight are told of a linear layer."""
    dtypes = {"linear_int8": "int8", "linear_int4": "int4", "linear_int4_a16": "int4"}
    options = {"dtype": dtypes[case.op]} if case.op in dtypes else {}
    return options | ({"method": "w4a16"} if case.op == "linear_int4_a16" else {})


@contender(LINEAR, "ours", "NumPy packed out", arrays=True)
def _packed(a: Inputs) -> Call:
    layer = capibara_axion.PackedLinear(a.weight, **packing(a.case))
    x, out = a.x, empty((a.case.tokens, a.case.outputs), a.x.dtype)
    return lambda: layer(x, out=out)

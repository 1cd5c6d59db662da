# SPDX-License-Identifier: Apache-2.0
"""NumPy, float32, one thread: as one would write it for speed, with few temporaries."""

from __future__ import annotations

import importlib.util
from typing import Any

import numpy as np

from capibara_axion.bench.kernels.arrays import Array
from capibara_axion.bench.kernels.cases import EPS, HEAD_DIM, HIDDEN, Inputs
from capibara_axion.bench.kernels.contenders import ROPES, Call, contender

_NUMPY: dict[str, Any] = {"dtypes": ("f32",), "single_threaded": True, "arrays": True}


def _rms_norm_into(out: Array, x: Array, weight: Array) -> Array:
    scale = 1 / np.sqrt(np.einsum("ij,ij->i", x, x) / np.float32(HIDDEN) + np.float32(EPS))
    np.multiply(x, scale[:, np.newaxis], out=out)
    return np.multiply(out, weight, out=out)


@contender("rms_norm", "NumPy", "einsum", **_NUMPY)
def _rms_norm(a: Inputs) -> Call:
    x, weight = a.x, a.weight
    out = np.empty_like(x)
    return lambda: _rms_norm_into(out, x, weight)


@contender("fused_add_rms_norm", "NumPy", "einsum", in_place=True, **_NUMPY)
def _fused_add_rms_norm(a: Inputs) -> Call:
    x, residual, weight = a.x, a.residual, a.weight
    return lambda: _rms_norm_into(x, np.add(residual, x, out=residual), weight)


@contender("layer_norm", "NumPy", "einsum", **_NUMPY)
def _layer_norm(a: Inputs) -> Call:
    x, weight = a.x, a.weight
    out = np.empty_like(x)

    def call() -> Any:
        np.subtract(x, x.mean(-1, keepdims=True), out=out)
        return _rms_norm_into(out, out, weight)

    return call


@contender("softmax", "NumPy", "exp", **_NUMPY)
def _softmax(a: Inputs) -> Call:
    x = a.x
    out = np.empty_like(x)

    def call() -> Any:
        np.subtract(x, x.max(-1, keepdims=True), out=out)
        np.exp(out, out=out)
        return np.divide(out, out.sum(-1, keepdims=True), out=out)

    return call


@contender("silu_and_mul", "NumPy", "exp", **_NUMPY)
def _silu_and_mul(a: Inputs) -> Call:
    gate, up = np.split(a.gate_up, 2, -1)
    out = np.empty(gate.shape, np.float32)

    def call() -> Any:
        np.negative(gate, out=out)
        np.exp(out, out=out)
        np.add(out, 1, out=out)
        np.divide(gate, out, out=out)
        return np.multiply(out, up, out=out)

    return call


@contender("gelu_tanh_and_mul", "NumPy", "tanh", **_NUMPY)
def _gelu_tanh_and_mul(a: Inputs) -> Call:
    gate, up = np.split(a.gate_up, 2, -1)
    out = np.empty(gate.shape, np.float32)
    linear = np.float32(np.sqrt(2 / np.pi))
    cubic = np.float32(0.044715) * linear

    def call() -> Any:
        np.multiply(gate, gate, out=out)
        np.multiply(out, cubic, out=out)
        np.add(out, linear, out=out)
        np.multiply(out, gate, out=out)
        np.tanh(out, out=out)
        np.add(out, 1, out=out)
        np.multiply(out, gate, out=out)
        np.multiply(out, np.float32(0.5), out=out)
        return np.multiply(out, up, out=out)

    return call


@contender(ROPES, "NumPy", "halves", in_place=True, **_NUMPY)
def _rope(a: Inputs) -> Call:
    positions, cache = a.positions, a.cos_sin_cache
    pairs = []
    for x in (a.q, a.k):
        heads = x.reshape(len(x), -1, HEAD_DIM)  # a view
        halves = np.split(heads, 2, -1) if a.case.neox else (heads[..., ::2], heads[..., 1::2])
        pairs.append(halves)

    def call() -> None:
        cos, sin = np.split(cache[positions][:, np.newaxis], 2, -1)
        for first, second in pairs:
            turned = first * sin
            first *= cos
            first -= second * sin
            second *= cos
            second += turned

    return call


@contender("linear", "NumPy", "@ out=", **_NUMPY)
def _linear(a: Inputs) -> Call:
    if importlib.util.find_spec("threadpoolctl"):  # its BLAS takes all cores by default
        from threadpoolctl import threadpool_limits

        threadpool_limits(1, "blas")
    x, weight = a.x, a.weight.T
    out = np.empty((a.case.tokens, a.case.outputs), np.float32)
    return lambda: np.matmul(x, weight, out=out)

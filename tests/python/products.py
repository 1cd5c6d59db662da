# SPDX-License-Identifier: Apache-2.0
"""The matrix products, as operators.py has the other operators."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tolerances
from operators import Arguments, Array, Variant, normal, wide

import capibara_axion as ax
from capibara_axion import reference

# Under QEMU, where everything takes some twenty times longer: scripts/aarch64/python.sh.
EMULATED = Path(sys.executable).name == "python.sh"

ACTIVATIONS = (None, "silu", "gelu", "gelu_tanh")
TYPES = {"f32": "float32", "bf16": "bfloat16", "f16": "float16", "int8": "int8"}
COLUMNS = 19  # of the result


def expect_matmul(a: Array, b: Array) -> tuple[Array, Array]:
    """(exact product, bound)"""
    return np.asarray(wide(a) @ wide(b)), tolerances.matmul_bound(a, b, a.dtype.name)


def expect_linear(
    x: Array,
    weight: Array,
    bias: Array | None = None,
    activation: str | None = None,
    residual: Array | None = None,
) -> tuple[Array, Array]:
    """(exact result, bound)"""
    product, bound = wide(x) @ wide(weight).T, tolerances.matmul_bound(x, weight.T, x.dtype.name)
    exact = reference.linear(wide(x), weight, bias, activation=activation, residual=residual)
    return exact, tolerances.linear_bound(product, bound, x.dtype, bias, activation, residual)


def expect_packed(
    layer: ax.PackedLinear,
    x: Array,
    weight: Array,
    bias: Array | None = None,
    activation: str | None = None,
    residual: Array | None = None,
) -> tuple[Array, Array]:
    """(exact result, bound) of `layer`, which packed `weight`."""
    options: dict[str, Any] = {"activation": activation, "residual": residual}
    if layer.dtype == "int8":
        product = reference.linear_int8(wide(x), weight)
        bound = tolerances.int8_bound(product)
        exact = reference.linear_int8(wide(x), weight, bias, **options)
    else:
        values, _ = layer.unpack()
        product = wide(x) @ wide(values).T
        bound = tolerances.packed_bound(x, values, TYPES[layer.dtype])
        exact = reference.linear(wide(x), values, bias, **options)
    return exact, tolerances.linear_bound(product, bound, x.dtype, bias, activation, residual)


def _make_matmul(rng: Any, rows: int, cols: int, dtype: Any) -> Arguments:
    return {"a": normal(rng, (rows, cols), dtype), "b": normal(rng, (cols, COLUMNS), dtype)}


def _make_linear(rng: Any, rows: int, cols: int, dtype: Any) -> Arguments:
    return {
        "x": normal(rng, (rows, cols), dtype),
        "weight": normal(rng, (COLUMNS, cols), dtype),
        "bias": normal(rng, (COLUMNS,), dtype),
        "residual": normal(rng, (rows, COLUMNS), dtype),
    }


def _run_linear(a: Arguments) -> tuple[Any, ...]:
    x, weight, bias, residual = a.values()
    return (ax.linear(x, weight, bias, activation="silu", residual=residual),)


def _products() -> Iterator[Variant]:
    yield Variant(
        "matmul",
        "",
        _make_matmul,
        lambda a: (ax.matmul(a["a"], a["b"]),),
        lambda a: [expect_matmul(a["a"], a["b"])],
    )
    yield Variant(
        "linear",
        "silu",
        _make_linear,
        _run_linear,
        lambda a: [expect_linear(a["x"], a["weight"], a["bias"], "silu", a["residual"])],
    )
    for name in TYPES:

        def layer(a: Arguments, name: str = name) -> ax.PackedLinear:
            return ax.PackedLinear(a["weight"], name, a["bias"])

        def run(a: Arguments, layer: Any = layer) -> tuple[Any, ...]:
            return (layer(a)(a["x"], residual=a["residual"]),)

        def expect(a: Arguments, layer: Any = layer) -> list[tuple[Array, Array]]:
            x, weight, bias, residual = a.values()
            return [expect_packed(layer(a), x, weight, bias, None, residual)]

        yield Variant("packed_linear", name, _make_linear, run, expect)


PRODUCTS = tuple(_products())

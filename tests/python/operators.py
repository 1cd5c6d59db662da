# SPDX-License-Identifier: Apache-2.0
"""Every operator with its options, so that a test can run over all of them.

A variant makes the arguments of a call, makes the call, and knows the exact results with their
bounds. The arguments of `run` are NumPy arrays or, converted, torch tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import tolerances
from numpy.typing import NDArray

import capibara_axion
from capibara_axion import reference

Array = NDArray[Any]
Arguments = dict[str, Any]

FLOAT32, FLOAT16 = np.dtype(np.float32), np.dtype(np.float16)
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
DTYPES = (FLOAT32, FLOAT16, BFLOAT16)
EPS = 1e-5
SCALE = 0.3125  # exact in float32, as the bounds assume


@dataclass(frozen=True)
class Variant:
    """One operator with one choice of its options."""

    op: str
    options: str
    make: Callable[[np.random.Generator, int, int, np.dtype[Any]], Arguments]  # rows, columns
    run: Callable[[Arguments], tuple[Any, ...]]
    # (exact result, bound of the float32 value) for each result, before `run` changes anything
    expect: Callable[[Arguments], list[tuple[Array, Array]]]
    in_place: tuple[str, ...] = ()  # the arguments that are written

    def __str__(self) -> str:
        return f"{self.op} {self.options}".strip().replace(" ", "-")

    def check(self, arguments: Arguments, what: str) -> tuple[Array, ...]:
        """Runs the operator, compares, and returns the results."""
        expected = self.expect(arguments)
        results = self.run(arguments)
        for result, (exact, bound) in zip(results, expected, strict=True):
            tolerances.assert_within(result, exact, bound, f"{self} {what}")
        return results


def normal(rng: np.random.Generator, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    return rng.standard_normal(shape, np.float32).astype(dtype)


def wide(x: Array) -> Array:
    return x.astype(np.float64)


def _norms() -> Iterator[Variant]:
    for options, weight_dtype in (("", None), ("float32 weight", FLOAT32)):

        def make(
            rng: Any, rows: int, cols: int, dtype: Any, weight_dtype: Any = weight_dtype
        ) -> Arguments:
            weight = normal(rng, (cols,), weight_dtype or dtype)
            return {"x": normal(rng, (rows, cols), dtype), "weight": weight, "eps": EPS}

        def make_fused(rng: Any, rows: int, cols: int, dtype: Any, make: Any = make) -> Arguments:
            return make(rng, rows, cols, dtype) | {"residual": normal(rng, (rows, cols), dtype)}

        def make_heads(
            rng: Any, rows: int, cols: int, dtype: Any, weight_dtype: Any = weight_dtype
        ) -> Arguments:
            weight = normal(rng, (3, cols), weight_dtype or dtype)
            return {"x": normal(rng, (rows, 3, cols), dtype), "weight": weight, "eps": EPS}

        yield Variant("rms_norm", options, make, _run_rms_norm, _expect_rms_norm)
        yield Variant(
            "fused_add_rms_norm", options, make_fused, _run_fused, _expect_fused, ("x", "residual")
        )
        yield Variant("layer_norm", options, make, _run_layer_norm, _expect_layer_norm)
        options = f"{options} heads".strip()
        yield Variant("layer_norm", options, make_heads, _run_layer_norm, _expect_layer_norm)


def _run_rms_norm(a: Arguments) -> tuple[Any, ...]:
    return (capibara_axion.rms_norm(a["x"], a["weight"], a["eps"]),)


def _run_fused(a: Arguments) -> tuple[Any, ...]:
    return capibara_axion.fused_add_rms_norm(a["x"], a["residual"], a["weight"], a["eps"])


def _run_layer_norm(a: Arguments) -> tuple[Any, ...]:
    return (capibara_axion.layer_norm(a["x"], a["weight"], a["eps"]),)


def _expect_rms_norm(a: Arguments) -> list[tuple[Array, Array]]:
    exact = reference.rms_norm(wide(a["x"]), a["weight"], a["eps"])
    return [(exact, tolerances.rms_norm_bound(a["x"], a["weight"], a["eps"]))]


def _expect_fused(a: Arguments) -> list[tuple[Array, Array]]:
    # float32 has room for the sum of two 16-bit values rounded twice (S. Figueroa, "When is double
    # rounding innocuous?", 1995), so the sum that is normalised is exactly the reference's.
    _, total = reference.fused_add_rms_norm(a["x"], a["residual"], a["weight"], a["eps"])
    normalised = _expect_rms_norm({"x": total, "weight": a["weight"], "eps": a["eps"]})
    return [*normalised, (wide(total), np.zeros(total.shape))]


def _expect_layer_norm(a: Arguments) -> list[tuple[Array, Array]]:
    exact = reference.layer_norm(wide(a["x"]), a["weight"], a["eps"])
    return [(exact, tolerances.layer_norm_bound(a["x"], a["weight"], a["eps"]))]


def _softmax() -> Iterator[Variant]:
    for options, scale, with_lengths in (
        ("", 1.0, False),
        ("scaled", SCALE, False),
        ("negative scale", -SCALE, False),
        ("lengths", 1.0, True),
        ("scaled lengths", SCALE, True),
    ):

        def make(
            rng: Any,
            rows: int,
            cols: int,
            dtype: Any,
            scale: float = scale,
            with_lengths: bool = with_lengths,
        ) -> Arguments:
            lengths = rng.integers(0, cols + 1, rows, np.int32) if with_lengths else None
            x = 8 * normal(rng, (rows, cols), np.dtype(np.float32))
            return {"x": x.astype(dtype), "scale": scale, "lengths": lengths}

        yield Variant("softmax", options, make, _run_softmax, _expect_softmax)


def _run_softmax(a: Arguments) -> tuple[Any, ...]:
    return (capibara_axion.softmax(a["x"], a["scale"], a["lengths"]),)


def _expect_softmax(a: Arguments) -> list[tuple[Array, Array]]:
    exact = reference.softmax(wide(a["x"]), a["scale"], a["lengths"])
    return [(exact, tolerances.softmax_bound(a["x"], a["scale"], a["lengths"]))]


def _gated() -> Iterator[Variant]:
    bounds = {
        "silu_and_mul": tolerances.silu_bound,
        "gelu_and_mul": tolerances.gelu_bound,
        "gelu_tanh_and_mul": tolerances.gelu_tanh_bound,
    }

    def make_packed(rng: Any, rows: int, cols: int, dtype: Any) -> Arguments:
        return {"gate_up": 2 * normal(rng, (rows, 2 * cols), dtype), "up": None}

    def make_two(rng: Any, rows: int, cols: int, dtype: Any) -> Arguments:
        gate, up = (2 * normal(rng, (rows, cols), dtype) for _ in range(2))
        return {"gate_up": gate, "up": up}

    for op, bound in bounds.items():

        def run(a: Arguments, op: str = op) -> tuple[Any, ...]:
            return (call_gated(capibara_axion, op, a["gate_up"], a["up"]),)

        def expect(a: Arguments, op: str = op, bound: Any = bound) -> list[tuple[Array, Array]]:
            gate, up = a["gate_up"], a["up"]
            if up is None:
                gate, up = np.split(gate, 2, axis=-1)
            return [(call_gated(reference, op, wide(gate), wide(up)), bound(gate, up))]

        yield Variant(op, "packed", make_packed, run, expect)
        yield Variant(op, "two tensors", make_two, run, expect)


def call_gated(module: Any, op: str, gate_up: Any, up: Any = None, **keywords: Any) -> Any:
    """Calls a gated operator by the name that it has among the native ones."""
    if op == "silu_and_mul":
        return module.silu_and_mul(gate_up, up, **keywords)
    approximate = "tanh" if op == "gelu_tanh_and_mul" else "none"
    return module.gelu_and_mul(gate_up, up, approximate=approximate, **keywords)


@dataclass(frozen=True)
class _Rope:
    neox: bool = True
    beyond: int = 0  # elements of a head that do not turn
    cache_dtype: np.dtype[Any] | None = None
    with_k: bool = True
    flat: bool = False
    positions: type = np.int64

    def make(self, rng: Any, rows: int, cols: int, dtype: Any) -> Arguments:
        """A pair of elements is a column; cols = 0 is a head that does not turn at all."""
        rotary_dim, heads, max_position = 2 * cols, {"q": 3, "k": 2}, 11
        head_dim = max(rotary_dim + self.beyond, 1)
        angles = rng.uniform(-4, 4, (max_position, cols))
        cache = np.concatenate([np.cos(angles), np.sin(angles)], axis=-1).reshape(
            max_position, rotary_dim
        )
        shapes = {
            name: (rows, count * head_dim) if self.flat else (rows, count, head_dim)
            for name, count in heads.items()
        }
        return {
            "q": normal(rng, shapes["q"], dtype),
            "k": normal(rng, shapes["k"], dtype) if self.with_k else None,
            "cos_sin_cache": cache.astype(self.cache_dtype or dtype),
            "positions": rng.integers(0, max_position, rows, self.positions),
            "head_dim": head_dim if self.flat else None,
            "neox": self.neox,
        }

    def variant(self, options: str) -> Variant:
        written = ("q", "k") if self.with_k else ("q",)
        return Variant("rope", options, self.make, _run_rope, _expect_rope, written)


def _ropes() -> Iterator[Variant]:
    yield _Rope().variant("neox")
    yield _Rope(neox=False).variant("interleaved")
    yield _Rope(beyond=5, cache_dtype=FLOAT32).variant("neox partial float32 cache")
    yield _Rope(neox=False, beyond=5, cache_dtype=FLOAT32).variant(
        "interleaved partial float32 cache"
    )
    yield _Rope(with_k=False, positions=np.int32).variant("neox q alone int32 positions")
    yield _Rope(flat=True, beyond=2).variant("neox flat")


def _run_rope(a: Arguments) -> tuple[Any, ...]:
    capibara_axion.rope(**a)
    return (a["q"],) if a["k"] is None else (a["q"], a["k"])


def _expect_rope(a: Arguments) -> list[tuple[Array, Array]]:
    values = {name: None if a[name] is None else wide(a[name]) for name in ("q", "k")}
    exact = [x for x in reference.rope(**a | values) if x is not None]
    return list(zip(exact, tolerances.rope_bounds(**a), strict=True))


VARIANTS = (*_norms(), *_softmax(), *_gated(), *_ropes())
# One of each operator, for what does not depend on options.
OPERATORS = tuple({variant.op: variant for variant in reversed(VARIANTS)}.values())

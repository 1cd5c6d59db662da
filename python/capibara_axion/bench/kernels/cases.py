# SPDX-License-Identifier: Apache-2.0
"""What is measured: the operators at the sizes of an 8B model, their inputs and exact results."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import ml_dtypes
import numpy as np

from capibara_axion import PackedLinear, reference
from capibara_axion.bench.kernels.arrays import Array, array, copy

HIDDEN = 4096
HEADS, KV_HEADS, HEAD_DIM = 32, 8, 128
MAX_POSITION = 4096
EPS = 1e-6

OPS = (
    "rms_norm",
    "fused_add_rms_norm",
    "layer_norm",
    "softmax",
    "rope_neox",
    "rope_interleaved",
    "silu_and_mul",
    "gelu_tanh_and_mul",
    "gelu_and_mul",
    "linear",
    "linear_int8",
    "linear_int4",
    "linear_int4_a16",
    "attention",
    "attention_fp8",
    "kv_cache_append",
    "kv_cache_append_fp8",
)
TOKENS = (1, 16, 128, 1024)
# Of the linear layers, tokens x output features x input features: a layer of an 8B model for one
# request and for several, for prompts, and a cube.
_LINEAR = (
    *({"tokens": tokens} for tokens in TOKENS),
    {"tokens": 1024, "outputs": 1024, "features": 1024},
)
# Of attention, queries x keys: prompts, and one more token after some.
_PREFILL = tuple({"tokens": tokens, "keys": tokens} for tokens in (128, 512, 2048))
_DECODE = tuple({"tokens": 1, "keys": keys} for keys in (512, 4096, 32768))
# Of what is appended to a cache: a sequence's tokens, from its first.
_APPENDED = tuple({"tokens": tokens, "keys": tokens} for tokens in (1, 8, 512))
# Operators with shapes of their own; the others have TOKENS.
_SHAPES: dict[str, tuple[dict[str, Any], ...]] = {
    "linear": _LINEAR,
    "linear_int8": _LINEAR,
    "linear_int4": _LINEAR,
    "linear_int4_a16": _LINEAR,
    "attention": _PREFILL + _DECODE,
    "attention_fp8": _DECODE[1:],
    "kv_cache_append": _APPENDED,
    "kv_cache_append_fp8": _APPENDED,
}
DTYPES: dict[str, Any] = {"bf16": ml_dtypes.bfloat16, "f32": np.float32}
# Tokens of a block of a paged cache.
BLOCK = 128
_FP8: dict[str, Any] = {"fp8_e4m3": ml_dtypes.float8_e4m3fn, "fp8_e5m2": ml_dtypes.float8_e5m2}

# Rows of a result that are compared with the reference; every operator works row by row.
_CHECKED_ROWS = 8
# Inputs that belong to all rows.
_WHOLE = ("weight", "cos_sin_cache", "key", "value")
# Units of the dtype's precision, relative to the largest value of the row: one rounding is up to
# half a unit. bf16 results are rounded once, or twice by some peers; float32 ones, with sums of
# 4096 terms in several totals, stay below 3. Matrix products add up K terms one after the other:
# K roundings of half a unit of a partial sum, which grow as sqrt(K) / 4 units if they are
# independent; the worst of some thousand results is four such deviations. Attention rounds every
# probability, an error of up to half a unit of each summand p v. These are independent, so that
# together they deviate by at most 0.3 units of sqrt(sum of p^2 v^2), which is also how far the
# results lie from 0: the worst of some thousand by 1.3 units of that, and the largest of a head's
# 128 results is twice that. With the rounding of the result itself it stays below 2.
TOLERANCE = 4.0

Inputs = SimpleNamespace

# Operations an element, as the formulas have them: of the norms, a square and a sum, two products
# (and an addition, or a mean and its subtraction); of softmax, maximum, difference, exponential,
# sum, quotient; of the rotation, six a pair; of the gates, what the approximation of their sigmoid,
# tanh or erf counts as one leaves. Storing a key as it is takes none, in 8 bits a product.
_OPERATIONS = {
    "rms_norm": 4,
    "fused_add_rms_norm": 5,
    "layer_norm": 6,
    "softmax": 5,
    "rope_neox": 3,
    "rope_interleaved": 3,
    "silu_and_mul": 5,
    "gelu_tanh_and_mul": 9,
    "gelu_and_mul": 6,
    "kv_cache_append_fp8": 1,
}


@dataclass(frozen=True)
class Case:
    """One row of the table."""

    op: str
    dtype: str
    tokens: int
    threads: int = 1
    intermediate: int = 14336  # columns of the gated activations' results
    outputs: int = HIDDEN  # of a linear layer
    features: int = HIDDEN  # its inputs
    keys: int = 0  # of attention, the queries' own included
    heads: int = HEADS  # of its queries
    kv_heads: int = KV_HEADS  # of its keys and values
    fp8: str = "fp8_e4m3"  # the cache's type where the operator's name ends with it

    def __str__(self) -> str:
        return f"{self.op}-{self.dtype}-{self.shape}-{self.threads}"

    @property
    def linear(self) -> bool:
        return self.op.startswith("linear")

    @property
    def shape(self) -> str:
        if self.linear:
            return f"{self.tokens}x{self.outputs}x{self.features}"
        if self.op.startswith("attention"):
            return f"{self.tokens}x{self.keys}"
        return str(self.tokens)

    @property
    def cached(self) -> bool:
        """Whether a KV cache is read or written."""
        return self.op.startswith(("attention", "kv_cache"))

    @property
    def cache_dtype(self) -> str:
        """Of the KV cache, as PagedKVCache calls it."""
        return self.fp8 if self.op.endswith("_fp8") else np.dtype(DTYPES[self.dtype]).name

    @property
    def multiplications(self) -> int:
        """Of the matrix products in it; 0 if there are none."""
        if self.linear:
            return self.tokens * self.outputs * self.features
        if self.op.startswith("attention"):
            seen = self.tokens * self.keys - self.tokens * (self.tokens - 1) // 2
            return 2 * self.heads * HEAD_DIM * seen
        return 0

    @property
    def in_place(self) -> tuple[str, ...]:
        """The inputs that a contender working in place overwrites."""
        if self.op == "fused_add_rms_norm":
            return ("x", "residual")
        return ("qkv",) if self.op.startswith("rope") else ()

    @property
    def neox(self) -> bool:
        return self.op == "rope_neox"

    @property
    def tolerance(self) -> float:
        """In units of the dtype's precision: see TOLERANCE."""
        return self.features**0.5 if self.linear and self.dtype == "f32" else TOLERANCE

    @property
    def bytes_moved(self) -> int:
        """Bytes that the operator has to read and to write, each once."""
        size: int = np.dtype(DTYPES[self.dtype]).itemsize
        if self.linear:
            weights = self.features * self.outputs
            activations = self.tokens * (self.features + self.outputs)
            if self.op.startswith("linear_int4"):  # and a scale and a zero point for each 128
                return weights // 2 + weights // 128 * 6 + size * activations
            weight = 1 if self.op == "linear_int8" else size
            return weight * weights + size * activations
        if self.cached:
            cache = 1 if self.op.endswith("_fp8") else size
            key_and_value = 2 * self.kv_heads * HEAD_DIM
            if self.op.startswith("kv_cache"):
                return self.tokens * key_and_value * (size + cache)
            query_and_result = 2 * self.heads * HEAD_DIM
            return self.keys * key_and_value * cache + self.tokens * query_and_result * size
        if self.op == "fused_add_rms_norm":
            row, constant = 4 * HIDDEN, HIDDEN
        elif self.op == "softmax":
            row, constant = 2 * HIDDEN, 0
        elif self.op.startswith("rope"):
            row, constant = 2 * (HEADS + KV_HEADS) * HEAD_DIM + HEAD_DIM, 0
        elif self.op.endswith("and_mul"):
            row, constant = 3 * self.intermediate, 0
        else:
            row, constant = 2 * HIDDEN, HIDDEN
        return size * (self.tokens * row + constant)

    @property
    def operations(self) -> int:
        """Floating-point (or integer) operations; an exponential or the like counts as one."""
        if self.linear or self.op.startswith("attention"):
            return 2 * self.multiplications
        return self.tokens * _OPERATIONS.get(self.op, 0) * self._row

    @property
    def _row(self) -> int:
        """Elements of a token that `_OPERATIONS` counts by."""
        if self.op.startswith("rope"):
            return (HEADS + KV_HEADS) * HEAD_DIM
        if self.op.startswith("kv_cache"):
            return 2 * self.kv_heads * HEAD_DIM
        return self.intermediate if self.op.endswith("and_mul") else HIDDEN

    def inputs(self) -> Inputs:
        """Random inputs, the same for every contender: NumPy arrays."""
        generator = np.random.default_rng(0)
        dtype = DTYPES[self.dtype]

        def normal(*shape: int) -> Array:
            return copy(generator.standard_normal(shape, np.float32), dtype)

        if self.op.startswith("rope"):
            angles = np.outer(
                np.arange(MAX_POSITION),
                10000.0 ** (-np.arange(0, HEAD_DIM, 2) / HEAD_DIM),
            )
            return with_views(
                Inputs(
                    case=self,
                    qkv=normal(self.tokens, (HEADS + 2 * KV_HEADS) * HEAD_DIM),
                    cos_sin_cache=copy(np.concatenate((np.cos(angles), np.sin(angles)), -1), dtype),
                    positions=copy(generator.integers(MAX_POSITION, size=self.tokens)),
                )
            )
        if self.op.endswith("and_mul"):
            return Inputs(case=self, gate_up=normal(self.tokens, 2 * self.intermediate))
        if self.linear:
            return Inputs(
                case=self,
                x=normal(self.tokens, self.features),
                weight=normal(self.outputs, self.features),
            )
        if self.cached:
            keys = (self.keys, self.kv_heads, HEAD_DIM)
            # What 8 bits hold exactly, so that every cache holds the same.
            held = _FP8[self.fp8] if self.op.endswith("_fp8") else dtype
            return Inputs(
                case=self,
                q=normal(self.tokens, self.heads, HEAD_DIM),
                key=copy(normal(*keys).astype(held), dtype),
                value=copy(normal(*keys).astype(held), dtype),
                step=_step(self, generator),
            )
        return Inputs(
            case=self,
            x=normal(self.tokens, HIDDEN),
            residual=normal(self.tokens, HIDDEN),
            weight=normal(HIDDEN),
        )


def _step(case: Case, generator: np.random.Generator) -> Inputs:
    """One sequence in a paged cache, as vLLM describes a step: its blocks lie anywhere."""
    blocks = -(-case.keys // BLOCK)
    table = generator.permutation(blocks)
    position = np.arange(case.keys)
    return Inputs(
        blocks=blocks,
        block_table=copy(table[np.newaxis], np.int32),
        slots=copy(table[position // BLOCK] * BLOCK + position % BLOCK, np.int64),
        seq_lens=np.array([case.keys], np.int32),
        query_start=np.array([0, case.tokens], np.int32),
    )


def with_views(inputs: Inputs) -> Inputs:
    """Adds q and k, the views of a fused qkv that attention layers pass on."""
    q, k, _ = np.split(inputs.qkv, (HEADS * HEAD_DIM, (HEADS + KV_HEADS) * HEAD_DIM), -1)
    return Inputs(**vars(inputs) | {"q": q, "k": k})


def dtypes(op: str) -> tuple[str, ...]:
    """Those in which an operator is measured."""
    return ("bf16",) if Case(op, "bf16", 1).cached else tuple(DTYPES)


def shapes(op: str, tokens: Collection[int] | None = None) -> list[dict[str, Any]]:
    """The sizes of an operator's rows, as arguments of Case; of so many tokens, if given."""
    if op not in _SHAPES:
        return [{"tokens": count} for count in tokens or TOKENS]
    return [shape for shape in _SHAPES[op] if tokens is None or shape["tokens"] in tokens]


def error(case: Case, inputs: Inputs, outputs: Iterable[Any]) -> float:
    """The largest error of `outputs` against float64, in the units of TOLERANCE.

    inputs: as they were before the call.
    """
    rows = np.unique(np.linspace(0, case.tokens - 1, _CHECKED_ROWS).astype(int))
    precision = float(ml_dtypes.finfo(DTYPES[case.dtype]).eps)
    worst = 0.0
    for exact, output in zip(_expected(case, inputs, rows), outputs, strict=True):
        given = _wide(array(output)[rows]).reshape(exact.shape)
        scale = precision * np.abs(exact).max(-1, keepdims=True)
        worst = max(worst, float((np.abs(given - exact) / scale).max(initial=0.0)))
        if not np.isfinite(given).all():
            return float("inf")
    return worst


def _expected(case: Case, inputs: Inputs, rows: Array) -> tuple[Any, ...]:
    a = {
        name: _wide(value if name in _WHOLE else value[rows])
        for name, value in vars(inputs).items()
        if isinstance(value, np.ndarray)
    }
    match case.op:
        case "rms_norm":
            return (reference.rms_norm(a["x"], a["weight"], EPS),)
        case "fused_add_rms_norm":
            return reference.fused_add_rms_norm(a["x"], a["residual"], a["weight"], EPS)
        case "layer_norm":
            return (reference.layer_norm(a["x"], a["weight"], EPS),)
        case "softmax":
            return (reference.softmax(a["x"]),)
        case "linear":
            return (a["x"] @ a["weight"].T,)
        case "linear_int8":
            return (reference.linear_int8(a["x"], a["weight"]),)
        case "linear_int4" | "linear_int4_a16":
            layer = PackedLinear(a["weight"].astype(np.float32), "int4")
            method = "w4a16" if case.op == "linear_int4_a16" else "w4a8"
            return (reference.linear_int4(a["x"], *layer.unpack_int4(), method=method),)
        case "silu_and_mul":
            return (reference.silu_and_mul(a["gate_up"]),)
        case "gelu_and_mul":
            return (reference.gelu_and_mul(a["gate_up"]),)
        case "gelu_tanh_and_mul":
            return (reference.gelu_and_mul(a["gate_up"], approximate="tanh"),)
        case "attention" | "attention_fp8" | "kv_cache_append" | "kv_cache_append_fp8":
            # What has been appended is read by attention.
            ends = case.keys - case.tokens + rows + 1
            return (np.concatenate([_attention(a, *at) for at in enumerate(ends)]),)
        case _:
            positions = a["positions"].astype(int)
            q, k, cache = a["q"], a["k"], a["cos_sin_cache"]
            return reference.rope(q, k, cache, positions, head_dim=HEAD_DIM, neox=case.neox)


def _attention(a: dict[str, Array], row: int, end: int) -> Array:
    q, k, v = a["q"][None, row : row + 1], a["key"][None, :end], a["value"][None, :end]
    attended: Array = reference.flash_attention(q, k, v)[0]
    return attended


def _wide(values: Array) -> Array:
    wide: Array = values.astype(np.float64)
    return wide

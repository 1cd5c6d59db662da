# SPDX-License-Identifier: Apache-2.0
"""What is measured: the operators at the sizes of an 8B model, their inputs and exact results."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from capibara_axion import reference

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
)
TOKENS = (1, 16, 128, 1024)
# Of the linear layers, tokens x output features x input features: a layer of an 8B model for one
# request and for several, for prompts, and a cube.
LINEAR_SHAPES = (
    *((tokens, HIDDEN, HIDDEN) for tokens in TOKENS),
    (1024, 1024, 1024),
)
DTYPES = {"bf16": torch.bfloat16, "f32": torch.float32}

# Rows of a result that are compared with the reference; every operator works row by row.
_CHECKED_ROWS = 8
# Units of the dtype's precision, relative to the largest value of the row: one rounding is up to
# half a unit. bf16 results are rounded once, or twice by some peers; float32 ones, with sums of
# 4096 terms in several totals, stay below 3. Matrix products add up K terms one after the other:
# K roundings of half a unit of a partial sum, which grow as sqrt(K) / 4 units if they are
# independent; the worst of some thousand results is four such deviations.
TOLERANCE = 4.0

Inputs = SimpleNamespace


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

    def __str__(self) -> str:
        return f"{self.op}-{self.dtype}-{self.shape}-{self.threads}"

    @property
    def linear(self) -> bool:
        return self.op.startswith("linear")

    @property
    def shape(self) -> str:
        if self.linear:
            return f"{self.tokens}x{self.outputs}x{self.features}"
        return str(self.tokens)

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
        size = DTYPES[self.dtype].itemsize
        if self.linear:
            weight = 1 if self.op == "linear_int8" else size
            activations = self.tokens * (self.features + self.outputs)
            return weight * self.features * self.outputs + size * activations
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

    def inputs(self) -> Inputs:
        """Random inputs, the same for every contender."""
        generator = torch.Generator().manual_seed(0)
        dtype = DTYPES[self.dtype]

        def normal(*shape: int) -> torch.Tensor:
            return torch.randn(shape, generator=generator).to(dtype)

        if self.op.startswith("rope"):
            angles = torch.outer(
                torch.arange(MAX_POSITION).float(),
                10000.0 ** (-torch.arange(0, HEAD_DIM, 2).float() / HEAD_DIM),
            )
            return with_views(
                Inputs(
                    case=self,
                    qkv=normal(self.tokens, (HEADS + 2 * KV_HEADS) * HEAD_DIM),
                    cos_sin_cache=torch.cat((angles.cos(), angles.sin()), -1).to(dtype),
                    positions=torch.randint(MAX_POSITION, (self.tokens,), generator=generator),
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
        return Inputs(
            case=self,
            x=normal(self.tokens, HIDDEN),
            residual=normal(self.tokens, HIDDEN),
            weight=normal(HIDDEN),
        )


def with_views(inputs: Inputs) -> Inputs:
    """Adds q and k, the views of a fused qkv that attention layers pass on."""
    q, k = inputs.qkv.split((HEADS * HEAD_DIM, 2 * KV_HEADS * HEAD_DIM), -1)
    return Inputs(**vars(inputs) | {"q": q, "k": k[:, : KV_HEADS * HEAD_DIM]})


def error(case: Case, inputs: Inputs, outputs: Iterable[Any]) -> float:
    """The largest error of `outputs` against float64, in the units of TOLERANCE.

    inputs: as they were before the call.
    """
    rows = np.unique(np.linspace(0, case.tokens - 1, _CHECKED_ROWS).astype(int))
    precision = torch.finfo(DTYPES[case.dtype]).eps
    worst = 0.0
    for exact, output in zip(_expected(case, inputs, rows), outputs, strict=True):
        given = _wide(torch.as_tensor(output)[rows]).reshape(exact.shape)
        scale = precision * np.abs(exact).max(-1, keepdims=True)
        worst = max(worst, float((np.abs(given - exact) / scale).max(initial=0.0)))
        if not np.isfinite(given).all():
            return float("inf")
    return worst


def _expected(case: Case, inputs: Inputs, rows: np.ndarray) -> tuple[Any, ...]:
    a = {
        name: _wide(value if name in ("weight", "cos_sin_cache") else value[rows])
        for name, value in vars(inputs).items()
        if isinstance(value, torch.Tensor)
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
        case "silu_and_mul":
            return (reference.silu_and_mul(a["gate_up"]),)
        case "gelu_and_mul":
            return (reference.gelu_and_mul(a["gate_up"]),)
        case "gelu_tanh_and_mul":
            return (reference.gelu_and_mul(a["gate_up"], approximate="tanh"),)
        case _:
            positions = a["positions"].astype(int)
            q, k, cache = a["q"], a["k"], a["cos_sin_cache"]
            return reference.rope(q, k, cache, positions, head_dim=HEAD_DIM, neox=case.neox)


def _wide(values: torch.Tensor) -> np.ndarray:
    return values.detach().to(torch.float64).numpy()

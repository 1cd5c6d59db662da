# SPDX-License-Identifier: Apache-2.0
"""Arguments that the native operators do not take go to vLLM's own implementation."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from capibara_axion.info import call_counts, reset_call_counts
from capibara_axion.vllm_plugin import activation, norm, rope


class Layer:
    """Stands for a vLLM layer; `stock` collects the calls that vLLM's own code gets."""

    head_size = 8
    is_neox_style = True
    approximate = "tanh"
    variance_epsilon = 1e-6
    use_long_rope = False
    original_max_position_embeddings = 4

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        self.stock: list[tuple[Any, ...]] = []
        self.weight = torch.zeros(8, dtype=dtype)
        self.long_short_cos_sin_cache = torch.ones(16, 8, dtype=dtype)

    def forward_stock(self, *args: Any) -> str:
        self.stock.append(args)
        return "stock"

    def _match_cos_sin_cache_dtype(self, query: torch.Tensor) -> torch.Tensor:
        return torch.ones(16, 8, dtype=query.dtype)


@pytest.fixture(autouse=True)
def _count_anew() -> None:
    reset_call_counts()


def _calls() -> int:
    return sum(call_counts().values())


@pytest.mark.parametrize("forward", [activation._silu_and_mul, activation._gelu_and_mul])
@pytest.mark.parametrize(
    ("x", "ours"),
    [
        (torch.ones(2, 16), True),
        (torch.ones(2, 16, dtype=torch.bfloat16), True),
        (torch.ones(2, 32)[:, :16], True),
        (torch.ones(2, 16, dtype=torch.float64), False),
        (torch.ones(16, 2).t(), False),
        (torch.ones(2, 16, device="meta"), False),
    ],
    ids=["f32", "bf16", "strided rows", "f64", "strided columns", "not on the CPU"],
)
def test_activations(forward: Any, x: torch.Tensor, ours: bool) -> None:
    layer = Layer()
    forward(layer, x)
    assert (_calls(), len(layer.stock)) == ((1, 0) if ours else (0, 1))


@pytest.mark.parametrize(
    ("positions", "query", "ours"),
    [
        (torch.arange(3), torch.ones(3, 16), True),
        (torch.arange(3), torch.ones(3, 2, 8), True),
        (torch.arange(3)[None], torch.ones(1, 3, 16), False),
        (torch.arange(3), torch.ones(3, 16, dtype=torch.float64), False),
    ],
    ids=["flat", "heads", "batched", "f64"],
)
def test_rope(positions: torch.Tensor, query: torch.Tensor, ours: bool) -> None:
    layer = Layer()
    rope._rotary_embedding(layer, positions, query, None)
    assert (_calls(), len(layer.stock)) == ((1, 0) if ours else (0, 1))


def test_phi3_long_rope_with_offsets() -> None:
    layer, stock = Layer(), []
    forward = rope._phi3_long_rope_or(lambda *args: stock.append(args) or args[2:4])
    query, key, positions = torch.ones(3, 16), torch.ones(3, 8), torch.arange(3)
    forward(layer, positions, query, key)
    assert (_calls(), len(stock)) == (1, 0)
    forward(layer, positions, query, key, torch.zeros(3, dtype=torch.long))
    assert (_calls(), len(stock)) == (1, 1)


def test_rms_norm_without_weight_or_over_a_part_of_the_row() -> None:
    x, weight = torch.ones(2, 8), torch.ones(8)
    assert norm._rms_norm_supports(x, weight, 1e-6)
    assert norm._rms_norm_supports(x.bfloat16(), weight, 1e-6)
    assert not norm._rms_norm_supports(x, None, 1e-6)
    assert not norm._rms_norm_supports(x, weight, 1e-6, 4)
    assert not norm._rms_norm_supports(x, weight.bfloat16(), 1e-6)
    assert not norm._fused_add_rms_norm_supports(x, x.bfloat16(), weight, 1e-6)


def test_gemma_rms_norm_adds_in_place_only_with_a_residual() -> None:
    layer, x, residual = Layer(), torch.ones(2, 8), torch.ones(2, 8)
    assert norm._gemma_rms_norm(layer, x) == "stock"
    output, total = norm._gemma_rms_norm(layer, x, residual)
    assert output is x
    assert total is residual
    assert torch.equal(total, torch.full((2, 8), 2.0))
    double = torch.ones(2, 8, dtype=torch.float64)
    assert norm._gemma_rms_norm(layer, double, double) == "stock"


def test_cohere_layer_norm() -> None:
    layer_norm = norm._layer_norm_or(lambda *_: "stock")
    assert isinstance(layer_norm(torch.randn(3, 8), torch.ones(8), 1e-5), torch.Tensor)
    assert isinstance(layer_norm(torch.randn(3, 2, 8), torch.ones(2, 8), 1e-5), torch.Tensor)
    assert layer_norm(torch.randn(3, 8).double(), torch.ones(8), 1e-5) == "stock"

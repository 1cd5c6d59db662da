# SPDX-License-Identifier: Apache-2.0
"""Linear layers: which of them are ours, what they compute, and which weights are kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import CASES
from conftest import Engines

from capibara_axion import torch_ops
from capibara_axion.info import call_counts, reset_call_counts
from capibara_axion.vllm_plugin import compat_linear, linear, linear_choice
from capibara_axion.vllm_plugin.linear import LinearHook
from capibara_axion.vllm_plugin.linear_cache import ChoiceCache


class Layer(torch.nn.Module):
    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(weight, requires_grad=False)


def stock_dispatch(layer: Any, remove_weight: bool) -> None:
    layer.stock = remove_weight
    layer.cpu_linear = torch.nn.functional.linear


@pytest.fixture
def hook(monkeypatch: pytest.MonkeyPatch) -> LinearHook:
    monkeypatch.setenv("CAPIBARA_AXION_LINEAR", "capibara")
    reset_call_counts()
    hook = LinearHook()
    hook.in_place_of(stock_dispatch)
    return hook


def _weight(dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(24, 40, generator=torch.Generator().manual_seed(1)).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("remove_weight", [True, False])
def test_a_layer_of_ours(hook: LinearHook, dtype: torch.dtype, remove_weight: bool) -> None:
    weight = _weight(dtype)
    layer = Layer(weight)
    hook.dispatch(layer, remove_weight)
    assert not hasattr(layer, "stock")
    assert layer.weight.numel() == (0 if remove_weight else weight.numel())
    assert layer.weight.dtype == dtype
    x = torch.randn(2, 3, 40).to(dtype)
    for bias in (None, torch.randn(24).to(dtype), torch.randn(24)):
        expected = torch.nn.functional.linear(x.double(), weight.double())
        expected += 0 if bias is None else bias.double()
        output = layer.cpu_linear(x, layer.weight, bias)
        assert output.dtype == dtype
        # One rounding of the result, and of f32 sums of 40 products of up to about 10.
        tolerance = torch.finfo(dtype).eps * expected.abs() + 40 * 10 * 2**-24
        assert ((output.double() - expected).abs() <= tolerance).all()
    name = {torch.float32: "f32", torch.bfloat16: "bf16", torch.float16: "f16"}[dtype]
    assert call_counts()[f"gemm_{name}"] == 3


@pytest.mark.parametrize(
    "weight",
    [
        torch.zeros(4, 1, 4),
        torch.zeros(8, 16, device="meta"),
        torch.zeros(8, 16, dtype=torch.float64),
        torch.zeros(0, 16),
        torch.zeros(8, 0),
    ],
    ids=["3-D", "meta", "f64", "no rows", "no columns"],
)
def test_other_weights_go_to_vllm(hook: LinearHook, weight: torch.Tensor) -> None:
    layer = Layer(weight)
    hook.dispatch(layer, True)
    assert layer.stock is True
    assert layer.weight.shape == weight.shape


def test_a_weight_that_cannot_be_packed_goes_to_vllm(
    hook: LinearHook, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(weight: torch.Tensor, dtype: str | None) -> torch.Tensor:
        raise ValueError("too small")

    monkeypatch.setattr(torch_ops, "pack_weight", refuse)
    layer = Layer(_weight())
    hook.dispatch(layer, True)
    assert layer.stock is True


def test_stock_means_vllm(hook: LinearHook, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAPIBARA_AXION_LINEAR", "stock")
    layer = Layer(_weight())
    hook.dispatch(layer, False)
    assert layer.stock is False


@pytest.mark.parametrize("ours", [True, False])
def test_auto_asks_the_cache(
    hook: LinearHook, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, ours: bool
) -> None:
    file = tmp_path / "linear.json"
    key = linear_choice.key_of(_weight(), "7")
    ChoiceCache(file).put(key, ours, {})
    monkeypatch.setenv("CAPIBARA_AXION_LINEAR", "auto")
    monkeypatch.setenv("CAPIBARA_AXION_LINEAR_CACHE", str(file))
    monkeypatch.setattr(linear.compat, "vllm_version", lambda: "7")
    layer = Layer(_weight())
    hook.dispatch(layer, True)
    assert hasattr(layer, "stock") is not ours


def test_an_embedding_is_packed_only_when_used(
    hook: LinearHook, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compat_linear, "is_lookup", lambda layer: True)
    layer = Layer(_weight())
    hook.dispatch(layer, False)
    later = layer.cpu_linear
    x = torch.randn(2, 40)
    output = later(x, layer.weight, None)
    assert layer.cpu_linear is not later
    torch.testing.assert_close(output, x @ layer.weight.T)
    assert torch.equal(layer.weight, _weight())


def test_a_layer_can_be_traced(hook: LinearHook) -> None:
    layer = Layer(_weight())
    hook.dispatch(layer, True)
    compiled = torch.compile(
        lambda x: layer.cpu_linear(x, layer.weight, None) + 1, backend="aot_eager", fullgraph=True
    )
    x = torch.randn(3, 40)
    torch.testing.assert_close(compiled(x), x @ _weight().T + 1)
    assert call_counts()["gemm_f32"] == 1


# ---------------------------------------------------------------- inside vLLM


def test_every_shape_is_raced_when_a_model_is_loaded(engines: Engines, tmp_path: Path) -> None:
    (case,) = (case for case in CASES if case.name == "qwen2")
    file = tmp_path / "linear.json"
    auto = {"CAPIBARA_AXION_LINEAR": "auto", "CAPIBARA_AXION_LINEAR_CACHE": str(file)}
    answer = engines.run(case, **auto)
    reference = engines.run(case, CAPIBARA_AXION_PLUGIN="0")
    assert answer["tokens"] == reference["tokens"]
    pairs = zip(answer["logprobs"], reference["logprobs"], strict=True)
    assert max(abs(ours - theirs) for ours, theirs in pairs) <= 2e-6
    assert len(ChoiceCache(file)._read()) == 5  # qkv, o, gate and up, down, lm_head
    (line,) = answer["log"]
    assert line.startswith("linear layers (auto): ")
    assert "17 layers; 5 races" in line


def test_weights_are_kept_and_freed_as_in_vllm(engines: Engines) -> None:
    for name in ("mistral", "gemma3", "cohere"):
        (case,) = (case for case in CASES if case.name == name)
        ours = engines.run(case, CAPIBARA_AXION_LINEAR="capibara")["parameters"]
        assert ours == engines.run(case, CAPIBARA_AXION_PLUGIN="0")["parameters"]
        assert ours["linear"] == 0
        assert ours["lookup"] > 0

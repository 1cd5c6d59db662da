# SPDX-License-Identifier: Apache-2.0
"""`quantization="capibara_int8"`: what runs, what it costs in accuracy, what is refused."""

from __future__ import annotations

import json
import math
import pickle
import statistics
from typing import Any

import pytest
import torch
from checkpoints import CASES, Case
from conftest import Engines

from capibara_axion import torch_ops
from capibara_axion.vllm_plugin import compat_linear, load_time, quantization
from capibara_axion.vllm_plugin.quantization import Int8Config

# As in test_agreement. Not vLLM's own, whose attention sees images causally.
EXACT = {"CAPIBARA_AXION_LINEAR": "capibara"}
INT8 = {"quantization": "capibara_int8"}

DEMO_CASES = [c for c in CASES if c.name in ("phi3", "mistral", "qwen2", "gemma3", "cohere")]

each_demo_case = pytest.mark.parametrize("case", DEMO_CASES, ids=lambda case: case.name)


def _without_head(case: Case) -> dict[str, Any]:
    settings = json.dumps({"lm_head": False})
    return INT8 | {"hf_overrides": {"quantization_config_dict_json": settings}}


def _deviations(answer: dict[str, Any], reference: dict[str, Any]) -> list[float]:
    pairs = zip(answer["logprobs"], reference["logprobs"], strict=True)
    return [ours - exact for ours, exact in pairs]


@each_demo_case
def test_log_probabilities(engines: Engines, case: Case) -> None:
    """Each product is off by 1.2 % (RMS, `PackedLinear`'s docstring), and some 17 are in series.

    Four layers of four linear layers and the output layer: 1.2 % x sqrt(17) = 5 % of what logits
    differ by, which shows in the reference as what log-probabilities differ by. Among some 200
    tokens one at 4 standard deviations is to be expected.
    """
    reference = engines.run(case, **EXACT)
    deviations = _deviations(engines.run(case, options=INT8), reference)
    rms = math.sqrt(statistics.fmean(d * d for d in deviations))
    largest = max(map(abs, deviations))
    spread = statistics.pstdev(reference["logprobs"])
    print(f"{case.name}: int8 RMS {rms:.4f}, largest {largest:.4f}, spread of exact {spread:.2f}")
    expected = 0.012 * math.sqrt(17) * spread
    assert 1e-4 < rms <= expected
    assert largest <= 4 * expected


@each_demo_case
def test_every_product_is_int8_and_no_weight_is_kept(engines: Engines, case: Case) -> None:
    answer = engines.run(case, options=INT8)
    counts = {op: calls for op, calls in answer["counts"].items() if op.startswith("gemm")}
    assert {op for op, calls in counts.items() if calls} == {"gemm_int8"}
    assert answer["parameters"]["linear"] == 0
    assert answer["parameters"]["head"] == 0
    assert answer["parameters"]["lookup"] > 0
    assert any("linear layers quantised" in line for line in answer["log"])


@pytest.mark.parametrize("name", ["qwen2", "cohere"])
def test_the_output_layer_can_be_left_out(engines: Engines, name: str) -> None:
    (case,) = (case for case in CASES if case.name == name)
    answer = engines.run(case, options=_without_head(case), **EXACT)
    every = engines.run(case, options=INT8)["counts"]["gemm_int8"]
    head = answer["counts"]["gemm_f32"]
    assert head > 0
    assert answer["counts"]["gemm_int8"] + head == every


def test_compiled(engines: Engines) -> None:
    (case,) = (case for case in CASES if case.name == "qwen2")
    eager, compiled = (engines.run(case, compiled=c, options=INT8) for c in (False, True))
    assert compiled["graphs"] > eager["graphs"]
    assert compiled["counts"] == eager["counts"]
    # An activation on the border between two integers may fall to either side.
    assert max(map(abs, _deviations(compiled, eager))) < 0.02


# ---------------------------------------------------------------- settings, refusals


def test_settings() -> None:
    assert Int8Config.from_config({"quant_method": "capibara_int8"}).lm_head is True
    config = Int8Config.from_config_dict_json('{"lm_head": false, "ignore": ["vision"]}')
    assert (config.lm_head, config.ignore) == (False, ("vision",))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lm_head": "no"}, "lm_head: expected true or false, got 'no'"),
        ({"ignore": "vision"}, "ignore: expected a list of texts"),
        ({"bits": 4, "group": 8}, "unknown settings: bits, group"),
    ],
)
def test_wrong_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Int8Config.from_config(settings)


def test_vllm_can_send_it_to_its_processes() -> None:
    config = pickle.loads(pickle.dumps(Int8Config(False, ("a",))))
    assert (config.lm_head, config.ignore) == (False, ("a",))


def _of_class(cls: type) -> Any:
    return cls.__new__(cls)


def test_which_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    vllm = compat_linear.quantization_classes()
    monkeypatch.setattr(compat_linear, "has_head_of_other_dtype", lambda: False)
    config = Int8Config(ignore=("vision",))
    linear, embedding = _of_class(vllm.Linear), _of_class(vllm.Embedding)
    method = config.get_quant_method(linear, "model.layers.0.mlp.down_proj")
    assert isinstance(method, quantization.Int8LinearMethod)
    assert not isinstance(method, vllm.UnquantizedLinearMethod)
    method = config.get_quant_method(linear, "vision_tower.layers.0.fc1")
    assert isinstance(method, vllm.UnquantizedLinearMethod)
    assert isinstance(config.get_quant_method(embedding, "lm_head"), load_time.LoadTimeHeadMethod)
    assert Int8Config(lm_head=False).get_quant_method(embedding, "lm_head") is None
    assert config.get_quant_method(torch.nn.Identity(), "attn") is None
    monkeypatch.setattr(compat_linear, "has_head_of_other_dtype", lambda: True)
    assert config.get_quant_method(embedding, "lm_head") is None


def test_mixtures_of_experts_are_refused() -> None:
    from vllm.model_executor.layers.fused_moe import RoutedExperts

    experts = _of_class(RoutedExperts)
    with pytest.raises(ValueError, match=r"mixtures of experts \(model.layers.0.mlp.experts\)"):
        Int8Config().get_quant_method(experts, "model.layers.0.mlp.experts")
    ignoring = Int8Config(ignore=("experts",))
    assert ignoring.get_quant_method(experts, "model.layers.0.mlp.experts") is None


def test_a_weight_that_cannot_be_quantised_is_named() -> None:
    layer = torch.nn.Module()
    layer.weight = torch.nn.Parameter(torch.zeros(2, 70000), requires_grad=False)
    layer.prefix = "mlp.down"
    with pytest.raises(ValueError, match=r"cannot quantise mlp.down \(2, 70000\): .*65536"):
        Int8Config().quantize(layer, is_head=False, free=True)
    assert layer.weight.numel() == 140000


def test_the_weight_that_vllm_reads_later_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_ops, "pack_weight", None)
    layer = torch.nn.Module()
    layer.weight = torch.nn.Parameter(torch.ones(2, 3), requires_grad=False)
    layer._cpu_skip_gemm_dispatch = True
    method = quantization.Int8LinearMethod(Int8Config())
    method.process_weights_after_loading(layer)
    assert torch.equal(method.apply(layer, torch.ones(1, 3)), torch.full((1, 2), 3.0))

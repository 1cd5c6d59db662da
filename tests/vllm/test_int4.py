# SPDX-License-Identifier: Apache-2.0
"""4-bit checkpoints in vLLM: who multiplies, what it costs in accuracy, what is refused."""

from __future__ import annotations

import json
import math
import re
import statistics
from pathlib import Path
from typing import Any

import int4_checkpoints
import numpy as np
import pytest
import references
import torch
from checkpoints import CASES
from conftest import Engines

from capibara_axion import int4
from capibara_axion.int4 import Int4Weight
from capibara_axion.vllm_plugin import compat_int4, quantization_int4
from capibara_axion.vllm_plugin import int4 as plugin
from capibara_axion.vllm_plugin.int4_gptq import GptqConfig
from capibara_axion.vllm_plugin.quantization_int4 import Int4Config

OURS = {"CAPIBARA_AXION_LINEAR": "capibara"}
DISABLED = OURS | {"CAPIBARA_AXION_DISABLE": "int4_linear"}
W4A16 = {"VLLM_CPU_INT4_W4A8": "0"}
# As the seed's configuration has it.
SEED = {"quantization": "awq", "dtype": "float16"}

# Four layers of four linear layers, and the output layer.
PRODUCTS = 17

(MISTRAL,) = (case for case in CASES if case.name == "mistral")


class Models:
    """The checkpoints of all formats, each with its exact model, written when asked for."""

    def __init__(self, source: Path, folder: Path) -> None:
        self._source = source
        self._folder = folder
        self._exact: dict[str, Any] = {}

    def folder(self, name: str) -> Path:
        folder = self._folder / name
        if name not in self._exact:
            self._exact[name] = int4_checkpoints.write(self._source, folder, name)
        return folder

    def exact(self, name: str) -> Any:
        self.folder(name)
        return self._exact[name]


@pytest.fixture(scope="module")
def models(engines: Engines, tmp_path_factory: pytest.TempPathFactory) -> Models:
    return Models(engines.folder(MISTRAL), tmp_path_factory.mktemp("int4"))


def _run(
    engines: Engines, folder: Path, options: dict[str, Any], *, compiled: bool = False, **env: str
) -> dict[str, Any]:
    settings = {"max_model_len": 512, "image": False, "compiled": compiled}
    return engines.run_folder(folder, settings | {"options": options, "env": env})


def _deviations(answer: dict[str, Any], model: Any) -> list[float]:
    (request,) = answer["requests"]
    exact = references.log_probabilities(model, request)
    return [a - b for a, b in zip(references.given(request), exact, strict=True)]


def _rms(values: list[float]) -> float:
    return math.sqrt(statistics.fmean(value * value for value in values))


def _products(answer: dict[str, Any]) -> set[str]:
    return {op for op, calls in answer["counts"].items() if calls and op.startswith("gemm")}


# ---------------------------------------------------------------- engines


@pytest.mark.parametrize("name", int4_checkpoints.FORMATS)
def test_log_probabilities_are_those_of_the_dequantised_weights(
    engines: Engines, models: Models, name: str
) -> None:
    """W4A16 in float32: the integers are the checkpoint's, and activations keep 15 bits.

    Each is off by at most 2^-15 of its group's largest, uniformly: for inputs whose largest is
    some 3 standard deviations, an RMS of 3 x 2^-15 / sqrt(3) of theirs, 17 products in series, of
    what log-probabilities differ by. One in 200 tokens at 4 standard deviations is to be expected.
    """
    answer = _run(engines, models.folder(name), {}, **OURS)
    assert _products(answer) == {"gemm_int4", "gemm_f32"}  # the latter of the output layer
    assert answer["counts"]["gemm_int4"] % 16 == 0
    assert answer["status"]["int4_linear"] == "hooked"
    assert any("16 ours" in line for line in answer["log"])
    exact = models.exact(name)
    deviations = _deviations(answer, exact)
    (request,) = answer["requests"]
    spread = statistics.pstdev(references.log_probabilities(exact, request))
    expected = 3 * 2**-15 / math.sqrt(3) * math.sqrt(PRODUCTS) * spread
    print(f"{name}: RMS {_rms(deviations):.2e}, expected up to {expected:.2e}")
    assert _rms(deviations) <= expected
    assert max(map(abs, deviations)) <= 4 * expected


def test_the_seed_s_configuration(engines: Engines, models: Models) -> None:
    """AWQ in float16 with 8-bit activations in groups of 32.

    An activation is off by at most half of 1/127 of its group's largest, some 2.2 standard
    deviations of 32 values: an RMS of 2.2 / 127 / sqrt(12) = 0.5 % a product.
    """
    answer = _run(engines, models.folder("awq"), SEED, **OURS)
    assert _products(answer) == {"gemm_int4", "gemm_f16"}
    exact = models.exact("awq")
    deviations = _deviations(answer, exact)
    (request,) = answer["requests"]
    spread = statistics.pstdev(references.log_probabilities(exact, request))
    expected = 2.2 / 127 / math.sqrt(12) * math.sqrt(PRODUCTS) * spread
    print(f"RMS {_rms(deviations):.2e}, expected up to {expected:.2e}")
    assert 1e-5 < _rms(deviations) <= expected
    assert max(map(abs, deviations)) <= 4 * expected
    # Without rounding activations it is nearer, and that is vLLM's switch.
    finer = _run(engines, models.folder("awq"), SEED, **OURS, **W4A16)
    assert _rms(_deviations(finer, exact)) < 0.5 * _rms(deviations)


def test_compiled(engines: Engines, models: Models) -> None:
    folder = models.folder("gptq_act_order")
    eager, compiled = (_run(engines, folder, {}, compiled=c, **OURS) for c in (False, True))
    assert compiled["graphs"] > eager["graphs"]
    assert compiled["counts"] == eager["counts"]
    # An activation on the border between two integers may fall to either side.
    differences = [a - b for a, b in zip(compiled["logprobs"], eager["logprobs"], strict=True)]
    assert max(map(abs, differences)) < 1e-4


@pytest.mark.skipif(not hasattr(torch.ops._C, "cpu_gemm_wna16"), reason="vLLM has no operator")
def test_disabled_it_is_vllm_s(engines: Engines, models: Models) -> None:
    answer = _run(engines, models.folder("awq"), SEED, **DISABLED)
    assert answer["status"]["int4_linear"] == "off: CAPIBARA_AXION_DISABLE"
    assert _products(answer) == {"gemm_f16"}
    ours = _run(engines, models.folder("awq"), SEED, **OURS, **W4A16)
    difference = [a - b for a, b in zip(answer["logprobs"], ours["logprobs"], strict=True)]
    assert _rms(difference) < 0.02


@pytest.mark.parametrize("name", ["mistral", "cohere"])
def test_rounded_when_loaded(engines: Engines, name: str) -> None:
    (case,) = (case for case in CASES if case.name == name)
    answer = engines.run(case, options=INT4, **OURS)
    # Output layers are in 8 bits.
    assert _products(answer) == {"gemm_int4", "gemm_int8"}
    assert answer["parameters"]["linear"] == answer["parameters"]["head"] == 0
    assert any("linear layers quantised" in line for line in answer["log"])
    reference = engines.run(case, **OURS)
    deviations = [a - b for a, b in zip(answer["logprobs"], reference["logprobs"], strict=True)]
    # A step is 1/15 of a group's range, which is some 4 standard deviations of its weights:
    # 4 / 15 / sqrt(12) = 8 % of them a product.
    expected = 0.08 * math.sqrt(PRODUCTS) * statistics.pstdev(reference["logprobs"])
    print(f"{name}: RMS {_rms(deviations):.3f}, expected up to {expected:.3f}")
    assert 1e-3 < _rms(deviations) <= expected


INT4 = {
    "quantization": "capibara_int4",
    "hf_overrides": {"quantization_config_dict_json": json.dumps({"group_size": 32})},
}


# ---------------------------------------------------------------- against others' code


def test_awq_is_read_as_vllm_reads_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm.model_executor.layers.quantization import auto_awq

    def parameter(data: torch.Tensor, **_: Any) -> torch.nn.Parameter:
        return torch.nn.Parameter(data, requires_grad=False)

    monkeypatch.setattr(auto_awq, "PackedvLLMParameter", parameter)
    weight = int4.quantize(np.random.default_rng(1).standard_normal((48, 64), np.float32), 32)
    packed = {name: torch.from_numpy(a) for name, a in int4.pack_awq(weight).items()}
    layer = torch.nn.Module()
    for name in ("qweight", "qzeros"):
        setattr(layer, name, torch.nn.Parameter(packed[name], requires_grad=False))
    auto_awq._convert_awq_to_standard_format(layer, "qweight", "qzeros", 4)
    gptq = int4.pack_gptq(weight, version=2)
    np.testing.assert_array_equal(layer.qweight.data.numpy(), gptq["qweight"])
    compressed = int4.pack_compressed(weight)
    np.testing.assert_array_equal(layer.qzeros.data.numpy(), compressed["weight_zero_point"])


def test_compressed_tensors_are_packed_as_their_library_does() -> None:
    helpers = pytest.importorskip("compressed_tensors.compressors.pack_quantized.helpers")
    weight = int4.quantize(np.random.default_rng(2).standard_normal((48, 64), np.float32), 32)
    assert weight.zeros is not None
    signed, zeros = (
        torch.from_numpy(x.astype(np.int8) - np.int8(8)) for x in (weight.codes, weight.zeros)
    )
    packed = int4.pack_compressed(weight)
    theirs = helpers.pack_to_int32(signed, 4).numpy()
    np.testing.assert_array_equal(packed["weight_packed"], theirs)
    theirs = helpers.pack_to_int32(zeros, 4, packed_dim=0).numpy()
    np.testing.assert_array_equal(packed["weight_zero_point"], theirs)


# ---------------------------------------------------------------- who multiplies


def _config(**changes: Any) -> Any:
    from vllm.scalar_type import scalar_types

    vllm = compat_int4.int4_classes()
    settings = {
        "full_weight_shape": (256, 64),
        "partition_weight_shape": (256, 64),
        "weight_type": scalar_types.uint4,
        "act_type": torch.bfloat16,
        "group_size": 32,
        "zero_points": True,
    }
    return vllm.KernelConfig(**(settings | changes))


@pytest.mark.parametrize(("backend", "ours"), [("capibara", True), ("stock", False)])
def test_the_variable_says_who(monkeypatch: pytest.MonkeyPatch, backend: str, ours: bool) -> None:
    monkeypatch.setenv("CAPIBARA_AXION_LINEAR", backend)
    monkeypatch.setattr(compat_int4, "stock_kernel", lambda config, cls: int)
    assert plugin.Int4Kernel.can_implement(_config())[0] is ours


def test_without_an_operator_of_vllm_s_it_is_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAPIBARA_AXION_LINEAR", "stock")
    monkeypatch.setattr(compat_int4, "stock_kernel", lambda config, cls: None)
    assert plugin.Int4Kernel.can_implement(_config()) == (True, None)
    with pytest.raises(ValueError, match=r"groups of 16 in 256 columns: .* vLLM has no operator"):
        plugin.Int4Kernel.can_implement(_config(group_size=16))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"act_type": torch.float64}, "torch.float64: expected float32"),
        ({"group_size": 48}, "groups of 48 in 256 columns: expected 32, 64, 128, or all"),
        ({"partition_weight_shape": (256, 60)}, r"weight \[60, 256\]: expected multiples of 8"),
    ],
)
def test_what_is_left_to_vllm(
    monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], message: str
) -> None:
    monkeypatch.setattr(compat_int4, "stock_kernel", lambda config, cls: int)
    is_ours, reason = plugin.Int4Kernel.can_implement(_config(**changes))
    assert not is_ours
    assert reason is not None
    assert re.search(message, reason)


@pytest.mark.skipif(not hasattr(torch.ops._C, "cpu_gemm_wna16"), reason="vLLM has no operator")
@pytest.mark.parametrize("zero_points", [True, False])
def test_both_products_of_a_race_are_of_the_same_shape(
    monkeypatch: pytest.MonkeyPatch, zero_points: bool
) -> None:
    from vllm.scalar_type import scalar_types

    kind = scalar_types.uint4 if zero_points else scalar_types.uint4b8
    config = _config(weight_type=kind, zero_points=zero_points)
    stock = compat_int4.stock_kernel(config, plugin.Int4Kernel)
    race = plugin._Race(config, stock)
    weight = torch.zeros(1, 1, dtype=torch.bfloat16).expand(70, 256)
    x = torch.randn(3, 256, dtype=torch.bfloat16)
    assert race.ours(weight)(x).shape == race.stock(weight)(x).shape == (3, 64)


# ---------------------------------------------------------------- GPTQ


def _gptq(**changes: Any) -> GptqConfig:
    config = {"bits": 4, "group_size": 32, "desc_act": True, "sym": True} | changes
    return GptqConfig.from_config(config)


def test_which_gptq_is_ours() -> None:
    assert not _gptq(desc_act=False).is_ours
    assert not _gptq(group_size=-1).is_ours
    assert _gptq().is_ordered
    assert _gptq(desc_act=False, sym=False).has_zeros
    assert _gptq(checkpoint_format="gptq_v2").version == 2
    with pytest.raises(ValueError, match=r'"checkpoint_format": expected .*, got \'marlin\''):
        _gptq(checkpoint_format="marlin")
    with pytest.raises(ValueError, match='"dynamic" rules are not supported'):
        _gptq(dynamic={"+:.*": {"bits": 4}})


def test_orders_that_differ_are_refused() -> None:
    from capibara_axion.vllm_plugin.int4_gptq import GptqMethod

    method = GptqMethod.__new__(GptqMethod)
    method._prefix = "model.layers.0.self_attn.qkv_proj"
    loaded: list[torch.Tensor] = []

    def load(parameter: torch.Tensor, value: torch.Tensor, shard: str) -> None:
        parameter.copy_(value)
        loaded.append(value)

    checked = method._same_order(load)
    parameter = torch.full((4,), -1, dtype=torch.int32)
    checked(parameter, torch.tensor([1, 0, 1, 0], dtype=torch.int32), "q")
    checked(parameter, torch.tensor([1, 0, 1, 0], dtype=torch.int32), "k")
    assert len(loaded) == 2
    with pytest.raises(ValueError, match=r"self_attn.qkv_proj.g_idx: expected one order"):
        checked(parameter, torch.tensor([0, 1, 1, 0], dtype=torch.int32), "v")


# ---------------------------------------------------------------- capibara_int4


def test_settings() -> None:
    config = Int4Config.from_config({"quant_method": "capibara_int4", "ignore": ["vision"]})
    assert (config.group_size, config.method, config.lm_head) == (128, "w4a8", "int8")
    assert config.ignore == ("vision",)
    config = Int4Config.from_config_dict_json('{"group_size": 64, "lm_head": "none"}')
    assert not config.quantizes_heads()
    assert [config.group_size_for(k) for k in (256, 96, 40)] == [64, 32, None]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"group_size": 16}, "capibara_int4: group_size: expected 128 or 64 or 32, got 16"),
        ({"symmetric": 1}, "symmetric: expected false or true, got 1"),
        ({"method": "w8a8"}, 'method: expected "w4a8" or "w4a16", got'),
        ({"lm_head": True}, 'lm_head: expected "int8" or "int4" or "none", got True'),
        ({"bits": 4}, "unknown settings: bits"),
    ],
)
def test_wrong_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Int4Config.from_config(settings)


def test_columns_that_no_group_divides_are_in_8_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    packed: list[str | None] = []
    monkeypatch.setattr(
        quantization_int4, "packed_linear", lambda weight, dtype=None: packed.append(dtype)
    )
    Int4Config().pack(torch.zeros(8, 40))
    assert packed == ["int8"]


def test_a_layer_in_another_order() -> None:
    random = np.random.default_rng(3)
    weight = int4.quantize(random.standard_normal((16, 64), np.float32), 32)
    order = torch.from_numpy(random.permutation(64))
    layer = torch.nn.Module()
    layer.qweight = torch.nn.Parameter(torch.zeros(8, 16, dtype=torch.int32), requires_grad=False)
    layer.scales = torch.nn.Parameter(torch.zeros(2, 16), requires_grad=False)
    config = _config(partition_weight_shape=(64, 16), act_type=torch.float32)
    kernel = plugin.Int4Kernel(config, "qweight", "scales", "qzeros")
    tensors = Int4Weight(weight.codes, torch.from_numpy(weight.scales), weight.zeros)
    kernel.take(layer, tensors, order)
    assert layer.qweight.numel() == layer.scales.numel() == 0
    x = torch.randn(2, 64)
    exact = x[:, order].double() @ torch.from_numpy(weight.dequantize()).double().T
    exact = exact + 1
    error = (kernel.apply_weights(layer, x, torch.ones(16)) - exact).abs()
    # 2^-15 of the largest activation (W4A16), times all weights.
    limit = float(x.abs().max()) * 2**-15 * np.abs(weight.dequantize()).sum(1) + 64 * 2**-22
    assert (error <= torch.from_numpy(limit)).all()

# SPDX-License-Identifier: Apache-2.0
"""What registration does where vLLM is not as expected: with fakes, no engine."""

from __future__ import annotations

import logging
import sys
import types
from collections.abc import Callable
from typing import Any

import pytest

from capibara_axion.vllm_plugin import compat, compat_linear, linear, register


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process in which nothing is registered, with a supported vLLM that has every hook."""
    for name in ("CAPIBARA_AXION_PLUGIN", "CAPIBARA_AXION_DISABLE", "CAPIBARA_AXION_LINEAR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(register, "_status", {})
    monkeypatch.setattr(compat, "vllm_version", lambda: "0.32.0")
    monkeypatch.setattr(compat, "is_cpu_platform", lambda: True)


class Hooks:
    """Counts the hooks that were put in place; those in `missing` are not found."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, missing: tuple[str, ...] = ()) -> None:
        self.hooked: list[str] = []
        self._missing = missing
        monkeypatch.setattr(
            register, "_hooks", lambda: {op: (self._hook(op),) for op in register.OPS}
        )

    def _hook(self, op: str) -> Callable[[], None]:
        def hook() -> None:
            if op in self._missing:
                raise compat.HookNotFound(f"no such class for {op}")
            self.hooked.append(op)

        return hook


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]


def test_everything_is_hooked_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    hooks = Hooks(monkeypatch)
    register.register()
    register.register()
    assert hooks.hooked == list(register.OPS)
    assert set(register.status().values()) == {"hooked"}
    assert warnings_of(caplog) == []


def test_a_missing_hook_leaves_its_op_to_vllm(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    hooks = Hooks(monkeypatch, missing=("rope", "layer_norm"))
    register.register()
    assert set(hooks.hooked) == set(register.OPS) - {"rope", "layer_norm"}
    assert register.status()["rope"] == "left to vLLM: no such class for rope"
    (warning,) = warnings_of(caplog)
    assert "rope" in warning
    assert "layer_norm" in warning


def test_another_version_is_named_in_one_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    Hooks(monkeypatch, missing=("rope",))
    monkeypatch.setattr(compat, "vllm_version", lambda: "0.99.1")
    register.register()
    (warning,) = warnings_of(caplog)
    assert "0.32" in warning
    assert "0.99.1" in warning
    assert "rope" in warning


def test_registration_never_raises(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken() -> dict[str, tuple[Callable[[], None], ...]]:
        raise ImportError("no native module")

    monkeypatch.setattr(register, "_hooks", broken)
    register.register()
    assert all("no native module" in text for text in register.status().values())
    assert len(warnings_of(caplog)) == 1


def test_off(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    hooks = Hooks(monkeypatch)
    monkeypatch.setenv("CAPIBARA_AXION_PLUGIN", "0")
    register.register()
    assert hooks.hooked == []
    assert warnings_of(caplog) == []


def test_one_op_off_and_a_misspelt_one(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    hooks = Hooks(monkeypatch)
    monkeypatch.setenv("CAPIBARA_AXION_DISABLE", "rope,rmsnorm")
    register.register()
    assert set(hooks.hooked) == set(register.OPS) - {"rope"}
    assert register.status()["rope"] == "off: CAPIBARA_AXION_DISABLE"
    (warning,) = warnings_of(caplog)
    assert "rmsnorm" in warning


def test_other_platforms_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    hooks = Hooks(monkeypatch)
    monkeypatch.setattr(compat, "is_cpu_platform", lambda: False)
    register.register()
    assert hooks.hooked == []


def test_versions() -> None:
    assert compat.is_supported_version("0.32.0")
    assert compat.is_supported_version("0.32")
    assert not compat.is_supported_version("0.320.1")
    assert not compat.is_supported_version("0.31.9")


def test_an_op_of_which_one_place_is_not_found(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def missing() -> None:
        raise compat.HookNotFound("no LongRoPE")

    monkeypatch.setattr(register, "_hooks", lambda: {"rope": (lambda: None, missing)})
    register.register()
    assert register.status()["rope"] == "hooked in part; left to vLLM: no LongRoPE"
    assert len(warnings_of(caplog)) == 1


def test_a_hook_with_other_parameters_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    commandr = pytest.importorskip("vllm.model_executor.models.commandr")
    monkeypatch.setattr(commandr, "layer_norm_func", lambda hidden_states, gain: None)
    with pytest.raises(compat.HookNotFound, match="variance_epsilon"):
        compat.replace_cohere_layer_norm(lambda stock: stock)


def test_linear_layers_with_a_misspelt_backend(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(register, "_hooks", lambda: {"linear": (linear.hook_linear,)})
    monkeypatch.setenv("CAPIBARA_AXION_LINEAR", "onednn")
    register.register()
    (warning,) = warnings_of(caplog)
    assert "auto, capibara, stock" in warning
    assert "onednn" in warning


def test_an_old_native_module(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear._core, "call_counts", lambda: {"rms_norm": 0})
    with pytest.raises(RuntimeError, match="install the project again"):
        linear.hook_linear()


def test_the_dispatch_is_replaced_wherever_it_was_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    utils = pytest.importorskip("vllm.model_executor.layers.utils")
    name = "dispatch_cpu_unquantized_gemm"
    stock = getattr(utils, name)
    importer = types.ModuleType("vllm.some.importer")
    for module in (utils, importer):
        monkeypatch.setattr(module, name, stock, raising=False)
    monkeypatch.setitem(sys.modules, importer.__name__, importer)
    given = []

    def dispatch_or(original: compat_linear.Dispatch) -> compat_linear.Dispatch:
        given.append(original)
        return dispatch

    def dispatch(layer: Any, remove_weight: bool) -> None: ...

    compat_linear.replace_linear_dispatch(dispatch_or)
    assert given == [stock]
    assert getattr(utils, name) is getattr(importer, name) is dispatch


def test_another_dispatch_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    utils = pytest.importorskip("vllm.model_executor.layers.utils")
    monkeypatch.setattr(utils, "dispatch_cpu_unquantized_gemm", lambda layer: None)
    with pytest.raises(compat.HookNotFound, match="remove_weight"):
        compat_linear.replace_linear_dispatch(lambda stock: stock)
    monkeypatch.undo()
    monkeypatch.setattr(utils, "cpu_unquantized_gemm", lambda layer, x, weight, bias: x)
    with pytest.raises(compat.HookNotFound, match="cpu_linear"):
        compat_linear.replace_linear_dispatch(lambda stock: stock)


def test_what_is_loaded_tells_the_compile_cache_of_its_choices(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module = pytest.importorskip("vllm.model_executor.model_loader.base_loader")
    events: list[str] = []

    class Loader:
        def load_model(self, vllm_config: Any, model_config: Any, prefix: str = "") -> str:
            events.append("load")
            return "model"

    monkeypatch.setattr(module, "BaseModelLoader", Loader)

    def end(loaded: compat_linear.Loaded) -> None:
        events.append(loaded.model)
        loaded.add_to_compile_key("choices")

    compat_linear.around_load_model("first", lambda: events.append("begin"), end)
    compat_linear.around_load_model("second", lambda: events.append("begin"), end)
    config = types.SimpleNamespace(quant_config=None, additional_config={})
    assert Loader().load_model(vllm_config=config, model_config=None, prefix="draft") == "model"
    assert events == ["begin", "begin", "load", "model", "model"]
    keys = {f"capibara_axion.{name}.draft": "choices" for name in ("first", "second")}
    assert config.additional_config == keys

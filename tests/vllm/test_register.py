# SPDX-License-Identifier: Apache-2.0
"""What registration does where vLLM is not as expected: with fakes, no engine."""

from __future__ import annotations

import logging
from collections.abc import Callable

import pytest

from capibara_axion.vllm_plugin import compat, register


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process in which nothing is registered, with a supported vLLM that has every hook."""
    for name in ("CAPIBARA_AXION_PLUGIN", "CAPIBARA_AXION_DISABLE"):
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

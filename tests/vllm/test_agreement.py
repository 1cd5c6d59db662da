# SPDX-License-Identifier: Apache-2.0
"""vLLM computes the same with our operators as without, and it is our operators that run."""

from __future__ import annotations

from typing import Any

import pytest
from checkpoints import CASES, Case
from conftest import Engines

# Float32 log-probabilities of about -ln(640): ten roundings of the largest partial sums.
TOLERANCE = 2e-6

OFF = {"CAPIBARA_AXION_PLUGIN": "0"}
# Linear layers too, whatever is the faster one here.
OURS = {"CAPIBARA_AXION_LINEAR": "capibara"}
# vLLM's own attention on the CPU sees images causally: test_attention compares with transformers.
WITHOUT_ATTENTION = {**OURS, "CAPIBARA_AXION_DISABLE": "attention"}
WITHOUT_ROPE = {**OURS, "CAPIBARA_AXION_DISABLE": "rope"}
WITHOUT_LINEAR = {**OURS, "CAPIBARA_AXION_DISABLE": "linear"}

# Beside those of the architecture.
EVERYWHERE = {"attention", "kv_cache_append", "gemm_f32"}

each_case = pytest.mark.parametrize(
    "case", [case for case in CASES if case.stock], ids=lambda case: case.name
)
each_compiled_case = pytest.mark.parametrize(
    "case", [case for case in CASES if case.compiled], ids=lambda case: case.name
)


def _assert_agree(answer: dict[str, Any], reference: dict[str, Any]) -> None:
    assert answer["tokens"] == reference["tokens"]
    pairs = zip(answer["logprobs"], reference["logprobs"], strict=True)
    assert max(abs(ours - theirs) for ours, theirs in pairs) <= TOLERANCE


def _comparable(case: Case) -> dict[str, str]:
    return WITHOUT_ATTENTION if case.image else OURS


def _ran(answer: dict[str, Any]) -> set[str]:
    return {op for op, calls in answer["counts"].items() if calls > 0}


@each_case
def test_nothing_of_ours_runs_when_the_plugin_is_off(engines: Engines, case: Case) -> None:
    answer = engines.run(case, **OFF)
    assert _ran(answer) == set()
    assert set(answer["status"].values()) == {"off: CAPIBARA_AXION_PLUGIN"}


@each_case
def test_eager_agrees_with_stock(engines: Engines, case: Case) -> None:
    _assert_agree(engines.run(case, **_comparable(case)), engines.run(case, **OFF))


@each_case
def test_every_op_of_the_architecture_runs(engines: Engines, case: Case) -> None:
    answer = engines.run(case, **OURS)
    assert _ran(answer) == {*case.ops, *EVERYWHERE}
    assert set(answer["status"].values()) == {"hooked"}


@each_compiled_case
def test_compiled_agrees_with_stock(engines: Engines, case: Case) -> None:
    answer = engines.run(case, compiled=True, **_comparable(case))
    _assert_agree(answer, engines.run(case, **OFF))


@each_compiled_case
def test_compiled_graphs_call_the_same_ops_as_often(engines: Engines, case: Case) -> None:
    answer, eager = engines.run(case, compiled=True, **OURS), engines.run(case, **OURS)
    # Even the eager engine compiles a little: what picks the log-probabilities.
    assert answer["graphs"] > eager["graphs"]
    assert answer["counts"] == eager["counts"]


@pytest.mark.parametrize(
    ("name", "op", "env"),
    [
        ("phi3", "rope", WITHOUT_ROPE),
        ("cohere", "rope", WITHOUT_ROPE),
        ("cohere", "linear", WITHOUT_LINEAR),
    ],
)
def test_one_op_can_be_disabled(engines: Engines, name: str, op: str, env: dict[str, str]) -> None:
    (case,) = (case for case in CASES if case.name == name)
    answer = engines.run(case, **env)
    assert _ran(answer) == {*case.ops, *EVERYWHERE} - {"gemm_f32" if op == "linear" else op}
    assert answer["status"][op] == "off: CAPIBARA_AXION_DISABLE"
    _assert_agree(answer, engines.run(case, **OFF))

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
WITHOUT_ROPE = {"CAPIBARA_AXION_DISABLE": "rope"}

each_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
each_compiled_case = pytest.mark.parametrize(
    "case", [case for case in CASES if case.compiled], ids=lambda case: case.name
)


def _assert_agree(answer: dict[str, Any], reference: dict[str, Any]) -> None:
    assert answer["tokens"] == reference["tokens"]
    pairs = zip(answer["logprobs"], reference["logprobs"], strict=True)
    assert max(abs(ours - theirs) for ours, theirs in pairs) <= TOLERANCE


def _ran(answer: dict[str, Any]) -> set[str]:
    return {op for op, calls in answer["counts"].items() if calls > 0}


@each_case
def test_nothing_of_ours_runs_when_the_plugin_is_off(engines: Engines, case: Case) -> None:
    answer = engines.run(case, **OFF)
    assert _ran(answer) == set()
    assert set(answer["status"].values()) == {"off: CAPIBARA_AXION_PLUGIN"}


@each_case
def test_eager_agrees_with_stock(engines: Engines, case: Case) -> None:
    _assert_agree(engines.run(case), engines.run(case, **OFF))


@each_case
def test_every_op_of_the_architecture_runs(engines: Engines, case: Case) -> None:
    answer = engines.run(case)
    assert _ran(answer) == set(case.ops)
    assert set(answer["status"].values()) == {"hooked"}


@each_compiled_case
def test_compiled_agrees_with_stock(engines: Engines, case: Case) -> None:
    _assert_agree(engines.run(case, compiled=True), engines.run(case, **OFF))


@each_compiled_case
def test_compiled_graphs_call_the_same_ops_as_often(engines: Engines, case: Case) -> None:
    answer, eager = engines.run(case, compiled=True), engines.run(case)
    # Even the eager engine compiles a little: what picks the log-probabilities.
    assert answer["graphs"] > eager["graphs"]
    assert answer["counts"] == eager["counts"]


@pytest.mark.parametrize(
    "case", [case for case in CASES if case.name in ("phi3", "cohere")], ids=lambda case: case.name
)
def test_one_op_can_be_disabled(engines: Engines, case: Case) -> None:
    answer = engines.run(case, **WITHOUT_ROPE)
    assert _ran(answer) == set(case.ops) - {"rope"}
    assert answer["status"]["rope"] == "off: CAPIBARA_AXION_DISABLE"
    _assert_agree(answer, engines.run(case, **OFF))

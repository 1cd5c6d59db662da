# SPDX-License-Identifier: Apache-2.0
"""`bench load`: open and closed loops, and what becomes of requests that a server cannot take."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from conftest import Outcome, Served

from capibara_axion.bench.load import _arrivals

Measure = Callable[..., tuple[Outcome, Any]]


def options(server: Served, *more: str, **changes: Any) -> list[str]:
    found = {"duration": 0.5, "tokens": 2, "kind": "simple"} | changes
    settings = [f"--{key.replace('_', '-')}={value}" for key, value in found.items()]
    return ["load", "--url", server.url, *settings, *more]


def sent(result: Any, stage: int = 0) -> list[Any]:
    return [request for request in result.requests if request.stage == stage]


def test_arrivals_are_a_poisson_process() -> None:
    found = _arrivals(np.random.default_rng(0), 50.0, 200.0)
    waits = np.diff([0.0, *found])
    assert found == sorted(found)
    assert found[-1] < 200
    assert len(found) == pytest.approx(10_000, rel=0.05)
    assert waits.std() == pytest.approx(waits.mean(), rel=0.05)  # as exponential ones have it


def test_the_seed_decides_when_requests_are_due(server: Served, measure: Measure) -> None:
    def waits(seed: int) -> list[float]:
        _, result = measure(*options(server, seed=seed, rate=30))
        due = [request.scheduled_s for request in sent(result)]
        return [round(later - earlier, 3) for earlier, later in pairwise(due)]

    first = waits(7)
    assert len(first) > 5
    assert waits(7) == pytest.approx(first, abs=2e-3)
    assert waits(8) != pytest.approx(first, abs=2e-3)


def test_a_slow_server_is_charged_for_all_who_wait(server: Served, measure: Measure) -> None:
    """A stall of the whole server delays everybody who was due during it, not one request."""
    import time

    def stall(number: int) -> None:
        if number == 5:
            time.sleep(0.4)  # in the server's event loop

    server.fake.on_request = stall
    outcome, result = measure(*options(server, rate=40))
    assert outcome.code == 0
    requests = sent(result)
    stalled = [request for request in requests if request.total_s > 0.15]
    assert len(stalled) >= 5
    assert len({request.scheduled_s for request in stalled}) == len(stalled)
    assert max(request.total_s for request in requests) > 0.4


def test_every_rate_is_a_stage(server: Served, measure: Measure) -> None:
    outcome, result = measure(*options(server, "--rate", "10", "40"))
    assert outcome.code == 0
    assert [stage.rate for stage in result.stages] == [10, 40]
    assert [stage.group.name["load"] for stage in result.stages] == ["10/s", "40/s"]
    assert len(sent(result, -1)) == 1  # the warm-up, in no stage
    for number, stage in enumerate(result.stages):
        assert stage.group.requests == len(sent(result, number))
        assert stage.group.measures["ttft"].n == stage.group.requests
        assert stage.requests_per_s > 0
        assert stage.good_share is None


def test_a_closed_loop_keeps_its_clients_busy(server: Served, measure: Measure) -> None:
    outcome, result = measure(*options(server, "--concurrency", "1", "3"))
    assert outcome.code == 0
    assert server.fake.most_in_flight == 3
    one, three = result.stages
    assert (one.concurrency, three.concurrency) == (1, 3)
    assert three.requests_per_s > 1.5 * one.requests_per_s


def test_what_may_not_be_in_flight_is_counted(server: Served, measure: Measure) -> None:
    server.fake.ttft_s = 0.8
    outcome, result = measure(
        *options(server, rate=40, max_in_flight=3, ttft_objective=10, gap_objective=10)
    )
    assert outcome.code == 0
    outcomes = [request.outcome for request in sent(result)]
    assert outcomes == ["ok"] * 3 + ["not_sent"] * (len(outcomes) - 3)
    assert server.fake.most_in_flight == 3
    (stage,) = result.stages
    assert stage.group.failed == {"not sent": len(outcomes) - 3}
    assert stage.good_share == pytest.approx(3 / len(outcomes))
    assert "not sent" in outcome.out


@pytest.mark.parametrize(
    ("objectives", "good"),
    [
        ({"ttft_objective": 10, "gap_objective": 10}, 1.0),
        ({"ttft_objective": 0.01}, 0.0),
        ({"gap_objective": 0.001}, 0.0),
    ],
)
def test_goodput(
    server: Served, measure: Measure, objectives: dict[str, float], good: float
) -> None:
    server.fake.gap_s = 0.02
    _, result = measure(*options(server, rate=20, **objectives))
    (stage,) = result.stages
    assert stage.good_share == good
    assert stage.goodput == pytest.approx(good * stage.requests_per_s)


def test_refusals_are_counted_by_status(server: Served, measure: Measure) -> None:
    server.fake.refuse, server.fake.refuse_from = 429, 3
    outcome, result = measure(*options(server, rate=30))
    assert outcome.code == 0  # a load that is too much is a finding
    (stage,) = result.stages
    refused = stage.group.requests - 2
    assert stage.group.failed == {"429 with Retry-After": refused}
    assert stage.group.measures["ttft"].n == 2


def test_a_request_takes_no_longer_than_the_timeout(server: Served, measure: Measure) -> None:
    outcome, result = measure(*options(server, rate=20, timeout=0.5))
    assert outcome.code == 0

    def stall(number: int) -> None:
        server.fake.ttft_s = 0.02 if number == 1 else 30

    server.fake.asked.clear()
    server.fake.on_request = stall
    outcome, result = measure(*options(server, rate=20, timeout=0.5))
    assert {request.error for request in sent(result)} == {"timeout"}
    assert result.stages[0].group.failed == {"timeout": len(sent(result))}


def test_ctrl_c_keeps_the_stage_that_runs(server: Served, measure: Measure) -> None:
    def interrupt(number: int) -> None:
        if number == 10:
            os.kill(os.getpid(), signal.SIGINT)

    server.fake.on_request = interrupt
    outcome, result = measure(*options(server, rate=30, duration=60))
    assert outcome.code == 130
    assert result.interrupted
    (stage,) = result.stages
    assert stage.group.requests >= 1
    assert any(request.outcome == "interrupted" for request in sent(result))


def test_models_are_drawn_at_random(server: Served, measure: Measure) -> None:
    server.fake.models = ("a", "b", "c")
    outcome, _ = measure(*options(server, rate=30))
    assert outcome.code == 2
    assert "--model: expected which model to ask; this server has: a, b, c" in outcome.err
    outcome, result = measure(*options(server, "--model=a", "--model=b", rate=40))
    assert outcome.code == 0
    assert {request.model for request in sent(result)} == {"a", "b"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "one of the arguments --rate --concurrency is required"),
        (("--rate=0",), "--rate: expected a number above 0, got '0'"),
        (("--rate=1", "--concurrency=1"), "not allowed with argument"),
        (("--rate=1", "--duration=inf"), "--duration: expected a number above 0, got 'inf'"),
    ],
)
def test_bad_input_of_load(
    server: Served, measure: Measure, arguments: tuple[str, ...], message: str
) -> None:
    outcome, result = measure("load", "--url", server.url, *arguments)
    assert outcome.code == 2
    assert message in outcome.err
    assert result is None

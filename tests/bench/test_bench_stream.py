# SPDX-License-Identifier: Apache-2.0
"""`bench stream`: a server that streams, and everything that can come between."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from conftest import Outcome, Served
from fake_openai import proxy, served

from capibara_axion.bench.client import Exchange
from capibara_axion.bench.results import Request
from capibara_axion.bench.streaming import bursts, judge

Measure = Callable[..., tuple[Outcome, Any]]
TOKENS = 32


@pytest.fixture
def slow(server: Served) -> Served:
    """Steps that are long beside what a busy machine makes of the client."""
    server.fake.gap_s = 0.015
    return server


def look(measure: Measure, url: str, *more: str) -> tuple[int, Any]:
    outcome, result = measure("stream", "--url", url, f"--tokens={TOKENS}", "--repeats=3", *more)
    return outcome.code, result.verdicts[0] if result else None


def test_a_server_that_streams(slow: Served, measure: Measure) -> None:
    code, verdict = look(measure, slow.url)
    assert code == 0
    assert verdict.streams
    assert verdict.tokens_per_chunk == 1
    assert verdict.chunks_per_arrival < 1.5
    assert verdict.held_back < 0.2
    assert verdict.ttft_s < verdict.total_s / 2


def test_pings_and_a_long_wait_do_no_harm(slow: Served, measure: Measure) -> None:
    slow.fake.ttft_s, slow.fake.ping_s = 0.4, 0.05
    code, verdict = look(measure, slow.url)
    assert code == 0
    assert verdict.pings >= 9
    assert verdict.first_byte_s < 0.3 < verdict.ttft_s


def test_a_proxy_that_passes_everything_on(slow: Served, measure: Measure) -> None:
    with served(proxy(slow.url, lambda _: False)) as (url,):
        code, verdict = look(measure, url)
    assert code == 0
    assert verdict.streams


@pytest.mark.parametrize(
    ("size", "apart"), [(2, False), (3, True), (8, False), (1000, False), (1000, True)]
)
def test_a_proxy_that_holds_back(slow: Served, measure: Measure, size: int, apart: bool) -> None:
    with served(proxy(slow.url, lambda seen: seen % size != 0, apart=apart)) as (url,):
        code, verdict = look(measure, url)
    assert code == 1
    assert verdict.streams is False
    if size == 1000:
        assert verdict.held_back > 0.8
        assert any("the first token comes when" in reason for reason in verdict.reasons)
    else:
        assert verdict.chunks_per_arrival > 1.5
        assert any("come at once" in reason for reason in verdict.reasons)


def test_a_proxy_that_holds_the_end_back(slow: Served, measure: Measure) -> None:
    with served(proxy(slow.url, lambda seen: seen > 24)) as (url,):
        code, verdict = look(measure, url)
    assert code == 1
    assert any("chunks come at once" in reason for reason in verdict.reasons)


def exchange(tokens_s: list[float]) -> Exchange:
    """An answer whose chunks came at these times after it was asked for."""
    return Exchange(
        Request(
            model="a",
            prompt_kind="simple",
            language="en",
            prompt=0,
            outcome="ok",
            scheduled_s=0.0,
            tokens_s=tokens_s,
            end_s=tokens_s[-1],
            completion_tokens=len(tokens_s),
        )
    )


@pytest.mark.parametrize(("together", "streams"), [(1, True), (4, True), (5, False), (8, False)])
def test_one_long_group_is_a_fault(together: int, streams: bool) -> None:
    times = [0.1 + 0.01 * step for step in range(33 - together)]
    answer = exchange([*times, *times[-1:] * (together - 1)])
    verdict = judge("a", [exchange([0.1])], [answer])
    assert verdict.chunks_per_arrival is not None
    assert verdict.chunks_per_arrival < 1.5
    assert verdict.streams is streams


def test_a_hiccup_in_one_of_three_answers_is_none() -> None:
    steady = [0.1 + 0.01 * step for step in range(32)]
    hiccup = [*steady[:10], *[steady[25]] * 16, *steady[26:]]
    answers = [exchange(times) for times in (steady, hiccup, steady)]
    assert judge("a", [exchange([0.1])], answers).streams


def test_a_server_that_puts_tokens_together(slow: Served, measure: Measure) -> None:
    slow.fake.tokens_per_chunk = 2
    code, verdict = look(measure, slow.url)
    assert code == 1
    assert verdict.tokens_per_chunk == 2
    assert "a chunk has 2.0 tokens, expected 1" in verdict.reasons


def test_a_server_that_answers_whole(slow: Served, measure: Measure) -> None:
    slow.fake.whole = True
    code, verdict = look(measure, slow.url)
    assert code == 1
    assert verdict.streams is False
    assert "expected text/event-stream, got application/json" in verdict.reasons[0]


def test_a_failure_is_no_verdict(slow: Served, measure: Measure) -> None:
    slow.fake.refuse = 500
    code, verdict = look(measure, slow.url)
    assert code == 1
    assert verdict.streams is None


def test_too_little_to_tell(server: Served, measure: Measure) -> None:
    outcome, result = measure("stream", "--url", server.url, "--tokens=1")
    assert outcome.code == 1
    assert result.verdicts[0].streams is None
    assert "ask for more --tokens" in outcome.out


@pytest.mark.parametrize(
    ("times", "sizes"),
    [
        ([0.0], [1]),
        ([0.0, 0.01, 0.02, 0.03], [1, 1, 1, 1]),
        ([0.0, 0.0, 0.02, 0.02], [2, 2]),
        ([0.0, 0.00005, 0.02, 0.02005, 0.04, 0.04005], [2, 2, 2]),
        # A long pause among quick steps.
        ([0.0, 0.002, 0.004, 5.0, 5.002, 5.004], [1] * 6),
        # Steps of 0.2 ms.
        ([index * 2e-4 for index in range(10)], [1] * 10),
        ([0.0, 0.0, 0.0], [3]),
    ],
)
def test_what_counts_as_at_once(times: list[float], sizes: list[int]) -> None:
    assert bursts(times) == sizes

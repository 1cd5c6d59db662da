# SPDX-License-Identifier: Apache-2.0
"""`bench latency` against a server whose times are known."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Outcome, Served
from fake_openai import ADMIN_KEY

Measure = Callable[..., tuple[Outcome, Any]]


def options(server: Served, **changes: Any) -> list[str]:
    found = {"requests": 4, "tokens": 3, "pause": 0, "kind": "simple"} | changes
    return ["latency", "--url", server.url, *(f"--{key}={value}" for key, value in found.items())]


def test_times_are_those_of_the_server(server: Served, measure: Measure) -> None:
    server.fake.ttft_s, server.fake.gap_s = 0.03, 0.02
    outcome, result = measure(*options(server))
    assert outcome.code == 0
    first, *warm = result.requests
    assert first.start == "first"
    assert [request.start for request in warm] == ["warm"] * 4
    for request in result.requests:
        assert request.outcome == "ok"
        assert (request.completion_tokens, len(request.tokens_s)) == (3, 3)
        assert request.ttft_s >= 0.03
        assert request.total_s >= 0.07
        assert request.gap_s >= 0.01  # a first token that is noticed late has a shorter gap
        assert request.scheduled_s <= request.sent_s <= request.headers_s <= request.first_byte_s
        assert request.tokens_s == sorted(request.tokens_s)
        assert request.tokens_s[-1] <= request.end_s
    (group,) = [group for group in result.groups if group.name == {"model": "a", "start": "warm"}]
    assert group.measures["ttft"].n == 4
    assert group.measures["tokens_per_s"].median <= 100
    assert "tokens/s" in outcome.out


def test_answers_have_a_fixed_length_and_prompts_differ(server: Served, measure: Measure) -> None:
    measure(*options(server))
    assert {(b["max_tokens"], b["min_tokens"], b["ignore_eos"]) for b in server.fake.asked} == {
        (3, 3, True)
    }
    prompts = [body["messages"][0]["content"] for body in server.fake.asked]
    assert len({prompt[:9] for prompt in prompts}) == 5  # no two begin alike
    assert any("¿" in prompt for prompt in prompts)
    assert not all("¿" in prompt for prompt in prompts)


def test_the_same_prompt_if_wanted(server: Served, measure: Measure) -> None:
    outcome, _ = measure(*options(server, language="en"), "--same-prompt")
    assert outcome.code == 0
    assert len({body["messages"][0]["content"] for body in server.fake.asked}) == 1


def test_a_server_that_refuses_fields_by_name(server: Served, measure: Measure) -> None:
    server.fake.unknown = ("ignore_eos", "min_tokens")
    server.fake.fewer = 1
    outcome, result = measure(*options(server))
    assert outcome.code == 0
    assert {request.completion_tokens for request in result.requests} == {2}
    assert [group.fewer_tokens for group in result.groups][:2] == [1, 4]
    assert "4 answers have fewer tokens than the 3" in outcome.out
    assert len(server.fake.asked) == 7  # each field was refused once


def test_one_model_at_a_time_and_no_more_in_flight(server: Served, measure: Measure) -> None:
    server.fake.models = ("a", "b")
    _, result = measure(*options(server, concurrency=2))
    asked = [body["model"] for body in server.fake.asked]
    assert asked == ["a"] * 5 + ["b"] * 5
    assert server.fake.most_in_flight == 2
    assert {group.name["model"] for group in result.groups} == {"a", "b"}


def test_cold_and_warm_are_told_apart(
    server: Served, measure: Measure, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CAPIBARA_AXION_ADMIN_KEY", ADMIN_KEY)
    server.fake.load_s = 0.2
    outcome, result = measure(*options(server, cold=2, requests=3))
    assert outcome.code == 0
    assert [request.start for request in result.requests] == ["cold"] * 2 + ["warm"] * 3
    cold, warm = (group.measures["ttft"] for group in result.groups[:2])
    assert cold.median >= 0.2 > warm.median
    assert result.requests[0].timings == {"load_s": 0.2}


def test_a_server_that_tells_what_is_loaded_has_no_first(server: Served, measure: Measure) -> None:
    server.fake.load_s, server.fake.loaded = 0.0, {"a"}
    _, result = measure(*options(server))
    assert {request.start for request in result.requests} == {"warm"}


@pytest.mark.parametrize(
    ("key", "load_s", "message"),
    [
        (None, 0.1, "expected an operator's key in CAPIBARA_AXION_ADMIN_KEY"),
        (ADMIN_KEY, None, "expected a server that tells and changes what is loaded"),
        ("wrong", 0.1, "it answered 403"),
    ],
)
def test_cold_needs_an_operator(
    server: Served,
    measure: Measure,
    monkeypatch: pytest.MonkeyPatch,
    key: str | None,
    load_s: float | None,
    message: str,
) -> None:
    if key:
        monkeypatch.setenv("CAPIBARA_AXION_ADMIN_KEY", key)
    server.fake.load_s = load_s
    outcome, result = measure(*options(server, cold=1))
    assert outcome.code == 2
    assert "--cold: " in outcome.err
    assert message in outcome.err
    assert result is None


def test_it_goes_on_until_medians_are_known(server: Served, measure: Measure) -> None:
    few = options(server, requests=1, **{"until-ci": 50, "max-time": 30})
    outcome, result = measure(*few)
    assert outcome.code == 0
    ttft = next(g for g in result.groups if g.name == {"model": "a", "start": "warm"}).measures[
        "ttft"
    ]
    assert ttft.n >= 10
    assert (ttft.high - ttft.low) / 2 <= 0.5 * ttft.median


def test_but_not_beyond_its_time(server: Served, measure: Measure) -> None:
    outcome, result = measure(*options(server, **{"until-ci": 0.001, "max-time": 0.5}))
    assert outcome.code == 1
    assert "--max-time" in result.stopped
    assert result.requests[-1].outcome in ("ok", "interrupted")


def test_it_stops_when_the_server_is_not_well(server: Served, measure: Measure) -> None:
    def fall_ill(number: int) -> None:
        if number == 3:
            server.fake.health = 503

    server.fake.on_request = fall_ill
    outcome, result = measure(*options(server, requests=50))
    assert outcome.code == 1
    assert result.stopped == "/health answers 503"
    assert len(server.fake.asked) == 3


def test_it_stops_when_requests_fail(server: Served, measure: Measure) -> None:
    server.fake.refuse, server.fake.refuse_from = 429, 2
    outcome, result = measure(*options(server, requests=50))
    assert outcome.code == 1
    assert "3 of 5 requests failed" in result.stopped
    assert [r.outcome for r in result.requests] == ["ok"] * 2 + ["error"] * 3
    assert result.requests[-1].retry_after_s == 0.01
    assert "3 x 429 with Retry-After" in outcome.out


def test_answers_that_break_off_are_failures(server: Served, measure: Measure) -> None:
    server.fake.break_at = 1
    outcome, result = measure(*options(server, requests=1))
    assert outcome.code == 1
    assert "no request was answered" in outcome.err
    assert {request.outcome for request in result.requests} == {"error"}


def test_ctrl_c_keeps_what_was_measured(server: Served, measure: Measure) -> None:
    def interrupt(number: int) -> None:
        if number == 4:
            os.kill(os.getpid(), signal.SIGINT)

    server.fake.on_request = interrupt
    outcome, result = measure(*options(server, requests=50))
    assert outcome.code == 130
    assert result.interrupted
    assert [r.outcome for r in result.requests] == ["ok"] * 3 + ["interrupted"]
    assert next(g for g in result.groups if g.name["start"] == "warm").requests == 2


def test_keys_are_sent_and_not_written(
    server: Served, measure: Measure, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    server.fake.key = "sesame-4711"
    outcome, _ = measure(*options(server))
    assert outcome.code == 2
    assert "expected a valid key in CAPIBARA_AXION_API_KEY or OPENAI_API_KEY" in outcome.err
    monkeypatch.setenv("OPENAI_API_KEY", "sesame-4711")
    outcome, result = measure(*options(server))
    assert outcome.code == 0
    assert result.command.startswith("capibara-axion bench latency --url")
    assert "sesame" not in (tmp_path / "result.json").read_text()


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--requests=0", "--requests: expected a whole number, 1 or more, got '0'"),
        ("--pause=-1", "--pause: expected a number, 0 or more, got '-1'"),
        ("--until-ci=nan", "--until-ci: expected a number above 0, got 'nan'"),
        ("--max-error-rate=2", "--max-error-rate: expected a number from 0 to 1, got '2'"),
        ("--url=ftp://x", "--url: expected http://HOST:PORT, got 'ftp://x'"),
        ("--url=http://x:0", "--url: expected http://HOST:PORT, got 'http://x:0'"),
        ("--url=http://me:key@x", "--url: expected http://HOST:PORT without a user's name, a key"),
        ("--output=/dev/null/x.json", "--output: expected a file that can be written"),
        ("--model=z", "--model: expected one of a; got 'z'"),
        ("--kind=poem", "--kind: invalid choice: 'poem'"),
    ],
)
def test_bad_input(
    server: Served, bench: Callable[..., Outcome], argument: str, message: str
) -> None:
    outcome = bench(*options(server), argument)
    assert outcome.code == 2
    assert message in outcome.err
    assert "key@" not in outcome.err
    assert not server.fake.asked


def test_nobody_there(server: Served, bench: Callable[..., Outcome]) -> None:
    outcome = bench("latency", "--url", "http://127.0.0.1:1")
    assert outcome.code == 2
    assert "--url: no server answers at http://127.0.0.1:1" in outcome.err


def test_something_else_there(server: Served, bench: Callable[..., Outcome]) -> None:
    outcome = bench("latency", "--url", server.url + "/elsewhere")
    assert outcome.code == 2
    assert "expected an OpenAI-compatible server" in outcome.err

# SPDX-License-Identifier: Apache-2.0
"""What a client sees while it waits: comments, deadlines, timings, keep-alive, request ids."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from conftest import CHAT, ask, error_of, eventually, expert, fake_service


def frames(text: str) -> list[dict[str, Any]]:
    """The JSON events of a stream."""
    return [
        json.loads(frame.removeprefix("data: "))
        for frame in text.split("\n\n")
        if frame.startswith("data: {")
    ]


async def test_comments_fill_the_silence_of_a_load_and_of_a_slow_answer(tmp_path: Path) -> None:
    settings = {"ping_interval_s": 0.2}
    async with fake_service(tmp_path, expert("a", load_s=1), server_config=settings) as s:
        answer = await s.streaming.post(CHAT, json=ask(tokens=2, ttft_s=0.7, gap_s=0.5))
        assert answer.status == 200
        text = await answer.text()
        before, _, after = text.partition('data: {"token": 0')
        assert before.count(": ping\n\n") >= 4
        assert after.count(": ping\n\n") >= 1
        assert text.endswith("data: [DONE]\n\n")


async def test_what_fails_before_the_first_byte_has_its_status(tmp_path: Path) -> None:
    async with fake_service(tmp_path, expert("a", load_s=0.3, fail="no weights")) as s:
        failed = await error_of(await s.streaming.post(CHAT, json=ask()))
        assert (failed["status"], failed["code"]) == (503, "model_load_failed")


async def test_what_fails_after_a_comment_ends_the_stream_with_an_error(tmp_path: Path) -> None:
    settings = {"ping_interval_s": 0.1}
    broken = expert("a", load_s=0.6, fail="no weights")
    async with fake_service(tmp_path, broken, server_config=settings) as s:
        answer = await s.streaming.post(CHAT, json=ask())
        text = await answer.text()
        assert answer.status == 200
        assert text.startswith(": ping\n\n")
        assert frames(text)[-1]["error"]["code"] == "model_load_failed"
        assert text.endswith("data: [DONE]\n\n")


async def test_an_impatient_streaming_client_gets_its_comments_sooner(tmp_path: Path) -> None:
    async with fake_service(tmp_path, expert("a", load_s=1)) as s:
        headers = {"X-Stainless-Read-Timeout": "0.5"}
        answer = await s.streaming.post(CHAT, json=ask(tokens=1), headers=headers)
        assert ": ping" in await answer.text()


async def test_nobody_waits_longer_than_its_client_does(tmp_path: Path) -> None:
    async with fake_service(tmp_path, expert("a", load_s=30)) as s:
        headers = {"X-Stainless-Read-Timeout": "0.3"}
        failed = await error_of(await s.whole.post(CHAT, json=ask(), headers=headers))
        assert (failed["status"], failed["code"]) == (408, "deadline_exceeded")
        assert s.pool.statistics()["a"]["waiting"] == 0


async def test_timings_tell_queue_load_and_speed(tmp_path: Path) -> None:
    async with fake_service(tmp_path, expert("a", load_s=0.5)) as s:
        cold = (await (await s.whole.post(CHAT, json=ask(take_s=0.1))).json())["timings"]
        warm = (await (await s.whole.post(CHAT, json=ask(take_s=0.1))).json())["timings"]
        assert cold["queue_s"] >= cold["load_s"] >= 0.5
        assert warm["load_s"] == 0
        assert warm["queue_s"] < 0.5
        assert warm["total_s"] >= 0.1


async def test_request_ids_are_echoed_or_made(tmp_path: Path) -> None:
    async with fake_service(tmp_path, expert("a")) as s:
        for client in (s.whole, s.streaming):
            answer = await client.post(CHAT, json=ask(), headers={"X-Request-Id": "mine-1"})
            assert answer.headers["X-Request-Id"] == "mine-1"
        made = {(await s.whole.get("/health")).headers["X-Request-Id"] for _ in range(2)}
        assert len(made) == 2
        odd = await s.whole.get("/nowhere", headers={"X-Request-Id": "a b\tc"})
        assert odd.headers["X-Request-Id"] not in ("", "a b\tc")


@pytest.mark.parametrize("value", [0, "0s", "50ms"])
async def test_a_request_may_say_how_long_the_model_stays(tmp_path: Path, value: Any) -> None:
    async with fake_service(tmp_path, expert("a")) as s:
        assert (await s.whole.post(CHAT, json={**ask(), "keep_alive": value})).status == 200
        await eventually(lambda: s.pool.state_of("a") == "unloaded")
        assert s.pool.statistics()["a"]["unloads_total"] == {"idle": 1}


@pytest.mark.parametrize("value", ["soon", True, [], "5 weeks"])
async def test_a_keep_alive_that_is_no_duration(tmp_path: Path, value: Any) -> None:
    async with fake_service(tmp_path, expert("a")) as s:
        failed = await error_of(await s.whole.post(CHAT, json={**ask(), "keep_alive": value}))
        assert (failed["status"], failed["param"]) == (400, "keep_alive")


async def test_each_model_has_its_own_limit(tmp_path: Path) -> None:
    settings = {"max_requests_per_model": 2}
    async with fake_service(tmp_path, expert("a"), expert("b"), server_config=settings) as s:
        running = [asyncio.ensure_future(s.whole.post(CHAT, json=ask(take_s=2))) for _ in "12"]
        await eventually(lambda: s.pool.statistics()["a"]["running"] == 2)
        refused = await s.whole.post(CHAT, json=ask())
        assert 1 <= int(refused.headers["Retry-After"]) <= 60
        assert (await error_of(refused))["status"] == 429
        assert (await s.whole.post(CHAT, json=ask("b"))).status == 200
        assert [(await answer).status for answer in running] == [200, 200]


async def test_a_model_that_is_warm_is_there_before_anybody_asks(tmp_path: Path) -> None:
    experts = [{**expert(name), "priority": i} for i, name in enumerate("abc")]
    lazy = {"warmup_pool_size": 2, "max_loaded_experts": 3}
    async with fake_service(tmp_path, *experts, lazy_loading=lazy) as s:
        await eventually(
            lambda: [s.pool.state_of(n) for n in "abc"] == ["unloaded", *2 * ["ready"]]
        )


async def test_a_model_alone_has_all_cores_and_gives_half_back(tmp_path: Path) -> None:
    async with fake_service(tmp_path, expert("a"), expert("b")) as s:
        cores = len(s.pool.cpus)
        if cores < 2:
            pytest.skip("one core cannot be divided; a machine with two runs this")
        first = await s.streaming.post(CHAT, json=ask(tokens=200, gap_s=0.02))
        assert len(s.pool.statistics()["a"]["cpus"]) == cores
        second = await s.streaming.post(CHAT, json=ask("b", tokens=3, gap_s=0.02))
        held = [set(s.pool.statistics()[name]["cpus"]) for name in "ab"]
        assert not held[0] & held[1]
        assert "[DONE]" in await second.text()
        await eventually(lambda: len(s.pool.statistics()["a"]["cpus"]) == cores)
        first.close()
        await eventually(lambda: s.pool.statistics()["a"]["cpus"] == [])

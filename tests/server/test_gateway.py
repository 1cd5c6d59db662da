# SPDX-License-Identifier: Apache-2.0
"""The gateway over real processes that only pretend to have a model."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
from conftest import CHAT, ask, error_of, eventually, expert, fake_service, gone


async def test_each_listener_has_its_default_and_honours_the_request(tmp_path: Path) -> None:
    async with fake_service(tmp_path, expert("a")) as s:
        for client, default in ((s.whole, "application/json"), (s.streaming, "text/event-stream")):
            assert (await client.post(CHAT, json=ask())).content_type == default
            for stream, kind in ((False, "application/json"), (True, "text/event-stream")):
                answer = await client.post(CHAT, json={**ask(), "stream": stream})
                assert answer.content_type == kind


async def test_bytes_pass_through_unchanged(tmp_path: Path) -> None:
    async with fake_service(tmp_path, expert("a")) as s:
        body = {**ask(), "messages": [{"content": "¿qué? 🦫"}], "x": [1, None, 2.5]}
        assert (await (await s.whole.post(CHAT, json=body)).json())["echo"] == body
        answer = await s.streaming.post(CHAT, json=ask(tokens=2))
        assert await answer.read() == (
            b'data: {"token": 0}\n\ndata: {"token": 1}\n\ndata: [DONE]\n\n'
        )
        assert answer.headers["X-Accel-Buffering"] == "no"


async def test_a_stream_arrives_as_it_is_made(tmp_path: Path) -> None:
    async with fake_service(tmp_path, expert("a")) as s:
        loop = asyncio.get_running_loop()
        answer = await s.streaming.post(CHAT, json=ask(tokens=4, gap_s=0.1))
        times = [loop.time() async for line in answer.content if b"token" in line]
        gaps = [after - before for before, after in itertools.pairwise(times)]
        assert len(gaps) == 3
        assert min(gaps) > 0.05


async def test_concurrent_first_requests_load_once(tmp_path: Path) -> None:
    async with fake_service(tmp_path, expert("a", load_s=0.3)) as s:
        answers = await asyncio.gather(*(s.whole.post(CHAT, json=ask()) for _ in range(20)))
        pids = {(await answer.json())["pid"] for answer in answers}
        assert len(pids) == 1
        assert s.journal().count("a loaded") == 1
        assert s.pool.statistics()["a"]["loads_total"] == 1


async def test_the_load_goes_on_without_its_client(tmp_path: Path) -> None:
    async with fake_service(tmp_path, expert("a", load_s=0.5)) as s:
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(s.whole.post(CHAT, json=ask()), 0.1)
        await eventually(lambda: s.pool.state_of("a") == "ready")
        assert s.journal() == ["a loaded"]


async def test_only_so_many_models_stay_loaded(tmp_path: Path) -> None:
    experts = [expert(name) for name in "abc"]
    async with fake_service(tmp_path, *experts, lazy_loading={"max_loaded_experts": 2}) as s:
        for name in "abca":
            assert (await (await s.whole.post(CHAT, json=ask(name))).json())["model"] == name
            assert sum(s.pool.state_of(name) == "ready" for name in "abc") <= 2
        unloads = [s.pool.statistics()[name]["unloads_total"] for name in "abc"]
        assert {cause for causes in unloads for cause in causes} == {"evicted"}


async def test_an_idle_model_is_unloaded_and_its_process_gone(tmp_path: Path) -> None:
    async with fake_service(tmp_path, expert("a"), lazy_loading={"auto_unload_after_s": 0.3}) as s:
        pid = (await (await s.whole.post(CHAT, json=ask())).json())["pid"]
        await eventually(lambda: s.pool.state_of("a") == "unloaded")
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
        assert (await (await s.whole.post(CHAT, json=ask())).json())["pid"] != pid


async def test_a_leaving_client_cancels_its_request(tmp_path: Path) -> None:
    async with fake_service(tmp_path, expert("a")) as s:
        answer = await s.streaming.post(CHAT, json=ask(tokens=1000, gap_s=0.02))
        await answer.content.readline()
        answer.close()
        await eventually(lambda: "a cancelled" in s.journal(), 1.0)
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(s.whole.post(CHAT, json=ask(take_s=60)), 0.2)
        await eventually(lambda: s.journal().count("a cancelled") == 2, 1.0)
        assert s.pool.statistics()["a"]["running"] == 0


async def test_a_request_is_sent_again_when_its_worker_died_silently(tmp_path: Path) -> None:
    async with fake_service(tmp_path, expert("a")) as s:
        answer = await s.whole.post(CHAT, json=ask(die_once="x"))
        assert answer.status == 200
        assert s.journal().count("a loaded") == 2


async def test_a_request_that_kills_every_worker_gets_an_error(tmp_path: Path) -> None:
    async with fake_service(tmp_path, expert("a")) as s:
        answer = await s.whole.post(CHAT, json={**ask(tokens=2, die_at=1), "stream": True})
        assert b"worker_lost" in await answer.read()  # had begun, so no second try
        pid = (await (await s.whole.post(CHAT, json=ask())).json())["pid"]
        pending = asyncio.ensure_future(s.whole.post(CHAT, json=ask(take_s=60)))
        for _ in range(2):
            await eventually(lambda: s.pool.statistics()["a"]["running"] == 1)
            await eventually(lambda: s.journal()[-1].startswith("a request"))
            pid = s.pool.statistics()["a"]["pid"]
            os.kill(pid, signal.SIGKILL)
            await eventually(lambda gone=pid: s.pool.statistics()["a"]["pid"] != gone)
        failed = await error_of(await pending)
        assert (failed["status"], failed["code"]) == (503, "worker_lost")


async def test_a_killed_forkserver_takes_its_workers_along_and_is_replaced(tmp_path: Path) -> None:
    async with fake_service(tmp_path, expert("a")) as s:
        pid = (await (await s.whole.post(CHAT, json=ask())).json())["pid"]
        worker = psutil.Process(pid)
        worker.parent().kill()
        await eventually(lambda: s.pool.state_of("a") == "unloaded")
        await eventually(lambda: gone([worker]))
        assert (await s.whole.post(CHAT, json=ask())).status == 200


async def test_a_broken_stream_ends_with_an_error_and_done(tmp_path: Path) -> None:
    async with fake_service(tmp_path, expert("a")) as s:
        answer = await s.streaming.post(CHAT, json=ask(tokens=9, die_at=2))
        frames = (await answer.text()).strip().split("\n\n")
        assert frames[:2] == ['data: {"token": 0}', 'data: {"token": 1}']
        assert frames[-1] == "data: [DONE]"
        error = json.loads(frames[-2].removeprefix("data: "))["error"]
        assert error["code"] == "worker_lost"
        assert len(frames) == 4  # what the worker had half written is not passed on
        assert (await s.whole.post(CHAT, json=ask())).status == 200


@pytest.mark.parametrize(
    ("orders", "words", "tries"),
    [({"fail": "no such weights"}, "no such weights", 1), ({"crash": 1}, "code 3", 2)],
)
async def test_a_failed_load_is_503_with_its_reason(
    tmp_path: Path, orders: dict[str, Any], words: str, tries: int
) -> None:
    async with fake_service(tmp_path, expert("a", **orders), expert("b")) as s:
        answer = await s.whole.post(CHAT, json=ask())
        failed = await error_of(answer)
        assert (failed["status"], failed["code"]) == (503, "model_load_failed")
        assert words in failed["message"]
        assert 1 <= int(answer.headers["Retry-After"]) <= 60
        again = await s.whole.post(CHAT, json=ask())  # at once: no second load so soon
        assert (again.status, s.pool.statistics()["a"]["load_failures_total"]) == (503, tries)
        assert (await s.whole.post(CHAT, json=ask("b"))).status == 200


async def test_a_load_that_hangs_is_given_up(tmp_path: Path) -> None:
    limits = {"load_timeout_s": 0.3}
    async with fake_service(tmp_path, expert("a", load_s=600), server_config=limits) as s:
        failed = await error_of(await s.whole.post(CHAT, json=ask()))
        assert (failed["status"], failed["code"]) == (503, "model_load_failed")
        await eventually(lambda: s.pool.state_of("a") == "failed")


async def test_too_many_requests_are_429(tmp_path: Path) -> None:
    async with fake_service(tmp_path, expert("a"), server_config={"max_requests": 2}) as s:
        running = [asyncio.ensure_future(s.whole.post(CHAT, json=ask(take_s=1))) for _ in "ab"]
        await eventually(lambda: s.pool.statistics()["a"]["running"] == 2)
        answer = await s.whole.post(CHAT, json=ask())
        assert "Retry-After" in answer.headers
        assert (await error_of(answer))["status"] == 429
        assert [(await answer).status for answer in running] == [200, 200]


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"{bad", 400, "invalid_json"),
        (b"", 400, "invalid_json"),
        (b"[1]", 400, "invalid_json"),
        (b'"text"', 400, "invalid_json"),
        (b"\xff\xfe\xfd", 400, "invalid_json"),
        (b"[" * 100_000, 400, "invalid_json"),
        (b'{"messages": []}', 400, "invalid_model"),
        (b'{"model": 7}', 400, "invalid_model"),
        (b'{"model": "z"}', 404, "model_not_found"),
        (b'{"model": "a", "x": "' + b"x" * 3000 + b'"}', 413, "body_too_large"),
    ],
    ids=lambda value: str(value)[:24],
)
async def test_bad_bodies(tmp_path: Path, body: bytes, status: int, code: str) -> None:
    size = 2048 if status == 413 else 1 << 20
    async with fake_service(tmp_path, expert("a"), server_config={"max_body_bytes": size}) as s:
        failed = await error_of(await s.whole.post(CHAT, data=body))
        assert (failed["status"], failed["code"]) == (status, code)
        assert failed["type"] == "invalid_request_error"
        assert s.journal() == []


async def test_routes(tmp_path: Path) -> None:
    async with fake_service(tmp_path, expert("a"), expert("org/b")) as s:
        models = await (await s.whole.get("/v1/models")).json()
        assert [card["id"] for card in models["data"]] == ["a", "org/b"]
        card = await (await s.whole.get("/v1/models/org/b")).json()
        assert (card["id"], card["status"]) == ("org/b", {"value": "unloaded"})
        assert (await error_of(await s.whole.get("/v1/models/z")))["code"] == "model_not_found"
        assert (await error_of(await s.whole.get("/nowhere")))["status"] == 404
        not_allowed = await s.whole.get(CHAT)
        assert not_allowed.headers["Allow"] == "POST"
        assert (await error_of(not_allowed))["code"] == "method_not_allowed"
        assert await (await s.whole.get("/health")).json() == {"status": "ok"}
        stats = await (await s.streaming.get("/stats")).json()
        assert stats["models"]["a"]["state"] == "unloaded"
        s.gateway.operations.draining = True
        assert (await s.whole.get("/health")).status == 503


async def test_api_key(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    async with fake_service(tmp_path, expert("a"), api_key="s3cret-ñ") as s:
        for wrong in (None, "Bearer", "Bearer wrong", "Basic s3cret-ñ"):
            headers = {} if wrong is None else {"Authorization": wrong}
            for path in ("/v1/models", "/stats", "/nowhere"):
                failed = await error_of(await s.whole.get(path, headers=headers))
                assert (failed["status"], failed["code"]) == (401, "invalid_api_key")
        right = {"Authorization": "Bearer s3cret-ñ"}
        assert (await s.whole.get("/v1/models", headers=right)).status == 200
        assert (await s.whole.get("/health")).status == 200
    assert "s3cret" not in caplog.text


async def test_draining_lets_streams_end_and_refuses_the_rest(tmp_path: Path) -> None:
    async with fake_service(tmp_path, expert("a"), expert("b", load_s=30)) as s:
        stream = await s.streaming.post(CHAT, json=ask(tokens=10, gap_s=0.05))
        waiting = asyncio.ensure_future(s.whole.post(CHAT, json=ask("b")))
        await eventually(lambda: s.pool.state_of("b") == "loading")
        draining = asyncio.ensure_future(s.pool.shut_down(5.0))
        assert (await error_of(await waiting))["code"] == "shutting_down"
        assert (await error_of(await s.whole.post(CHAT, json=ask())))["status"] == 503
        assert (await stream.text()).endswith("data: [DONE]\n\n")
        await draining
        assert {s.pool.state_of(name) for name in "ab"} == {"unloaded"}


async def test_draining_is_bounded(tmp_path: Path) -> None:
    async with fake_service(tmp_path, expert("a")) as s:
        stream = await s.streaming.post(CHAT, json=ask(tokens=1000, gap_s=0.05))
        await asyncio.wait_for(s.pool.shut_down(0.2), 3.0)
        assert b"worker_lost" in await stream.read()


async def test_engines_get_disjoint_cores(tmp_path: Path) -> None:
    async with fake_service(tmp_path, expert("a"), expert("b")) as s:
        for name in "ab":
            await s.whole.post(CHAT, json=ask(name))
        cpus = [s.pool.statistics()[name]["cpus"] for name in "ab"]
        if len(os.sched_getaffinity(0)) >= 2:
            assert not set(cpus[0]) & set(cpus[1])


def test_the_gateway_never_imports_the_heavy_libraries() -> None:
    code = (
        "import sys, capibara_axion.cli, capibara_axion.server.serve;"
        "print([m for m in ('torch', 'vllm', 'transformers') if m in sys.modules])"
    )
    output = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert output.stdout.strip() == "[]"

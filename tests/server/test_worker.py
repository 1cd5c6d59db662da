# SPDX-License-Identifier: Apache-2.0
"""The worker's side of the gateway: messages over the pipe, a process's life, a request's times."""

from __future__ import annotations

import asyncio
import base64
import json
import multiprocessing
import os
import signal
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from conftest import expert
from fake_worker import fake_worker_main

from capibara_axion.server import control, media
from capibara_axion.server.config import ServerConfig
from capibara_axion.server.control import Beat, Channel, Cores, Failed, Phase, Ready
from capibara_axion.server.errors import ApiError
from capibara_axion.server.launcher import Launcher, Worker, WorkerError, WorkerSpec
from capibara_axion.server.worker_request import WorkerRequest

CHAT = "http://worker/v1/chat/completions"
BEAT_S = 0.05


def worker_spec(directory: Path, **fields: Any) -> WorkerSpec:
    """Of a fake expert that loads as `fields` say; see fake_worker."""
    (config,) = ServerConfig.model_validate({"experts": [expert("a", **fields)]}).experts
    return WorkerSpec(config, str(directory / "worker.sock"), (0,), "info")


@asynccontextmanager
async def started(directory: Path, **orders: Any) -> AsyncIterator[Worker]:
    launcher = Launcher(fake_worker_main, preload=["aiohttp.web"])
    worker = await launcher.launch(worker_spec(directory, **orders))
    try:
        yield worker
    finally:
        worker.kill()
        await worker.exited
        launcher.close()


def client_of(worker: Worker) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(connector=aiohttp.UnixConnector(worker.spec.socket_path))


def ask(**fake: Any) -> dict[str, Any]:
    return {"model": "a", "stream": True, "fake": fake}


async def next_beats(worker: Worker, count: int, within_s: float = 5) -> list[Beat]:
    """The beats to come. Takes the worker's `on_beat`."""
    beats: asyncio.Queue[Beat] = asyncio.Queue()
    worker.on_beat = beats.put_nowait
    return [await asyncio.wait_for(beats.get(), within_s) for _ in range(count)]


# Messages


@pytest.mark.parametrize(
    "message",
    [
        Phase("loading"),
        Ready({"engine_s": 1.5, "cpus": [1]}),
        Failed("no ¡weights!"),
        Beat(1, 2, 3, 4.5),
        Cores((0, 3)),
    ],
    ids=lambda message: message.type,
)
def test_messages_arrive_as_they_were_sent(message: control.Message) -> None:
    here, there = map(Channel, multiprocessing.Pipe())
    assert not there.pending()
    assert here.send(message)
    assert there.pending()
    assert there.receive() == message


def test_sending_never_waits_for_a_reader() -> None:
    here, there = map(Channel, multiprocessing.Pipe())
    began = time.monotonic()
    sent = 0
    while here.send(Beat(sent, 0, 0, 0.0)):
        sent += 1
    assert time.monotonic() - began < 5
    assert sent > 50
    # What was taken was taken whole, and room is used again.
    assert [there.receive().running for _ in range(sent)] == list(range(sent))  # type: ignore[union-attr]
    assert here.send(Phase("again"))
    there.close()
    assert not here.send(Phase("to nobody"))


def test_the_end_of_the_other_side_is_an_eof() -> None:
    here, there = map(Channel, multiprocessing.Pipe())
    there.close()
    assert here.pending()
    with pytest.raises(EOFError):
        here.receive()


# A worker's life


async def test_a_load_tells_its_phases(tmp_path: Path) -> None:
    phases = {"configuring": 0.05, "loading": 0.05, "starting": 0}
    seen: list[str] = []
    async with started(tmp_path, phases=phases) as worker:
        worker.on_phase = seen.append
        assert await worker.ready() == {"fake": True}
        assert seen == [*phases, "ready"]
        assert worker.phase == "ready"


async def test_a_failed_load_gives_its_reason(tmp_path: Path) -> None:
    async with started(tmp_path, fail="no such weights") as worker:
        with pytest.raises(WorkerError, match="no such weights") as failed:
            await worker.ready()
        assert not failed.value.crashed
        assert worker.phase == "failed"


async def test_a_crashed_load_gives_its_code(tmp_path: Path) -> None:
    async with started(tmp_path, crash=1) as worker:
        with pytest.raises(WorkerError, match="code 3") as failed:
            await worker.ready()
        assert failed.value.crashed


async def test_beats_count_what_the_engine_does(tmp_path: Path) -> None:
    async with started(tmp_path, beat_s=BEAT_S) as worker, client_of(worker) as client:
        await worker.ready()
        (before,) = await next_beats(worker, 1)
        assert (before.running, before.steps, before.tokens) == (0, 0, 0)
        assert before.cpu_s > 0
        answer = await client.post(CHAT, json=ask(tokens=1000, gap_s=0.01))
        first, second = await next_beats(worker, 2)
        assert second.running == 1
        assert second.tokens > first.tokens
        assert second.steps > first.steps
        assert worker.beat == second
        assert asyncio.get_running_loop().time() - worker.beat_at < 1
        answer.close()
        assert (await next_beats(worker, 2))[1].running == 0


async def test_a_hanging_engine_beats_without_progress(tmp_path: Path) -> None:
    async with started(tmp_path, beat_s=BEAT_S) as worker, client_of(worker) as client:
        await worker.ready()
        answer = await client.post(CHAT, json=ask(hang_at=1))
        assert await answer.content.readline() == b'data: {"token": 0}\n'
        _, second, third = await next_beats(worker, 3)
        assert second == Beat(1, 1, 1, second.cpu_s)
        assert (second.steps, second.tokens) == (third.steps, third.tokens)


@pytest.mark.parametrize("how", ["stopped", "blocked"])
async def test_no_beats_from_a_stuck_worker(tmp_path: Path, how: str) -> None:
    async with started(tmp_path, beat_s=BEAT_S) as worker, client_of(worker) as client:
        await worker.ready()
        await next_beats(worker, 1)
        if how == "stopped":
            os.kill(worker.pid, signal.SIGSTOP)
        else:
            blocked = asyncio.ensure_future(client.post(CHAT, json=ask(block_loop=0.5)))
            await asyncio.sleep(0.1)
        with pytest.raises(asyncio.TimeoutError):
            await next_beats(worker, 1, within_s=0.2)
        if how == "stopped":
            os.kill(worker.pid, signal.SIGCONT)
        await next_beats(worker, 1)
        if how == "blocked":
            (await blocked).close()


async def test_cores_are_set_in_order_and_confirmed_in_effect(tmp_path: Path) -> None:
    async with started(tmp_path, cores_s=0.2) as worker:
        await worker.ready()
        began = time.monotonic()
        await asyncio.gather(worker.set_cores([1, 2]), worker.set_cores((3,)))
        assert time.monotonic() - began >= 0.2
        assert (tmp_path / "journal.txt").read_text() == "a loaded\na cores 1,2\na cores 3\n"


async def test_cores_of_a_worker_that_loads_are_set_when_it_has_loaded(tmp_path: Path) -> None:
    async with started(tmp_path, load_s=0.2) as worker:
        await worker.set_cores([1])
        assert worker.phase == "ready"


async def test_too_few_cores_and_cores_of_the_dead(tmp_path: Path) -> None:
    async with started(tmp_path, cores_s=60) as worker:
        await worker.ready()
        with pytest.raises(ValueError, match="expected 1 or more, got"):
            await worker.set_cores([])
        asked = asyncio.ensure_future(worker.set_cores([1]))
        await asyncio.sleep(0)
        worker.kill()
        with pytest.raises(WorkerError, match="code -9") as lost:
            await asked
        assert lost.value.crashed
        with pytest.raises(WorkerError):
            await worker.set_cores([1])


async def test_nothing_blocks_on_a_stopped_worker_and_it_can_be_killed(tmp_path: Path) -> None:
    async with started(tmp_path) as worker:
        await worker.ready()
        os.kill(worker.pid, signal.SIGSTOP)
        asked = []
        began = time.monotonic()
        for _ in range(2000):  # many times what the pipe holds
            asked.append(asyncio.ensure_future(worker.set_cores([1])))
            await asyncio.sleep(0)
        assert time.monotonic() - began < 5
        assert sum(one.done() for one in asked) > 1000
        worker.terminate()
        worker.kill()
        assert await asyncio.wait_for(worker.exited, 5) == -signal.SIGKILL
        outcomes = await asyncio.gather(*asked, return_exceptions=True)
        assert {type(outcome) for outcome in outcomes} == {WorkerError}


async def test_terminate_asks_and_kill_does_not(tmp_path: Path) -> None:
    async with started(tmp_path) as worker:
        await worker.ready()
        worker.terminate()
        assert await asyncio.wait_for(worker.exited, 5) == 0
    async with started(tmp_path, ignore_term=True) as worker:
        await worker.ready()
        worker.terminate()
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(asyncio.shield(worker.exited), 0.3)
        worker.kill()
        assert await asyncio.wait_for(worker.exited, 5) == -signal.SIGKILL


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc")
async def test_a_worker_leaves_nothing_behind(tmp_path: Path) -> None:
    async def live_and_die(**orders: Any) -> None:
        async with started(tmp_path, **orders) as worker:
            if not orders:
                await worker.ready()
                assert (tmp_path / "worker.sock").exists()
                await worker.set_cores([0])

    await live_and_die()  # the forkserver has descriptors of its own
    before = set(os.listdir("/proc/self/fd"))
    for orders in ({}, {"crash": 1}, {"fail": "x"}, {}):
        await live_and_die(**orders)
        assert not (tmp_path / "worker.sock").exists()
    assert set(os.listdir("/proc/self/fd")) == before


# Times


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    now = [1000.0]
    monkeypatch.setattr(time, "time", lambda: now[0])
    return lambda seconds: now.__setitem__(0, now[0] + seconds)


def timings(request: WorkerRequest, answer: str = '{"id":"x"}') -> dict[str, Any]:
    fields = json.loads(request.with_timings(answer))
    assert fields["id"] == "x"
    times: dict[str, Any] = fields["timings"]
    return times


def test_times_of_a_stream(clock: Callable[[float], None]) -> None:
    headers = {"X-Capibara-Queue-S": "2.5", "X-Capibara-Load-S": "2", "X-Request-Id": "r"}
    request = WorkerRequest.of(headers, b"{}")
    assert request.request_id == "r"
    clock(0.5)
    request.generated(0)  # a part of a long prompt
    for _ in range(5):
        clock(0.1)
        request.generated(1)
    clock(0.2)
    assert timings(request) == {
        "queue_s": 2.5,
        "load_s": 2.0,
        "ttft_s": 0.6,
        "total_s": 1.2,
        "tokens_per_s": 10.0,
    }


def test_times_of_a_whole_answer(clock: Callable[[float], None]) -> None:
    request = WorkerRequest.of({}, b"{}")
    clock(2.0)
    request.generated(11, first_at=1000.5)
    assert timings(request) == {
        "queue_s": 0.0,
        "load_s": 0.0,
        "ttft_s": 0.5,
        "total_s": 2.0,
        "tokens_per_s": round(10 / 1.5, 2),
    }


def test_times_without_and_with_one_token(clock: Callable[[float], None]) -> None:
    request = WorkerRequest.of({}, b"{}")
    clock(1.0)
    assert timings(request)["ttft_s"] is None
    request.generated(1)
    assert timings(request)["ttft_s"] == 1.0
    assert timings(request)["tokens_per_s"] is None


def test_times_go_into_the_last_event_unparsed() -> None:
    event = 'data: {"id":"x","choices":[{"text":"}{"}]}\n\n'
    changed = WorkerRequest(b"").with_timings(event)
    assert changed.startswith('data: {"id":"x","choices":[{"text":"}{"}],"timings":{"queue_s":0.0,')
    assert changed.endswith("}}\n\n")
    json.loads(changed.removeprefix("data: "))


# Media


def data_url(size: int) -> str:
    return "data:image/png;base64," + base64.b64encode(bytes(size)).decode()


def with_images(*urls: str) -> dict[str, Any]:
    content = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    return {"messages": [{"role": "user", "content": content}]}


def limits(**fields: Any) -> WorkerSpec:
    (config,) = ServerConfig.model_validate({"experts": [expert("a")]}).experts
    return WorkerSpec(config, "/nowhere", (0,), "info", **fields)


def refusal(fields: dict[str, Any], spec: WorkerSpec) -> ApiError:
    with pytest.raises(ApiError) as refused:
        media.check_media(fields, spec)
    return refused.value


def test_media_within_the_limits_are_accepted() -> None:
    spec = limits(max_images=2, max_image_bytes=100, allowed_media_domains=("img.example",))
    for size in (98, 99, 100):  # with two, one and no characters of padding
        media.check_media(with_images(data_url(size), data_url(0)), spec)
    media.check_media(with_images("https://img.example/a.png", "http://img.example:81/b"), spec)
    media.check_media({"messages": [{"role": "user", "content": "text"}]}, spec)
    media.check_media({"messages": "not even a list", "input": ["text", 3]}, spec)


@pytest.mark.parametrize("size", [101, 102, 103])
def test_too_large_an_image(size: int) -> None:
    error = refusal(with_images(data_url(size)), limits(max_image_bytes=100))
    assert (error.status, error.code, error.param) == (413, "image_too_large", "image_url")
    assert f"{size} bytes exceeds the limit of 100 bytes (max_image_bytes)" in error.message


def test_too_many_images() -> None:
    fields = with_images(data_url(1), data_url(1))
    fields["messages"] *= 2
    error = refusal(fields, limits(max_images=3))
    assert (error.status, error.code) == (400, "too_many_images")
    assert "3 images (max_images), this one has 4" in error.message


@pytest.mark.parametrize(
    "url",
    [
        "http://img.example/a.png",
        "file:///etc/passwd",
        "FILE:///etc/passwd",
        "//img.example/a",
        "http://[",
        "",
        "data:image/png,raw",
    ],
)
def test_media_from_elsewhere(url: str) -> None:
    error = refusal(with_images(url), limits())
    assert (error.status, error.code) == (400, "invalid_media_url")
    assert "data: URL" in error.message


@pytest.mark.parametrize(
    "url",
    [
        "https://other.example/a.png",
        "https://img.example.evil.example/a.png",
        "https://img.example@evil.example/a.png",
        "ftp://img.example/a.png",
    ],
)
def test_media_from_other_domains(url: str) -> None:
    error = refusal(with_images(url), limits(allowed_media_domains=("img.example",)))
    assert "http(s) URLs of img.example" in error.message


@pytest.mark.parametrize("kind", ["image_url", "audio_url", "video_url"])
def test_every_way_to_name_a_medium(kind: str) -> None:
    url = "http://127.0.0.1/x"
    parts: list[Any] = [{kind: {"url": url}}, {"type": kind, kind: url}]
    for part in parts:
        message = {"role": "user", "content": [part]}
        for fields in ({"messages": [message]}, {"messages": [[message]]}, {"input": [message]}):
            assert refusal(fields, limits()).param == kind

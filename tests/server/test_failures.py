# SPDX-License-Identifier: Apache-2.0
"""Real processes, fake engines, and everything that can go wrong between them.

The counts of kills are small here; `soak.py` takes larger ones.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
import socket
import statistics
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from conftest import FakeService, expert, fake_service
from faults import (
    HOWS,
    FakeServerProcess,
    fake_fields,
    gateway_config,
    kill_gateway,
    kill_workers,
    traffic,
    until,
)
from ledger import Entry, Ledger

CHAT = "/v1/chat/completions"


def fake(**orders: Any) -> dict[str, Any]:
    return {"extra_body": {"fake": orders}}


@asynccontextmanager
async def asked(service: FakeService) -> AsyncIterator[Ledger]:
    ledger = Ledger(str(service.whole.make_url("")).rstrip("/"))
    try:
        yield ledger
    finally:
        await ledger.close()


async def moment_of(condition: Callable[[], Any], timeout: float = 90) -> float:
    """When it came true, by `time.monotonic`."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout:g} s"
        await asyncio.sleep(0.002)
    return time.monotonic()


async def begin(ledger: Ledger, model: str, **orders: Any) -> tuple[asyncio.Task[Entry], Entry]:
    """A stream of which something has arrived."""
    task = asyncio.create_task(ledger.ask(model, stream=True, **fake(**orders)))
    asked_before = len(ledger.entries)
    await moment_of(lambda: len(ledger.entries) > asked_before)
    entry = ledger.entries[-1]
    await moment_of(lambda: entry.first_byte)
    return task, entry


async def test_killed_workers_lose_no_request(tmp_path: Path) -> None:
    """A request that had received nothing is answered; a stream that had begun ends in order."""
    count, models = int(os.environ.get("CAPIBARA_AXION_TEST_KILLS", 40)), "abcd"
    async with fake_service(tmp_path, *map(expert, models)) as s, asked(s) as ledger:
        rng = random.Random(6)
        async with traffic(ledger, models, fake_fields, rng, clients=12):
            await kill_workers(ledger, models, count, rng)
        print(summary := ledger.summary())
        assert summary["lost"] == []
        assert summary["outcomes"]["broken"] > 0
        assert summary["hit_and_answered"] > 0
        assert summary["slowest_end_s"] <= 2
        exits = sum(m["worker_exits_total"] for m in s.pool.statistics().values())
        assert exits == count


async def test_a_stopped_worker_is_replaced(tmp_path: Path) -> None:
    limits = {"hang_timeout_s": 2}
    async with (
        fake_service(tmp_path, expert("a"), expert("b"), server_config=limits) as s,
        asked(s) as ledger,
    ):
        others = [await begin(ledger, "b", tokens=10_000, gap_s=0.05) for _ in range(3)]
        stream, begun = await begin(ledger, "a", tokens=10_000, gap_s=0.05)
        pid = s.pool.statistics()["a"]["pid"]
        whole = asyncio.create_task(ledger.ask("a", stream=False, **fake(take_s=1)))
        await moment_of(lambda: s.pool.statistics()["a"]["running"] == 2)
        os.kill(pid, signal.SIGSTOP)
        begun.kills, begun.killed_at = 1, (stopped := time.monotonic())
        await stream
        replaced = await moment_of(lambda: s.pool.statistics()["a"]["pid"] not in (pid, None))
        answer = await whole
        assert (begun.outcome, answer.outcome) == ("broken", "answered")
        print(f"replaced after {replaced - stopped:.1f} s")
        assert replaced - stopped < 2 + 15
        for task, entry in others:
            assert entry.end is None
            assert entry.largest_gap_s < 1.5  # and not as long as the hang
            task.cancel()
        assert s.pool.statistics()["b"]["worker_exits_total"] == 0


@pytest.mark.parametrize("number", range(5))
async def test_a_killed_gateway_leaves_no_process(tmp_path: Path, number: int) -> None:
    config = gateway_config(tmp_path)
    took, left = await kill_gateway(config, tmp_path / "log.txt", HOWS[number % len(HOWS)])
    assert left == []
    print(f"gone after {took:.2f} s")


@pytest.mark.parametrize(
    ("phase", "stream", "orders", "bound_s"),
    [
        ("queued", True, {}, 0.05),
        ("waiting", True, {"ttft_s": 60}, 0.25),
        ("streaming", True, {"tokens": 10_000, "gap_s": 0.05}, 0.25),
        ("whole", False, {"take_s": 60}, 0.25),
    ],
)
async def test_a_disconnect_aborts_at_once(
    tmp_path: Path, phase: str, stream: bool, orders: dict[str, Any], bound_s: float
) -> None:
    """In the gateway, while the request is there, and then in the worker."""
    model = expert("a", load_s=600 if phase == "queued" else 0)
    async with fake_service(tmp_path, model) as s, asked(s) as ledger:

        async def leave() -> float:
            asked_before, before = len(ledger.entries), s.journal().count("a cancelled")
            leaving = asyncio.create_task(ledger.ask("a", stream=stream, **fake(**orders)))
            await moment_of(lambda: len(ledger.entries) > asked_before)
            if phase == "queued":
                await moment_of(lambda: s.pool.view()["a"].waiting)
            elif phase == "streaming":
                await moment_of(lambda: ledger.entries[-1].frames > 1)
            else:
                await moment_of(lambda: s.journal()[-1:] == ["a request "])
            left = time.monotonic()
            leaving.cancel()
            if phase == "queued":
                return await moment_of(lambda: not s.pool.view()["a"].waiting) - left
            aborted = await moment_of(lambda: s.journal().count("a cancelled") > before)
            await moment_of(lambda: not s.pool.view()["a"].running)
            return aborted - left

        took = [await leave() for _ in range(7)]
        print(f"{phase}: median {statistics.median(took):.3f} s, largest {max(took):.3f} s")
        assert statistics.median(took) < bound_s


async def test_a_client_that_reads_nothing_is_cut_off(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    limits = {"send_timeout_s": 2}
    async with (
        fake_service(tmp_path, expert("a"), expert("b"), server_config=limits) as s,
        asked(s) as ledger,
    ):
        others = [await begin(ledger, model, tokens=10_000, gap_s=0.05) for model in "ab"]
        memory = psutil.Process().memory_info().rss
        body = json.dumps({"model": "a", "fake": {"tokens": 10_000, "pad": 1 << 16}}).encode()
        head = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
        with socket.socket() as reader:
            reader.connect((s.streaming.host, s.streaming.port))
            reader.sendall(head.encode() + body)
            asked_at = time.monotonic()
            cut_off = await moment_of(lambda: "a cancelled" in s.journal())
            grown = psutil.Process().memory_info().rss - memory
            reader.settimeout(20)
            data = await asyncio.to_thread(_all_of, reader)
            assert not data.endswith(b"[DONE]\n\n")
        print(f"cut off after {cut_off - asked_at:.1f} s, {grown / 2**20:.1f} MiB more memory")
        assert 2 <= cut_off - asked_at < 20
        assert grown < 16 * 2**20  # of 640 that the worker would send
        for task, entry in others:
            assert entry.end is None
            assert entry.largest_gap_s < 1.5
            task.cancel()
        assert s.pool.statistics()["a"]["running"] <= 1
    assert "Traceback" not in caplog.text


def _all_of(reader: socket.socket) -> bytes:
    received = b""
    with contextlib.suppress(ConnectionResetError):
        while data := reader.recv(1 << 20):
            received += data
    return received


async def test_many_at_once_load_once(tmp_path: Path) -> None:
    """500 to one unloaded model: 64 are answered, the others are told when to come again."""
    config = tmp_path / "config.json"
    lazy_loading = {"warmup_pool_size": 0}
    config.write_text(
        json.dumps({"experts": [expert("a", load_s=2)], "lazy_loading": lazy_loading})
    )
    server = await asyncio.to_thread(FakeServerProcess, config, tmp_path / "log.txt")
    ledger = Ledger(server.url(""))

    async def pid() -> Any:
        return (await ledger.stats())["models"]["a"]["pid"]

    async def all_have_come() -> bool:
        return sum(entry.outcome == "refused" for entry in ledger.entries) == 436

    def ask(number: int) -> asyncio.Task[Entry]:
        return asyncio.create_task(ledger.ask("a", stream=number % 2 > 0))

    try:
        asking = [ask(0)]
        await until(pid)
        os.kill(worker := await pid(), signal.SIGSTOP)  # so that it is not there before they are
        asking += map(ask, range(1, 500))
        await until(all_have_come)
        os.kill(worker, signal.SIGCONT)
        entries = await asyncio.gather(*asking)
        loads = (await ledger.stats())["models"]["a"]["loads_total"]
    finally:
        print(ledger.summary())
        await ledger.close()
        server.close()
    assert ledger.summary()["outcomes"] == {"answered": 64, "refused": 436}
    assert all(1 <= e.retry_after_s <= 60 for e in entries if e.retry_after_s is not None)
    assert loads == 1


async def test_streams_end_though_the_gateway_was_busy_when_their_worker_died(
    tmp_path: Path,
) -> None:
    """Then it learns of the death while there still is something to read from the worker."""
    async with fake_service(tmp_path, expert("a")) as s, asked(s) as ledger:
        streams = [await begin(ledger, "a", tokens=10_000, gap_s=0.01) for _ in range(4)]
        pid = s.pool.statistics()["a"]["pid"]
        time.sleep(0.3)  # noqa: ASYNC251
        os.kill(pid, signal.SIGKILL)
        time.sleep(0.3)  # noqa: ASYNC251
        await asyncio.wait([task for task, _ in streams], timeout=20)
        assert [entry.outcome for _, entry in streams] == ["broken"] * 4

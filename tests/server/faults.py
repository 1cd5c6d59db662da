# SPDX-License-Identifier: Apache-2.0
"""Traffic of clients, and what is done to a server meanwhile: killed workers, killed gateways."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Literal, get_args

import psutil
from conftest import ServerProcess, expert
from ledger import Ledger

# What a request asks for beside its model.
Fields = Callable[[bool, random.Random], dict[str, Any]]

_MARK = "CAPIBARA_AXION_TEST_MARK"


class FakeServerProcess(ServerProcess):
    """The real gateway, as a process, over fake workers."""

    program = (str(Path(__file__).with_name("fake_server.py")),)


def fake_fields(stream: bool, rng: random.Random) -> dict[str, Any]:
    """A short stream or whole answer of a fake worker."""
    if stream:
        orders = {"ttft_s": rng.uniform(0, 0.2), "tokens": rng.randint(5, 40), "gap_s": 0.02}
    else:
        orders = {"take_s": rng.uniform(0.05, 0.6)}
    return {"extra_body": {"fake": orders}}


def demo_fields(stream: bool, rng: random.Random) -> dict[str, Any]:
    """A short stream or whole answer of a demo expert."""
    return {"max_tokens": rng.randint(8, 96), "extra_body": {"ignore_eos": True}}


@asynccontextmanager
async def traffic(
    ledger: Ledger,
    models: Sequence[str],
    fields: Fields,
    rng: random.Random,
    *,
    clients: int,
    cancel_share: float = 0.0,
) -> AsyncIterator[None]:
    """Have clients ask one thing after the other while the block runs; then let them finish.

    Args:
        ledger: asks and keeps account.
        models: whom.
        fields: for what.
        rng: decides.
        clients: how many ask at a time.
        cancel_share: of the requests, how many are given up after up to a second.
    """
    stop = asyncio.Event()

    async def client() -> None:
        while not stop.is_set():
            stream = rng.random() < 0.5
            give_up = rng.uniform(0, 1) if rng.random() < cancel_share else None
            entry = await ledger.ask(
                rng.choice(models), stream=stream, cancel_after_s=give_up, **fields(stream, rng)
            )
            if entry.outcome == "lost":
                await asyncio.sleep(1)

    tasks = [asyncio.create_task(client()) for _ in range(clients)]
    try:
        yield
    finally:
        stop.set()
        _, late = await asyncio.wait(tasks, timeout=180)
        for task in late:  # the ledger has them as never ended
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class WorkerKiller:
    """Kills workers, such that a request loses at most one and no model seems to be broken.

    Args:
        ledger: knows who waits for whom.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._last_kill: dict[str, float] = {}

    async def try_to_kill(self, model: str) -> bool:
        """Kill the model's worker if it is at work and that may be done."""
        stats = (await self._ledger.stats())["models"][model]
        if stats["state"] != "ready" or not self._may_lose_its_worker(model):
            return False
        try:
            os.kill(stats["pid"], signal.SIGKILL)
        except ProcessLookupError:
            return False
        now = self._last_kill[model] = time.monotonic()
        self._mark(model, now)

        async def known() -> bool:
            return (await self._ledger.stats())["models"][model]["pid"] != stats["pid"]

        await until(known)
        self._mark(model, now)  # those sent before the gateway knew
        return True

    def _may_lose_its_worker(self, model: str) -> bool:
        in_hand = self._ledger.in_hand(model)
        if not in_hand or any(entry.kills for entry in in_hand):
            return False
        # A second death without an answer in between would count as a fault of the model.
        last_kill = self._last_kill.get(model)
        return last_kill is None or any(
            entry.model == model and entry.outcome == "answered" and entry.sent > last_kill
            for entry in reversed(self._ledger.entries)
        )

    def _mark(self, model: str, killed_at: float) -> None:
        for entry in self._ledger.in_hand(model):
            entry.kills, entry.killed_at = 1, killed_at


async def kill_workers(
    ledger: Ledger,
    models: Sequence[str],
    count: int,
    rng: random.Random,
    on_kill: Callable[[], None] = lambda: None,
) -> None:
    """Kill `count` workers of models that are being asked."""
    killer = WorkerKiller(ledger)

    async def killed_one() -> bool:
        await asyncio.sleep(rng.uniform(0, 0.1))
        return await killer.try_to_kill(rng.choice(models))

    for _ in range(count):
        await until(killed_one, timeout_s=300)
        on_kill()


How = Literal["alone", "with a stopped worker", "after its forkserver", "early"]
HOWS: tuple[How, ...] = get_args(How)


def gateway_config(directory: Path) -> Path:
    """For `kill_gateway`: two models that stream, and one that loads for ever."""
    path = directory / "config.json"
    experts = [expert("a"), expert("b"), expert("slow", load_s=600)]
    path.write_text(json.dumps({"experts": experts}))
    return path


async def kill_gateway(config: Path, log: Path, how: How) -> tuple[float, list[str]]:
    """Kill a gateway of fake workers that stream and load; wait for its processes to end.

    Args:
        config: of `gateway_config`.
        log: where the server's output goes.
        how: what else goes wrong; "early" is before the models are there.

    Returns:
        seconds until none was left, at most 5, and what was left then.
    """
    mark = os.environ[_MARK] = uuid.uuid4().hex
    try:
        server = await asyncio.to_thread(FakeServerProcess, config, log)
    finally:
        del os.environ[_MARK]
    ledger = Ledger(server.url(""))
    endless: dict[str, Any] = {"extra_body": {"fake": {"tokens": 100_000, "gap_s": 0.02}}}
    asking = [
        asyncio.create_task(ledger.ask(model, stream=True, **endless))
        for model in ("a", "b", "slow")
    ]
    try:
        if how == "early":
            await asyncio.sleep(random.uniform(0, 0.5))
        else:
            await until(lambda: _streaming_and_loading(ledger))
            worker = psutil.Process((await ledger.stats())["models"]["a"]["pid"])
            if how == "with a stopped worker":
                worker.suspend()
            elif how == "after its forkserver":
                worker.parent().kill()
        server.signal(signal.SIGKILL)
        began = time.monotonic()
        left = await _left_after(mark, 5)
        return time.monotonic() - began, left
    finally:
        server.signal(signal.SIGKILL)
        await asyncio.gather(*asking)
        server.close()
        for process in _marked(mark):
            process.kill()
        await ledger.close()


async def _streaming_and_loading(ledger: Ledger) -> bool:
    stream = {entry.model for entry in ledger.entries if entry.frames}
    slow = (await ledger.stats())["models"]["slow"]
    return stream == {"a", "b"} and slow["pid"] is not None


async def _left_after(mark: str, seconds: float) -> list[str]:
    """The marked processes that have not ended by then; returns as soon as there are none."""
    deadline = time.monotonic() + seconds
    while left := _marked(mark):
        if time.monotonic() > deadline:
            break
        await asyncio.sleep(0.02)
    return [str(process) for process in left]


def _marked(mark: str) -> list[psutil.Process]:
    """Processes that were started with the mark in their environment and have not ended."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.environ().get(_MARK) == mark:
                found.append(process)
    return found


async def until(condition: Callable[[], Awaitable[Any]], timeout_s: float = 60) -> None:
    """Poll a server until something is so."""
    deadline = time.monotonic() + timeout_s
    while not await condition():
        assert time.monotonic() < deadline, f"not within {timeout_s:g} s"
        await asyncio.sleep(0.01)

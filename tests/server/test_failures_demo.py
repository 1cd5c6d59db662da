# SPDX-License-Identifier: Apache-2.0
"""What `test_failures` does to fake engines, done to a few real ones."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from conftest import ServerProcess, changed_config
from faults import demo_fields, kill_workers, traffic, until
from ledger import Ledger

HANG_S = 4
MODELS = ("qwen_coder", "phi4_fast")


@pytest.fixture(scope="module")
def failing_server(
    demo_config: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServerProcess]:
    directory = tmp_path_factory.mktemp("failing")
    config = changed_config(demo_config, directory, server_config={"hang_timeout_s": HANG_S})
    process = ServerProcess(config, directory / "log.txt")
    yield process
    process.close()


@pytest.fixture
async def ledger(failing_server: ServerProcess) -> AsyncIterator[Ledger]:
    ledger = Ledger(failing_server.url(""))
    yield ledger
    await ledger.close()


async def test_killed_engines_lose_no_request(ledger: Ledger) -> None:
    rng = random.Random(3)
    async with traffic(ledger, MODELS, demo_fields, rng, clients=6):
        await kill_workers(ledger, MODELS, 4, rng)
    print(summary := ledger.summary())
    assert summary["lost"] == []
    assert summary["hit"] > 0
    assert summary["slowest_end_s"] <= 2


@pytest.mark.parametrize("which", ["engine", "worker"])
async def test_a_stopped_process_is_replaced(ledger: Ledger, which: str) -> None:
    """The other model's streams go on meanwhile, and the request that had nothing is answered."""
    hung, other = MODELS
    await asyncio.gather(*(ledger.ask(model, stream=False, max_tokens=4) for model in MODELS))
    pid = (await ledger.stats())["models"][hung]["pid"]
    worker = psutil.Process(pid)
    process = worker.children()[0] if which == "engine" else worker
    endless: dict[str, Any] = {"max_tokens": 1900, "extra_body": {"ignore_eos": True}}
    stream = asyncio.create_task(ledger.ask(hung, stream=True, **endless))

    async def begun() -> bool:
        return any(entry.model == hung and entry.frames > 2 for entry in ledger.entries)

    async def replaced() -> bool:
        return (await ledger.stats())["models"][hung]["pid"] not in (pid, None)

    async with traffic(ledger, [other], demo_fields, random.Random(4), clients=2):
        await until(begun)
        os.kill(process.pid, signal.SIGSTOP)
        stopped = time.monotonic()
        waiting = asyncio.create_task(ledger.ask(hung, stream=False, max_tokens=4))
        await until(replaced)
        took = time.monotonic() - stopped
        broken, answered = await stream, await waiting
    assert (broken.outcome, answered.outcome) == ("broken", "answered")
    others = [entry for entry in ledger.entries if entry.model == other]
    gap = max(entry.largest_gap_s for entry in others)
    meanwhile = [entry for entry in others if stopped < (entry.first_byte or 0) < stopped + took]
    print(f"replaced after {took:.1f} s; others: largest gap {gap:.2f} s, {len(meanwhile)} begun")
    assert took < HANG_S + 15
    assert {entry.outcome for entry in others} == {"answered"}
    assert len(meanwhile) > 1

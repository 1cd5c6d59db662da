# SPDX-License-Identifier: Apache-2.0
"""Runs one real worker, as the gateway would, for tests that talk to it themselves.

    python worker_host.py CONFIG EXPERT '{"cpus": [0], ...}'

The fields are those of WorkerSpec; "expert" among them holds what differs from the configuration.
A process of its own because a process has one forkserver. It writes JSON lines: {"phase"} for each
phase, {"ready", "pid", "seconds", "socket"} or {"failed"}, {"beat"} for each beat, {"cores"} once
cores that a line of its input names ("0,1") are in effect. It ends with its input.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import queue
import re
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import psutil

from capibara_axion.server import processes
from capibara_axion.server.config_file import load_config
from capibara_axion.server.launcher import Launcher, Worker, WorkerError, WorkerSpec
from capibara_axion.server.serve import worker_environment
from capibara_axion.server.worker import worker_main

HEADERS = {"X-Request-Id": "r1", "X-Capibara-Queue-S": "1.5", "X-Capibara-Load-S": "1.25"}
STREAM = {**HEADERS, "X-Capibara-Stream-Default": "1"}


class HostedWorker:
    """A worker, in the tests' process; its load is over."""

    def __init__(self, config: Path, name: str, **fields: Any) -> None:
        command = [sys.executable, __file__, str(config), name, json.dumps(fields)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._said: queue.Queue[dict[str, Any]] = queue.Queue()
        self._beats: queue.Queue[dict[str, Any]] = queue.Queue()
        threading.Thread(target=self._listen, daemon=True).start()
        self.phases = []
        while "ready" not in (said := self._said.get(timeout=120)):
            assert "phase" in said, said
            self.phases.append(said["phase"])
        self.socket: str = said["socket"]
        self.details = said["ready"]
        (self.engine,) = psutil.Process(said["pid"]).children()

    def set_cores(self, *cpus: int) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(",".join(map(str, cpus)) + "\n")
        self._process.stdin.flush()
        assert self._said.get(timeout=30)["cores"] == list(cpus)

    def next_beat(self) -> dict[str, Any]:
        """One that is sent from now on."""
        while not self._beats.empty():
            self._beats.get()
        return self._beats.get(timeout=10)

    @asynccontextmanager
    async def post(
        self, path: str, body: dict[str, Any], headers: dict[str, str] = HEADERS
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        connector = aiohttp.UnixConnector(self.socket)
        async with (
            aiohttp.ClientSession(connector=connector) as session,
            session.post(f"http://worker{path}", json=body, headers=headers) as answer,
        ):
            yield answer

    async def ask(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """A whole answer, or its error with its status."""
        async with self.post(path, body) as answer:
            fields: dict[str, Any] = await answer.json()
            return {"status": answer.status, **fields.get("error", fields)}

    async def stream(self, path: str, body: dict[str, Any]) -> list[str]:
        """The data of all events."""
        async with self.post(path, body, STREAM) as answer:
            assert answer.content_type == "text/event-stream"
            frames = (await answer.text()).split("\n\n")
        assert frames.pop() == ""
        assert all(frame.startswith("data: ") for frame in frames)
        return [frame.removeprefix("data: ") for frame in frames]

    async def metrics(self) -> str:
        connector = aiohttp.UnixConnector(self.socket)
        async with (
            aiohttp.ClientSession(connector=connector) as session,
            session.get("http://worker/metrics") as answer,
        ):
            return await answer.text()

    async def generated(self) -> float:
        """Tokens so far."""
        pattern = r"^vllm:generation_tokens_total{.*} (\S+)$"
        (value,) = re.findall(pattern, await self.metrics(), re.MULTILINE)
        return float(value)

    def kill(self) -> None:
        self._process.kill()

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        try:
            assert self._process.wait(20) == 0
        finally:
            self._process.kill()
            self._process.stdout.close()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            said = json.loads(line)
            if "beat" in said:
                self._beats.put(said["beat"])
            else:
                self._said.put(said)
        self._said.put({"ended": True})


def say(**fields: Any) -> None:
    print(json.dumps(fields), flush=True)


async def host(config_file: Path, name: str, fields: dict[str, Any]) -> None:
    config = load_config(config_file)
    runtime_dir = processes.make_runtime_dir()
    (expert,) = (expert for expert in config.experts if expert.expert_id == name)
    expert = expert.model_copy(update=fields.pop("expert", {}))
    fields = {key: tuple(v) if isinstance(v, list) else v for key, v in fields.items()}
    spec = WorkerSpec(expert, str(runtime_dir / "w.sock"), log_level="info", **fields)
    launcher = Launcher(
        worker_main,
        preload=["capibara_axion.server.preload"],
        environment=worker_environment(config, runtime_dir, "info"),
    )
    began = time.monotonic()
    worker = await launcher.launch(spec)
    worker.on_phase = lambda phase: say(phase=phase, at=round(time.monotonic() - began, 3))
    worker.on_beat = lambda beat: say(beat=dataclasses.asdict(beat))
    try:
        details = await worker.ready()
        seconds = round(time.monotonic() - began, 3)
        say(ready=details, pid=worker.pid, seconds=seconds, socket=spec.socket_path)
        await obey(worker)
    except WorkerError as error:
        say(failed=str(error))
    worker.terminate()
    await worker.exited
    launcher.close()


async def obey(worker: Worker) -> None:
    lines = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    while line := (await lines.readline()).decode().strip():
        cpus = [int(cpu) for cpu in line.split(",")]
        began = time.monotonic()
        await worker.set_cores(cpus)
        say(cores=cpus, seconds=round(time.monotonic() - began, 4))


if __name__ == "__main__":
    asyncio.run(host(Path(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3])))

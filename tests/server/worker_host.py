# SPDX-License-Identifier: Apache-2.0
"""Runs one real worker, as the gateway would, for tests that talk to it themselves.

    python worker_host.py CONFIG EXPERT '{"cpus": [0], ...}'

The fields are those of WorkerSpec; "expert" among them holds what differs from the configuration.
A process of its own because a process has one forkserver. It writes JSON lines: {"phase"} for each
phase, {"ready", "pid", "seconds"} or {"failed"}, {"beat"} for each beat, {"cores"} once cores that
a line of its input names ("0,1") are in effect. It ends with its input.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import sys
import time
from pathlib import Path
from typing import Any

from capibara_axion.server import processes
from capibara_axion.server.config_file import load_config
from capibara_axion.server.launcher import Launcher, Worker, WorkerError, WorkerSpec
from capibara_axion.server.serve import worker_environment
from capibara_axion.server.worker import worker_main


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

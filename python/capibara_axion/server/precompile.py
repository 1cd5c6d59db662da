# SPDX-License-Identifier: Apache-2.0
"""`capibara-axion compile`: fills the cache of compiled graphs, so that no load has to."""

from __future__ import annotations

import asyncio
import functools
import os
import shutil
import time
from collections.abc import Callable, Sequence

from capibara_axion.server import processes
from capibara_axion.server.config import ExpertConfig, ServerConfig
from capibara_axion.server.launcher import Launcher, WorkerError, WorkerSpec
from capibara_axion.server.serve import PRELOAD, worker_environment
from capibara_axion.server.worker import worker_main

_END_S = 10.0


class CompileError(Exception):
    """An expert cannot be compiled; the message is for the person at the terminal."""


def compiled_experts(config: ServerConfig, names: Sequence[str]) -> list[ExpertConfig]:
    """The experts of these names, or all that are to run compiled.

    Raises:
        CompileError: no such expert, or one that runs eagerly.
    """
    experts = {expert.expert_id: expert for expert in config.experts}
    for name in names:
        if name not in experts:
            raise CompileError(f"there is no expert {name!r}; the file has: {', '.join(experts)}")
        if not experts[name].compiled:
            raise CompileError(f"{name!r} runs eagerly: set its use_captured_graph to true")
    return [experts[name] for name in names] or [e for e in config.experts if e.compiled]


async def precompile(
    config: ServerConfig,
    experts: Sequence[ExpertConfig],
    tell: Callable[[str, str], None],
) -> dict[str, float]:
    """Load each expert once, alone on all cores, and end it again.

    Args:
        config: where the experts are from.
        experts: to be compiled.
        tell: called with an expert's name and what is being done for it.

    Returns:
        Seconds that each load took.

    Raises:
        CompileError: one could not be loaded.
    """
    runtime_dir = processes.make_runtime_dir()
    environment = worker_environment(config, runtime_dir, "warning")
    launcher = Launcher(worker_main, preload=PRELOAD, environment=environment)
    seconds = {}
    try:
        for index, expert in enumerate(experts):
            name, began = expert.expert_id, time.monotonic()
            tell(name, "starting")
            cpus = sorted(os.sched_getaffinity(0))[: expert.threads]
            spec = WorkerSpec(expert, str(runtime_dir / f"{index}.sock"), tuple(cpus), "warning")
            try:
                await _load_once(launcher, spec, functools.partial(tell, name))
            except WorkerError as error:
                raise CompileError(f"{name}: {error}") from error
            seconds[name] = time.monotonic() - began
    finally:
        launcher.close()
        shutil.rmtree(runtime_dir, ignore_errors=True)
    return seconds


async def _load_once(launcher: Launcher, spec: WorkerSpec, tell: Callable[[str], None]) -> None:
    worker = await launcher.launch(spec)
    worker.on_phase = tell
    try:
        await worker.ready()
        worker.terminate()
        await asyncio.wait((worker.exited,), timeout=_END_S)
    finally:
        worker.kill()
        await worker.exited

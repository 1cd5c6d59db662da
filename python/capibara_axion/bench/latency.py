# SPDX-License-Identifier: Apache-2.0
"""`bench latency`: how long one who asks has to wait, on a server that is never crowded."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.progress import TaskID

from capibara_axion.bench import groups, tables
from capibara_axion.bench.errors import UsageError
from capibara_axion.bench.prompts import Prompts
from capibara_axion.bench.results import Group, LatencyResult, Request
from capibara_axion.bench.run import Connection, Run, finish, measure, prompts, prompts_work
from capibara_axion.bench.statistics import summarise

# Failures that are not yet a rate.
_FEW_FAILURES = 3
# Fewer samples have no interval that is worth looking at.
_LEAST_FOR_INTERVAL = 10
# What ours and llama.cpp's call a model that can answer at once.
_READY = ("ready", "loaded")
# Longest pause that a server's Retry-After is granted.
_MOST_RETRY_AFTER_S = 30.0


@dataclass(frozen=True)
class Settings:
    """What to measure.

    Attributes:
        models: None: all that the server has.
        requests: warm ones for each model; with `until_ci`, at least.
        tokens: of each answer.
        concurrency: requests in flight at most, all to the same model.
        pause_s: between an answer and the next request.
        cold: loads to be measured for each model, before the warm requests.
        until_ci: go on until the 95 % intervals of the medians of TTFT and total time are at most
            this share of the median to either side.
        max_time_s: of the whole run.
        max_error_rate: share of failed requests that ends the run.
        kinds, languages, same_prompt: as `run.prompts` takes them.
    """

    models: Sequence[str] | None
    requests: int
    tokens: int
    concurrency: int
    pause_s: float
    cold: int
    until_ci: float | None
    max_time_s: float
    max_error_rate: float
    kinds: Sequence[str] | None
    languages: Sequence[str] | None
    same_prompt: bool


def run(connection: Connection, settings: Settings, output: Path | None) -> int:
    """Measure, show and write; returns the exit code of `finish`.

    The server is never crowded: one model at a time, no more requests in flight than asked for,
    pauses between them (longer ones if the server asks for it by Retry-After), and the run ends as
    soon as `/health` is not well or more requests fail than `max_error_rate` allows.

    Raises:
        UsageError: as `measure`; there is no way to have models unloaded.
    """
    measured = measure(connection, lambda run: _Measurement(run, settings).all())
    models = list(dict.fromkeys(request.model for request in measured.requests))
    work: dict[str, Any] = {
        "api": connection.api,
        "models": sorted(settings.models or measured.server.models),
        "tokens": settings.tokens,
        "concurrency": settings.concurrency,
        "pause_s": settings.pause_s,
        **prompts_work(settings.kinds, settings.languages, settings.same_prompt),
    }
    result = LatencyResult(
        **measured.header(),
        work=work,
        groups=[
            found
            for model in models
            for found in _groups(model, measured.requests, settings.tokens)
        ],
    )
    tables.show_latency(result)
    return finish(result, output)


class _Measurement:
    def __init__(self, run: Run, settings: Settings) -> None:
        self._run = run
        self._settings = settings
        self._prompts: Prompts = prompts(settings.kinds, settings.languages, settings.same_prompt)
        self._asked = 0

    async def all(self) -> None:
        run, settings = self._run, self._settings
        models = run.models(settings.models, default_all=True)
        if settings.cold and await run.target.state_of(models[0]) is None:
            raise UsageError("--cold: expected a server that tells and changes what is loaded")
        try:
            async with asyncio.timeout(settings.max_time_s):
                for model in models:
                    await self._model(model)
        except TimeoutError:
            run.stopped = f"--max-time: {settings.max_time_s:g} s have passed"

    async def _model(self, model: str) -> None:
        settings = self._settings
        task = self._run.progress.add_task(model, total=settings.cold + 1 + settings.requests)
        for _ in range(settings.cold):
            await self._run.target.unload(model)
            await self._one(model, task, is_first=False)
        if not settings.cold:
            await self._one(model, task, is_first=True)
        started = 0

        async def client() -> None:
            nonlocal started
            while not self._run.stopped and self._wanted(model, started):
                started += 1
                await self._one(model, task, is_first=False)

        async with asyncio.TaskGroup() as clients:
            for _ in range(settings.concurrency):
                clients.create_task(client())

    def _wanted(self, model: str, started: int) -> bool:
        settings = self._settings
        if started < settings.requests:
            return True
        if settings.until_ci is None:
            return False
        warm = [r for r in self._run.requests if (r.model, r.start) == (model, "warm")]
        return not all(_is_narrow(warm, name, settings.until_ci) for name in ("ttft", "total"))

    async def _one(self, model: str, task: TaskID, *, is_first: bool) -> None:
        run, settings = self._run, self._settings
        run.stopped = run.stopped or await run.target.illness() or self._too_many_failures()
        if run.stopped:
            return
        state = await run.target.state_of(model)
        prompt = self._prompts.get(self._asked)
        self._asked += 1
        request = run.request(model, prompt)
        if state is None:
            request.start = "first" if is_first else "warm"
        elif state not in _READY:
            request.start = "cold"
        await run.answer(request, prompt, settings.tokens)
        if request.timings and (request.timings.get("load_s") or 0) > 0:
            request.start = "cold"
        run.progress.advance(task)
        asked_for = min(request.retry_after_s or 0, _MOST_RETRY_AFTER_S)
        await asyncio.sleep(max(settings.pause_s, asked_for))

    def _too_many_failures(self) -> str | None:
        done = [request for request in self._run.requests if request.outcome != "interrupted"]
        failed = [request for request in done if request.outcome == "error"]
        if len(failed) < max(_FEW_FAILURES, self._settings.max_error_rate * len(done)):
            return None
        last = failed[-1]
        what = f"{len(failed)} of {len(done)} requests failed, the last to {last.model}"
        return f"{what}: {last.status or ''} {last.error}"


def _is_narrow(requests: Sequence[Request], measure: str, share: float) -> bool:
    found = summarise(groups.values(requests, measure))
    if found is None or found.n < _LEAST_FOR_INTERVAL or found.low is None or found.high is None:
        return False
    return (found.high - found.low) / 2 <= share * found.median


def _groups(model: str, requests: Sequence[Request], tokens: int) -> list[Group]:
    """A model's cold and warm requests; the warm ones of each kind and language too."""
    own = [request for request in requests if request.model == model]
    found = []
    for start in ("cold", "first", "warm"):
        some = [request for request in own if request.start == start]
        if some:
            found.append(groups.group({"model": model, "start": start}, some, tokens))
    warm = [request for request in own if request.start == "warm"]
    pairs = sorted({(request.prompt_kind, request.language) for request in warm})
    for kind, language in pairs if len(pairs) > 1 else ():
        some = [r for r in warm if (r.prompt_kind, r.language) == (kind, language)]
        name = {"model": model, "start": "warm", "kind": kind, "language": language}
        found.append(groups.group(name, some, tokens))
    return found

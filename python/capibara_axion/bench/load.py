# SPDX-License-Identifier: Apache-2.0
"""`bench load`: a server under requests that do not wait for each other.

In an open loop requests are due at moments of a Poisson process, whatever the server does, and all
times count from the moment at which a request was due. A client that sent its next request only
after the last answer would ask least when the server is slowest, and leave out of its percentiles
what everybody else would have waited: coordinated omission, as Gil Tene named it ("How NOT to
measure latency", 2015), whose wrk2 counts as is done here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.progress import TaskID

from capibara_axion.bench import groups, tables
from capibara_axion.bench.client import Exchange
from capibara_axion.bench.prompts import Prompt
from capibara_axion.bench.results import LoadResult, Request, Stage
from capibara_axion.bench.run import Connection, Run, finish, measure, prompts, prompts_work

_WARM_UP = -1


@dataclass(frozen=True)
class Settings:
    """What load to keep up.

    Attributes:
        models: drawn at random for each request; None: the only one that the server has.
        tokens: of each answer.
        rates, concurrencies: one stage for each; one of both is empty.
        duration_s: during which a stage sends.
        max_in_flight: what would exceed it is not sent.
        ttft_objective_s, gap_objective_s: what a good answer keeps to; None: whatever it takes.
        seed: of arrivals and models.
        kinds, languages, same_prompt: as `run.prompts` takes them.
    """

    models: Sequence[str] | None
    tokens: int
    rates: Sequence[float]
    concurrencies: Sequence[int]
    duration_s: float
    max_in_flight: int
    ttft_objective_s: float | None
    gap_objective_s: float | None
    seed: int
    kinds: Sequence[str] | None
    languages: Sequence[str] | None
    same_prompt: bool

    def is_good(self, request: Request) -> bool:
        """Whether an answer is whole and meets both objectives.

        The gap is the mean one of the answer, as in DistServe (Zhong et al., OSDI 2024), from
        which "goodput" in this sense is taken.
        """
        return (
            request.outcome == "ok"
            and _meets(request.ttft_s, self.ttft_objective_s)
            and _meets(request.gap_s, self.gap_objective_s)
        )


def run(connection: Connection, settings: Settings, output: Path | None) -> int:
    """Measure, show and write; returns the exit code of `finish`.

    Raises:
        UsageError: as `measure`; it is not said which of several models to ask.
    """
    measurement: list[_Measurement] = []

    async def work(run: Run) -> None:
        measurement.append(_Measurement(run, settings))
        await measurement[0].all()

    measured = measure(connection, work)
    result = LoadResult(
        **measured.header(),
        work={
            "api": connection.api,
            "models": sorted(settings.models or measured.server.models),
            "tokens": settings.tokens,
            "rates": list(settings.rates),
            "concurrencies": list(settings.concurrencies),
            "duration_s": settings.duration_s,
            "max_in_flight": settings.max_in_flight,
            "ttft_objective_s": settings.ttft_objective_s,
            "gap_objective_s": settings.gap_objective_s,
            "seed": settings.seed,
            **prompts_work(settings.kinds, settings.languages, settings.same_prompt),
        },
        stages=list(_stages(measured.requests, settings)),
    )
    tables.show_load(result)
    return finish(result, output)


class _Measurement:
    def __init__(self, run: Run, settings: Settings) -> None:
        self._run = run
        self._settings = settings
        self._prompts = prompts(settings.kinds, settings.languages, settings.same_prompt)
        self._models = run.models(settings.models)
        self._asked = 0
        self._in_flight = 0

    async def all(self) -> None:
        run, settings = self._run, self._settings
        for model in self._models:
            prompt = self._next()
            request = run.request(model, prompt, stage=_WARM_UP)
            await run.answer(request, prompt, settings.tokens)
            if request.outcome != "ok":
                run.stopped = f"warming {model} up: {request.status or ''} {request.error}"
                return
        open_loop = bool(settings.rates)
        for stage, load in enumerate(settings.rates or settings.concurrencies):
            if (illness := await run.target.illness()) is not None:
                run.stopped = illness
                return
            name = groups.load_name(*((load, None) if open_loop else (None, int(load))))
            task = run.progress.add_task(name, total=None)
            exchanges: list[Exchange] = []
            try:
                if open_loop:
                    await self._open(stage, load, exchanges, task)
                else:
                    await self._closed(stage, int(load), exchanges, task)
            finally:
                for exchange in exchanges:
                    exchange.read()

    async def _open(self, stage: int, rate: float, exchanges: list[Exchange], task: TaskID) -> None:
        generator = np.random.default_rng((self._settings.seed, stage))
        due = _arrivals(generator, rate, self._settings.duration_s)
        models = generator.integers(len(self._models), size=len(due))
        now = self._run.client.now
        began = now()
        self._run.progress.update(task, total=len(due))
        async with asyncio.TaskGroup() as requests:
            for offset, model in zip(due, models, strict=True):
                prompt = self._next()
                await asyncio.sleep(began + offset - now())
                request = self._run.request(
                    self._models[model], prompt, stage=stage, scheduled_s=began + float(offset)
                )
                if self._in_flight >= self._settings.max_in_flight:
                    request.outcome = "not_sent"
                    self._run.progress.advance(task)
                    continue
                exchanges.append(Exchange(request))
                self._in_flight += 1
                requests.create_task(self._send(exchanges[-1], prompt, task))

    async def _closed(
        self, stage: int, clients: int, exchanges: list[Exchange], task: TaskID
    ) -> None:
        now = self._run.client.now
        end = now() + self._settings.duration_s
        generator = np.random.default_rng((self._settings.seed, stage))

        async def client() -> None:
            while now() < end:
                prompt = self._next()
                model = self._models[generator.integers(len(self._models))]
                request = self._run.request(model, prompt, stage=stage)
                exchanges.append(Exchange(request))
                self._in_flight += 1
                await self._send(exchanges[-1], prompt, task)
                if request.outcome != "ok":  # a refusal is quick; do not make it a storm
                    await asyncio.sleep(request.retry_after_s or 0.1)

        async with asyncio.TaskGroup() as group:
            for _ in range(min(clients, self._settings.max_in_flight)):
                group.create_task(client())

    async def _send(self, exchange: Exchange, prompt: Prompt, task: TaskID) -> None:
        try:
            await self._run.client.ask(exchange, prompt.text, self._settings.tokens)
        finally:
            self._in_flight -= 1
            self._run.progress.advance(task)

    def _next(self) -> Prompt:
        self._asked += 1
        return self._prompts.get(self._asked - 1)


def _arrivals(generator: np.random.Generator, rate: float, duration_s: float) -> list[float]:
    """Moments of a Poisson process, in seconds from its beginning."""
    found: list[float] = []
    at = float(generator.exponential(1 / rate))
    while at < duration_s:
        found.append(at)
        at += float(generator.exponential(1 / rate))
    return found


def _stages(requests: Sequence[Request], settings: Settings) -> Iterator[Stage]:
    for number, load in enumerate(settings.rates or settings.concurrencies):
        own = [
            request
            for request in requests
            if request.stage == number and request.outcome != "interrupted"
        ]
        if not own:
            continue
        good = [request for request in own if settings.is_good(request)]
        answered = [request for request in own if request.outcome == "ok"]
        began = min(request.scheduled_s for request in own)
        ended = max(request.end_s or request.scheduled_s for request in own)
        duration_s = max(ended - began, 1e-6)
        has_objective = (settings.ttft_objective_s or settings.gap_objective_s) is not None
        late = [r.sent_s - r.scheduled_s for r in own if r.sent_s is not None]
        rate = load if settings.rates else None
        clients = None if settings.rates else int(load)
        name = {"load": groups.load_name(rate, clients)}
        yield Stage(
            rate=rate,
            concurrency=clients,
            duration_s=duration_s,
            group=groups.group(name, own, settings.tokens),
            requests_per_s=len(answered) / duration_s,
            tokens_per_s=sum(r.completion_tokens or len(r.tokens_s) for r in answered) / duration_s,
            good_share=len(good) / len(own) if has_objective else None,
            goodput=len(good) / duration_s if has_objective else None,
            late_s=float(np.percentile(late, 99)) if late else None,
        )


def _meets(value: float | None, objective: float | None) -> bool:
    return objective is None or value is None or value <= objective

# SPDX-License-Identifier: Apache-2.0
"""`bench stream`: whether a server streams; `streaming.py` says how that is told."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from capibara_axion.bench import tables
from capibara_axion.bench.client import Exchange
from capibara_axion.bench.prompts import Prompts
from capibara_axion.bench.results import Streaming, StreamResult
from capibara_axion.bench.run import Connection, Run, finish, measure, prompts_work
from capibara_axion.bench.streaming import judge

_KINDS, _LANGUAGES = ("technical",), ("en",)


@dataclass(frozen=True)
class Settings:
    """What to look at.

    Attributes:
        models: None: the only one that the server has.
        tokens: of each answer.
        repeats: answers of a model that are looked at, beside as many of one token.
    """

    models: Sequence[str] | None
    tokens: int
    repeats: int


def run(connection: Connection, settings: Settings, output: Path | None) -> int:
    """Ask, judge, show and write.

    Returns:
        0 if all models stream, else 1; 130 if it was interrupted.

    Raises:
        UsageError: as `measure`; it is not said which of several models to ask.
    """
    verdicts: list[Streaming] = []

    async def work(run: Run) -> None:
        for model in run.models(settings.models):
            await _look_at(run, model, settings, verdicts)

    measured = measure(connection, work)
    result = StreamResult(
        **measured.header(),
        work={
            "api": connection.api,
            "models": sorted(settings.models or measured.server.models),
            "tokens": settings.tokens,
            **prompts_work(_KINDS, _LANGUAGES, same=True),
        },
        verdicts=verdicts,
    )
    tables.show_stream(result)
    code = finish(result, output)
    return code or int(not all(found.streams for found in verdicts))


async def _look_at(run: Run, model: str, settings: Settings, verdicts: list[Streaming]) -> None:
    # One prompt, which the server has seen by the second answer: all that differs is the length.
    prompt = Prompts(_KINDS, _LANGUAGES, None).get(0)
    single: list[Exchange] = []
    whole: list[Exchange] = []
    task = run.progress.add_task(model, total=1 + 2 * settings.repeats)

    async def ask(tokens: int, answers: list[Exchange]) -> None:
        request = run.request(model, prompt)
        answers.append(await run.answer(request, prompt, tokens))
        run.progress.advance(task)

    try:
        await ask(1, [])  # the model may have to be loaded
        for _ in range(settings.repeats):
            await ask(1, single)
            await ask(settings.tokens, whole)
    finally:
        verdicts.append(judge(model, single, whole))

# SPDX-License-Identifier: Apache-2.0
"""What the load of another model does to the answers of one that is loaded.

    python benchmarks/end_to_end/prepare.py
    python benchmarks/server/beside_a_load.py [--requests 20]

Requests to a model, one after the other, undisturbed and while another model is loaded and
unloaded in a loop, in blocks that take turns. Counted as "beside" are first tokens and gaps that
lie within a load. The model may compute on all cores, of which a load takes one away, or on one
only ("one_core"), so that there is one for each of the two.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import tempfile
from argparse import Namespace
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import client
import figures
import models
import serving
from rich.progress import Progress

import machine

_MEASURED = {"all_cores": None, "one_core": 1}
_OTHER = "other"
_PROMPT_TOKENS, _NEW_TOKENS = 64, 24
_BLOCK = 5  # requests


@dataclass
class _Samples:
    ttft: list[float] = field(default_factory=list)
    gaps: list[float] = field(default_factory=list)
    cores: Counter[int] = field(default_factory=Counter)

    def summary(self) -> dict[str, Any]:
        return {
            "ttft": figures.summary(self.ttft),
            "gap": figures.summary(self.gaps),
            "leased_cores": {str(count): seen for count, seen in sorted(self.cores.items())},
        }


def main() -> int:
    arguments = _arguments()
    serving.end_servers_on_sigterm()
    described, others = machine.describe({}), serving.Others()
    console = machine.console()
    paths = {"demo": models.demo()[models.DEMO], "shape": models.shape()}
    with figures.progress(console) as progress:
        rows = asyncio.run(_measure(paths[arguments.model], models.shape(), arguments, progress))
    result = described | {
        "others_share": round(others.share(), 3),
        "unit": "seconds",
        "target": "TTFT within 10 % of undisturbed where cores allow",
        "settings": {
            "model": arguments.model,
            "other": models.SHAPE,
            "requests": arguments.requests,
            "prompt_tokens": _PROMPT_TOKENS,
            "new_tokens": _NEW_TOKENS,
        },
        "rows": rows,
    }
    _show(result)
    machine.write(result, arguments.output)
    return 0


def _arguments() -> Namespace:
    parser = figures.parser(__doc__, "beside_a_load")
    parser.add_argument("--model", choices=["demo", "shape"], default="shape")
    parser.add_argument("--requests", type=int, default=20, help="of each kind")
    return parser.parse_args()


async def _measure(
    model: Path, other: Path, arguments: Namespace, progress: Progress
) -> dict[str, Any]:
    experts = [models.expert(name, model, threads=most) for name, most in _MEASURED.items()]
    experts.append(models.expert(_OTHER, other))
    found = {name: {"undisturbed": _Samples(), "beside": _Samples()} for name in _MEASURED}
    with (
        tempfile.TemporaryDirectory() as scratch,
        serving.our_server(Path(scratch), experts) as server,
    ):
        async with client.http_session() as session:
            api = client.Client(session, server.url, serving.ADMIN_KEY)
            for name in (*_MEASURED, _OTHER):  # not counted
                await api.load(name)
                await api.ask(_body(name, model, seed=0))
            await api.unload(_OTHER)
            blocks = -(-arguments.requests // _BLOCK)
            task = progress.add_task("", total=2 * blocks * len(_MEASURED))
            for block in range(blocks):
                for name, samples in found.items():
                    for kind in ("undisturbed", "beside"):
                        progress.update(task, description=f"{name}, {kind}")
                        seeds = range(1 + block * _BLOCK, 1 + (block + 1) * _BLOCK)
                        bodies = [_body(name, model, seed) for seed in seeds]
                        if kind == "beside":
                            await _beside(api, bodies, samples[kind])
                        else:
                            await _undisturbed(api, bodies, samples[kind])
                        progress.advance(task)
    return {
        name: {kind: each.summary() for kind, each in samples.items()} | _ratios(samples)
        for name, samples in found.items()
    }


async def _undisturbed(
    api: client.Client, bodies: Sequence[dict[str, Any]], samples: _Samples
) -> None:
    for body in bodies:
        answer, cores = await _ask(api, body)
        samples.ttft.append(answer.ttft_s)
        samples.gaps += answer.gaps_s
        samples.cores += cores


async def _beside(api: client.Client, bodies: Sequence[dict[str, Any]], samples: _Samples) -> None:
    answers: list[client.Answer] = []
    async with api.events() as events:
        loading = asyncio.create_task(_load_again_and_again(api))
        try:
            await client.until(lambda: any(_is_of_load(event, "loading") for event in events))
            for body in bodies:
                answer, cores = await _ask(api, body)
                answers.append(answer)
                samples.cores += cores
        finally:
            loading.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await loading
        with contextlib.suppress(RuntimeError):
            await api.unload(_OTHER)
        loads = _loads(events)
    for answer in answers:
        # Of an answer's clock, in which 0 is when it was asked for.
        spans = [(begin - answer.sent, end - answer.sent) for begin, end in loads]
        at = [moment - answer.began for moment in answer.at]
        if _within(0, at[0], spans):
            samples.ttft.append(at[0])
        samples.gaps += [b - a for a, b in pairwise(at) if _within(a, b, spans)]


async def _ask(api: client.Client, body: dict[str, Any]) -> tuple[client.Answer, Counter[int]]:
    """The answer, and how many cores its model had half-way through it."""
    answer, cores = client.Answer(), Counter[int]()
    asking = asyncio.create_task(api.ask(body, answer))
    await client.until(lambda: len(answer.at) >= _NEW_TOKENS // 2 or asking.done())
    cores[len((await api.model(body["model"]))["cpus"])] += 1
    return await asking, cores


async def _load_again_and_again(api: client.Client) -> None:
    while True:
        await api.load(_OTHER)
        await api.unload(_OTHER)


def _is_of_load(event: dict[str, Any], state: str) -> bool:
    return event.get("model") == _OTHER and event.get("state") == state


def _loads(events: Sequence[dict[str, Any]]) -> list[tuple[float, float]]:
    """From when to when the other model was being loaded, in Unix time."""
    spans = []
    begin = None
    for event in events:
        if _is_of_load(event, "loading"):
            begin = event["time"]
        elif begin is not None and event.get("model") == _OTHER and "state" in event:
            spans.append((begin, event["time"]))
            begin = None
    return spans


def _within(begin: float, end: float, spans: Sequence[tuple[float, float]]) -> bool:
    return any(first <= begin and end <= last for first, last in spans)


def _body(name: str, model: Path, seed: int) -> dict[str, Any]:
    prompt = models.prompt(model, _PROMPT_TOKENS, seed)
    return {"model": name, "prompt": prompt, "max_tokens": _NEW_TOKENS}


def _ratios(samples: dict[str, _Samples]) -> dict[str, float]:
    found = {}
    for what in ("ttft", "gap"):
        base, beside = (samples[kind].summary()[what] for kind in ("undisturbed", "beside"))
        if beside["n"]:
            found[f"{what}_ratio_of_medians"] = round(beside["median"] / base["median"], 3)
    return found


def _show(result: dict[str, Any]) -> None:
    settings = result["settings"]
    table = figures.table(
        figures.title(
            f"{settings['model']} while {settings['other']} is loaded; ms, beside / undisturbed",
            result,
        ),
        *("", "leased cores: times seen", "TTFTs", "TTFT p50", "p95", "gaps", "gap p50", "p95"),
    )
    for name, row in result["rows"].items():
        for kind in ("undisturbed", "beside"):
            one = row[kind]
            cells = []
            for what in ("ttft", "gap"):
                cells.append(str(one[what]["n"]))
                cells += [figures.ms(one[what].get(key)) for key in ("median", "p95")]
            cores = ", ".join(f"{count}: {seen}" for count, seen in one["leased_cores"].items())
            table.add_row(f"{name}, {kind}", cores, *cells)
        ratios = [row.get(f"{what}_ratio_of_medians") for what in ("ttft", "gap")]
        ttft, gap = ("-" if ratio is None else f"{ratio:.2f}" for ratio in ratios)
        table.add_row(f"{name}, ratio of medians", "", "", ttft, "", "", gap)
    machine.console().print(table)


if __name__ == "__main__":
    sys.exit(main())

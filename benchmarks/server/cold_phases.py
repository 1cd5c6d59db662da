# SPDX-License-Identifier: Apache-2.0
"""From a request to an unloaded model to its first token, phase by phase.

    python benchmarks/end_to_end/prepare.py
    python benchmarks/server/cold_phases.py [--repeats 10]

The model is unloaded, then asked for a stream; the server runs all the while. The phases lie
between what the server tells of (GET /events) and what the client sees; the stages of the engine's
start are timed in it (`timed_server.py`). A model's first loads are not counted: they read its
files, and measure which linear layers are the faster ones until that is settled.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import tempfile
from argparse import Namespace
from collections import defaultdict
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import client
import figures
import models
import serving
import timed_server
from rich.progress import Progress

import machine

_SHAPE = "0.5B shape"
_TARGETS_S = {"demo experts": 2.5, _SHAPE: 3.5}
_PROMPT_TOKENS, _NEW_TOKENS = 32, 4

# Each ends with the event named.
_PHASES = {
    "admitted": ("state", "loading"),
    "process forked": ("loading", "configuring"),
    "configured": ("loading", "loading"),
    "engine": ("loading", "starting"),
    "serving": ("loaded", None),
}
_LAST_PHASE = "first token"
_FIRST_LOADS = 3  # enough for races that agree: `vllm_plugin/linear_choice.py`


def main() -> int:
    arguments = _arguments()
    serving.end_servers_on_sigterm()
    described, others = machine.describe({}), serving.Others()
    console = machine.console()
    paths = {name: path for name, path in models.demo().items() if name in arguments.demo}
    if not arguments.no_shape:
        paths[_SHAPE] = models.shape()
    with figures.progress(console) as progress:
        runs = asyncio.run(_measure(paths, arguments, progress))
    groups = {name: [name] for name in paths}
    if arguments.demo:
        groups = {"demo experts": arguments.demo} | groups
    result = described | {
        "others_share": round(others.share(), 3),
        "unit": "seconds",
        "targets": _TARGETS_S,
        "settings": {"prompt_tokens": _PROMPT_TOKENS, "page_cache": "warm"},
        "cold": {
            label: _summary([run for name in names for run in runs[name]])
            for label, names in groups.items()
        },
    }
    _show(result)
    machine.write(result, arguments.output)
    return 0


def _arguments() -> Namespace:
    parser = figures.parser(__doc__, "cold_phases")
    names = list(models.demo())
    parser.add_argument("--demo", nargs="*", choices=names, default=names, help="demo experts")
    parser.add_argument("--no-shape", action="store_true", help="without the 0.5B shape")
    parser.add_argument("--repeats", type=int, default=10, help="of the 0.5B shape")
    parser.add_argument("--demo-repeats", type=int, default=3, help="of each demo expert")
    return parser.parse_args()


async def _measure(
    paths: dict[str, Path], arguments: Namespace, progress: Progress
) -> dict[str, list[dict[str, Any]]]:
    experts = [models.expert(path.name, path) for path in paths.values()]
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in paths}
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        stages = scratch / "stages.jsonl"
        server = stack.enter_context(
            serving.our_server(
                scratch,
                experts,
                program=(timed_server.__file__,),
                environment={timed_server.STAGES_VARIABLE: os.fspath(stages)},
            )
        )
        async with client.http_session() as session:
            api = client.Client(session, server.url, serving.ADMIN_KEY)
            for name, path in paths.items():
                repeats = arguments.repeats if name == _SHAPE else arguments.demo_repeats
                task = progress.add_task(f"cold: {name}", total=repeats + _FIRST_LOADS)
                for number in range(-_FIRST_LOADS, repeats):
                    stages.write_text("")
                    prompt = models.prompt(path, _PROMPT_TOKENS, number + _FIRST_LOADS)
                    run = await _cold(api, path.name, prompt)
                    if number >= 0:
                        runs[name].append(run | {"stages": _stages(stages)})
                    progress.advance(task)
    return runs


def _stages(path: Path) -> dict[str, float]:
    """Seconds of each stage, and of what is left of those that have parts."""
    took: defaultdict[str, float] = defaultdict(float)
    for line in path.read_text().splitlines():
        stage = json.loads(line)
        took[stage["stage"]] += stage["ended"] - stage["began"]
    for whole, parts in timed_server.PARTS.items():
        took[f"{whole}, rest"] = took.pop(whole, 0.0) - sum(took[part] for part in parts)
    return dict(took)


async def _cold(api: client.Client, model: str, prompt: list[int]) -> dict[str, Any]:
    await asyncio.sleep(0.3)  # the kernel may free the ended engine's memory
    async with api.events() as events:
        answer = await api.ask({"model": model, "prompt": prompt, "max_tokens": _NEW_TOKENS})
        await api.unload(model)
    ends = [_time_of(events, *what) for what in _PHASES.values()]
    ends.append(answer.sent + answer.ttft_s)
    begins = [answer.sent, *ends]
    names = [*_PHASES, _LAST_PHASE]
    return {
        "ttft": answer.ttft_s,
        "phases": {n: end - begin for n, begin, end in zip(names, begins, ends, strict=False)},
        "timings": answer.timings,
    }


def _time_of(events: Sequence[dict[str, Any]], kind: str, value: str | None) -> float:
    key = "phase" if kind == "loading" else "state"
    for event in events:
        if event["event"] == kind and (value is None or event.get(key) == value):
            return float(event["time"])
    raise RuntimeError(f"the server has not told of {kind} {value}: {events}")


def _summary(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return {
        "first_token": figures.summary([run["ttft"] for run in runs]),
        **{
            kind: {
                name: figures.summary([run[kind].get(name, 0.0) for run in runs])
                for name in runs[0][kind]
            }
            for kind in ("phases", "stages")
        },
        "load_s": figures.summary([run["timings"]["load_s"] for run in runs]),
        "ttft_in_worker_s": figures.summary([run["timings"]["ttft_s"] for run in runs]),
    }


def _show(result: dict[str, Any]) -> None:
    rows = result["cold"]
    table = figures.table(
        figures.title("Cold start, request to first token; seconds, medians", result),
        *("", "n", "first token", "p95", "max", *_PHASES, _LAST_PHASE),
    )
    for name, row in rows.items():
        first = row["first_token"]
        table.add_row(
            name,
            str(first["n"]),
            *(figures.s(first[key]) for key in ("median", "p95", "max")),
            *(f"{phase['median']:.3f}" for phase in row["phases"].values()),
        )
    console = machine.console()
    console.print(table)
    for name, row in rows.items():
        stages = ", ".join(f"{key} {one['median']:.3f}" for key, one in row["stages"].items())
        console.print(f"{name}, of the engine's start: {stages}")


if __name__ == "__main__":
    sys.exit(main())

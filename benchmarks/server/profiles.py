# SPDX-License-Identifier: Apache-2.0
"""What a long prompt does to answers that are being written, by the tokens of a step.

    python benchmarks/end_to_end/prepare.py
    python benchmarks/server/profiles.py [--tokens-a-step 256 512 1024 2048 4096 8192] [--repeats 3]

Four streams run on the 0.5B shape, then a prompt of 4,096 tokens comes: the gaps between the
streams' tokens from then until that prompt's first token, and the time until then, for several
`max_num_batched_tokens`. And what `max_num_seqs` is worth: tokens a second of 1 to 64 streams at a
time. The profiles "latency" and "throughput" are chosen by these tables.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import sys
import tempfile
from argparse import Namespace
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import client
import figures
import models
import serving
from rich.progress import Progress

import machine

_STREAMS = 4
_STREAM_TOKENS, _STREAM_PROMPT = 200, 32
_SETTLED = 8  # tokens of each stream before the prompt comes
_LONG_PROMPT = 4096
_MAX_MODEL_LEN = 8192
_MANY = "many"
_MANY_PROMPT, _MANY_TOKENS = 32, 32


def main() -> int:
    arguments = _arguments()
    serving.end_servers_on_sigterm()
    described, others = machine.describe({}), serving.Others()
    console = machine.console()
    model = models.shape()
    with figures.progress(console) as progress:
        steps, many = asyncio.run(_measure(model, arguments, progress))
    result = described | {
        "others_share": round(others.share(), 3),
        "unit": "seconds",
        "settings": {
            "model": models.SHAPE,
            "streams": _STREAMS,
            "prompt_tokens": _LONG_PROMPT,
            "max_model_len": _MAX_MODEL_LEN,
            "repeats": arguments.repeats,
        },
        "tokens_a_step": steps,
        "streams_at_a_time": many,
    }
    _show(result)
    machine.write(result, arguments.output)
    return 0


def _arguments() -> Namespace:
    parser = figures.parser(__doc__, "profiles")
    sizes = [256, 512, 1024, 2048, 4096, 8192]
    parser.add_argument("--tokens-a-step", type=int, nargs="*", default=sizes, metavar="N")
    parser.add_argument("--repeats", type=int, default=3)
    streams = [1, 2, 4, 8, 16, 32, 64]
    parser.add_argument("--streams", type=int, nargs="*", default=streams, metavar="N")
    return parser.parse_args()


async def _measure(
    model: Path, arguments: Namespace, progress: Progress
) -> tuple[dict[str, Any], dict[str, Any]]:
    sizes, repeats = arguments.tokens_a_step, arguments.repeats
    experts = [
        models.expert(
            str(size),
            model,
            max_model_len=_MAX_MODEL_LEN,
            max_num_batched_tokens=size,
            enable_chunked_prefill=True,
        )
        for size in sizes
    ]
    experts.append(models.expert(_MANY, model, max_num_seqs=64, max_num_batched_tokens=2048))
    runs: dict[int, list[dict[str, Any]]] = {size: [] for size in sizes}
    with (
        tempfile.TemporaryDirectory() as scratch,
        serving.our_server(Path(scratch), experts) as server,
    ):
        async with client.http_session() as session:
            api = client.Client(session, server.url, serving.ADMIN_KEY)
            task = progress.add_task("", total=len(sizes) * repeats)
            # All sizes in each round, so that all meet the same disturbances.
            for number in range(repeats):
                for size in random.Random(number).sample(sizes, len(sizes)):
                    progress.update(task, description=f"{size} tokens a step")
                    await api.load(str(size))
                    runs[size].append(await _disturb(api, str(size), model, number))
                    await api.unload(str(size))
                    progress.advance(task)
            many = await _at_a_time(api, model, arguments.streams, progress)
    steps = {str(size): _summary(runs[size]) for size in sizes if runs[size]}
    return steps, many


async def _disturb(api: client.Client, name: str, model: Path, seed: int) -> dict[str, Any]:
    """One repetition; streams that have told enough are given up."""
    await api.ask(_body(name, model, _STREAM_PROMPT, seed=10_000 + seed, tokens=4))  # not counted
    answers = [client.Answer() for _ in range(_STREAMS)]
    asking = [
        asyncio.create_task(
            api.ask(_body(name, model, _STREAM_PROMPT, 100 * seed + i, _STREAM_TOKENS), answer)
        )
        for i, answer in enumerate(answers)
    ]
    try:
        await client.until(lambda: min(len(answer.at) for answer in answers) >= _SETTLED)
        long = await api.ask(_body(name, model, _LONG_PROMPT, 1000 + seed, tokens=1))
        gaps = [span for answer in answers for span in pairwise(answer.at)]
        all_run = max(answer.at[0] for answer in answers)
        before = [b - a for a, b in gaps if all_run <= a and b <= long.began]
        # A gap belongs to the prompt's prefill if a part of it does.
        during = [b - a for a, b in gaps if b > long.began and a < long.at[0]]
    finally:
        for task in asking:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
    return {"before": before, "during": during, "ttft": long.ttft_s}


def _body(name: str, model: Path, prompt: int, seed: int, tokens: int) -> dict[str, Any]:
    return {"model": name, "prompt": models.prompt(model, prompt, seed), "max_tokens": tokens}


async def _at_a_time(
    api: client.Client, model: Path, counts: Sequence[int], progress: Progress
) -> dict[str, Any]:
    """So many streams at a time: what they get together, and each of them."""
    found: dict[str, Any] = {}
    if not counts:
        return found
    await api.load(_MANY)
    await api.ask(_body(_MANY, model, _MANY_PROMPT, seed=1, tokens=4))  # not counted
    task = progress.add_task("", total=len(counts))
    for count in counts:
        progress.update(task, description=f"{count} streams at a time")
        bodies = [
            _body(_MANY, model, _MANY_PROMPT, 10_000 * count + i, _MANY_TOKENS)
            for i in range(count)
        ]
        answers = await asyncio.gather(*map(api.ask, bodies))
        took = max(answer.at[-1] for answer in answers) - min(answer.began for answer in answers)
        found[str(count)] = {
            "tokens_per_s": round(count * _MANY_TOKENS / took, 1),
            "gap": figures.summary([gap for answer in answers for gap in answer.gaps_s]),
            "ttft": figures.summary([answer.ttft_s for answer in answers]),
        }
        progress.advance(task)
    await api.unload(_MANY)
    return found


def _summary(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return {
        "gap_before": figures.summary([gap for run in runs for gap in run["before"]]),
        "gap_during": figures.summary([gap for run in runs for gap in run["during"]]),
        "prompt_ttft": figures.summary([run["ttft"] for run in runs]),
    }


def _show(result: dict[str, Any]) -> None:
    console = machine.console()
    table = figures.table(
        figures.title(
            f"{_STREAMS} streams and a prompt of {_LONG_PROMPT} tokens, 0.5B shape; ms", result
        ),
        *("tokens a step", "gaps", "undisturbed p50", "gap p50", "p95", "max"),
        *("prompt's TTFT, s", "min", "max"),
    )
    for size, row in result["tokens_a_step"].items():
        gaps, ttft = row["gap_during"], row["prompt_ttft"]
        table.add_row(
            size,
            str(gaps["n"]),
            figures.ms(row["gap_before"]["median"]),
            *(figures.ms(gaps[key]) for key in ("median", "p95", "max")),
            *(figures.s(ttft[key]) for key in ("median", "min", "max")),
        )
    console.print(table)
    many = figures.table(
        "streams at a time, 0.5B shape, 32 tokens of prompt and 32 of answer",
        *("streams", "tokens/s together", "gap p50, ms", "gap p95, ms", "TTFT p95, s"),
    )
    for count, row in result["streams_at_a_time"].items():
        many.add_row(
            count,
            f"{row['tokens_per_s']:.1f}",
            *(figures.ms(row["gap"][key]) for key in ("median", "p95")),
            figures.s(row["ttft"]["p95"]),
        )
    console.print(many)


if __name__ == "__main__":
    sys.exit(main())

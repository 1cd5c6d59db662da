# SPDX-License-Identifier: Apache-2.0
"""Generates text with vLLM, with vLLM and our kernels, and with llama.cpp, and prints one table.

    python benchmarks/end_to_end/prepare.py
    python benchmarks/end_to_end/run.py [--contenders vllm capibara] [--threads 1 2] [--rounds 3]
    python benchmarks/end_to_end/run.py --show benchmarks/results/end_to_end.json

All run a model of Qwen2.5-0.5B's shape with the same weights: one request at a time, a prompt of
random tokens, greedy. In every round each contender has a process of its own, pinned to as many
cores as it has threads, in random order, so that all meet the same disturbances; a first answer in
it is not counted. Prefill is the prompt's tokens over the time to the first token, decode the
tokens after it over their time. Figures are medians over all repetitions; a ratio is the median of
the rounds' ratios to vLLM.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

sys.path.insert(1, str(Path(__file__).resolve().parents[1]))

import engines
import prepare
import report
from work import CONTEXT, Job

import machine

_TIMEOUT_S = 60  # to start, beside what the work may take
_SLOWEST_TOKENS_PER_S = 2  # of a contender that still takes part


def main() -> int:
    arguments = _parser().parse_args()
    if arguments.show:
        report.show(json.loads(arguments.show.read_text(encoding="utf-8")))
        return 0
    cores = len(os.sched_getaffinity(0))
    if max(arguments.threads) > cores:
        return _complain(f"--threads {max(arguments.threads)} is more than the {cores} cores here")
    if not 2 <= arguments.tokens <= CONTEXT - arguments.prompt_tokens:
        limit = CONTEXT - arguments.prompt_tokens
        return _complain(f"--tokens: expected 2 to {limit}, got {arguments.tokens}")
    if not prepare.has_checkpoint():
        return _complain("no checkpoint yet: run benchmarks/end_to_end/prepare.py")
    engines.end_children_on_sigterm()
    runs = _run(arguments)
    result = machine.describe({}) | {
        "unit": "tokens per second, median",
        "work": {
            name: getattr(arguments, name)
            for name in ("prompt_tokens", "tokens", "repetitions", "rounds")
        },
        "tcmalloc_for_vllm": prepare.tcmalloc() is not None,
        "rows": report.rows(runs),
        "runs": runs,
    }
    report.show(result)
    machine.write(result, arguments.output)
    return 1 if any("error" in run for run in runs) else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0] if __doc__ else None)
    names = list(engines.CONTENDERS)
    parser.add_argument("--contenders", nargs="+", choices=names, default=names)
    parser.add_argument("--threads", nargs="+", type=engines.positive, default=[1, 2])
    parser.add_argument("--rounds", type=engines.positive, default=3, help="processes of each")
    parser.add_argument("--repetitions", type=engines.positive, default=2, help="answers of each")
    parser.add_argument("--prompt-tokens", type=engines.positive, default=512)
    parser.add_argument("--tokens", type=engines.positive, default=128, help="generated tokens")
    parser.add_argument("--output", type=Path, default=machine.RESULTS / "end_to_end.json")
    parser.add_argument("--show", type=Path, help="print the table of such a file, measure nothing")
    return parser


def _complain(what: str) -> int:
    print(what, file=sys.stderr)
    return 2


def _run(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Every contender in every round; what is absent or fails is not tried again.

    An interruption ends the measuring: what was measured until then is returned.
    """
    runs: list[dict[str, Any]] = []
    out: set[tuple[str, int]] = set()
    every = list(itertools.product(arguments.contenders, arguments.threads))
    with Progress(
        TextColumn("{task.description:<32}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=machine.console(),
    ) as progress:
        task = progress.add_task("", total=arguments.rounds * len(every))
        turns = (
            (number, name, threads)
            for number in range(arguments.rounds)
            for name, threads in random.Random(number).sample(every, len(every))
        )
        try:
            for number, name, threads in turns:
                progress.update(task, description=f"{name}, threads {threads}")
                if (name, threads) not in out:
                    run = _one(engines.CONTENDERS[name], threads, number, arguments)
                    runs.append(run)
                    if "repetitions" not in run:
                        out.add((name, threads))
                    progress.console.print(report.line(run), markup=False, highlight=False)
                progress.advance(task)
        except KeyboardInterrupt:
            progress.console.print("interrupted")
    return runs


def _one(
    contender: engines.Contender, threads: int, number: int, arguments: argparse.Namespace
) -> dict[str, Any]:
    job = Job(
        os.fspath(contender.model),
        threads,
        arguments.prompt_tokens,
        arguments.tokens,
        arguments.repetitions,
        seed=number,
        options=dict(contender.options),
    )
    answers = arguments.repetitions + 4  # llama.cpp tries its settings first
    others = _OthersThanChildren()
    timeout_s = _TIMEOUT_S + answers * (arguments.tokens / _SLOWEST_TOKENS_PER_S)
    answer = engines.measure(contender, job, timeout_s)
    shown = {name: value for name, value in asdict(job).items() if name not in ("model", "options")}
    return {
        "contender": contender.name,
        "job": shown,
        "others_share": round(others.share(), 3),
    } | answer


class _OthersThanChildren(machine.Others):
    """What other processes took of the processors; the measuring ones do not count as such."""

    @staticmethod
    def _busy_seconds() -> float:
        times = os.times()
        return machine.Others._busy_seconds() - times.children_user - times.children_system


if __name__ == "__main__":
    sys.exit(main())

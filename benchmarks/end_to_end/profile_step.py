# SPDX-License-Identifier: Apache-2.0
"""Says where a step of vLLM goes, with our plugin and without: prefill, and decoding one token.

    python benchmarks/end_to_end/profile_step.py [--contenders vllm capibara] [--threads 2]

Same model, prompts and processes as run.py. A part's time is its own, without the parts inside it;
"outside" is everything but the model and the sampler. Figures are means over the faster half of
the steps.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(1, str(Path(__file__).resolve().parents[1]))

import engines
import prepare
from rich.table import Table
from work import Job

import machine

_PROGRAM = "profile_vllm.py"
_TIMEOUT_S = 420
_PHASES = ("prefill", "decode")


def main() -> int:
    arguments = _parser().parse_args()
    if arguments.show:
        _show(json.loads(arguments.show.read_text(encoding="utf-8")))
        return 0
    if not prepare.has_checkpoint():
        print("no checkpoint yet: run benchmarks/end_to_end/prepare.py", file=sys.stderr)
        return 2
    engines.end_children_on_sigterm()
    try:
        answers = {name: _profile(name, arguments) for name in arguments.contenders}
    except KeyboardInterrupt:
        print("interrupted: nothing is written", file=sys.stderr)
        return 130
    for name, answer in answers.items():
        for trouble in {"absent", "error"} & answer.keys():
            print(f"{name}: {trouble}: {answer[trouble]}", file=sys.stderr)
    result = machine.describe({}) | {
        "unit": "microseconds a step",
        "threads": arguments.threads,
        "tcmalloc_for_vllm": prepare.tcmalloc() is not None,
        "contenders": {name: one for name, one in answers.items() if "prefill" in one},
    }
    _show(result)
    machine.write(result, arguments.output)
    return 1 if any("error" in answer for answer in answers.values()) else 0


def _parser() -> argparse.ArgumentParser:
    names = [n for n, one in engines.CONTENDERS.items() if one.program == "measure_vllm.py"]
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0] if __doc__ else None)
    parser.add_argument("--contenders", nargs="+", choices=names, default=names)
    parser.add_argument("--threads", type=engines.positive, default=2)
    parser.add_argument(
        "--repetitions", type=engines.positive, default=5, help="answers: prefill steps"
    )
    parser.add_argument(
        "--tokens", type=engines.positive, default=64, help="generated tokens of an answer"
    )
    parser.add_argument(
        "--operators",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="also run torch.profiler, and keep the largest operators in the JSON file",
    )
    parser.add_argument("--output", type=Path, default=machine.RESULTS / "profile_step.json")
    parser.add_argument("--show", type=Path, help="print the table of such a file, measure nothing")
    return parser


def _profile(name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    contender = replace(engines.CONTENDERS[name], program=_PROGRAM)
    job = Job(
        os.fspath(contender.model),
        arguments.threads,
        new_tokens=arguments.tokens,
        repetitions=arguments.repetitions,
        options={**contender.options, "operators": arguments.operators},
    )
    print(f"measuring {name}", flush=True)
    answer = engines.measure(contender, job, _TIMEOUT_S)
    for phase in _PHASES:
        if phase in answer:
            answer[phase] = _in_microseconds(answer[phase]["parts"])
    if "unwrapped" in answer:
        answer["unwrapped"] = {
            figure: round(statistics.median(one[figure] for one in answer["unwrapped"]), 2)
            for figure in ("prefill_tokens_per_s", "decode_tokens_per_s")
        }
    return answer


def _in_microseconds(parts: dict[str, float]) -> dict[str, Any]:
    """By part and by group, which is what stands before a part's colon."""
    groups: dict[str, float] = {}
    for part, seconds in parts.items():
        group = part.partition(":")[0]
        groups[group] = groups.get(group, 0.0) + seconds * 1e6
    return {
        "step": round(sum(groups.values()), 1),
        "groups": {name: round(us, 1) for name, us in groups.items()},
        "parts": {part: round(seconds * 1e6, 1) for part, seconds in parts.items()},
    }


def _show(result: dict[str, Any]) -> None:
    contenders: dict[str, Any] = result["contenders"]
    console = machine.console()
    console.print(
        machine.title(f"a step of vLLM, {result['threads']} threads", result), highlight=False
    )
    for phase in _PHASES:
        table = Table(title=f"{phase}, {result['unit']}", title_justify="left")
        table.add_column("part")
        for name in contenders:
            table.add_column(name, justify="right")
            table.add_column("share", justify="right")
        found = [one[phase] for one in contenders.values()]
        parts = {part for one in found for part in one["parts"]}
        for part in sorted(parts, key=lambda p: -max(one["parts"].get(p, 0) for one in found)):
            table.add_row(part, *_cells([one["parts"].get(part) for one in found], found))
        table.add_section()
        groups = {group for one in found for group in one["groups"]} - parts
        for group in sorted(groups):
            cells = _cells([one["groups"].get(group) for one in found], found)
            table.add_row(f"all of {group}", *cells)
        table.add_row("the whole step", *_cells([one["step"] for one in found], found))
        console.print(table)


def _cells(values: list[float | None], found: list[dict[str, Any]]) -> list[str]:
    cells = []
    for value, one in zip(values, found, strict=True):
        cells += ["-", "-"] if value is None else [f"{value:,.0f}", f"{value / one['step']:.1%}"]
    return cells


if __name__ == "__main__":
    sys.exit(main())

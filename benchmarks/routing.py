# SPDX-License-Identifier: Apache-2.0
"""How often `model: "auto"` chooses the role that a person chose, and how long that takes.

    python benchmarks/routing.py [--repeats 200] [--output FILE]

Accuracy is that of the wanted role over `tests/server/routing_examples.json`, per language, with
the examples that the rules were tuned on and those held out apart. The time is that of `route` for
five candidates, from a body that is parsed already: over the examples, and for bodies of the most
that the server takes. It is given as a clock shows it and as processor time, which leaves out what
other processes took of a busy machine.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

import machine
from capibara_axion.server.routing import Candidate, Decision, route

EXAMPLES = Path(__file__).parent.parent / "tests" / "server" / "routing_examples.json"
CANDIDATES = (
    Candidate("general", "general", priority=5, max_model_len=4096, resident=True),
    Candidate("technical", "technical", priority=4, max_model_len=8192, resident=True),
    Candidate("coding", "coding", priority=3, max_model_len=8192),
    Candidate("multimodal", "multimodal_expert", priority=2, max_model_len=24576),
    Candidate("multilingual", "multilingual_expert", priority=2, max_model_len=8192),
)
_BODY_CHARS = 32 << 20


def main() -> int:
    arguments = _parser().parse_args()
    examples = json.loads(EXAMPLES.read_text("utf-8"))
    found = machine.describe({})
    others = machine.Others()
    decisions = [route(example["body"], CANDIDATES) for example in examples]
    times = {"examples": _times([example["body"] for example in examples], arguments.repeats)}
    for name, body in _large_bodies().items():
        times[name] = _times([body], arguments.repeats)
    result = {
        **found,
        "others_share": round(others.share(), 3),
        "examples": len(examples),
        "accuracy": _accuracy(examples, decisions),
        "wrong": _wrong(examples, decisions),
        "microseconds": times,
    }
    _show(result)
    machine.write(result, arguments.output)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0] if __doc__ else None)
    parser.add_argument("--repeats", type=int, default=200, help="timed calls of each body")
    parser.add_argument(
        "--output",
        type=Path,
        default=machine.RESULTS / "routing.json",
        help="where the figures go as JSON",
    )
    return parser


def _accuracy(
    examples: Sequence[dict[str, Any]], decisions: Sequence[Decision]
) -> dict[str, dict[str, dict[str, int]]]:
    """Per language and in all: of the tuned and of the held-out examples how many are right."""
    counts: dict[str, dict[str, dict[str, int]]] = {}
    for example, decision in zip(examples, decisions, strict=True):
        part = "held_out" if example["held_out"] else "tuned"
        for name in (example["language"], "all"):
            parts = counts.setdefault(
                name, {part: {"examples": 0, "right": 0} for part in ("tuned", "held_out")}
            )
            parts[part]["examples"] += 1
            parts[part]["right"] += decision.role.value == example["role"]
    every = counts.pop("all")
    return {**counts, "all": every}


def _wrong(
    examples: Sequence[dict[str, Any]], decisions: Sequence[Decision]
) -> list[dict[str, Any]]:
    return [
        {**example, "decided": decision.role.value, "reasons": decision.reasons}
        for example, decision in zip(examples, decisions, strict=True)
        if decision.role.value != example["role"]
    ]


def _large_bodies() -> dict[str, dict[str, Any]]:
    """Bodies of 32 Mi characters, or of a million pieces."""
    texts = {
        "English": "The model reads a text as tokens and predicts the one that comes next. ",
        "Spanish": "El modelo lee un texto como una secuencia de palabras y continúa con otra. ",
        "Vietnamese": "Mô hình đọc một văn bản và dự đoán từ tiếp theo. ",
        "Chinese": "模型读取文本并预测下一个词。",
        "code": "for (int i = 0; i < n; i++) { total += values[i] * weight(i); }\n",
        "brackets": "if (if (if (",
    }
    bodies = {name: _chat(text * (_BODY_CHARS // len(text))) for name, text in texts.items()}
    piece = {"type": "text", "text": "What is new?"}
    bodies["a million parts"] = _chat([piece] * 10**6)
    bodies["a million messages"] = {"messages": _chat("What is new?")["messages"] * 10**6}
    return bodies


def _chat(content: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": content}]}


def _times(bodies: Sequence[dict[str, Any]], repeats: int) -> dict[str, dict[str, float]]:
    """What a decision takes, in microseconds."""
    clock, processor = [], []
    for body in bodies:
        for _ in range(repeats):
            began, began_processor = time.perf_counter(), time.thread_time()
            route(body, CANDIDATES)
            processor.append(time.thread_time() - began_processor)
            clock.append(time.perf_counter() - began)
    return {"clock": _summary(clock), "processor": _summary(processor)}


def _summary(seconds: Sequence[float]) -> dict[str, float]:
    centiles = statistics.quantiles(seconds, n=100, method="inclusive")
    found = {"median": centiles[49], "p99": centiles[98], "max": max(seconds)}
    return {name: round(1e6 * value, 1) for name, value in found.items()} | {"calls": len(seconds)}


def _show(result: dict[str, Any]) -> None:
    table = Table(title=machine.title("routing of `auto`: the role that a person chose", result))
    for column in ("language", "tuned on", "right", "", "held out", "right", ""):
        table.add_column(column, justify="left" if column == "language" else "right")
    for language, parts in result["accuracy"].items():
        cells = [language]
        for counts in parts.values():
            share = f"{counts['right'] / counts['examples']:.0%}" if counts["examples"] else "-"
            cells += [str(counts["examples"]), str(counts["right"]), share]
        table.add_row(*cells)
    times = Table(title=f"time of a decision, us (others took {result['others_share']:.0%})")
    times.add_column("body")
    for column in ("median", "p99", "processor: median", "p99", "max", "calls"):
        times.add_column(column, justify="right")
    for name, summary in result["microseconds"].items():
        clock, processor = summary["clock"], summary["processor"]
        figures = (clock["median"], clock["p99"], *processor.values())
        times.add_row(name, *map(str, figures))
    machine.console().print(table, times)


if __name__ == "__main__":
    raise SystemExit(main())

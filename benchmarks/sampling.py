# SPDX-License-Identifier: Apache-2.0
"""What a request's sampling settings cost a step of vLLM: its own functions, and ours.

    python benchmarks/sampling.py [--rounds 15] [--output FILE]

Logits of Qwen's vocabulary with probabilities by Zipf's law, rank^-1.5, of which 58 tokens make
0.9; and even probabilities within a tenth. Both take turns, on copies of the same logits. Penalties
are of a prompt of 512 tokens and an answer of 128.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.progress import track
from rich.table import Table
from vllm.model_executor.layers.utils import apply_penalties
from vllm.v1.sample.ops.topk_topp_sampler import apply_top_k_top_p

import machine
from capibara_axion.vllm_plugin import sampling

VOCABULARY = 151936
ROWS = (1, 8, 32)
# top_k, top_p, repetition_penalty; Zipf's exponent.
SETTINGS: dict[str, tuple[int | None, float, float, float]] = {
    "top_p 0.9": (None, 0.9, 1.0, 1.5),
    "top_k 20, top_p 0.8": (20, 0.8, 1.0, 1.5),
    "the same, repetition_penalty 1.05 (Qwen2.5's own)": (20, 0.8, 1.05, 1.5),
    "top_p 0.9, even probabilities": (None, 0.9, 1.0, 0.0),
}

Apply = Callable[[torch.Tensor], torch.Tensor]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=15, help="timed calls of each")
    parser.add_argument("--output", type=Path, default=machine.RESULTS / "sampling.json")
    arguments = parser.parse_args()
    described, others = machine.describe({}), machine.Others()
    cases = [(rows, name) for name in SETTINGS for rows in ROWS]
    measured = [
        _measure(rows, name, arguments.rounds)
        for rows, name in track(cases, console=machine.console(), transient=True)
    ]
    result = {
        **described,
        "others_share": round(others.share(), 3),
        "unit": "milliseconds",
        "threads": torch.get_num_threads(),
        "rows": measured,
    }
    _show(result)
    machine.write(result, arguments.output)
    return 0


def _measure(rows: int, name: str, rounds: int) -> dict[str, Any]:
    stock = _settings(rows, name, apply_top_k_top_p, apply_penalties)
    ours = _settings(
        rows, name, sampling.top_k_top_p_or(apply_top_k_top_p), sampling.apply_penalties
    )
    logits = _logits(rows, SETTINGS[name][3])
    taken: dict[str, list[float]] = {"stock": [], "ours": []}
    for _ in range(rounds + 1):
        for who, apply in (("stock", stock), ("ours", ours)):
            copy = logits.clone()
            began = time.perf_counter()
            apply(copy)
            taken[who].append(1e3 * (time.perf_counter() - began))
    medians = {who: round(statistics.median(times[1:]), 3) for who, times in taken.items()}
    return {"settings": name, "rows": rows, **medians}


def _logits(rows: int, exponent: float) -> torch.Tensor:
    generator = torch.Generator().manual_seed(rows)
    ranks = torch.stack([torch.randperm(VOCABULARY, generator=generator) for _ in range(rows)]) + 1
    return 0.1 * torch.rand(ranks.shape, generator=generator) - exponent * ranks.log()


def _settings(rows: int, name: str, limit: Any, penalise: Any) -> Apply:
    top_k, top_p, repetition, _ = SETTINGS[name]
    k = None if top_k is None else torch.full((rows,), top_k, dtype=torch.int32)
    p = torch.full((rows,), top_p)
    generator = torch.Generator().manual_seed(1)
    prompt, answer = (
        torch.randint(VOCABULARY, (rows, length), generator=generator) for length in (512, 128)
    )
    none, factor = torch.zeros(rows), torch.full((rows,), repetition)

    def apply(logits: torch.Tensor) -> torch.Tensor:
        if repetition != 1:  # else vLLM does not call it
            logits = penalise(logits, prompt, answer, none, none, factor)
        limited: torch.Tensor = limit(logits, k, p)
        return limited

    return apply


def _show(result: dict[str, Any]) -> None:
    table = Table(title=machine.title("sampling settings, ms a step", result), title_justify="left")
    for heading in ("settings", "rows", "stock vLLM", "ours", "faster by"):
        table.add_column(heading, justify="left" if heading == "settings" else "right")
    for row in result["rows"]:
        figures = (
            f"{row['stock']:.2f}",
            f"{row['ours']:.2f}",
            f"{row['stock'] / row['ours']:.1f}x",
        )
        table.add_row(row["settings"], str(row["rows"]), *figures)
    machine.console().print(table)


if __name__ == "__main__":
    raise SystemExit(main())

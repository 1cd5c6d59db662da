# SPDX-License-Identifier: Apache-2.0
"""Summaries of the runs, and the table."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from engines import STOCK
from rich.table import Table

import machine

Run = dict[str, Any]
_FIGURES = ("prefill_tokens_per_s", "decode_tokens_per_s")
_DISTURBED = 0.1  # the share of other processes from which a row is marked


def rows(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """One summary for each contender and number of threads, one for each that did not run."""
    groups: dict[tuple[str, int], list[Run]] = defaultdict(list)
    found: list[dict[str, Any]] = []
    for run in runs:
        key = run["contender"], run["job"]["threads"]
        if "repetitions" in run:
            groups[key].append(run)
        else:
            trouble = {name: run[name] for name in ("absent", "error") if name in run}
            found.append({"contender": key[0], "threads": key[1]} | trouble)
    for (name, threads), group in groups.items():
        stock = {run["job"]["seed"]: run for run in groups.get((STOCK, threads), ())}
        found.append({"contender": name, "threads": threads} | _summary(group, stock))
    return sorted(found, key=lambda row: row["threads"])


def line(run: Run) -> str:
    """What came of a run, in a line."""
    name, threads = run["contender"], run["job"]["threads"]
    for trouble in ("absent", "error"):
        if trouble in run:
            return f"{name}: {trouble}: {run[trouble]}"
    prefill, decode = (statistics.median(_values(run, figure)) for figure in _FIGURES)
    return f"{name}, threads {threads}: decode {decode:.1f}, prefill {prefill:.1f} tokens/s"


def _summary(group: Sequence[Run], stock: dict[int, Run]) -> dict[str, Any]:
    summary: dict[str, Any] = {}
    pairs = [(run, stock[run["job"]["seed"]]) for run in group if run["job"]["seed"] in stock]
    for figure in _FIGURES:
        values = [value for run in group for value in _values(run, figure)]
        ratios = [
            statistics.median(_values(run, figure)) / statistics.median(_values(peer, figure))
            for run, peer in pairs
        ]
        summary[figure] = round(statistics.median(values), 2)
        summary[f"{figure}_range"] = [round(min(values), 2), round(max(values), 2)]
        summary[f"{figure}_ratio"] = round(statistics.median(ratios), 3) if ratios else None
    loaded = [run["loaded_rss_mib"] for run in group if "loaded_rss_mib" in run]
    summary["loaded_rss_mib"] = round(statistics.median(loaded)) if loaded else None
    summary["peak_rss_mib"] = max(run["peak_rss_mib"] for run in group)
    summary["same_first_tokens"] = _same_tokens(pairs)
    summary["others_share"] = max(run["others_share"] for run in group)
    return summary


def _values(run: Run, figure: str) -> list[float]:
    return [repetition[figure] for repetition in run["repetitions"]]


def _same_tokens(pairs: Iterable[tuple[Run, Run]]) -> float | None:
    """How many tokens the answers share with stock vLLM's before they differ, on average."""
    shared = []
    for run, peer in pairs:
        for own, other in zip(run["repetitions"], peer["repetitions"], strict=True):
            same = [a == b for a, b in zip(own["first_tokens"], other["first_tokens"], strict=True)]
            shared.append(same.index(False) if False in same else len(same))
    return round(statistics.mean(shared), 1) if shared else None


def show(result: dict[str, Any]) -> None:
    """Prints the table of a result."""
    work = result["work"]
    what = (
        f"Qwen2.5-0.5B's shape, a prompt of {work['prompt_tokens']} tokens, {work['tokens']} "
        f"generated, tokens per second (median of {work['rounds']} x {work['repetitions']})"
    )
    console = machine.console()
    console.print(machine.title(what, result), highlight=False)
    table = Table()
    table.add_column("contender")
    for heading in ("threads", "decode", "range", "to vLLM", "prefill", "range", "to vLLM"):
        table.add_column(heading, justify="right")
    for heading in ("loaded MiB", "peak MiB", "tokens as vLLM's", "others"):
        table.add_column(heading, justify="right")
    previous = None
    for row in result["rows"]:
        if previous not in (None, row["threads"]):
            table.add_section()
        previous = row["threads"]
        table.add_row(*_cells(row))
    console.print(table)


def _cells(row: dict[str, Any]) -> list[str]:
    cells = [row["contender"], str(row["threads"])]
    for trouble in ("absent", "error"):
        if trouble in row:
            return [*cells, trouble]
    for figure in reversed(_FIGURES):
        low, high = row[f"{figure}_range"]
        ratio = row[f"{figure}_ratio"]
        cells += [f"{row[figure]:.1f}", f"{low:.1f}-{high:.1f}", f"{ratio:.2f}" if ratio else "-"]
    same = row["same_first_tokens"]
    share = row["others_share"]
    mark = " *" if share > _DISTURBED else ""
    return [
        *cells,
        str(row.get("loaded_rss_mib") or "-"),
        str(row["peak_rss_mib"]),
        "-" if same is None else f"{same:.1f}",
        f"{share:.0%}{mark}",
    ]

# SPDX-License-Identifier: Apache-2.0
"""What the server's benchmarks have in common: their options, summaries, progress and tables."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

sys.path.insert(1, str(Path(__file__).resolve().parents[1]))

import machine


def parser(doc: str | None, name: str) -> argparse.ArgumentParser:
    """Options that all have; `doc` is the program's docstring, `name` that of its results."""
    found = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    found.add_argument(
        "--output",
        type=Path,
        default=machine.RESULTS / f"server_{name}.json",
        help="where the figures go as JSON",
    )
    return found


def summary(values: Sequence[float], digits: int = 4) -> dict[str, Any]:
    """Number, mean, standard deviation and percentiles of a measure; empty values give n = 0."""
    if not values:
        return {"n": 0}
    median, p95, p99 = np.percentile(values, (50, 95, 99))
    found = {
        "mean": np.mean(values),
        "stdev": np.std(values, ddof=1) if len(values) > 1 else 0.0,
        "min": min(values),
        "median": median,
        "p95": p95,
        "p99": p99,
        "max": max(values),
    }
    return {"n": len(values)} | {key: round(float(value), digits) for key, value in found.items()}


def progress(console: Console) -> Progress:
    """A bar that says what is being done, how much of it is done, and for how long."""
    return Progress(
        TextColumn("{task.description:<44}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
    )


def title(what: str, result: dict[str, Any]) -> str:
    """A table's heading: the machine, the versions, and what others took of it meanwhile."""
    others = f"others took {result['others_share']:.0%} of the processors"
    return f"{machine.title(what, result)}, {others}"


def table(title: str, *headings: str) -> Table:
    """A table whose first column is text and whose others are figures."""
    found = Table(title=title, title_justify="left")
    for index, heading in enumerate(headings):
        found.add_column(heading, justify="right" if index else "left")
    return found


def ms(seconds: float | None, digits: int = 1) -> str:
    """Seconds as milliseconds, for a table."""
    return "-" if seconds is None else f"{seconds * 1e3:.{digits}f}"


def s(seconds: float | None) -> str:
    """Seconds, for a table."""
    return "-" if seconds is None else f"{seconds:.2f}"

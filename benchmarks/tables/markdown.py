# SPDX-License-Identifier: Apache-2.0
"""What the tables are made of: rows of text, figures with a sensible number of digits, sources."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parents[1] / "results"
NONE = "–"
_CORES = {"AMD EPYC": "AMD EPYC", "Intel(R) Xeon(R) Processor": "Intel Xeon"}


def load(name: str) -> dict[str, Any]:
    """The results in `results/<name>.json`."""
    found: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    return found


def table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; no row may be longer or shorter than the headings."""
    lines = [headings, ["---"] * len(headings), *rows]
    for line in lines:
        if len(line) != len(headings):
            raise ValueError(f"expected {len(headings)} cells, got {line}")
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def number(value: float | None) -> str:
    """Three significant digits at least: 0.123, 1.23, 12.3, 123, 1,234."""
    if value is None:
        return NONE
    if value >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}" if value < 100 else f"{value:.0f}"


def times(ratio: float | None) -> str:
    return NONE if ratio is None else f"{ratio:.2f}x" if ratio < 2 else f"{ratio:.1f}x"


def count(value: float) -> str:
    """Instructions: 950, 99 k, 1.23 M, 39.0 M, 4,704 M."""
    if value >= 1e6:
        return f"{number(value / 1e6)} M"
    return f"{number(value / 1e3)} k" if value >= 1e3 else f"{value:.0f}"


def source(name: str, found: dict[str, Any]) -> str:
    """Where and when figures were taken, by which command, and where all of them are."""
    if "emulator" in found:
        place = f"{found['emulator'].split(' (')[0]}, core `{found['core']}`"
    else:
        machine = found["machine"]
        model = _CORES.get(machine["model"], machine["core"] or machine["model"])
        place = f"{model}, {machine['logical_cpus']} cores, `{found['isa']}` kernels"
    parts = [place]
    if "date" in found:
        parts.append(found["date"][:10])
    if found.get("others_share") is not None:
        parts.append(f"other processes took {found['others_share']:.0%} of the cores")
    if "command" in found:
        parts.append(f"`{found['command']}`")
    return f"{'; '.join(parts)}; [{name}.json](RESULTS/{name}.json)."

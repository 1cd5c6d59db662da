# SPDX-License-Identifier: Apache-2.0
"""Whole models beside other programs, and the figures of the server as tables."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from capibara_axion.bench.report import units
from capibara_axion.bench.report.figure import Figure, Table
from capibara_axion.bench.report.sources import Source
from capibara_axion.bench.report.style import SERIES

_FIGURES = ("median", "p95", "p99", "max")
_CONDITIONS = ("machine", "versions", "malloc", "settings", "load_average")


def figures(source: Source) -> Iterator[Figure]:
    """Tokens a second of whole models; every distribution that a server's file has."""
    if source.kind == "end to end":
        for what in ("decode", "prefill"):
            yield _bars(source, what)
    elif source.kind in ("server", "cold start"):
        distributions = list(_distributions(source.data, ""))
        columns = [name for name in _FIGURES if any(name in found for _, found in distributions)]
        rows = [
            (path, str(found["n"]), *(units.seconds(found.get(name)) for name in columns))
            for path, found in distributions
        ]
        title = source.name.removeprefix("server ")
        yield Figure(
            slug=source.slug(),
            title=title[0].upper() + title[1:],
            text="Distributions as they were measured.",
            table=Table(("what", "n", *columns), rows),
            sources=[source],
        )


def _distributions(data: Any, path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    if not isinstance(data, dict):
        return
    if "n" in data and "median" in data:
        yield path, data
        return
    for key, value in data.items():
        if key not in _CONDITIONS:
            words = str(key).replace("_", " ")
            yield from _distributions(value, f"{path}: {words}" if path else words)


def _bars(source: Source, what: str) -> Figure:
    key = f"{what}_tokens_per_s"
    rows = sorted(source.data["rows"], key=lambda row: row[key])
    work = source.data["work"]
    cells = [
        (row["contender"], units.digits(row[key]),
         "-".join(units.digits(bound) for bound in row[f"{key}_range"]),
         f"{row['peak_rss_mib']:,} MiB")
        for row in reversed(rows)
    ]  # fmt: skip
    return Figure(
        slug=source.slug(what),
        title=f"Tokens a second, {what}",
        text=f"A prompt of {work['prompt_tokens']} tokens, {work['tokens']} generated, one "
        f"request, {rows[0]['threads']} threads; medians, and the range of all runs.",
        table=Table(("contender", "tokens/s", "range", "most memory"), cells),
        sources=[source],
        draw=_draw_bars(rows, key),
        height=1.0 + 0.3 * len(rows),
        narrow_height=1.0 + 0.3 * len(rows),
    )


def _draw_bars(rows: list[dict[str, Any]], key: str) -> Callable[[Any, bool], None]:
    def draw(axes: Any, narrow: bool) -> None:
        for at, row in enumerate(rows):
            low, high = row[f"{key}_range"]
            ours = "capibara" in row["contender"]
            axes.barh(at, row[key], height=0.6, color=SERIES[0 if ours else 6])
            axes.plot([low, high], [at, at], color=SERIES[1], linewidth=1.2, marker="|")
            axes.annotate(
                units.digits(row[key]), (high, at), xytext=(5, 0), textcoords="offset points",
                va="center",
            )  # fmt: skip
        axes.set_xlim(0, 1.18 * max(row[f"{key}_range"][1] for row in rows))
        axes.set_yticks(range(len(rows)), [row["contender"].replace("_", " ") for row in rows])
        axes.grid(visible=False, axis="y")
        axes.locator_params(axis="x", nbins=4 if narrow else 8)
        axes.set_xlabel("tokens a second")

    return draw

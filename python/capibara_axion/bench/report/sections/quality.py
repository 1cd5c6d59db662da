# SPDX-License-Identifier: Apache-2.0
"""What fewer bits cost: perplexity beside bfloat16's."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterator
from typing import Any

from capibara_axion.bench.report import units
from capibara_axion.bench.report.figure import Figure, Table
from capibara_axion.bench.report.sources import Source
from capibara_axion.bench.report.style import INK, MARKERS, SERIES, legend_above


def figures(source: Source) -> Iterator[Figure]:
    """Ratios of perplexities with their intervals, of weights and of KV caches."""
    data = source.data
    if source.kind == "weights":
        rows = {row["weights"]: {f"{data['context']} tokens": row} for row in data["rows"]}
        yield _forest(source, rows, "weights")
    elif source.kind == "cache":
        contexts = [name for name in data["rows"][0] if name.startswith("context_")]
        rows = {
            row["cache"]: {f"{name.split('_')[1]} tokens": row[name] for name in contexts}
            for row in data["rows"]
        }
        yield _forest(source, rows, "KV cache")


def _forest(source: Source, rows: dict[str, dict[str, Any]], what: str) -> Figure:
    rows = dict(sorted(rows.items(), key=lambda item: max(r["ratio"] for r in item[1].values())))
    table = [
        (name, context, f"{row['perplexity']:.4f}", f"{row['ratio']:.4f}",
         "-".join(f"{bound:.4f}" for bound in row["ratio_95"]), units.percent(row["agreement"]))
        for name, found in rows.items()
        for context, row in found.items()
    ]  # fmt: skip
    weights = units.amount(source.data["training"]["parameters"])
    height = 1.2 + 0.24 * len(rows)
    return Figure(
        slug=source.slug(),
        title=f"Perplexity by {what}, beside bfloat16",
        text="Marks: how much larger the perplexity is; bars: 95 % intervals over documents. At 0 "
        f"it is the same. A small Llama ({weights} weights) trained for this; held-out text.",
        table=Table((what, "context", "perplexity", "ratio", "95 %", "same next token"), table, 2),
        sources=[source],
        draw=_bars(rows),
        height=height,
        narrow_height=1.3 + 0.36 * len(rows),
    )


def _bars(rows: dict[str, dict[str, Any]]) -> Callable[[Any, bool], None]:
    contexts = list(next(iter(rows.values())))
    names = list(reversed(rows))

    def draw(axes: Any, narrow: bool) -> None:
        for index, context in enumerate(contexts):
            offset = 0.4 * ((index + 0.5) / len(contexts) - 0.5)
            for at, name in enumerate(names):
                row = rows[name][context]
                low, high = (100 * (bound - 1) for bound in row["ratio_95"])
                middle = 100 * (row["ratio"] - 1)
                axes.errorbar(
                    middle, at - offset, xerr=[[middle - low], [high - middle]],
                    fmt=MARKERS[index], color=SERIES[index], capsize=2,
                    label=None if at else context,
                )  # fmt: skip
        axes.axvline(0, color=INK, linewidth=1)
        labels = [textwrap.fill(name, 17) for name in names] if narrow else names
        axes.set_yticks(range(len(names)), labels)
        axes.locator_params(axis="x", nbins=3 if narrow else 8)
        units.label(axes.xaxis, lambda value: f"{value:+.2g} %" if abs(value) > 1e-9 else "0")
        axes.set_xlabel("change of perplexity")
        if len(contexts) > 1:
            legend_above(axes)

    return draw

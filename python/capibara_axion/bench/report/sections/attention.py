# SPDX-License-Identifier: Apache-2.0
"""What attention takes beside its inputs and its output."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

from capibara_axion.bench.report import units
from capibara_axion.bench.report.figure import Figure, Table
from capibara_axion.bench.report.sources import Source
from capibara_axion.bench.report.style import DASHES, MARKERS, SERIES, legend_above

_NAMES = {"ours": "capibara_axion", "torch": "torch SDPA", "naive": "score matrix"}


def figures(source: Source) -> Iterator[Figure]:
    """Memory against the number of tokens."""
    if source.kind != "attention memory":
        return
    taken: dict[str, dict[int, int]] = defaultdict(dict)
    for row in source.data["rows"]:
        threads = f"{row['threads']} thread{'s' if row['threads'] > 1 else ''}"
        taken[f"{_NAMES.get(row['contender'], row['contender'])}, {threads}"][row["tokens"]] = row[
            "bytes"
        ]
    shape, tokens = source.data["shape"], sorted({at for found in taken.values() for at in found})
    rows = [
        (name, *(units.mebibytes(found[at]) if at in found else "" for at in tokens))
        for name, found in taken.items()
    ]
    yield Figure(
        slug=source.slug(),
        title="Memory of attention beside its inputs and output",
        text=f"{'Causal, ' if shape['causal'] else ''}{shape['heads']} heads of "
        f"{shape['head_dim']}, {shape['dtype']}; both axes are logarithmic. A matrix of scores "
        "grows with the square of the number of tokens.",
        table=Table(("contender", *(f"{at:,} tokens" for at in tokens)), rows),
        sources=[source],
        draw=_lines(taken, tokens),
    )


def _lines(taken: dict[str, dict[int, int]], tokens: list[int]) -> Callable[[Any, bool], None]:
    names = list(dict.fromkeys(name.split(",")[0] for name in taken))

    def draw(axes: Any, narrow: bool) -> None:
        for name, found in taken.items():
            index = names.index(name.split(",")[0])
            axes.plot(
                list(found), list(found.values()), marker=MARKERS[index], color=SERIES[index],
                linestyle="-" if name.endswith("1 thread") else DASHES[1], label=name,
            )  # fmt: skip
        axes.set_xscale("log")
        axes.set_yscale("log")
        sizes = [size for found in taken.values() for size in found.values()]
        units.label(axes.xaxis, lambda at: f"{at / 1024:g}K", tokens)
        powers = [2.0**20 * 4**power for power in range(-5, 12)]
        inside = [size for size in powers if min(sizes) / 2 <= size <= max(sizes) * 2]
        units.label(axes.yaxis, units.mebibytes, inside)
        axes.set(xlabel="tokens", ylabel="memory")
        legend_above(axes)

    return draw

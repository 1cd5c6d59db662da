# SPDX-License-Identifier: Apache-2.0
"""Times of the kernels beside the fastest peer."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import median
from typing import Any

from capibara_axion.bench.kernels import rows as kernel_rows
from capibara_axion.bench.report import units
from capibara_axion.bench.report.figure import Figure, Table
from capibara_axion.bench.report.sources import Source
from capibara_axion.bench.report.style import INK, MARKERS, SERIES, legend_above


@dataclass(frozen=True)
class Row:
    """Ours and the fastest peer in one case: what each needs, in any unit.

    Attributes:
        group: what the points of one colour have in common.
        ratio: the peer's divided by ours.
    """

    op: str
    group: str
    shape: str
    ours: str
    peer: str
    peer_name: str
    ratio: float


def figures(source: Source) -> Iterator[Figure]:
    """How much faster ours is, for each operator."""
    if source.kind == "kernels":
        rows = list(_measured(source))
    elif source.kind == "operators":
        rows = list(_kept(source))
    else:
        return
    if rows:
        yield strip(
            source,
            rows,
            title="Time of the fastest peer divided by ours",
            text="One mark for each shape; to the right of 1, ours is faster. Contenders took "
            "turns within each round; ratios are medians of those within the rounds.",
            what=("ours", "peer"),
        )


def _measured(source: Source) -> Iterator[Row]:
    for case in kernel_rows.by_case(source.data.rows):
        own = kernel_rows.fastest(case, "ours")
        peer = kernel_rows.fastest(case, *kernel_rows.PEERS)
        if own and peer:
            yield Row(
                own.op,
                _group(own.dtype, own.threads),
                own.shape,
                units.seconds(kernel_rows.median(own)),
                units.seconds(kernel_rows.median(peer)),
                peer.contender,
                kernel_rows.ratio(own, peer)[0],
            )


def _kept(source: Source) -> Iterator[Row]:
    for row in source.data["rows"]:
        if row["best_peer"]:
            own, peer = (row["contenders"][row[name]] for name in ("ours", "best_peer"))
            yield Row(
                row["op"],
                _group(row["dtype"], row["threads"]),
                str(row.get("shape", row["tokens"])),
                units.seconds(own["us"] / 1e6),
                units.seconds(peer["us"] / 1e6),
                row["best_peer"],
                peer["ratio_to_ours"],
            )


def _group(dtype: str, threads: int) -> str:
    return f"{dtype}, {threads} thread{'s' if threads > 1 else ''}"


def strip(
    source: Source, rows: list[Row], *, title: str, text: str, what: tuple[str, str]
) -> Figure:
    """A figure of ratios: a line for each operator, those with the largest median on top."""
    by_op: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        by_op[row.op].append(row.ratio)
    ops = sorted(by_op, key=lambda op: median(by_op[op]))
    ordered = sorted(rows, key=lambda row: -ops.index(row.op))
    cells = [
        (row.op, row.group, row.shape, row.peer_name, row.ours, row.peer, f"{row.ratio:.2f}")
        for row in ordered
    ]
    height = 1.4 + 0.24 * max(2, len(ops))
    return Figure(
        slug=source.slug("ratios"),
        title=f"{title}: {source.name}",
        text=text,
        table=Table(("op", "what", "shape", "peer", *what, "peer / ours"), cells, names=4),
        sources=[source],
        draw=_strip(rows, ops, title),
        height=height,
        narrow_height=height + 0.3,
    )


def _strip(rows: list[Row], ops: list[str], title: str) -> Callable[[Any, bool], None]:
    groups = sorted({row.group for row in rows})

    def draw(axes: Any, narrow: bool) -> None:
        for index, group in enumerate(groups):
            points = [(row.ratio, ops.index(row.op)) for row in rows if row.group == group]
            offset = 0.5 * ((index + 0.5) / len(groups) - 0.5)  # so that groups lie side by side
            axes.plot(
                [ratio for ratio, _ in points], [at - offset for _, at in points],
                MARKERS[index % len(MARKERS)], color=SERIES[index % len(SERIES)], label=group,
                linestyle="none", markersize=3.6, alpha=0.85,
            )  # fmt: skip
        axes.axvline(1, color=INK, linewidth=1)
        axes.set_xscale("log")
        low, high = min(0.9, *(row.ratio for row in rows)), max(1.2, *(row.ratio for row in rows))
        axes.set_xlim(low / 1.1, high * 1.15)
        ticks = units.log_ticks(low / 1.1, high * 1.15, 6 if narrow else 9)
        units.label(axes.xaxis, lambda value: f"{units.digits(value)}x", ticks)
        axes.set_yticks(range(len(ops)), ops)
        axes.set_ylim(-0.6, len(ops) - 0.4)
        axes.set_xlabel("peer / ours" if narrow else title[0].lower() + title[1:])
        legend_above(axes)

    return draw

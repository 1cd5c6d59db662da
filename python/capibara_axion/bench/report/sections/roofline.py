# SPDX-License-Identifier: Apache-2.0
"""How far kernels are from what the machine can do: operations per byte against operations per
second, under its measured roofs (Williams, Waterman and Patterson, CACM 52(4), 2009)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from capibara_axion.bench.kernels.rows import bandwidth, by_case, fastest, median, peak_type
from capibara_axion.bench.report import units
from capibara_axion.bench.report.figure import Figure, Table
from capibara_axion.bench.report.sources import Source
from capibara_axion.bench.report.style import INK, MARKERS, SERIES, legend_above
from capibara_axion.bench.results import KernelRow, Roof

_FAMILIES = {
    "linear_int": "linear, int8 and int4",
    "linear": "linear",
    "attention": "attention",
    "softmax": "softmax",
    "rope": "rotary embedding",
    "kv_cache": "KV cache",
}


class Point(NamedTuple):
    """One of our kernels in one case."""

    row: KernelRow
    per_byte: float  # operations
    per_s: float  # operations
    share: float  # of what the roof above it allows


def figures(source: Source) -> Iterator[Figure]:
    """One roofline for each number of threads."""
    if source.kind != "kernels":
        return
    for roof in source.data.roofs:
        points = list(_points(source.data.rows, roof))
        if points:
            yield _figure(source, roof, points)


def _points(rows: list[KernelRow], roof: Roof) -> Iterator[Point]:
    for case in by_case([row for row in rows if row.threads == roof.threads]):
        own = fastest(case, "ours")
        if own and own.bytes and own.operations:
            per_byte, per_s = own.operations / own.bytes, own.operations / median(own)
            peak = roof.operations_per_s.get(peak_type(own.op, own.dtype))
            allowed = min(peak or float("inf"), per_byte * bandwidth(roof))
            yield Point(own, per_byte, per_s, per_s / allowed)


def _figure(source: Source, roof: Roof, points: list[Point]) -> Figure:
    points.sort(key=lambda point: (point.row.op, point.row.dtype, point.per_byte))
    rows = [
        (row.op, row.dtype, row.shape, units.seconds(median(row)), units.digits(point.per_byte),
         units.amount(point.per_s, "op/s"), units.amount((row.bytes or 0) / median(row), "B/s"),
         units.percent(point.share))
        for point in points
        for row in (point.row,)
    ]  # fmt: skip
    threads = f"{roof.threads} thread{'s' if roof.threads > 1 else ''}"
    columns = ("op", "dtype", "shape", "time", "op/B", "operations", "bandwidth", "of the roof")
    return Figure(
        slug=source.slug(f"roofline {roof.threads}"),
        title=f"Roofline, {threads}",
        text="Marks: our kernels, one for each shape. Slope: what memory allows, the faster of a "
        f"plain read and a copy by {threads}; above it, data comes from a cache. Level lines: the "
        "fastest product of 1024 x 1024 x 1024 in each type by any contender.",
        table=Table(columns, rows, names=3),
        sources=[source],
        draw=_draw(roof, points),
        height=4.2,
        narrow_height=4.6,
    )


def _family(op: str) -> str:
    for start, family in _FAMILIES.items():
        if op.startswith(start):
            return family
    return "gated activations" if op.endswith("and_mul") else "norms"


def _draw(roof: Roof, points: list[Point]) -> Callable[[Any, bool], None]:
    families: dict[str, list[Point]] = defaultdict(list)
    for point in points:
        families[_family(point.row.op)].append(point)
    speed, peaks = bandwidth(roof), roof.operations_per_s

    def draw(axes: Any, narrow: bool) -> None:
        axes.set_xscale("log")
        axes.set_yscale("log")
        left = min(0.1, *(point.per_byte for point in points)) / 2
        right = max(4 * max(peaks.values()) / speed, *(point.per_byte for point in points)) * 2
        top = max(*peaks.values(), *(point.per_s for point in points)) * 2.5
        bottom = min(left * speed, *(point.per_s for point in points)) / 2
        ridge = max(peaks.values()) / speed
        axes.plot([left, ridge], [left * speed, ridge * speed], color=INK, linewidth=1.2)
        axes.annotate(
            units.amount(speed, "B/s"), (left * 2, left * 2 * speed),
            xytext=(6, -8), textcoords="offset points", fontsize=8,
        )  # fmt: skip
        for name, peak in peaks.items():
            axes.plot([peak / speed, right], [peak, peak], color=INK, linewidth=1.2)
            axes.annotate(
                f"{name}: {units.amount(peak, 'op/s')}", (right, peak), ha="right",
                xytext=(0, 3), textcoords="offset points", fontsize=8,
            )  # fmt: skip
        for index, (family, found) in enumerate(sorted(families.items())):
            axes.plot(
                [point.per_byte for point in found], [point.per_s for point in found],
                MARKERS[index % len(MARKERS)], color=SERIES[index % len(SERIES)], label=family,
                linestyle="none",
            )  # fmt: skip
        axes.set_xlim(left, right)
        axes.set_ylim(bottom, top)
        most = 4 if narrow else 8
        units.label(axes.xaxis, units.digits, units.log_ticks(left, right, most))
        units.label(axes.yaxis, units.amount, units.log_ticks(bottom, top, 6))
        axes.set(xlabel="operations per byte", ylabel="operations per second")
        legend_above(axes)

    return draw

# SPDX-License-Identifier: Apache-2.0
"""What a server does under more and more load."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from capibara_axion.bench.report import units
from capibara_axion.bench.report.figure import Figure, Table
from capibara_axion.bench.report.sources import Source
from capibara_axion.bench.report.style import DASHES, MARKERS, SERIES, legend_above

Points = list[tuple[float, float]]


def figures(source: Source) -> Iterator[Figure]:
    """Tokens a second and times against concurrency, or against the rate of arrivals."""
    if source.kind == "load":
        yield from _stages(source, "concurrency", "requests at a time")
        yield from _stages(source, "rate", "arrivals a second")
    elif source.kind == "server" and "streams_at_a_time" in source.data:
        points = {
            int(streams): found["tokens_per_s"]
            for streams, found in source.data["streams_at_a_time"].items()
        }
        rows = [(str(n), units.digits(rate), units.digits(rate / n)) for n, rate in points.items()]
        yield Figure(
            slug=source.slug("streams"),
            title="Tokens a second, by streams at a time",
            text="All streams together, their prompts included. Where the line bends, the "
            "processor has become the limit.",
            table=Table(("streams", "tokens/s", "tokens/s of each"), rows, names=0),
            sources=[source],
            draw=_lines({"all streams": list(points.items())}, "streams at a time", "tokens/s"),
        )


def _stages(source: Source, key: str, name: str) -> Iterator[Figure]:
    stages = [stage for stage in source.data.stages if getattr(stage, key) is not None]
    if not stages:
        return
    at = [float(getattr(stage, key)) for stage in stages]
    rows, times = [], dict[str, Points]()
    for x, stage in zip(at, stages, strict=True):
        ttft = stage.group.measures.get("ttft")
        if ttft:
            times.setdefault("median", []).append((x, ttft.median))
            times.setdefault("95th percentile", []).append((x, ttft.p95))
        rows.append(
            (
                units.digits(x),
                units.digits(stage.tokens_per_s),
                units.digits(stage.requests_per_s),
                units.seconds(ttft.median if ttft else None),
                units.seconds(ttft.p95 if ttft else None),
                units.percent(stage.good_share),
                str(sum(stage.group.failed.values())),
            )
        )
    columns = (name, "tokens/s", "requests/s", "TTFT, median", "TTFT, p95", "good", "failed")
    table = Table(columns, rows, names=0)
    slug = source.slug(key)
    tokens = {"tokens/s": [(x, stage.tokens_per_s) for x, stage in zip(at, stages, strict=True)]}
    yield Figure(
        slug=f"{slug}-tokens",
        title=f"Tokens a second, by {name}",
        text="Of all answers together. Where the line bends, the server is at its limit.",
        table=table,
        sources=[source],
        draw=_lines(tokens, name, "tokens/s"),
    )
    if times:
        yield Figure(
            slug=f"{slug}-ttft",
            title=f"Time to first token, by {name}",
            text="From when a request was to be sent, so that waiting in the client counts.",
            table=table,
            sources=[source],
            draw=_lines(times, name, "time to first token", units.seconds),
        )


def _lines(
    series: dict[str, Points],
    x_name: str,
    y_name: str,
    text: Callable[[float], str] = units.digits,
) -> Callable[[Any, bool], None]:
    def draw(axes: Any, narrow: bool) -> None:
        for index, (name, points) in enumerate(series.items()):
            axes.plot(
                *zip(*sorted(points), strict=True), marker=MARKERS[index], color=SERIES[index],
                linestyle=DASHES[index], label=name,
            )  # fmt: skip
        at = sorted({x for points in series.values() for x, _ in points})
        if len(at) > 1 and at[0] > 0:
            axes.set_xscale("log")
        units.label(axes.xaxis, units.digits, at)
        units.label(axes.yaxis, text)
        axes.set_ylim(bottom=0)
        axes.set(xlabel=x_name, ylabel=y_name)
        if len(series) > 1:
            legend_above(axes)

    return draw

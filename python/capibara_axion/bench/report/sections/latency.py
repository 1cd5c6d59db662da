# SPDX-License-Identifier: Apache-2.0
"""What single requests waited for: distributions, and how they lie in time."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from capibara_axion.bench.report import units
from capibara_axion.bench.report.figure import Figure, Table
from capibara_axion.bench.report.sources import Source
from capibara_axion.bench.report.style import DASHES, FAINT, MARKERS, SERIES, legend_above
from capibara_axion.bench.results import Request, ServerEvent

_STARTS = {
    "warm": "warm",
    "first": "first of a model",
    "cold": "cold, loaded for it",
}
_MEASURES: tuple[tuple[str, str, Callable[[Request], float | None]], ...] = (
    ("ttft", "Time to first token", lambda request: request.ttft_s),
    ("gap", "Time between tokens", lambda request: request.gap_s),
    ("total", "Time of a whole answer", lambda request: request.total_s),
)
_EVICTED = "unloading"
_MOST_ROWS = 200


def distributions(source: Source) -> Iterator[Figure]:
    """How much each measure varied, cold and warm apart."""
    if source.kind != "latency":
        return
    answered = [request for request in source.data.requests if request.outcome == "ok"]
    for slug, name, measure in _MEASURES:
        groups: dict[str, list[float]] = defaultdict(list)
        models: dict[tuple[str, str], list[float]] = defaultdict(list)
        for request in answered:
            value = measure(request)
            if value is not None and request.stage >= 0:
                groups[request.start].append(value)
                models[request.model, request.start].append(value)
        if groups:
            yield Figure(
                slug=source.slug(slug),
                title=name,
                text="The share of requests that took at most so long. A steep line says that "
                "they are alike; a long foot to the right, that some waited.",
                table=_percentiles(models),
                sources=[source],
                draw=_ecdf(groups, name.lower()),
            )


def over_time(source: Source) -> Iterator[Figure]:
    """When requests waited, when models were loaded and unloaded, and what they took."""
    if source.kind not in ("latency", "load"):
        return
    result = source.data
    timed = [request for request in result.requests if request.ttft_s is not None]
    if timed:
        yield Figure(
            slug=source.slug("ttft over time"),
            title="Time to first token, as the run went on",
            text="Each mark is a request at the moment that it was to be sent; shaded: a model "
            "was being loaded; lines: a model was unloaded."
            + ("" if result.events else " The server told of no loads and no evictions."),
            table=_requests(timed, result.events),
            sources=[source],
            draw=_timeline(timed, result.requests, result.events),
        )
    if result.memory:
        series: dict[str, list[tuple[float, int]]] = defaultdict(list)
        for sample in result.memory:
            series[sample.model or "all models"].append((sample.time_s, sample.bytes))
        rows = [
            (name, str(len(found)), *map(units.mebibytes, _spread([size for _, size in found])))
            for name, found in series.items()
        ]
        yield Figure(
            slug=source.slug("memory over time"),
            title="Memory of the models, as the run went on",
            text="Proportional set size of the workers, as the server measures it; shaded and "
            "lines as above.",
            table=Table(("model", "samples", "least", "median", "most"), rows),
            sources=[source],
            draw=_memory(series, result.events),
        )


def _spread(sizes: Sequence[int]) -> tuple[float, float, float]:
    return min(sizes), float(np.median(sizes)), max(sizes)


def _percentiles(models: dict[tuple[str, str], list[float]]) -> Table:
    columns = ("model", "start", "requests", "mean", "median", "p95", "p99", "most")
    rows = []
    for (model, start), values in sorted(models.items()):
        found = (np.mean(values), *np.percentile(values, (50, 95, 99)), max(values))
        rows.append((model, start, str(len(values)), *(units.seconds(float(x)) for x in found)))
    return Table(columns, rows, names=2)


def _ecdf(groups: dict[str, list[float]], name: str) -> Callable[[Any, bool], None]:
    def draw(axes: Any, narrow: bool) -> None:
        for index, start in enumerate(_STARTS):
            if values := groups.get(start):
                axes.ecdf(
                    values, color=SERIES[index], linestyle=DASHES[index],
                    label=f"{_STARTS[start]} ({len(values)})",
                )  # fmt: skip
        _seconds_axis(axes, "x", [value for values in groups.values() for value in values], narrow)
        axes.set(xlabel=name, ylabel="share of requests")
        axes.yaxis.set_major_formatter(lambda value, _: units.percent(value))
        legend_above(axes)

    return draw


def _seconds_axis(axes: Any, which: str, values: Sequence[float], narrow: bool) -> None:
    low, high = min(values), max(values)
    axis = axes.xaxis if which == "x" else axes.yaxis
    if low > 0 and high > 3 * low:
        (axes.set_xscale if which == "x" else axes.set_yscale)("log")
        low, high = low / 1.15, high * 1.15
        units.label(axis, units.seconds, units.log_ticks(low, high, 5 if narrow else 9))
        (axes.set_xlim if which == "x" else axes.set_ylim)(low, high)
    else:
        units.label(axis, units.seconds)
        axes.locator_params(axis=which, nbins=4 if narrow else 7)


def _requests(timed: Sequence[Request], events: Sequence[ServerEvent]) -> Table:
    rows = [(r.scheduled_s, r.model, f"request, {r.start}", units.seconds(r.ttft_s)) for r in timed]
    rows += [
        (e.time_s, e.model or "", f"{e.kind}: {e.cause}" if e.cause else e.kind, "") for e in events
    ]
    rows.sort(key=lambda row: row[0])
    shown = [(f"{time:.2f} s", *rest) for time, *rest in rows[:_MOST_ROWS]]
    if len(rows) > _MOST_ROWS:
        shown.append((f"and {len(rows) - _MOST_ROWS} more in the file", "", "", ""))
    return Table(("at", "model", "what", "time to first token"), shown, names=3)


def _timeline(
    timed: Sequence[Request], requests: Sequence[Request], events: Sequence[ServerEvent]
) -> Callable[[Any, bool], None]:
    def draw(axes: Any, narrow: bool) -> None:
        for index, start in enumerate(_STARTS):
            found = [r for r in timed if r.start == start]
            if found:
                axes.plot(
                    [r.scheduled_s for r in found], [r.ttft_s for r in found], MARKERS[index],
                    color=SERIES[index], label=_STARTS[start], linestyle="none",
                )  # fmt: skip
        values = [r.ttft_s for r in timed if r.ttft_s is not None]
        _seconds_axis(axes, "y", values, narrow)
        failed = [r.scheduled_s for r in requests if r.outcome in ("error", "not_sent")]
        if failed:
            bottom = axes.get_ylim()[0]
            axes.plot(
                failed, [bottom] * len(failed), "X", color=SERIES[6], label="failed",
                clip_on=False, linestyle="none",
            )  # fmt: skip
        _mark(axes, events)
        axes.set(xlabel="seconds since the run began", ylabel="time to first token")
        legend_above(axes)

    return draw


def _memory(
    series: dict[str, list[tuple[float, int]]], events: Sequence[ServerEvent]
) -> Callable[[Any, bool], None]:
    def draw(axes: Any, narrow: bool) -> None:
        for index, (name, samples) in enumerate(series.items()):
            axes.step(
                [time for time, _ in samples], [size for _, size in samples], where="post",
                color=SERIES[index % len(SERIES)], linestyle=DASHES[index % len(DASHES)],
                label=name,
            )  # fmt: skip
        most = max(size for samples in series.values() for _, size in samples)
        step = 2 ** math.ceil(math.log2(max(most, 1) / 6))
        axes.set_ylim(0, 1.05 * most)
        units.label(axes.yaxis, units.mebibytes, range(0, most + 1, step))
        _mark(axes, events)
        axes.set(xlabel="seconds since the run began", ylabel="memory")
        legend_above(axes)

    return draw


def _mark(axes: Any, events: Sequence[ServerEvent]) -> None:
    began: dict[str | None, float] = {}
    labels = {"loading": "a model is loaded", _EVICTED: "a model is unloaded"}
    for event in events:
        if event.kind == "loading":
            began[event.model] = event.time_s
        elif event.kind in ("ready", "loaded", "failed") and event.model in began:
            since = began.pop(event.model)
            axes.axvspan(
                since, event.time_s, color=FAINT, alpha=0.6, linewidth=0,
                label=labels.pop("loading", None),
            )  # fmt: skip
        elif event.kind == _EVICTED:
            axes.axvline(
                event.time_s, color=SERIES[3], linestyle=":", linewidth=1.2,
                label=labels.pop(_EVICTED, None),
            )  # fmt: skip

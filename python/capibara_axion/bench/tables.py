# SPDX-License-Identifier: Apache-2.0
"""Results on a terminal."""

from __future__ import annotations

from collections.abc import Iterable

from rich import box
from rich.console import Console
from rich.table import Table

from capibara_axion.bench.results import (
    Comparison,
    Group,
    LatencyResult,
    LoadResult,
    Server,
    StreamResult,
    Summary,
)


def show_latency(result: LatencyResult) -> None:
    """Print what `bench latency` found."""
    work = result.work
    table = _table(
        f"Latency of {_server(result.server)}: {work['tokens']} tokens an answer, "
        f"{work['concurrency']} in flight"
    )
    for heading in ("model", "start", "prompts"):
        table.add_column(heading, no_wrap=True)
    _add_figures(table, "n", "failed")
    _add_figures(table, "TTFT ms", "+-95%", "mean", "stdev", "p95", "p99", "gap ms", "p95", "p99")
    _add_figures(table, "total s", "p95", "p99", "tokens/s")
    for group in result.groups:
        name, found = group.name, group.measures
        ttft, gap, total = (found.get(key) for key in ("ttft", "gap", "total"))
        table.add_row(
            name["model"],
            name["start"],
            f"{name['kind']} {name['language']}" if "kind" in name else "all",
            str(group.requests),
            _failures(group),
            _ms(ttft, "median"),
            _interval(ttft),
            *(_ms(ttft, field) for field in ("mean", "stdev", "p95", "p99")),
            *(_ms(gap, field) for field in ("median", "p95", "p99")),
            *(_figure(total, field, 1, 3) for field in ("median", "p95", "p99")),
            _figure(found.get("tokens_per_s"), "median", 1, 1),
            end_section="kind" not in name,
        )
    _print(table, *_remarks(result.groups, work["tokens"]))


def show_load(result: LoadResult) -> None:
    """Print what `bench load` found."""
    work = result.work
    table = _table(f"Load on {_server(result.server)}: {work['tokens']} tokens an answer")
    _add_figures(table, "load", "n", "failed", "requests/s", "tokens/s")
    _add_figures(table, "TTFT ms", "p95", "p99", "gap ms", "p95", "total s", "p95", "p99")
    _add_figures(table, "good", "goodput/s", "sent late ms")
    for stage in result.stages:
        found = stage.group.measures
        ttft, gap, total = (found.get(key) for key in ("ttft", "gap", "total"))
        good = stage.good_share
        table.add_row(
            stage.group.name["load"],
            str(stage.group.requests),
            _failures(stage.group),
            f"{stage.requests_per_s:.2f}",
            f"{stage.tokens_per_s:.1f}",
            *(_ms(ttft, field) for field in ("median", "p95", "p99")),
            *(_ms(gap, field) for field in ("median", "p95")),
            *(_figure(total, field, 1, 3) for field in ("median", "p95", "p99")),
            "-" if good is None else f"{good:.1%}",
            "-" if stage.goodput is None else f"{stage.goodput:.2f}",
            "-" if stage.late_s is None else f"{stage.late_s * 1e3:.1f}",
        )
    _print(table, *_remarks((stage.group for stage in result.stages), work["tokens"]))


def show_stream(result: StreamResult) -> None:
    """Print what `bench stream` found."""
    table = _table(f"Streaming of {_server(result.server)}: {result.work['tokens']} tokens")
    table.add_column("model", no_wrap=True)
    _add_figures(table, "streams", "first byte ms", "first token ms", "total ms")
    _add_figures(table, "tokens/chunk", "chunks/arrival", "largest burst", "held back", "pings")
    remarks = []
    for found in result.verdicts:
        table.add_row(
            found.model,
            {True: "yes", False: "NO", None: "cannot tell"}[found.streams],
            *(
                "-" if seconds is None else f"{seconds * 1e3:.1f}"
                for seconds in (found.first_byte_s, found.ttft_s, found.total_s)
            ),
            *(
                "-" if figure is None else f"{figure:.2f}"
                for figure in (found.tokens_per_chunk, found.chunks_per_arrival)
            ),
            "-" if found.largest_burst is None else f"{found.largest_burst:.0f}",
            "-" if found.held_back is None else f"{found.held_back:.0%}",
            str(found.pings),
        )
        remarks += [f"{found.model}: {reason}" for reason in found.reasons]
    _print(table, *remarks)


def show_comparison(comparison: Comparison) -> None:
    """Print what `bench compare` found."""
    table = _table(f"{comparison.after} against {comparison.before}")
    for heading in ("what", "measure"):
        table.add_column(heading, no_wrap=True)
    _add_figures(table, "before", "after", "n")
    table.add_column("verdict", no_wrap=True)
    for change in comparison.changes:
        table.add_row(
            change.what,
            change.measure,
            _duration(change.before_s),
            _duration(change.after_s),
            f"{change.samples[0]}, {change.samples[1]}",
            change.verdict,
        )
    level = f"all intervals hold together with {comparison.confidence:.0%} confidence"
    _print(table, level, *comparison.remarks)


def _table(title: str) -> Table:
    return Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)


def _add_figures(table: Table, *headings: str) -> None:
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)


def _print(table: Table, *remarks: str) -> None:
    console = Console(highlight=False, markup=False)
    if not console.is_terminal:  # nobody has said how wide it is
        console = Console(highlight=False, markup=False, width=200)
    console.print(table)
    for remark in remarks:
        console.print(remark, soft_wrap=True)


def _server(server: Server) -> str:
    return server.url + (f" (version {server.version})" if server.version else "")


def _failures(group: Group) -> str:
    return ", ".join(f"{count} x {what}" for what, count in group.failed.items()) or "0"


def _remarks(groups: Iterable[Group], tokens: int) -> list[str]:
    return [
        f"{' '.join(group.name.values())}: {group.fewer_tokens} answers have fewer tokens than "
        f"the {tokens} that were asked for"
        for group in groups
        if group.fewer_tokens
    ]


def _figure(summary: Summary | None, field: str, scale: float, digits: int) -> str:
    return "-" if summary is None else f"{getattr(summary, field) * scale:.{digits}f}"


def _ms(summary: Summary | None, field: str) -> str:
    return _figure(summary, field, 1e3, 1)


def _interval(summary: Summary | None) -> str:
    """Half the confidence interval of the median, as a part of the median."""
    if summary is None or summary.low is None or summary.high is None:
        return "-"
    return f"{(summary.high - summary.low) / 2 / summary.median:.1%}"


def _duration(seconds: float) -> str:
    for scale, unit in ((1.0, "s"), (1e3, "ms")):
        if seconds * scale >= 1:
            return f"{seconds * scale:.4g} {unit}"
    return f"{seconds * 1e6:.4g} us"

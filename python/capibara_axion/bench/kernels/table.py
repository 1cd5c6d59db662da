# SPDX-License-Identifier: Apache-2.0
"""The rows of `bench kernels` for people."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Console
from rich.table import Table

from capibara_axion.bench.kernels.rows import (
    PEERS,
    bandwidth,
    by_case,
    fastest,
    median,
    peak_type,
    ratio,
)
from capibara_axion.bench.results import KernelResult, KernelRow, Roof

_NOTES = (
    "Medians over the rounds. peer / ours: the median of the ratios within the rounds, and their "
    "quartiles; above 1, ours is faster. of bandwidth: the bytes that the operator has to read and "
    "write, each once, by the faster of read and copy; above 100 % they come from a cache. "
    "of peak: its operations."
)


def show(result: KernelResult, console: Console) -> None:
    """Prints a table with one line for each case, then what the machine can do."""
    table = Table(title="Time of a call", title_justify="left")
    for heading in ("op", "dtype"):
        table.add_column(heading, no_wrap=True)
    for heading in ("shape", "threads", "ours", "fastest peer"):
        table.add_column(heading, justify="right")
    table.add_column("which")
    for heading in ("peer / ours", "of bandwidth", "of peak"):
        table.add_column(heading, justify="right")
    roofs = {roof.threads: roof for roof in result.roofs}
    previous = None
    for case in by_case(result.rows):
        if previous not in (None, (case[0].op, case[0].dtype)):
            table.add_section()
        previous = (case[0].op, case[0].dtype)
        table.add_row(*_cells(case, roofs.get(case[0].threads)))
    console.print(table)
    for roof in result.roofs:
        console.print(_roof_line(roof))
    console.print(_NOTES, style="dim")


def _cells(case: list[KernelRow], roof: Roof | None) -> Iterator[str]:
    first, own, peer = case[0], fastest(case, "ours"), fastest(case, *PEERS)
    yield from (first.op, first.dtype, first.shape, str(first.threads))
    yield _time(own)
    yield _time(peer)
    yield peer.contender if peer else ""
    if own is None or peer is None:
        yield ""
    else:
        middle, low, high = ratio(own, peer)
        yield f"{middle:.2f} ({low:.2f}-{high:.2f})"
    if own is None or roof is None:
        yield from ("", "")
        return
    yield _percent((own.bytes or 0) / median(own) / bandwidth(roof))
    peak = roof.operations_per_s.get(peak_type(own.op, own.dtype))
    yield _percent((own.operations or 0) / median(own) / peak) if peak else ""


def _percent(share: float) -> str:
    if share == 0:
        return ""
    return f"{share:.1%}" if share < 0.1 else f"{share:.0%}"


def _time(row: KernelRow | None) -> str:
    if row is None:
        return ""
    us = median(row) * 1e6
    if us >= 10_000:
        return f"{us / 1000:.1f} ms"
    return f"{us:.1f} us" if us < 100 else f"{us:.0f} us"


def _roof_line(roof: Roof) -> str:
    peaks = ", ".join(f"{name} {rate / 1e9:.0f}" for name, rate in roof.operations_per_s.items())
    return (
        f"{roof.threads} thread{'s' if roof.threads > 1 else ''} here: reads "
        f"{roof.read_bytes_per_s / 1e9:.1f} GB/s, copies {roof.copy_bytes_per_s / 1e9:.1f} GB/s; "
        f"peak, 10^9 operations/s: {peaks}"
    )

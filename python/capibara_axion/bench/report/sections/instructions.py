# SPDX-License-Identifier: Apache-2.0
"""Instructions on aarch64, counted under an emulator, beside the best peer."""

from __future__ import annotations

from collections.abc import Iterator

from capibara_axion.bench.report import units
from capibara_axion.bench.report.figure import Figure
from capibara_axion.bench.report.sections.operators import Row, strip
from capibara_axion.bench.report.sources import Source


def figures(source: Source) -> Iterator[Figure]:
    """How many more instructions the best peer needs."""
    if source.kind != "instructions":
        return
    rows = []
    for row in source.data["rows"]:
        if not row["best_peer"]:
            continue
        counts = {
            name: one["counts"]["all"]
            for one in row["contenders"]
            for name in (one["name"], f"{one['family']} {one['name']}")
        }
        own, peer = (units.amount(counts[row[name]]) for name in ("ours", "best_peer"))
        rows.append(
            Row(row["op"], row["dtype"], row["shape"], own, peer, row["best_peer"], row["ratio"])
        )
    if rows:
        yield strip(
            source,
            rows,
            title="Instructions of the best peer divided by ours",
            text="A call on one thread, Python's part included, under an emulator: exact counts, "
            "which say nothing of time. To the right of 1, ours needs fewer.",
            what=("instructions, ours", "peer"),
        )

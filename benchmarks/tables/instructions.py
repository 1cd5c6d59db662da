# SPDX-License-Identifier: Apache-2.0
"""Tables of instructions counted on aarch64, and of cycles in LLVM's models of its cores."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from markdown import NONE, count, load, source, table, times

_NOT_PEERS = ("memcpy", "ours")


def _all(row: dict[str, Any], family: str, name: str) -> float | None:
    for contender in row["contenders"]:
        if (contender["family"], contender["name"]) == (family, name):
            return float(contender["counts"]["all"])
    return None


def _ours(row: dict[str, Any]) -> float:
    found = _all(row, "ours", row["ours"])
    assert found is not None
    return found


def _best(row: dict[str, Any]) -> tuple[float, str] | None:
    """The fewest instructions of the row's peers, and whose they are."""
    peers = [
        (float(contender["counts"]["all"]), str(contender["family"]))
        for contender in row["contenders"]
        if contender["family"] not in _NOT_PEERS
    ]
    return min(peers, default=None)


def elementwise() -> str:
    found = load("aarch64")
    by_op: dict[tuple[str, str], dict[str, dict[str, Any]]] = {}
    for row in found["rows"]:
        by_op.setdefault((row["op"], row["shape"]), {})[row["dtype"]] = row
    rows = []
    for (op, shape), by_dtype in by_op.items():
        cells = [f"`{op}`", shape]
        for dtype in ("f32", "bf16"):
            row = by_dtype[dtype]
            best = _best(row)
            cells += (
                [count(_ours(row)), NONE, NONE]
                if best is None
                else [count(_ours(row)), f"{count(best[0])} ({best[1]})", times(row["ratio"])]
            )
        rows.append(cells)
    headings = ["instructions a call", "shape"]
    for dtype in ("f32", "bf16"):
        headings += [f"{dtype}: ours", "best peer", "fewer by"]
    return table(headings, rows) + "\n\n" + source("aarch64", found)


def linear() -> str:
    found = load("aarch64_linear")
    by_shape: dict[str, dict[str, dict[str, Any]]] = {}
    for row in found["rows"]:
        kind = row["op"].partition("_")[2] or row["dtype"]
        by_shape.setdefault(row["shape"], {})[kind] = row
    kinds = [k for k in ("f32", "bf16", "int8", "int4") if any(k in v for v in by_shape.values())]
    rows = []
    for shape, by_kind in by_shape.items():
        cells = [shape]
        for kind in kinds:
            row = by_kind.get(kind)
            best = None if row is None else _best(row)
            cells.append(NONE if row is None else count(_ours(row)))
            if kind in ("f32", "bf16"):
                cells.append(NONE if best is None else f"{count(best[0])} ({best[1]})")
        rows.append(cells)
    headings = ["instructions a call"]
    for kind in kinds:
        headings += [f"{kind}: ours", *(["best peer"] if kind in ("f32", "bf16") else [])]
    return table(headings, rows) + "\n\n" + source("aarch64_linear", found)


def attention() -> str:
    found = load("aarch64_attention")
    rows = []
    for row in found["rows"]:
        best = _best(row)
        rows.append(
            (
                f"`{row['op']}` {row['shape']}",
                count(_ours(row)),
                NONE if best is None else f"{count(best[0])} ({best[1]})",
                times(row["ratio"]),
            )
        )
    headings = ("instructions a call, bf16", "ours", "best peer", "fewer by")
    return table(headings, rows) + "\n\n" + source("aarch64_attention", found)


def inner_loops() -> str:
    found = load("mca")
    rows = [
        (
            f"`{row['loop']}`{row['variant'] and ', ' + row['variant']}",
            row["dtype"],
            ", ".join(row["isa"]),
            f"{row['cycles_per_unit']:.2f}",
            *(
                f"{row[f'percent_of_{what}']:.0f}"
                for what in ("peak", "vector_pipes", "load_pipes")
            ),
        )
        for row in found["rows"]
        if row["cpu"] == "neoverse-v2" and row["op"] == "gemm"
    ]
    headings = (
        *("inner loop", "dtype", "instruction set", "cycles a step of K"),
        *("% of its pipes", "% of vector pipes", "% of load pipes"),
    )
    origin = f"llvm-mca {found['llvm_mca']}, {found['compiler']}; `make mca`"
    return table(headings, rows) + f"\n\n{origin}; [mca.json](RESULTS/mca.json)."


TABLES: dict[str, Callable[[], str]] = {
    "aarch64_elementwise": elementwise,
    "aarch64_linear": linear,
    "aarch64_attention": attention,
    "aarch64_inner_loops": inner_loops,
}

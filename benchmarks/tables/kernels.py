# SPDX-License-Identifier: Apache-2.0
"""Tables of the operators' times."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from markdown import NONE, load, number, source, table, times

Row = dict[str, Any]


def _rows(found: dict[str, Any], **wanted: Any) -> Iterator[Row]:
    for row in found["rows"]:
        if all(row.get(key) == value for key, value in wanted.items()):
            yield row


def _ours(row: Row) -> float:
    return float(row["contenders"][row["ours"]]["us"])


def _peer(row: Row, key: str = "best_peer") -> tuple[str, float | None, float | None]:
    """Name, microseconds and ratio to ours of a peer of the row."""
    name = row.get(key)
    if name is None:
        return NONE, None, None
    peer = row["contenders"][name]
    return name, peer["us"], peer["ratio_to_ours"]


def elementwise(tokens: int) -> Callable[[], str]:
    """The table of norms, softmax, rotary embeddings and activations at so many tokens."""

    def render() -> str:
        found = load("ops")
        rows = []
        for row in _rows(found, dtype="bf16", tokens=tokens, threads=1):
            name, peer_us, ratio = _peer(row)
            _, stock_us, stock_ratio = _peer(row, "stock_eager")
            copy = row["contenders"][row["memcpy"]]["us"]
            rows.append(
                (
                    f"`{row['op']}`",
                    number(_ours(row)),
                    f"{number(peer_us)} ({name})",
                    times(ratio),
                    number(stock_us),
                    times(stock_ratio),
                    times(_ours(row) / copy),
                )
            )
        headings = (
            f"{tokens} tokens, bf16, us",
            "ours",
            "fastest peer",
            "faster by",
            "stock vLLM, eager",
            "faster by",
            "ours / memcpy of the same bytes",
        )
        return table(headings, rows) + "\n\n" + source("ops", found)

    return render


def linear() -> str:
    found = load("linear")
    shapes = dict.fromkeys(row["shape"] for row in _rows(found, op="linear", threads=1))
    rows = []
    for shape in shapes:
        cells = [shape.replace("x", " x ")]
        for dtype in ("bf16", "f32"):
            row = next(_rows(found, op="linear", dtype=dtype, shape=shape, threads=1))
            name, us, ratio = _peer(row)
            cells += [number(_ours(row)), f"{number(us)} ({name})", times(ratio)]
        int8 = next(_rows(found, op="linear_int8", shape=shape, threads=1), None)
        rows.append((*cells, NONE if int8 is None else number(_ours(int8))))
    headings = ["tokens x outputs x inputs, us"]
    for dtype in ("bf16", "f32"):
        headings += [f"{dtype}: ours", "fastest peer", "peer / ours"]
    return table((*headings, "int8: ours"), rows) + "\n\n" + source("linear", found)


def attention() -> str:
    found = load("attention")
    rows = []
    for op in ("attention", "kv_cache_append"):
        for row in _rows(found, op=op, dtype="bf16", threads=1):
            cells = [f"{'storing ' if op != 'attention' else ''}{_of_attention(row)}"]
            for one in (row, next(_rows(found, op=f"{op}_fp8", shape=row["shape"]), None)):
                if one is None:
                    cells += [NONE] * 3
                    continue
                _, us, ratio = _peer(one)
                cells += [number(_ours(one)), number(us), times(ratio)]
            rows.append(tuple(cells))
    headings = ("queries x keys, us", "bf16: ours", "stock vLLM", "faster by")
    fp8 = ("E4M3 cache: ours", "stock vLLM", "faster by")
    return table((*headings, *fp8), rows) + "\n\n" + source("attention", found)


def _of_attention(row: Row) -> str:
    return str(row["shape"]).replace("x", " x ")


def attention_memory() -> str:
    found = load("attention_memory")
    mib: dict[tuple[int, str], dict[int, float]] = {}
    for row in found["rows"]:
        key = row["tokens"], row["contender"]
        mib.setdefault(key, {})[row["threads"]] = row["bytes"] / 2**20
    contenders = list(dict.fromkeys(row["contender"] for row in found["rows"]))
    rows = []
    for tokens in sorted({tokens for tokens, _ in mib}):
        cells = [f"{tokens:,}"]
        for contender in contenders:
            by_threads = mib.get((tokens, contender), {})
            cells.append(" / ".join(number(v) for _, v in sorted(by_threads.items())) or NONE)
        rows.append(cells)
    headings = ("tokens; MiB on one / two threads", *contenders)
    return table(headings, rows) + "\n\n" + source("attention_memory", found)


TABLES: dict[str, Callable[[], str]] = {
    "elementwise_128": elementwise(128),
    "elementwise_1": elementwise(1),
    "linear": linear,
    "attention": attention,
    "attention_memory": attention_memory,
}

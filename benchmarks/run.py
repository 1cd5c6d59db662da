# SPDX-License-Identifier: Apache-2.0
"""Times every operator against its peers and prints one table; with --output into a JSON file too.

    python benchmarks/run.py [--quick] [--op rms_norm ...] [--tokens 128 ...] [--show FILE]

See benchmarks/README.md for what the columns mean and how the times are taken.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from rich.progress import track
from rich.table import Table

import machine
from capibara_axion.bench.kernels import cases, contenders, timing
from capibara_axion.bench.kernels.cases import Case
from capibara_axion.bench.kernels.contenders import Prepared
from capibara_axion.bench.kernels.rows import PEERS

_QUICK_TOKENS = (1, 128)
_DISTURBED = 0.1  # the share of other processes from which a row is marked


def main() -> int:
    arguments = _parser().parse_args()
    if arguments.show:
        _print(json.loads(arguments.show.read_text()))
        return 0
    malloc = machine.tune_malloc()
    found = machine.describe(malloc)
    contenders.enter(contenders.installed())
    compiled = not arguments.quick
    selected = list(_selected(arguments))
    if not selected:
        print("nothing to measure: --threads is more than this machine's cores", file=sys.stderr)
        return 2
    budget_s = arguments.seconds or (0.15 if arguments.quick else 1.0)
    rows = [
        row
        for case, inputs in track(_with_inputs(selected), "timing", total=len(selected))
        for row in [_measure(case, inputs, budget_s, compiled, arguments.refcheck)]
    ]
    result = found | {"unit": "microseconds a call, median", "rows": rows}
    _print(result)
    if arguments.output:
        machine.write(result, arguments.output)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="two sizes, less time, no compiling")
    parser.add_argument("--op", nargs="+", choices=cases.OPS, default=cases.OPS)
    parser.add_argument("--dtype", nargs="+", choices=list(cases.DTYPES), default=cases.DTYPES)
    parser.add_argument("--tokens", nargs="+", type=_positive, help=f"default: {cases.TOKENS}")
    parser.add_argument("--threads", nargs="+", type=_positive, default=(1, 2))
    parser.add_argument("--seconds", type=float, help="time for each row (default: 1, quick 0.15)")
    parser.add_argument(
        "--refcheck",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="compare every contender's result with float64 before it is timed",
    )
    parser.add_argument("--output", type=Path, help="JSON file for the figures")
    parser.add_argument("--show", type=Path, help="print the table of such a file, measure nothing")
    return parser


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"expected a positive whole number, got {text!r}")
    return int(text)


def _selected(arguments: argparse.Namespace) -> Iterator[Case]:
    tokens = arguments.tokens or (_QUICK_TOKENS if arguments.quick else None)
    cores = len(os.sched_getaffinity(0))
    threads = [count for count in arguments.threads if count <= cores]
    for op, dtype in itertools.product(arguments.op, arguments.dtype):
        if dtype not in cases.dtypes(op):
            continue
        for shape, count in itertools.product(cases.shapes(op, tokens), threads):
            yield Case(op, dtype, threads=count, **shape)


def _with_inputs(selected: Iterable[Case]) -> Iterator[tuple[Case, cases.Inputs]]:
    for _, same in itertools.groupby(selected, lambda case: (case.op, case.dtype, case.shape)):
        inputs = None
        for case in same:
            inputs = inputs or case.inputs()
            yield case, inputs


@torch.inference_mode()
def _measure(
    case: Case, inputs: cases.Inputs, budget_s: float, compiled: bool, refcheck: bool
) -> dict[str, Any]:
    torch.set_num_threads(case.threads)  # our operators follow it
    # Ours first: the others are compared with them.
    taking_part = contenders.contenders(case, compiled=compiled)
    prepared = {str(one): Prepared(one, case, inputs) for one in taking_part}
    errors = {name: one.check() for name, one in prepared.items()} if refcheck else {}
    others = machine.Others()
    timings = timing.interleave(
        {name: one.call for name, one in prepared.items()},
        budget_s,
        reset=lambda name: prepared[name].reset(),
    )

    def fastest(families: Iterable[str]) -> str | None:
        names = [name for name, one in prepared.items() if one.contender.family in families]
        return min(names, key=lambda name: timings[name].median, default=None)

    def stock(mode: str) -> str | None:
        return next((n for n, one in prepared.items() if mode in one.contender.stock), None)

    own = fastest(("ours",))
    assert own is not None
    return {
        "op": case.op,
        "dtype": case.dtype,
        "tokens": case.tokens,
        "shape": case.shape,
        "threads": case.threads,
        "bytes": case.bytes_moved,
        "others_share": round(others.share(), 3),
        "ours": own,
        "best_peer": fastest(PEERS),
        "stock_eager": stock("eager"),
        "stock_compiled": stock("compiled"),
        "memcpy": fastest(("memcpy",)),
        "contenders": {
            name: _summary(one, timings[own]) | {"error": errors.get(name)}
            for name, one in timings.items()
        },
    }


def _summary(one: timing.Timing, own: timing.Timing) -> dict[str, Any]:
    ratios = one.ratios(own)
    return {
        "us": _us(one.median),
        "quartiles": [_us(value) for value in timing.quartiles(one.seconds)],
        "ratio_to_ours": round(statistics.median(ratios), 3),
        "ratio_quartiles": [round(value, 3) for value in timing.quartiles(ratios)],
        "rounds": len(one.seconds),
        "calls_a_sample": one.calls,
    }


def _us(seconds: float) -> float:
    return round(seconds * 1e6, 3)


def _print(result: dict[str, Any]) -> None:
    table = Table(title=machine.title("microseconds a call (median)", result), title_justify="left")
    for heading in ("op", "dtype", "shape", "threads"):
        table.add_column(heading, justify="left" if heading in ("op", "dtype") else "right")
    for heading in (
        "ours",
        "quartiles",
        "best peer",
        "which",
        "ratio",
        "vLLM eager",
        "ratio",
        "vLLM compiled",
        "ratio",
        "memcpy",
        "ours/memcpy",
    ):
        table.add_column(heading, justify="left" if heading == "which" else "right")
    for (_, _), group in itertools.groupby(result["rows"], lambda r: (r["op"], r["dtype"])):
        for row in group:
            table.add_row(*_cells(row))
        table.add_section()
    console = machine.console()
    console.print(table)
    console.print("ratio: the peer's time divided by ours; above 1, ours is faster.")
    if disturbed := sum(map(_is_disturbed, result["rows"])):
        console.print(
            f"*: other processes took more than {_DISTURBED:.0%} of the processors ({disturbed} of"
            f" {len(result['rows'])} rows): measure these again on a quiet machine."
        )


def _is_disturbed(row: dict[str, Any]) -> bool:
    return float(row["others_share"]) > _DISTURBED


def _cells(row: dict[str, Any]) -> Iterator[str]:
    figures = row["contenders"]
    shape = row.get("shape", str(row["tokens"]))
    yield from (row["op"], row["dtype"], shape, str(row["threads"]))
    own = figures[row["ours"]]
    yield ("*" if _is_disturbed(row) else "") + _short(own["us"])
    yield "-".join(map(_short, own["quartiles"]))
    yield from _compared(row["best_peer"], figures, named=True)
    yield from _compared(row["stock_eager"], figures)
    yield from _compared(row["stock_compiled"], figures)
    yield _short(figures[row["memcpy"]]["us"])
    yield f"{1 / figures[row['memcpy']]['ratio_to_ours']:.2f}"


def _compared(name: str | None, figures: dict[str, Any], named: bool = False) -> Iterator[str]:
    yield _short(figures[name]["us"]) if name else ""
    if named:
        yield name or ""
    yield f"{figures[name]['ratio_to_ours']:.2f}" if name else ""


def _short(us: float) -> str:
    return f"{us:.2f}" if us < 10 else f"{us:.1f}" if us < 100 else f"{us:.0f}"


if __name__ == "__main__":
    sys.exit(main())

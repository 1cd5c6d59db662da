# SPDX-License-Identifier: Apache-2.0
"""What llvm-mca says of the kernels' inner loops, as they are compiled for aarch64.

    make mca
    python benchmarks/aarch64/mca.py [--op softmax] [--cpu neoverse-n1 ...] [--show-assembly]

Compiles each kernel as compile_commands.json says, but to assembly, finds the loops that
csrc/kernels/common/loop_marker.h marks, and simulates them. A loop that is expected and not found
is an error. Binding pipes: the busiest unit and the others of its kind that are within 5 % of it,
so that work which only some units take is seen as their limit; llvm_mca.py says more.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import llvm_mca
from assembly import DTYPES, TYPES
from compiled import MarkedLoop, Unexpected, find_loops
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[2]
CPUS = ("neoverse-v2", "neoverse-v1", "neoverse-n2", "neoverse-n1")
# What each core lacks, so that it never runs these kernels.
_LACKING = {"neoverse-n1": ("neon_bf16",)}
_SIZE = {"f32": 4, "f16": 2, "bf16": 2}

_PLAIN = {dtype: {0: ""} for dtype in DTYPES}
_SCALED = {dtype: {0: "", 1: "scaled"} for dtype in DTYPES}
_WEIGHT = {dtype: {_SIZE[dtype]: "", 4: "f32 weight" if dtype != "f32" else ""} for dtype in DTYPES}
_ROWS = {rows: f"{rows} row{'s' if rows > 1 else ''}" for rows in range(8, 0, -1)}
_PAIRS = {rows: name for rows, name in _ROWS.items() if rows == 1 or rows % 2 == 0}
_FEW = {rows: name for rows, name in _PAIRS.items() if rows <= 4}
# Of 4-bit weights: panels and rows; groups and rows.
_INT4_KEPT = {
    41: "1 row, 4 panels",
    22: "2 rows, 2 panels",
    **{10 + rows: name for rows, name in _ROWS.items()},
}
_INT4_DECODED = {
    10 * group + rows: f"{name}, group of {group}"
    for group in (128, 64, 32)
    for rows, name in _PAIRS.items()
    if rows > 1
}
_FP8 = {dtype: {0: "", 1: "e5m2"} for dtype in DTYPES}
# Of bfloat16 with BFMMLA, two rows at once for as long as there are two.
_EXPONENTIALS = {
    "f32": {0: "", 2: "value scales"},
    "f16": {0: "", 2: "value scales"},
    "bf16": {1: "", 0: "one row", 3: "value scales", 2: "one row, value scales"},
}
_CACHE = {dtype: {_SIZE[dtype]: "", 4: "f32 cache" if dtype != "f32" else ""} for dtype in DTYPES}

# Every loop that has to be there, for every dtype and instruction set, with its variants by number
# (the macro's last argument). The first variant is the one that is shown without --variants.
LOOPS: dict[tuple[str, str], dict[str, dict[int, str]]] = {
    ("rms_norm", "sum_of_squares"): _WEIGHT,
    ("rms_norm", "scale"): _WEIGHT,
    ("fused_add_rms_norm", "add"): _WEIGHT,
    ("fused_add_rms_norm", "scale"): _WEIGHT,
    ("layer_norm", "sum"): _WEIGHT,
    ("layer_norm", "sum_of_squares"): _WEIGHT,
    ("layer_norm", "scale"): _WEIGHT,
    ("softmax", "max"): _SCALED,
    ("softmax", "exp"): _SCALED,
    ("softmax", "normalise"): _SCALED,
    ("rope", "neox"): _CACHE,
    ("rope", "interleaved"): _CACHE,
    ("silu_and_mul", "product"): _PLAIN,
    ("gelu_tanh_and_mul", "product"): _PLAIN,
    ("gelu_and_mul", "product"): _PLAIN,
    ("attention_softmax", "attention_max"): {"f32": {0: ""}},
    ("attention_softmax", "attention_exp"): _EXPONENTIALS,
    ("fp8_decode", "decode"): _FP8,
    ("fp8_encode", "encode"): _FP8,
    ("gemm", "by_lane"): {"f32": _ROWS, "f16": _ROWS, "int8": _ROWS},
    ("gemm", "mmla"): {"bf16": _PAIRS, "int8": _PAIRS},
    ("gemm", "mmla_wide"): {"bf16": _FEW, "int8": _FEW},
    ("gemm", "int4_by_lane"): {"int8": _INT4_KEPT},
    ("gemm", "int4_mmla"): {"int8": _INT4_DECODED},
    ("gemm", "int4_decode"): {"int8": {0: ""}},
}
# The instruction sets of loops that stand in a source of their own for each.
TILES: dict[tuple[str, str], dict[str, tuple[str, ...]]] = {
    ("gemm", "by_lane"): {
        "f32": ("neon",),
        "f16": ("neon_bf16",),
        "int8": ("neon", "neon_dotprod"),
    },
    ("gemm", "mmla"): {"bf16": ("neon_bf16",), "int8": ("neon_bf16",)},
    ("gemm", "mmla_wide"): {"bf16": ("neon_bf16",), "int8": ("neon_bf16",)},
    ("gemm", "int4_by_lane"): {"int8": ("neon_dotprod", "neon_bf16")},
    ("gemm", "int4_mmla"): {"int8": ("neon_bf16",)},
    ("gemm", "int4_decode"): {"int8": ("neon_bf16",)},
}
# Operators whose loops run along the depth of a matrix product; the others' unit is a vector.
BY_DEPTH = frozenset({"gemm"})

_NOTE = (
    "llvm-mca models no caches and no memory, no load that waits for an earlier store, and takes "
    "every branch as predicted; of a loop with branches inside, the way that falls through is "
    "taken, and a remark says so. Stores that move their pointer are given to it as a store and an "
    "addition. The models are LLVM's, not the vendor's."
)


def main() -> int:
    arguments = _parser().parse_args()
    if (version := llvm_mca.version()) is None:
        print(
            f"{llvm_mca.TOOL} is not installed. Debian and Ubuntu: apt-get install llvm-19",
            file=sys.stderr,
        )
        return 2
    if not (arguments.build / "compile_commands.json").exists():
        print(
            f"no compile_commands.json in {arguments.build}: make wheel-aarch64 writes that of "
            "build/wheel-aarch64",
            file=sys.stderr,
        )
        return 2
    wanted = {key: dtypes for key, dtypes in LOOPS.items() if _is_wanted(key, arguments)}
    try:
        found = find_loops(arguments.build, LOOPS, {op for op, _ in wanted}, TILES)
    except Unexpected as error:
        print(error, file=sys.stderr)
        return 1
    chosen = [
        loop
        for loop in found.loops
        if (loop.op, loop.name) in wanted
        and (arguments.dtype is None or loop.dtype in arguments.dtype)
        and (arguments.variants or loop.variant == next(iter(_variants(loop))))
    ]
    if not chosen:
        print("no loop matches", file=sys.stderr)
        return 2
    if arguments.show_assembly:
        return _show(chosen, arguments.cpu[0])
    try:
        rows = [row for cpu in arguments.cpu for row in _measure(chosen, cpu)]
    except RuntimeError as error:
        print(error, file=sys.stderr)
        return 1
    result = {
        "unit": "cycles, by llvm-mca",
        "note": _NOTE,
        "llvm_mca": version,
        "compiler": found.compiler,
        "flags": found.flags,
        "commit": _commit(),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "command": " ".join(["python", os.path.relpath(sys.argv[0], ROOT), *sys.argv[1:]]),
        "rows": rows,
    }
    _print(result, arguments.cpu)
    whole = wanted == LOOPS and arguments.dtype is None and tuple(arguments.cpu) == CPUS
    output = arguments.output or (ROOT / "benchmarks" / "results" / "mca.json" if whole else None)
    if output:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(json.dumps(result, indent=1) + "\n")
        print(f"written to {os.path.relpath(output)}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0] if __doc__ else None)
    parser.add_argument(
        "--build",
        type=Path,
        default=ROOT / "build" / "wheel-aarch64",
        help="folder with a compile_commands.json for aarch64 (default: build/wheel-aarch64)",
    )
    parser.add_argument("--op", nargs="+", choices=sorted({op for op, _ in LOOPS}))
    parser.add_argument("--loop", default="", help="only loops whose op.name contains this")
    parser.add_argument("--dtype", nargs="+", choices=TYPES)
    parser.add_argument("--cpu", nargs="+", default=CPUS, help=f"default: {' '.join(CPUS)}")
    parser.add_argument(
        "--variants", action="store_true", help="also scaled, f32 weights, fewer rows, ..."
    )
    parser.add_argument(
        "--show-assembly",
        action="store_true",
        help="llvm-mca's whole report on the first loop that matches, on the first CPU",
    )
    parser.add_argument(
        "--output",
        type=Path,
        help="JSON file for the figures (default: results/mca.json, if nothing was left out)",
    )
    return parser


def _is_wanted(key: tuple[str, str], arguments: argparse.Namespace) -> bool:
    op = not arguments.op or key[0] in arguments.op
    return op and arguments.loop in ".".join(key)


def _variants(loop: MarkedLoop) -> dict[int, str]:
    return LOOPS[loop.op, loop.name][loop.dtype]


def _show(loops: list[MarkedLoop], cpu: str) -> int:
    loop = next((one for one in loops if one.isa not in _LACKING.get(cpu, ())), None)
    if loop is None:
        print(f"{cpu} runs none of these loops", file=sys.stderr)
        return 2
    print(f"{loop.label} {loop.dtype} {loop.isa} on {cpu}: {loop.work} a pass\n")
    print(llvm_mca.report(loop.code, cpu))
    return 0


def _measure(loops: list[MarkedLoop], cpu: str) -> list[dict[str, Any]]:
    """A row for each loop; those of two instruction sets that are the same code share one."""
    loops = [loop for loop in loops if loop.isa not in _LACKING.get(cpu, ())]
    codes = list(dict.fromkeys(code for loop in loops for code in loop.copies))
    analyses = dict(zip(codes, llvm_mca.analyse(codes, cpu), strict=True))
    rows: dict[tuple[Any, ...], dict[str, Any]] = {}
    for loop in loops:
        # Of several copies of a loop, as one for q and one for k, the slowest.
        code = max(loop.copies, key=lambda one: analyses[one].cycles)
        key = (loop.op, loop.name, loop.dtype, loop.variant, code)
        if key in rows:
            rows[key]["isa"].append(loop.isa)
        else:
            rows[key] = _row(loop, cpu, analyses[code])
    return list(rows.values())


def _row(loop: MarkedLoop, cpu: str, found: llvm_mca.Analysis) -> dict[str, Any]:
    name, pressure = found.binding()
    return {
        "cpu": cpu,
        "op": loop.op,
        "loop": loop.name,
        "dtype": loop.dtype,
        "variant": _variants(loop)[loop.variant],
        "isa": [loop.isa],
        "unit": "k-step" if loop.op in BY_DEPTH else "vector",
        "units": loop.work,
        "instructions": found.instructions,
        "cycles": round(found.cycles, 3),
        "cycles_per_unit": round(found.cycles / loop.work, 3),
        "ipc": round(found.instructions / found.cycles, 2),
        "binding": name,
        "binding_cycles": round(pressure, 3),
        "percent_of_peak": round(100 * pressure / found.cycles, 1),
        "percent_of_vector_pipes": round(100 * found.spread_pressure("V") / found.cycles, 1),
        "percent_of_load_pipes": round(100 * found.spread_pressure("L") / found.cycles, 1),
        "spills": loop.spills,
        "remarks": loop.remarks,
    }


def _print(result: dict[str, Any], cpus: Iterable[str]) -> None:
    console = Console()
    console = console if console.is_terminal else Console(width=170)
    title = f"llvm-mca {result['llvm_mca']} on what {result['compiler']} makes"
    for cpu in cpus:
        table = Table(title=f"{cpu}: {title}", title_justify="left")
        for heading in ("loop", "dtype", "isa"):
            table.add_column(heading, no_wrap=True)
        for heading in ("instr.", "units", "cycles", "cycles/unit", "IPC"):
            table.add_column(heading, justify="right")
        table.add_column("binding")
        for heading in ("cycles", "% of peak", "% of all V", "% of all L", "spills"):
            table.add_column(heading, justify="right")
        remarks: dict[str, None] = {}
        for row in (row for row in result["rows"] if row["cpu"] == cpu):
            table.add_row(*_cells(row))
            remarks |= dict.fromkeys(f"{_label(row)}: {remark}" for remark in row["remarks"])
        console.print(table)
        for remark in remarks:
            console.print(remark)
    console.print(
        "unit: a vector of four f32 elements of data (of a matrix product: a step along its depth)."
        " binding: the busiest pipes, for how many of the cycles, and what share of them. % of all"
        " L: of what the load pipes can do, 16 bytes a cycle each; store addresses take them as"
        " well."
        " spills: registers that the loop keeps on the stack, loads and stores."
    )
    console.print(result["note"])


def _label(row: dict[str, Any]) -> str:
    return f"{row['op']}.{row['loop']}" + (f", {row['variant']}" if row["variant"] else "")


def _cells(row: dict[str, Any]) -> Iterable[str]:
    yield from (_label(row), row["dtype"], ", ".join(row["isa"]))
    yield from (str(row["instructions"]), str(row["units"]))
    yield from (f"{row['cycles']:.2f}", f"{row['cycles_per_unit']:.2f}", f"{row['ipc']:.2f}")
    yield from (row["binding"], f"{row['binding_cycles']:.2f}", f"{row['percent_of_peak']:.0f}")
    yield f"{row['percent_of_vector_pipes']:.0f}"
    yield f"{row['percent_of_load_pipes']:.0f}"
    yield str(row["spills"] or "")


def _commit() -> str | None:
    """The commit that was measured, "+" if files that are tracked differ from it."""
    describe = ("git", "describe", "--always", "--abbrev=12", "--exclude=*", "--dirty=+")
    try:
        done = subprocess.run(describe, cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


if __name__ == "__main__":
    sys.exit(main())

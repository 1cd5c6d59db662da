#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Count the instructions of every operator on aarch64, beside torch, NumPy and ACL, under QEMU.

A figure is what one call executes, Python's part included: (n + k calls minus n calls) / k, one
thread, all contenders in the same emulator. Counts say nothing of latencies, ports or caches; they
are exact, and the same in every run.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.progress import Progress
from rich.table import Table

import machine

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
PYTHON, PROGRAM = ROOT / "scripts/aarch64/python.sh", ROOT / "scripts/aarch64/run.sh"
# The plugin and the ACL program, built by scripts/aarch64/bench.sh.
BUILD = ROOT / "build/aarch64-bench"
# The package that is counted, as scripts/wheel.sh unpacks it.
SITE = ROOT / "build/wheel-aarch64/site"

PEERS = ("torch", "NumPy", "ACL")
COUNTERS = ("all", "simd", "loads", "stores", "bytes_loaded", "bytes_stored")
PASSED_ON = ("PATH", "HOME", "AARCH64_CPU")
# What DC ZVA clears on QEMU's core "max", by its DCZID_EL0.
ZVA_BYTES = 512

# Rows: the shapes for which figures of other libraries are known.
CASES: list[dict[str, Any]] = [
    {"op": op, "dtype": dtype, "tokens": tokens} | options
    for op, tokens, options in (
        ("softmax", 64, {}),
        ("rms_norm", 16, {}),
        ("fused_add_rms_norm", 16, {}),
        ("layer_norm", 16, {}),
        ("silu_and_mul", 16, {"intermediate": 11008}),
        ("gelu_tanh_and_mul", 16, {"intermediate": 11008}),
        ("gelu_and_mul", 16, {"intermediate": 11008}),
        ("rope_neox", 16, {}),
        ("rope_interleaved", 16, {}),
    )
    for dtype in ("f32", "bf16")
]
# Linear layers: tokens, output features, input features.
CASES += [
    {"op": op, "dtype": dtype, "tokens": m, "outputs": n, "features": k}
    for op, dtype in (
        ("linear", "f32"),
        ("linear", "bf16"),
        ("linear_int8", "bf16"),
        ("linear_int4", "bf16"),
        ("linear_int4_a16", "bf16"),
    )
    for m, n, k in (
        (64, 64, 64),
        (256, 256, 256),
        (512, 512, 512),
        (1024, 1024, 1024),
        (1, 1024, 1024),
        (1, 4096, 4096),
        (16, 4096, 4096),
    )
    if k >= 128 or "int4" not in op  # groups are of 128
]
# Attention: queries, keys, heads of queries and of keys. For comparison, not run here: vLLM's own
# aarch64 wheel under this emulator takes 42.8 M instructions for the prompt and 1.39 M to decode.
CASES += [
    {"op": "attention", "dtype": "bf16", "tokens": t, "keys": keys, "heads": h, "kv_heads": kv}
    for t, keys, h, kv in ((512, 512, 8, 8), (1, 2048, 8, 8), (1, 2048, 32, 8))
]
CASES += [
    case | {"op": "attention_fp8", "fp8": fp8}
    for fp8 in ("fp8_e4m3", "fp8_e5m2")
    for case in CASES
    if case["op"] == "attention" and case["tokens"] == 1
]


def shape_of(case: dict[str, Any]) -> str:
    """The data of a case, as its row says it."""
    if case["op"].startswith("linear"):
        return f"{case['tokens']} x {case['outputs']} x {case['features']}"
    if case["op"].startswith("attention"):
        shape = f"{case['tokens']} x {case['keys']}, {case['heads']}/{case['kv_heads']} x 128"
        return f"{shape} {case.get('fp8', '')}".rstrip()
    if case["op"].startswith("rope"):
        return f"{case['tokens']} x (32 + 8) x 128"
    return f"{case['tokens']} x {case.get('intermediate', 4096)}"


def emulated(*command: str) -> list[dict[str, Any]]:
    """Runs an aarch64 program under the counting plugin; what it printed, with its counts.

    The first line tells what ran, each further one is a contender of a case.

    Raises:
        RuntimeError: the program failed.
    """
    # At the same place every time: counts depend on what the environment says, if only by a little.
    counts = BUILD / "counts"
    counts.unlink(missing_ok=True)
    environment = {
        # Nothing else: a longer environment moves the stack.
        **{key: os.environ[key] for key in ("PATH", "HOME", "AARCH64_CPU") if key in os.environ},
        "QEMU_PLUGIN": f"{BUILD / 'libcount_plugin.so'},out={counts},zva={ZVA_BYTES}",
        "PYTHONPATH": f"{SITE}:{HERE.parent}",
        "PYTHONHASHSEED": "0",
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
    }
    # Without address space randomisation: it decides how buffers are aligned.
    started = subprocess.Popen(
        ["setarch", "--addr-no-randomize", *command],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert started.stdout is not None
    printed = []
    with Progress(transient=True) as progress:
        task = progress.add_task("counting", total=len(CASES))
        for line in started.stdout:
            printed.append(json.loads(line))
            progress.update(task, completed=printed[-1].get("case", 0))
    if started.wait():
        raise RuntimeError(f"{' '.join(command)}: exit code {started.returncode}")
    marks = {
        number: values for number, *values in (map(int, line.split()) for line in counts.open())
    }
    for one in printed[1:]:
        one["counts"] = _a_call(marks, one.pop("mark"), one.pop("more"))
    return printed


def _a_call(marks: dict[int, list[int]], first: int, more: int) -> dict[str, float]:
    # The two loops of guest.py and acl_peers.cc differ by `more` calls.
    short, long = (
        [end - begin for begin, end in zip(marks[at], marks[at + 1], strict=True)]
        for at in (first, first + 2)
    )
    a_call = [(m - f) / more for f, m in zip(short, long, strict=True)]
    return {
        name: int(value) if value.is_integer() else round(value, 2)
        for name, value in zip(COUNTERS, a_call, strict=True)
    }


def measure(selected: list[dict[str, Any]]) -> dict[str, Any]:
    """A row for each case: the contenders, who of ours and who of the peers needs least."""
    python, *by_python = emulated(str(PYTHON), str(HERE / "guest.py"), json.dumps(selected))
    acl, *by_acl = emulated(str(PROGRAM), str(BUILD / "acl_peers"), *_acl_cases(selected))
    found: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for one in by_python + by_acl:
        found[one.pop("case")].append(one)
    rows = []
    for index, case in enumerate(selected):
        own, peer = _least(found[index], "ours"), _least(found[index], *PEERS)
        assert own is not None
        rows.append(
            case
            | {
                "shape": shape_of(case),
                "ours": own["name"],
                "best_peer": peer and f"{peer['family']} {peer['name']}",
                "ratio": peer and round(peer["counts"]["all"] / own["counts"]["all"], 3),
                "contenders": found[index],
            }
        )
    versions = {name: version for name, version in python["versions"].items() if version}
    return {
        "unit": "per call, one thread, Python's part included",
        "emulator": _first_line("qemu-aarch64", "--version"),
        "core": os.environ.get("AARCH64_CPU", "max,sve=off"),
        "isa": python["isa"],
        "versions": versions | acl["versions"],
        "commit": machine.commit(),
        "command": " ".join(["scripts/aarch64/bench.sh", *sys.argv[1:]]),
        "date": machine.now(),
        "rows": rows,
    }


def _acl_cases(selected: list[dict[str, Any]]) -> Iterator[str]:
    """What acl_peers.cc can run of them, in its words."""
    for index, case in enumerate(selected):
        if case["op"] == "softmax" and case["dtype"] == "f32":
            yield f"{index}:softmax:{case['tokens']}:4096:0"
        if case["op"] == "linear" and case["dtype"] == "f32":
            yield f"{index}:linear:{case['tokens']}:{case['outputs']}:{case['features']}"


def _first_line(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()[0]


def _least(contenders: list[dict[str, Any]], *families: str) -> dict[str, Any] | None:
    matching = [one for one in contenders if one["family"] in families]
    return min(matching, key=lambda one: one["counts"]["all"], default=None)


def print_table(result: dict[str, Any]) -> None:
    """All rows, for people."""
    versions = " ".join(f"{name} {version}" for name, version in result["versions"].items())
    table = Table(
        title=f"instructions a call on aarch64, one thread, Python included\n"
        f"{result['emulator']}, core {result['core']}; {versions}",
        title_justify="left",
    )
    for heading in ("op", "dtype", "shape"):
        table.add_column(heading)
    for heading in ("ours", "FP+SIMD", "loads", "stores", "KB loaded", "KB stored"):
        table.add_column(heading, justify="right")
    for heading in (*PEERS, "ratio"):
        table.add_column(heading, justify="right")
    for row in result["rows"]:
        counts = {
            family: least["counts"]
            for family in ("ours", *PEERS)
            if (least := _least(row["contenders"], family))
        }
        own = counts["ours"]
        table.add_row(
            *(row["op"], row["dtype"], row["shape"]),
            *(_short(own[name]) for name in COUNTERS[:4]),
            *(f"{own[name] / 1000:.0f}" for name in COUNTERS[4:]),
            *(_short(counts[peer]["all"]) if peer in counts else "" for peer in PEERS),
            f"{row['ratio']:.2f}" if row["ratio"] else "",
        )
    console = machine.console()
    console.print(table)
    console.print(
        "Each has several ways to do it: the one with the fewest instructions is shown.\n"
        "ratio: the best peer's instructions divided by ours; above 1, ours needs fewer."
    )


def _short(count: float) -> str:
    return f"{count / 1e6:.3f} M" if count >= 1e6 else f"{count / 1e3:.1f} k"


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0] if __doc__ else None)
    ops = list(dict.fromkeys(case["op"] for case in CASES))
    parser.add_argument("--op", nargs="+", choices=ops, default=ops)
    parser.add_argument("--dtype", nargs="+", choices=("f32", "bf16"), default=("f32", "bf16"))
    shapes = list(dict.fromkeys(map(shape_of, CASES)))
    parser.add_argument("--shape", nargs="+", choices=shapes, default=shapes)
    parser.add_argument("--output", type=Path, help="JSON file for the counts")
    parser.add_argument("--show", type=Path, help="print the table of such a file, count nothing")
    arguments = parser.parse_args()
    if arguments.show:
        print_table(json.loads(arguments.show.read_text()))
        return 0
    selected = [
        case
        for case in CASES
        if case["op"] in arguments.op
        and case["dtype"] in arguments.dtype
        and shape_of(case) in arguments.shape
    ]
    result = measure(selected)
    print_table(result)
    if arguments.output:
        machine.write(result, arguments.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())

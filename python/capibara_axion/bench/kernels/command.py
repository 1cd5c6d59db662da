# SPDX-License-Identifier: Apache-2.0
"""The arguments of `bench kernels`, and its run."""

from __future__ import annotations

import argparse
import os
from dataclasses import asdict
from typing import Any

from capibara_axion.bench.options import output_file

_QUICK_TOKENS = (1, 128)


def add_parser(measurements: Any) -> None:
    """Add `kernels` to the sub-commands of `bench`."""
    parser = measurements.add_parser(
        "kernels",
        help="time every operator beside torch's, vLLM's and NumPy's",
        description="Time every operator beside torch's, vLLM's and NumPy's, at the sizes of an "
        "8B model. Results are compared with float64 first. Contenders take turns within each "
        "round, so that all meet the same disturbances. Ctrl-C keeps what was measured.",
    )
    parser.add_argument("--op", nargs="+", metavar="OP", help="operators (default: all)")
    parser.add_argument(
        "--dtype", nargs="+", choices=("bf16", "f32"), default=("bf16", "f32"), help="default: both"
    )
    parser.add_argument(
        "--tokens",
        nargs="+",
        type=_positive,
        metavar="T",
        help="only shapes of so many tokens (default: 1 16 128 1024, and those of attention)",
    )
    parser.add_argument(
        "--threads",
        nargs="+",
        type=_positive,
        metavar="N",
        help="threads of a call (default: one, and as many as there are cores)",
    )
    parser.add_argument(
        "--compare",
        default="torch,vllm,numpy",
        metavar="PEERS",
        help="any of torch, vllm and numpy, with commas (default: those installed)",
    )
    parser.add_argument(
        "--rounds",
        type=_positive,
        default=7,
        metavar="N",
        help="rounds of a row at least (default: %(default)s)",
    )
    parser.add_argument(
        "--time",
        type=_seconds,
        metavar="SECONDS",
        help="for the rounds of a row (default: 1; with --quick 0.15)",
    )
    parser.add_argument(
        "--quick", action="store_true", help="1 and 128 tokens, less time, nothing compiled"
    )
    parser.add_argument(
        "--output", type=output_file, metavar="FILE", help="write all samples as JSON"
    )
    parser.set_defaults(
        run=_run, needs=("bench", "ml_dtypes", "psutil", "pydantic", "rich", "threadpoolctl")
    )


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"expected a positive whole number, got {text!r}")
    return int(text)


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1e6:
        raise argparse.ArgumentTypeError(f"expected seconds greater than 0, got {text!r}")
    return value


def _run(args: argparse.Namespace) -> int:
    from rich.console import Console
    from rich.progress import track

    from capibara_axion.bench import machine, results
    from capibara_axion.bench.kernels.conditions import tune_malloc
    from capibara_axion.bench.kernels.measure import Measurement
    from capibara_axion.bench.kernels.table import show

    tell = Console(stderr=True)
    peers = _enter(args.compare, tell)
    settings = _settings(args)
    cases = list(settings.cases())
    result = results.KernelResult(
        machine=machine.describe(),
        date=machine.now(),
        command=machine.command_line(),
        settings=asdict(settings) | {"compare": peers, "malloc": tune_malloc()},
        rows=[],
    )
    measurement = Measurement(settings)
    result.left_out = measurement.left_out
    try:
        for threads in track(settings.threads, "what this machine can do", console=tell):
            result.roofs.append(measurement.roof(threads))
        rows = measurement.rows(cases)
        for some in track(rows, "timing", total=len(cases), console=tell):
            result.rows.extend(some)
    except KeyboardInterrupt:
        result.interrupted = True
        tell.print(f"interrupted after {len({_case(row) for row in result.rows})} of {len(cases)}")
    if args.output:
        results.write(result, args.output)
    found = Console()
    show(result, found if found.is_terminal else Console(width=160))
    for line in measurement.left_out:
        tell.print(f"left out: {line}", markup=False)
    return 130 if result.interrupted else int(measurement.failed)


def _case(row: Any) -> tuple[Any, ...]:
    return row.op, row.dtype, row.shape, row.threads


def _enter(compare: str, tell: Any) -> list[str]:
    """Enters the contenders that were asked for and are installed; their packages."""
    from capibara_axion.bench.errors import UsageError
    from capibara_axion.bench.kernels.contenders import PACKAGES, enter, installed

    asked = [name.strip().lower() for name in compare.split(",")]
    for name in asked:
        if name not in PACKAGES:
            expected = ", ".join(PACKAGES)
            raise UsageError(f"--compare: expected any of {expected} with commas, got {name!r}")
    found = installed()
    for name in asked:
        if name not in found:
            tell.print(f"{name} is not installed here: measured without it")
    peers = [name for name in found if name in asked]
    enter(peers)
    return peers


def _settings(args: argparse.Namespace) -> Any:
    """The arguments, checked.

    Raises:
        UsageError: an operator is unknown, there are not so many cores, or nothing is left.
    """
    from capibara_axion.bench.errors import UsageError
    from capibara_axion.bench.kernels.cases import OPS
    from capibara_axion.bench.kernels.measure import Settings

    for op in args.op or ():
        if op not in OPS:
            raise UsageError(f"--op: expected any of {', '.join(OPS)}, got {op!r}")
    cores = len(os.sched_getaffinity(0))
    threads = args.threads or ((1, cores) if cores > 1 else (1,))
    if max(threads) > cores:
        raise UsageError(f"--threads: expected at most {cores}, the cores here, got {max(threads)}")
    tokens = args.tokens or (_QUICK_TOKENS if args.quick else None)
    settings = Settings(
        ops=tuple(args.op or OPS),
        dtypes=tuple(args.dtype),
        tokens=tokens and tuple(tokens),
        threads=tuple(dict.fromkeys(threads)),
        rounds=args.rounds,
        time_s=args.time or (0.15 if args.quick else 1.0),
        compiled=not args.quick,
    )
    if not any(settings.cases()):
        raise UsageError("nothing to measure: no such operator has these --dtype and --tokens")
    return settings

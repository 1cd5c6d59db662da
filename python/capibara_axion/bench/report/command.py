# SPDX-License-Identifier: Apache-2.0
"""The arguments of `bench report`, and its run."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any


def add_parser(measurements: Any) -> None:
    """Add `report` to the sub-commands of `bench`."""
    parser = measurements.add_parser(
        "report",
        help="make one page with plots of all results in a folder",
        description="Make one HTML page, which needs nothing else, with plots and tables of all "
        "results in a folder: those of bench latency, load and kernels, and those that the "
        "repository keeps in benchmarks/results. Each plot is written as a PNG, too.",
    )
    parser.add_argument("directory", type=Path, metavar="DIR", help="folder with *.json")
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help="the page (default: DIR/report.html)"
    )
    parser.add_argument(
        "--png-dir", type=Path, metavar="DIR", help="for report-*.png (default: the page's folder)"
    )
    parser.set_defaults(run=_run, needs=("report", "matplotlib", "pydantic"))


def _run(args: argparse.Namespace) -> int:
    from capibara_axion.bench import machine
    from capibara_axion.bench.errors import UsageError
    from capibara_axion.bench.report import page, style
    from capibara_axion.bench.report.sections import build
    from capibara_axion.bench.report.sources import read

    sources, left_out = read(args.directory)
    sections, faults = build(sources)
    left_out += faults
    output = args.output or args.directory / "report.html"
    figures = [figure for section in sections for figure in section.figures]
    pictures = args.png_dir or output.parent
    try:
        pictures.mkdir(parents=True, exist_ok=True)
        output.write_text(page.html(sections, left_out, machine.now()), encoding="utf-8")
        plots = [figure for figure in figures if figure.draw]
        for figure in plots:
            style.png(figure, pictures / f"report-{figure.slug}.png")
    except OSError as error:
        raise UsageError(f"cannot write to {error.filename}: {error.strerror}") from None
    for line in left_out:
        print(f"left out: {line}", file=sys.stderr)
    for section in sections:
        if not section.figures:
            print(f"without {section.title.lower()}: {section.made_by}", file=sys.stderr)
    print(f"{output}: {len(figures)} figures; {pictures}/report-*.png: {len(plots)} plots")
    return 0

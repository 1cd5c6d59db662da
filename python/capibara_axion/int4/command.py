# SPDX-License-Identifier: Apache-2.0
"""What `capibara-axion quantize` does at a terminal."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from capibara_axion.int4.architectures import UnsupportedModel
from capibara_axion.int4.quantizer import Report, Settings, quantize_checkpoint


def run(
    source: Path,
    target: Path,
    *,
    group_size: int,
    method: str,
    symmetric: bool,
    calibration: Path | None,
) -> None:
    """Quantises a checkpoint, with a progress bar on stderr and a summary on stdout.

    Args:
        calibration: a text file in UTF-8.

    Raises:
        UnsupportedModel, OSError: as `quantize_checkpoint`; the text cannot be read.
    """
    try:
        text = None if calibration is None else calibration.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UnsupportedModel(f"{calibration}: expected text in UTF-8: {error}") from None
    settings = Settings(group_size, method, symmetric, text)
    columns = (
        TextColumn("{task.description:<18}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        tasks = {}

        def step(what: str, of: int) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(what, total=of)
            bar.advance(tasks[what])

        report = quantize_checkpoint(source, target, settings, step)
    print(summary(report, target))


def summary(report: Report, target: Path) -> str:
    """The report in words."""
    lines = [
        f"{target}: {report.matrices} matrices in 4 bits, {report.bytes_after / 1e6:.1f} MB "
        f"({report.bytes_before / 1e6:.1f} MB before)"
    ]
    if report.perplexity_before is not None and report.perplexity_after is not None:
        change = report.perplexity_after / report.perplexity_before - 1
        lines.append(
            f"perplexity on the text's last fifth: {report.perplexity_before:.4f} before, "
            f"{report.perplexity_after:.4f} after ({change:+.2%})"
        )
    return "\n".join(lines)

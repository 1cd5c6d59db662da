# SPDX-License-Identifier: Apache-2.0
"""Numbers for people, in tables and at axes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

_PREFIXES = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, ""))


def seconds(value: float | None) -> str:
    """A time in the unit that suits it; "" for None."""
    if not value:
        return "" if value is None else "0"
    for factor, unit in ((1.0, "s"), (1e3, "ms"), (1e6, "µs")):
        if abs(value) * factor >= 1 or unit == "µs":
            return f"{digits(value * factor)} {unit}"
    raise AssertionError


def amount(value: float | None, unit: str = "") -> str:
    """A number with a decimal prefix, such as 1.21 Gop/s; "" for None."""
    if value is None:
        return ""
    for factor, prefix in _PREFIXES:
        if abs(value) >= factor:
            return f"{digits(value / factor)} {prefix}{unit}".rstrip()
    return f"{digits(value)} {unit}".rstrip()


def mebibytes(value: float) -> str:
    """Bytes as MiB, or GiB from a thousand of those on."""
    mib = value / 2**20
    return f"{digits(mib)} MiB" if mib < 1000 else f"{digits(mib / 1024)} GiB"


def percent(share: float | None) -> str:
    """A share as a percentage; "" for None."""
    return "" if share is None else f"{digits(100 * share)} %"


def digits(value: float) -> str:
    """Three significant digits, whole numbers whole."""
    if value == 0:
        return "0"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    text = f"{value:.3g}"
    return f"{value:.4f}" if "e" in text else text


def label(axis: Any, text: Callable[[float], str], ticks: Sequence[float] | None = None) -> None:
    """Writes an axis' ticks as `text` has them; the minor ones of a logarithmic axis not at all.

    Args:
        axis: `axes.xaxis` or `axes.yaxis`.
        text: of a value.
        ticks: where they are; None: where matplotlib thinks.
    """
    from matplotlib.ticker import NullFormatter

    axis.set_major_formatter(lambda value, _: text(value))
    axis.set_minor_formatter(NullFormatter())
    if ticks is not None:
        axis.set_major_locator(_fixed(ticks))
        axis.set_minor_locator(_fixed([]))


def _fixed(ticks: Sequence[float]) -> Any:
    from matplotlib.ticker import FixedLocator

    return FixedLocator(list(ticks))


def log_ticks(low: float, high: float, most: int = 8) -> list[float]:
    """Ticks of 1, 2 and 5 times powers of ten between two values; fewer where those are many."""
    found: list[float] = []
    for steps in ((1, 2, 5), (1, 3), (1,)):
        found = [
            step * 10.0**power
            for power in range(-12, 16)
            for step in steps
            if low <= step * 10.0**power <= high
        ]
        if len(found) <= most:
            return found
    return found[:: -(-len(found) // most)]

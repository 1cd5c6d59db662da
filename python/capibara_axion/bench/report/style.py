# SPDX-License-Identifier: Apache-2.0
"""How figures look: drawn twice, for wide and for narrow windows, as SVG whose colours are CSS
variables, and once as PNG.

Colours are those of Okabe and Ito (Color Universal Design, 2008), which people with any kind of
colour vision can tell apart; for dark backgrounds lighter ones of the same hues. Lines differ by
marker and dashes as well.
"""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas

from capibara_axion.bench.report.figure import Figure

mpl.use("agg")

SERIES = ("#0072b2", "#d55e00", "#009e73", "#b8569a", "#b07c00", "#3d8fd1", "#777777")
_DARK = ("#5fb8ee", "#ff9350", "#35cfa0", "#eaa3d0", "#f0c04d", "#a9c7ff", "#b0b0b0")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DASHES = ("-", "--", "-.", ":", "-", "--", "-.")
INK, FAINT = "#1a1b1e", "#c9ccd1"  # of text and axes; of grids
_DARK_INK, _DARK_FAINT = "#e8eaed", "#4a4d52"

WIDE_IN, NARROW_IN = 7.0, 3.3
_PNG_DPI = 150
_RC: dict[Any, Any] = {
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "figure.constrained_layout.use": True,
    "font.size": 9,
    "grid.color": FAINT,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "lines.markersize": 4.5,
    "svg.fonttype": "none",
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    # Names of models and files are no formulas.
    "text.parse_math": False,
}


def variables() -> str:
    """The CSS of the colours."""
    light = _declarations(SERIES, INK, FAINT)
    dark = _declarations(_DARK, _DARK_INK, _DARK_FAINT)
    return f":root{{{light}}}@media(prefers-color-scheme:dark){{:root{{{dark}}}}}"


def _declarations(series: tuple[str, ...], ink: str, faint: str) -> str:
    colours = [f"--series-{index}:{colour};" for index, colour in enumerate(series)]
    return "".join([*colours, f"--ink:{ink};", f"--faint:{faint};"])


def svg(figure: Figure, narrow: bool) -> str:
    """A figure for an HTML page: with a title, without identifiers that others could have too."""
    name = f"{figure.slug}-{'narrow' if narrow else 'wide'}"
    file = io.StringIO()
    with mpl.rc_context({**_RC, "svg.hashsalt": name}):
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        _canvas(figure, narrow).savefig(file, format="svg", transparent=True, metadata=nothing)
    text = file.getvalue()
    text = text[text.index("<svg") :]
    box = re.search(r'viewBox="([^"]*)"', text)
    assert box is not None
    head = (
        f'<svg class="{"narrow" if narrow else "wide"}" viewBox="{box[1]}" role="img" '
        f'aria-labelledby="{name}-title"><title id="{name}-title">{_escaped(figure.title)}</title>'
    )
    text = head + text[text.index(">") + 1 :]
    text = re.sub(r'<g id="[^"]*"', "<g", text).replace("xlink:href", "href")
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"font: ([0-9.]+px) [^;\"]*", r"font: \1 system-ui, sans-serif", text)
    for index, colour in enumerate(SERIES):
        text = text.replace(colour, f"var(--series-{index})")
    return text.replace(INK, "var(--ink)").replace(FAINT, "var(--faint)")


def png(figure: Figure, path: Path) -> None:
    """The same on white."""
    with mpl.rc_context(_RC):
        _canvas(figure, narrow=False).savefig(path, dpi=_PNG_DPI, facecolor="white")


def legend_above(axes: Axes) -> None:
    """A legend over the axes, where it covers nothing, in as many columns as fit."""
    handles, labels = axes.get_legend_handles_labels()
    canvas = axes.get_figure()
    if handles and isinstance(canvas, Canvas):
        entry_in = 0.55 + 0.075 * max(map(len, labels))  # a sign, and its text of 9 points
        columns = max(1, int(canvas.get_figwidth() / entry_in))
        canvas.legend(
            handles, labels, loc="outside upper left", ncols=min(len(labels), columns),
            columnspacing=1.2, handlelength=2.2,
        )  # fmt: skip


def _canvas(figure: Figure, narrow: bool) -> Canvas:
    assert figure.draw is not None
    height = figure.narrow_height if narrow else figure.height
    canvas = Canvas(figsize=(NARROW_IN if narrow else WIDE_IN, height))
    figure.draw(canvas.subplots(), narrow)
    return canvas


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;")

# SPDX-License-Identifier: Apache-2.0
"""What sections make: figures with their data, and where it comes from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from capibara_axion.bench.report.sources import Source


@dataclass(frozen=True)
class Table:
    """Rows of text; the first `names` columns are words, the others numbers."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    names: int = 1


@dataclass(frozen=True)
class Figure:
    """A plot or a table.

    Attributes:
        slug: of the anchor and of the PNG's name; unique within a report.
        title: says what is shown.
        text: how it is to be read.
        table: the data.
        sources: the files that it comes from.
        draw: draws it with matplotlib's Axes, which are `narrow` for a phone; None: the table is
            all there is.
        height: inches of the plot; `narrow_height` on a phone.
    """

    slug: str
    title: str
    text: str
    table: Table
    sources: Sequence[Source]
    draw: Callable[[Any, bool], None] | None = None
    height: float = 3.6
    narrow_height: float = 3.4


@dataclass
class Section:
    """Figures about one thing.

    Attributes:
        made_by: the command whose result it needs, for reports that lack it.
    """

    title: str
    made_by: str
    figures: list[Figure] = field(default_factory=list)

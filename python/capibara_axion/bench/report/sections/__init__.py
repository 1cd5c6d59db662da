# SPDX-License-Identifier: Apache-2.0
"""The sections of a report: each takes the sources, and gives its figures."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence

from capibara_axion.bench.report.figure import Figure, Section
from capibara_axion.bench.report.sections import (
    attention,
    instructions,
    latency,
    load,
    operators,
    quality,
    roofline,
    server,
)
from capibara_axion.bench.report.sources import Source

Maker = Callable[[Source], Iterator[Figure]]

# Title, maker, and what makes a result for it.
_SECTIONS: tuple[tuple[str, Maker, str], ...] = (
    ("Latency", latency.distributions, "capibara-axion bench latency --output DIR/latency.json"),
    ("Over time", latency.over_time, "capibara-axion bench latency or load, with --output"),
    (
        "Throughput",
        load.figures,
        "capibara-axion bench load --concurrency 1 2 4 8 --output DIR/load.json",
    ),
    ("Kernels", operators.figures, "capibara-axion bench kernels --output DIR/kernels.json"),
    ("Roofline", roofline.figures, "capibara-axion bench kernels --output DIR/kernels.json"),
    ("Memory of attention", attention.figures, "python benchmarks/attention_memory.py"),
    ("Instructions on aarch64", instructions.figures, "make bench-aarch64"),
    (
        "Quality in 8 and 4 bits",
        quality.figures,
        "python benchmarks/int4_quality/run.py and benchmarks/kv_quality/run.py",
    ),
    ("Server and models", server.figures, "the programs in benchmarks/server and end_to_end"),
)


def build(sources: Sequence[Source]) -> tuple[list[Section], list[str]]:
    """All sections, those without figures too; and a line for each file that is not as expected."""
    sections: list[Section] = []
    faults: list[str] = []
    slugs: set[str] = set()
    for title, maker, made_by in _SECTIONS:
        section = Section(title, made_by)
        for source in sources:
            figures, fault = _made(maker, source)
            section.figures += [_unique(figure, slugs) for figure in figures]
            faults += fault
        sections.append(section)
    return sections, list(dict.fromkeys(faults))


def _unique(figure: Figure, slugs: set[str]) -> Figure:
    """The figure, with a number in its slug if a file of almost the same name has it already."""
    numbered = (f"{figure.slug}-{number}" for number in itertools.count(2))
    slug = next(slug for slug in itertools.chain([figure.slug], numbered) if slug not in slugs)
    slugs.add(slug)
    return dataclasses.replace(figure, slug=slug)


def _made(maker: Maker, source: Source) -> tuple[list[Figure], list[str]]:
    """The figures of a file; or a line that says why there are none."""
    try:
        return list(maker(source)), []
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        return [], [f"{source.file}: not as expected: {type(error).__name__}: {error}"]

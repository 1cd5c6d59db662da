# SPDX-License-Identifier: Apache-2.0
"""`bench compare`: whether a run was faster or slower than another, or cannot be told from it.

For each measure: the ratio of medians with its interval. Of one run before and one after, by a
bootstrap in blocks (`statistics.ratio_of_medians`), as samples taken one after another resemble
their neighbours. That sees what moves within a run; what moves more slowly, such as a neighbour on
the same machine who comes and stays, looks like a difference. So, where it matters, both are taken
in turn, several times (`--in-turn`): each before with its after is a round, and what counts is how
much the ratios of the rounds vary (`statistics.ratio_of_rounds`).

Several intervals are looked at together, and the more there are, the likelier one of them misses by
chance. Each therefore gets its part of the error (Bonferroni): that any of m equal measures is told
apart has a probability of at most 5 %.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import track

from capibara_axion.bench import machine, tables
from capibara_axion.bench.errors import UsageError
from capibara_axion.bench.pairs import Comparable, Pair, pairs_of, read_comparable
from capibara_axion.bench.results import (
    Change,
    CompareResult,
    Comparison,
    KernelResult,
    write,
)
from capibara_axion.bench.statistics import ratio_of_medians, ratio_of_rounds

CONFIDENCE = 0.95

_LEAST_ROUNDS = 3
_ONE_RUN_EACH = (
    "one run of each: a change of the machine that lasts as long as a run looks like a difference; "
    "to tell them apart, take both in turn and compare with --in-turn"
)


def run(files: Sequence[Path], *, in_turn: bool, seed: int, output: Path | None) -> int:
    """Compare, show and write; returns 0.

    Args:
        files: each further one is compared with the first; with `in_turn`, they are before and
            after in turn, and all are one comparison.

    Raises:
        UsageError: a file cannot be read, or has results of other work than the first; there are
            too few, or not as many after as before, for `in_turn`.
    """
    if in_turn and (len(files) % 2 or len(files) < 2 * _LEAST_ROUNDS):
        raise UsageError(
            f"--in-turn: expected before and after in turn, {_LEAST_ROUNDS} of each or more; got "
            f"{len(files)} files"
        )
    results = [(path, read_comparable(path)) for path in files]
    comparisons = _in_turn(results) if in_turn else _with_the_first(results, seed)
    for comparison in comparisons:
        tables.show_comparison(comparison)
    if output is not None:
        result = CompareResult(
            machine=machine.describe(),
            date=machine.now(),
            command=machine.command_line(),
            comparisons=comparisons,
        )
        write(result, output)
        print(f"written to {output}", file=sys.stderr)
    return 0


def change(pair: Pair, count: int, generator: np.random.Generator) -> Change:
    """What became of one measure, of `count` of which something can be told."""
    found = None
    if pair.can_tell:
        confidence = 1 - (1 - CONFIDENCE) / count
        found = ratio_of_medians(
            pair.before, pair.after, confidence=confidence, generator=generator
        )
    samples = len(pair.before), len(pair.after)
    return _change([pair], found, samples)


def change_of_rounds(rounds: Sequence[Pair], count: int) -> Change:
    """What became of one measure, of `count`, of which each round has a before and an after."""
    confidence = 1 - (1 - CONFIDENCE) / count
    ratios = [float(np.median(pair.after) / np.median(pair.before)) for pair in rounds]
    return _change(rounds, ratio_of_rounds(ratios, confidence), (len(rounds), len(rounds)))


def verdict(ratio: float, low: float, high: float) -> str:
    """A ratio of times in words: a time that doubles is slower by 100 %, its opposite as much."""
    if low <= 1 <= high:
        return f"no difference ({low - 1:+.1%}..{high - 1:+.1%})"
    if ratio > 1:
        return f"slower by {ratio - 1:.1%} ({low - 1:.1%}..{high - 1:.1%})"
    return f"faster by {1 / ratio - 1:.1%} ({1 / high - 1:.1%}..{1 / low - 1:.1%})"


def is_told_apart(change: Change) -> bool:
    """Whether the verdict is faster or slower."""
    return (
        change.low is not None and change.high is not None and not (change.low <= 1 <= change.high)
    )


def _with_the_first(results: Sequence[tuple[Path, Comparable]], seed: int) -> list[Comparison]:
    (first, before), *others = results
    works = [(after, pairs_of(before, after, f"{first} and {path}")) for path, after in others]
    count = sum(pair.can_tell for _, pairs in works for pair in pairs)
    generator = np.random.default_rng(seed)
    todo = [(number, pair) for number, (_, pairs) in enumerate(works) for pair in pairs]
    changes: list[list[Change]] = [[] for _ in works]
    console = Console(stderr=True)
    quiet = not console.is_terminal
    for number, pair in track(todo, "comparing", console=console, transient=True, disable=quiet):
        changes[number].append(change(pair, count, generator))
    return [
        Comparison(
            before=str(first),
            after=str(path),
            confidence=CONFIDENCE,
            changes=found,
            remarks=[
                *_remarks(before, after),
                *([_ONE_RUN_EACH] if any(is_told_apart(one) for one in found) else []),
            ],
        )
        for (path, after), found in zip(others, changes, strict=True)
    ]


def _in_turn(results: Sequence[tuple[Path, Comparable]]) -> list[Comparison]:
    (first, before), *_ = results
    for path, result in results[1:]:
        pairs_of(before, result, f"{first} and {path}")  # all have done the same work
    rounds = [
        {
            (pair.what, pair.measure): pair
            for pair in pairs_of(one, other, f"{path} and {other_path}")
        }
        for (path, one), (other_path, other) in zip(results[::2], results[1::2], strict=True)
    ]
    keys = [key for key in rounds[0] if all(key in found for found in rounds)]
    remarks = [remark for _, result in results[1:] for remark in _remarks(before, result)]
    return [
        Comparison(
            before=", ".join(str(path) for path, _ in results[::2]),
            after=", ".join(str(path) for path, _ in results[1::2]),
            confidence=CONFIDENCE,
            changes=[change_of_rounds([found[key] for found in rounds], len(keys)) for key in keys],
            remarks=list(dict.fromkeys(remarks)),
        )
    ]


def _change(
    pairs: Sequence[Pair], found: tuple[float, float, float] | None, samples: tuple[int, int]
) -> Change:
    ratio, low, high = found or (None, None, None)
    return Change(
        what=pairs[0].what,
        measure=pairs[0].measure,
        before_s=float(np.median([np.median(pair.before) * pair.scale for pair in pairs])),
        after_s=float(np.median([np.median(pair.after) * pair.scale for pair in pairs])),
        ratio=ratio,
        low=low,
        high=high,
        samples=samples,
        verdict="too few samples" if found is None else verdict(*found),
    )


def _remarks(before: Comparable, after: Comparable) -> Iterator[str]:
    """What else is not the same."""
    for key in ("model", "core", "logical_cpus", "isa"):
        one, other = before.machine.get(key), after.machine.get(key)
        if one != other:
            yield f"another machine: {key} is {one!r} before and {other!r} after"
    for name, result in (("before", before), ("after", after)):
        if result.interrupted:
            yield f"{name}: the run was interrupted"
        if isinstance(result, KernelResult):
            continue
        failed = sum(request.outcome in ("error", "not_sent") for request in result.requests)
        if failed:
            yield f"{name}: {failed} of {len(result.requests)} requests have no answer to compare"

# SPDX-License-Identifier: Apache-2.0
"""`bench compare`: whether a run was faster or slower than another, or cannot be told from it.

For each measure: the ratio of medians with its interval (`statistics.ratio_of_medians`). Samples
taken one after another resemble their neighbours, as machines warm up and others come and go, so
they are drawn in blocks; rounds of `bench kernels` and requests are both in the order of time.
Rounds of two files are not paired: they were not taken at the same time. What moves as slowly as
the runs are long cannot be seen within a run: take before and after in turn, several times.

Several intervals are looked at together, and the more there are, the likelier one of them misses by
chance. Each therefore gets its part of the error (Bonferroni): that any of m equal measures is told
apart has a probability of at most 5 %.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import track

from capibara_axion.bench import groups, machine, tables
from capibara_axion.bench.errors import UsageError
from capibara_axion.bench.results import (
    AnyResult,
    Change,
    CompareResult,
    Comparison,
    KernelResult,
    LatencyResult,
    LoadResult,
    Request,
    read,
    write,
)
from capibara_axion.bench.statistics import Array, ratio_of_medians

CONFIDENCE = 0.95

# An interval of 95 % for a median takes so many: 2 * 2 ** -6 < 5 %.
_LEAST = 6
# Tokens per second are 1 / gap.
_TIMES = ("ttft", "gap", "total")
_Comparable = KernelResult | LatencyResult | LoadResult


@dataclass(frozen=True)
class Pair:
    """One measure's samples in the order of time, of both runs.

    Attributes:
        scale: what the samples were divided by to make them comparable among each other; the
            median of those that they were.
    """

    what: str
    measure: str
    before: Array
    after: Array
    scale: float = 1.0

    @property
    def can_tell(self) -> bool:
        """Whether there are enough samples for an interval, were it the only one."""
        return min(len(self.before), len(self.after)) >= _LEAST


def run(files: Sequence[Path], *, seed: int, output: Path | None) -> int:
    """Compare each further file with the first, show and write; returns 0.

    Raises:
        UsageError: a file cannot be read, or has results of other work than the first.
    """
    before, *others = (_comparable(path, read(path)) for path in files)
    pairs = [
        pairs_of(before, after, f"{files[0]} and {path}")
        for path, after in zip(files[1:], others, strict=True)
    ]
    count = sum(pair.can_tell for some in pairs for pair in some)
    generator = np.random.default_rng(seed)
    flat = [(number, pair) for number, some in enumerate(pairs) for pair in some]
    changes: dict[int, list[Change]] = defaultdict(list)
    console = Console(stderr=True)
    quiet = not console.is_terminal
    for number, pair in track(flat, "comparing", console=console, transient=True, disable=quiet):
        changes[number].append(change(pair, count, generator))
    comparisons = [
        Comparison(
            before=str(files[0]),
            after=str(path),
            confidence=CONFIDENCE,
            changes=changes[number],
            remarks=list(_remarks(before, after)),
        )
        for number, (path, after) in enumerate(zip(files[1:], others, strict=True))
    ]
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
    ratio, low, high = found or (None, None, None)
    return Change(
        what=pair.what,
        measure=pair.measure,
        before_s=float(np.median(pair.before)) * pair.scale,
        after_s=float(np.median(pair.after)) * pair.scale,
        ratio=ratio,
        low=low,
        high=high,
        samples=(len(pair.before), len(pair.after)),
        verdict="too few samples" if found is None else verdict(*found),
    )


def verdict(ratio: float, low: float, high: float) -> str:
    """A ratio of times in words: a time that doubles is slower by 100 %, its opposite as much."""
    if low <= 1 <= high:
        return f"no difference ({low - 1:+.1%}..{high - 1:+.1%})"
    if ratio > 1:
        return f"slower by {ratio - 1:.1%} ({low - 1:.1%}..{high - 1:.1%})"
    return f"faster by {1 / ratio - 1:.1%} ({1 / high - 1:.1%}..{1 / low - 1:.1%})"


def pairs_of(before: _Comparable, after: _Comparable, files: str) -> list[Pair]:
    """The measures that both have.

    Args:
        files: what to call them in an error.

    Raises:
        UsageError: they did different work.
    """
    if isinstance(before, KernelResult) and isinstance(after, KernelResult):
        found = list(_kernel_pairs(before, after))
        if not found:
            raise UsageError(f"{files}: no row has the same op, shape, dtype, threads, contender")
        return found
    if isinstance(before, KernelResult) or isinstance(after, KernelResult):
        raise UsageError(f"{files}: expected the same kind, got {before.kind} and {after.kind}")
    if before.kind != after.kind:
        raise UsageError(f"{files}: expected the same kind, got {before.kind} and {after.kind}")
    for key in sorted(before.work.keys() | after.work.keys()):
        one, other = before.work.get(key), after.work.get(key)
        if one != other:
            raise UsageError(f"{files}: expected the same work, but {key} is {one!r} and {other!r}")
    found = list(_request_pairs(before, after))
    if not found:
        raise UsageError(f"{files}: no requests that both have were answered")
    return found


def _comparable(path: Path, result: AnyResult) -> _Comparable:
    if isinstance(result, KernelResult | LatencyResult | LoadResult):
        return result
    raise UsageError(f"{path}: expected a result of latency, load or kernels, got {result.kind}")


def _kernel_pairs(before: KernelResult, after: KernelResult) -> Iterator[Pair]:
    def samples(result: KernelResult) -> dict[tuple[str, ...], Array]:
        return {
            (row.op, row.shape, row.dtype, f"{row.threads} threads", row.contender): np.array(
                row.samples_s
            )
            for row in result.rows
            if row.samples_s
        }

    theirs = samples(after)
    for key, own in samples(before).items():
        if key in theirs:
            yield Pair(" ".join(key[:-1]), key[-1], own, theirs[key])


def _request_pairs(
    before: LatencyResult | LoadResult, after: LatencyResult | LoadResult
) -> Iterator[Pair]:
    theirs = _sorted_by_what(after)
    for what, own in _sorted_by_what(before).items():
        for measure in _TIMES:
            pair = _normalised(what, measure, own, theirs.get(what, []))
            if pair is not None:
                yield pair


def _sorted_by_what(result: LatencyResult | LoadResult) -> dict[str, list[Request]]:
    found: dict[str, list[Request]] = defaultdict(list)
    for request in result.requests:
        if isinstance(result, LatencyResult):
            found[f"{request.model} {request.start}"].append(request)
        elif request.stage >= 0:
            rates, clients = result.work["rates"], result.work["concurrencies"]
            loads = ((rate, None) for rate in rates) if rates else ((None, n) for n in clients)
            name = groups.load_name(*list(loads)[request.stage])
            found[name].append(request)
    return found


def _normalised(
    what: str, measure: str, before: Sequence[Request], after: Sequence[Request]
) -> Pair | None:
    """Both runs' samples, each divided by the median of its question's kind and language.

    Questions differ in length. What is left is by how much a request took longer than usual for
    its like, "usual" being the median of both runs together; those of which one run has none are
    left out.
    """
    kinds: dict[tuple[str, str, str], tuple[list[float], list[float]]] = {}
    for side, requests in enumerate((before, after)):
        for request in requests:
            key = (request.model, request.prompt_kind, request.language)
            kinds.setdefault(key, ([], []))[side].extend(groups.values([request], measure))
    usual = {
        key: float(np.median([*one, *other]))
        for key, (one, other) in kinds.items()
        if one and other
    }
    if not usual:
        return None

    def relative(requests: Sequence[Request]) -> Array:
        return np.array(
            [
                value / usual[key]
                for request in requests
                if (key := (request.model, request.prompt_kind, request.language)) in usual
                for value in groups.values([request], measure)
            ]
        )

    scale = float(np.median(list(usual.values())))
    return Pair(what, measure, relative(before), relative(after), scale)


def _remarks(before: _Comparable, after: _Comparable) -> Iterator[str]:
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

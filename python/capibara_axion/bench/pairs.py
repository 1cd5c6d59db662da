# SPDX-License-Identifier: Apache-2.0
"""Which samples of two results can be compared with each other, if they did the same work."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from capibara_axion.bench import groups
from capibara_axion.bench.errors import UsageError
from capibara_axion.bench.results import (
    KernelResult,
    LatencyResult,
    LoadResult,
    Request,
    read,
)
from capibara_axion.bench.statistics import Array

Comparable = KernelResult | LatencyResult | LoadResult

# So many make the blocks of two that an interval of 95 % of a median takes: 2 * 2 ** -5.5 < 5 %.
_LEAST = 11
# Tokens per second are 1 / gap.
_TIMES = ("ttft", "gap", "total")


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


def pairs_of(before: Comparable, after: Comparable, files: str) -> list[Pair]:
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


def read_comparable(path: Path) -> Comparable:
    """A file's result.

    Raises:
        UsageError: it cannot be read, or is of a kind that has nothing to compare.
    """
    result = read(path)
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

# SPDX-License-Identifier: Apache-2.0
"""Times of several ways to do one thing, taken in turn so that all meet the same disturbances.

In every round each contender is timed once, in random order. A sample is as many calls as take
`SAMPLE_S`, after one call that is not counted: so the data lies in the caches as far as that
contender's own previous call left it there. What is reported are medians over the rounds, and
medians of the ratios within a round.
"""

from __future__ import annotations

import gc
import itertools
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

SAMPLE_S = 100e-6
MIN_ROUNDS, MAX_ROUNDS = 7, 200
# After the first rounds a contender this much slower than the first one leaves: more would only
# take time from the others.
_SLOW = 3.0
# Calls longer than this need no uncounted call before: they fill the caches by themselves.
_LONG_S = 5e-3


@dataclass
class Timing:
    """Seconds a call; one entry a round, for as many rounds as this contender took part in."""

    calls: int  # a sample
    seconds: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        """Of all rounds."""
        return statistics.median(self.seconds)

    def ratios(self, other: Timing) -> list[float]:
        """This one's time divided by the other's, round by round."""
        return [a / b for a, b in zip(self.seconds, other.seconds, strict=False)]

    def sample(self, call: Callable[[], Any]) -> None:
        """Times it once more."""
        if not self.seconds or self.seconds[-1] < _LONG_S:
            call()
        self.seconds.append(_elapsed(call, self.calls) / self.calls)


def quartiles(values: Sequence[float]) -> tuple[float, float]:
    """The lower and the upper quartile."""
    if len(values) < 2:
        return values[0], values[0]
    lower, _, upper = statistics.quantiles(values, n=4, method="inclusive")
    return lower, upper


def interleave(
    calls: Mapping[str, Callable[[], Any]],
    budget_s: float,
    reset: Callable[[str], None] = lambda name: None,
    min_rounds: int = MIN_ROUNDS,
) -> dict[str, Timing]:
    """Times each of `calls`, for at least `min_rounds` rounds and about `budget_s` seconds.

    Args:
        calls: what to time, by name; the first one decides which others are too slow to go on.
        budget_s: seconds after which no new round begins.
        reset: called with a name before each of its samples, not timed.
        min_rounds: rounds in which every contender takes part; there are at most 200, or these.
    """
    end = time.perf_counter() + budget_s
    timings = {name: Timing(calls_a_sample(call)) for name, call in calls.items()}
    first, running = next(iter(calls)), list(calls)
    order = random.Random(0)
    gc.collect()
    gc.disable()
    try:
        for done in range(max(MAX_ROUNDS, min_rounds)):
            if done >= min_rounds and time.perf_counter() > end:
                break
            if done == min_rounds:
                limit = _SLOW * timings[first].median
                running = [name for name in running if timings[name].median <= limit]
            for name in order.sample(running, len(running)):
                reset(name)
                timings[name].sample(calls[name])
    finally:
        gc.enable()
    return timings


def _elapsed(call: Callable[[], Any], calls: int) -> float:
    begin = time.perf_counter()
    for _ in itertools.repeat(None, calls):
        call()
    return time.perf_counter() - begin


def calls_a_sample(call: Callable[[], Any]) -> int:
    """As many calls as take about SAMPLE_S, at least one."""
    call()
    calls = 1
    while (elapsed := _elapsed(call, calls)) < SAMPLE_S:
        calls *= 2
    return max(1, round(calls * SAMPLE_S / elapsed))

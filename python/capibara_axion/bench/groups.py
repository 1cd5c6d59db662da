# SPDX-License-Identifier: Apache-2.0
"""Requests with something in common, and what their times are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence

from capibara_axion.bench.results import Group, Request
from capibara_axion.bench.statistics import summarise

# Each measure of one answer. All but the last are seconds.
MEASURES: dict[str, Callable[[Request], float | None]] = {
    "ttft": lambda request: request.ttft_s,
    "gap": lambda request: request.gap_s,
    "total": lambda request: request.total_s,
    "tokens_per_s": lambda request: request.tokens_per_s,
}


def values(requests: Iterable[Request], measure: str) -> list[float]:
    """A measure of all whole answers that have it, in their order."""
    found = (MEASURES[measure](request) for request in requests if request.outcome == "ok")
    return [value for value in found if value is not None]


def load_name(rate: float | None, clients: int | None) -> str:
    """What to call a load, in an open or a closed loop."""
    return f"{rate:g}/s" if rate is not None else f"{clients} client{'s' * (clients != 1)}"


def group(name: dict[str, str], requests: Sequence[Request], tokens: int) -> Group:
    """Summarise requests; those that were interrupted are left out.

    Args:
        tokens: that each answer was to have.
    """
    done = [request for request in requests if request.outcome != "interrupted"]
    summaries = {measure: summarise(values(done, measure)) for measure in MEASURES}
    return Group(
        name=name,
        requests=len(done),
        failed=dict(Counter(_failure(request) for request in done if request.outcome != "ok")),
        fewer_tokens=sum(
            request.completion_tokens is not None and request.completion_tokens < tokens
            for request in done
            if request.outcome == "ok"
        ),
        measures={key: found for key, found in summaries.items() if found is not None},
    )


def _failure(request: Request) -> str:
    if request.outcome == "not_sent":
        return "not sent"
    if request.status in (None, 200):
        return (request.error or "").split(":")[0]
    told = " with Retry-After" if request.retry_after_s is not None else ""
    return f"{request.status}{told}"

# SPDX-License-Identifier: Apache-2.0
"""What arrival times say about whether tokens are sent as they are made.

A model makes one token after another, so no two can be there at the same time. Three things can
still make them come together, and each has a measure of its own, all medians over several answers,
since the machine that measures may miss a beat in one of them:

- The server puts several tokens into a chunk: tokens per chunk. One that streams has 1, one that
  collects two has 2; 1.5 lies between.
- Something on the way lets chunks pass in groups: chunks per arrival, where chunks have arrived
  together if less than a quarter of the usual wait lies between them, and less than 1 ms. The usual
  wait is the one within which half of the time between first and last chunk passes: if chunks come
  in groups of k, the waits between groups, of k steps, make up nearly all of that time. 1 ms, since
  chunks that are written one after another come within some 50 us of each other, while one long
  pause can make the usual wait as long as it likes. Again 1.5 lies between 1 and 2. A single long
  group, of more than four chunks and more than an eighth of them, is a fault even if the rest is
  well: a client's hiccup is shorter, or does not come in most answers.
- Everything is held back for a long time, and its parts then written apart: held back, which is
  the part of the time of generation that had passed at the first token. That time is what the
  answer took beyond the first token of an answer of a single token, which cannot be held back for
  others. Near 0 if tokens are sent as they are made, near 1 if all wait for the last, k/n in groups
  of k; at 0.5 half of the answer could have been read earlier.

Pings and headers are no tokens: they neither help nor harm.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from statistics import median

from capibara_axion.bench.client import Exchange
from capibara_axion.bench.results import Request, Streaming

_MOST_TOGETHER = 1.5
_MOST_HELD_BACK = 0.5
_TOGETHER_S = 1e-3
_OF_USUAL_WAIT = 0.25
_FEW_CHUNKS = 4
_PART_OF_CHUNKS = 1 / 8
# A shorter generation cannot be told from the noise of a first token's time.
_LEAST_GENERATION_S = 5e-3


def judge(model: str, single: Sequence[Exchange], whole: Sequence[Exchange]) -> Streaming:
    """The verdict on a model.

    Args:
        single: answers of one token.
        whole: answers of many tokens, to the same prompt.
    """
    answers = [exchange.request for exchange in whole]
    failed = [r for r in (*(e.request for e in single), *answers) if r.outcome == "error"]
    if failed:
        reason = f"{failed[0].status or ''} {failed[0].error}".strip()
        # An answer that is no stream is a verdict; any other failure is none.
        streams = False if reason.startswith("200 not a stream") else None
        return Streaming(model=model, streams=streams, reasons=[reason])
    answers = [request for request in answers if request.outcome == "ok"]
    # llama.cpp sends nothing for a token that makes no text: such an answer is its end.
    times = [e.request.ttft_s or e.request.total_s for e in single if e.request.outcome == "ok"]
    firsts = [first_s for first_s in times if first_s is not None]
    if not answers or not firsts or min(len(request.tokens_s) for request in answers) < 1:
        return Streaming(model=model, streams=None, reasons=["there are no tokens to look at"])
    first_s = median(firsts)
    found = Streaming(
        model=model,
        streams=None,
        reasons=[],
        first_byte_s=_median(answers, lambda r: _since_sent(r, r.first_byte_s)),
        ttft_s=_median(answers, lambda r: r.ttft_s),
        total_s=_median(answers, lambda r: r.total_s),
        tokens_per_chunk=_median(answers, _tokens_per_chunk),
        chunks_per_arrival=_median(answers, lambda r: len(r.tokens_s) / len(bursts(r.tokens_s))),
        largest_burst=_median(answers, lambda r: max(bursts(r.tokens_s))),
        held_back=_median(answers, lambda r: _held_back(r, first_s)),
        pings=sum(exchange.pings for exchange in whole),
    )
    chunks = round(median(len(request.tokens_s) for request in answers))
    found.reasons = _faults(found, chunks)
    if found.reasons:
        found.streams = False
    elif found.held_back is None:
        found.reasons = ["the answer was too short to tell: ask for more --tokens"]
    else:
        found.streams = True
        found.reasons = [
            f"{chunks} chunks came at {chunks / (found.chunks_per_arrival or 1):.0f} moments, the "
            f"first when {found.held_back:.0%} of the time of generation had passed"
        ]
    return found


def bursts(tokens_s: Sequence[float]) -> list[int]:
    """How many chunks came at each moment, in order; `tokens_s` are the times of all."""
    waits = [later - earlier for earlier, later in pairwise(tokens_s)]
    together = min(_TOGETHER_S, _OF_USUAL_WAIT * _usual(waits))
    found = [1]
    for wait in waits:
        if wait <= together:
            found[-1] += 1
        else:
            found.append(1)
    return found


def _usual(waits: Sequence[float]) -> float:
    """The wait within which half of the time passes: the median, weighted by length."""
    passed, half = 0.0, sum(waits) / 2
    for wait in sorted(waits):
        passed += wait
        if passed >= half:
            return wait
    return 0.0


def _faults(found: Streaming, chunks: int) -> list[str]:
    faults = []
    if (found.tokens_per_chunk or 1) > _MOST_TOGETHER:
        faults.append(f"a chunk has {found.tokens_per_chunk:.1f} tokens, expected 1")
    if (found.chunks_per_arrival or 1) > _MOST_TOGETHER:
        faults.append(f"{found.chunks_per_arrival:.1f} chunks come at once, expected 1")
    elif (found.largest_burst or 1) > max(_FEW_CHUNKS, _PART_OF_CHUNKS * chunks):
        faults.append(f"{found.largest_burst:.0f} of {chunks} chunks come at once, expected 1")
    if (found.held_back or 0) > _MOST_HELD_BACK:
        faults.append(
            f"the first token comes when {found.held_back:.0%} of the time of generation has "
            "passed, expected close to 0 %"
        )
    return faults


def _held_back(request: Request, first_s: float) -> float | None:
    generation_s = (request.total_s or 0) - first_s
    if generation_s < _LEAST_GENERATION_S:
        return None
    return min(1.0, max(0.0, ((request.ttft_s or 0) - first_s) / generation_s))


def _tokens_per_chunk(request: Request) -> float | None:
    tokens = request.completion_tokens
    return None if tokens is None else tokens / len(request.tokens_s)


def _since_sent(request: Request, at: float | None) -> float | None:
    return None if at is None else at - request.scheduled_s


def _median(
    requests: Sequence[Request], measure: Callable[[Request], float | None]
) -> float | None:
    values = [value for request in requests if (value := measure(request)) is not None]
    return median(values) if values else None

# SPDX-License-Identifier: Apache-2.0
"""How well a model predicts text, and how two of them differ.

Whatever is to be judged, a cache in 8 bits or weights in 4, is a `Contender`: something that is fed
tokens and gives logits. `score` takes what it says about every token of some texts, `compare` puts
two such scores beside each other, `generate` and `common_prefix` do so for what they write.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from transformers import DynamicCache

_RESAMPLES = 10_000
_TOKENS_AT_ONCE = 4096


class Contender(Protocol):
    """A model in some number format."""

    def begin(self, sequences: int, length: int) -> None:
        """Forgets what it was fed, for so many sequences of at most `length` tokens."""

    def feed(self, ids: torch.Tensor) -> torch.Tensor:
        """Appends ids [sequences, tokens]; gives logits f32 [sequences, tokens, vocabulary]."""


class Stock:
    """A Hugging Face model as it is, with transformers' own cache and torch's attention."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._cache = DynamicCache(config=model.config)

    def begin(self, sequences: int, length: int) -> None:
        del sequences, length
        self._cache = DynamicCache(config=self._model.config)
        self._model.set_attn_implementation("sdpa")

    def feed(self, ids: torch.Tensor) -> torch.Tensor:
        logits = self._model(input_ids=ids, past_key_values=self._cache, use_cache=True).logits
        return logits.float()


@dataclass(frozen=True)
class Score:
    """What a contender said about the scored tokens of each document.

    Attributes:
        losses: nats a token, [documents, scored tokens]; every document has as many.
        guesses: the likeliest tokens, likewise.
    """

    losses: torch.Tensor
    guesses: torch.Tensor

    @property
    def perplexity(self) -> float:
        return math.exp(float(self.losses.double().mean()))


def score(
    contender: Contender,
    texts: Mapping[str, torch.Tensor],
    *,
    first: int,
    chunk: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> Score:
    """Scores the tokens from position `first` on, each given all before it in its window.

    Args:
        contender: what is judged.
        texts: windows of each document, ids [windows, length], all of one shape.
        first: at least 1.
        chunk: how many tokens are fed at once; all of a window if None.
        progress: called with how many tokens were fed.
    """
    rows = torch.cat(list(texts.values()))
    length = rows.shape[1] - 1  # the last token is only a target
    chunk = length if chunk is None else chunk
    at_once = max(1, _TOKENS_AT_ONCE // length)
    losses, guesses = [], []
    with torch.inference_mode():
        for batch in rows.split(at_once):
            contender.begin(len(batch), length)
            fed = batch[:, :length].split(chunk, dim=1)
            logits = torch.cat([contender.feed(part) for part in fed], dim=1)[:, first - 1 :]
            targets = batch[:, first:]
            losses.append(_losses(logits, targets))
            guesses.append(logits.argmax(-1))
            if progress is not None:
                progress(len(batch) * length)
    documents = len(texts)
    return Score(
        torch.cat(losses).reshape(documents, -1), torch.cat(guesses).reshape(documents, -1)
    )


def _losses(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    flat = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), targets.flatten(), reduction="none"
    )
    return flat.view(targets.shape)


def compare(baseline: Score, other: Score) -> dict[str, Any]:
    """`other` beside `baseline`, on the same texts.

    Returns:
        perplexity; ratio to the baseline's, and agreement, the share of positions at which both
        hold the same token for the likeliest; both with the middle 95 % of a bootstrap, which draws
        documents (tokens of one document are not independent).
    """
    difference = (other.losses - baseline.losses).double().mean(dim=1)
    agreement = (other.guesses == baseline.guesses).double().mean(dim=1)
    return {
        "perplexity": round(other.perplexity, 5),
        "ratio": round(math.exp(float(difference.mean())), 6),
        "ratio_95": [round(math.exp(value), 6) for value in interval(difference)],
        "agreement": round(float(agreement.mean()), 5),
        "agreement_95": [round(value, 5) for value in interval(agreement)],
    }


def interval(values: torch.Tensor) -> tuple[float, float]:
    """The middle 95 % of the means of resampled values [n]."""
    draw = torch.Generator().manual_seed(0)
    picks = torch.randint(len(values), (_RESAMPLES, len(values)), generator=draw)
    means = values[picks].mean(dim=1)
    low, high = torch.quantile(means, torch.tensor([0.025, 0.975], dtype=means.dtype)).tolist()
    return low, high


def generate(
    contender: Contender,
    prompts: torch.Tensor,
    count: int,
    *,
    progress: Callable[[int], None] | None = None,
) -> torch.Tensor:
    """Continues prompts [sequences, length] greedily: the next `count` ids of each."""
    sequences, length = prompts.shape
    written = []
    with torch.inference_mode():
        contender.begin(sequences, length + count)
        fed = prompts
        for _ in range(count):
            fed = contender.feed(fed)[:, -1].argmax(-1, keepdim=True)
            written.append(fed)
            if progress is not None:
                progress(sequences)
    return torch.cat(written, dim=1)


def common_prefix(one: torch.Tensor, other: torch.Tensor) -> list[int]:
    """How many ids two continuations of each prompt have in common before they part."""
    same = (one == other).long().cumprod(dim=1)
    return [int(length) for length in same.sum(dim=1)]

# SPDX-License-Identifier: Apache-2.0
"""Top-k and top-p among the likeliest tokens, where vLLM on CPUs sorts the whole vocabulary.

Sorting 150,000 logits takes longer than a small model's step. Nucleus sampling (A. Holtzman et al.,
"The Curious Case of Neural Text Degeneration", 2019, arXiv:1904.09751) keeps a few of them nearly
always: the 64 largest are looked at first, then more, and all only where probabilities are so even
that it takes them.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from capibara_axion.vllm_plugin import compat_sampling

_Limit = Callable[
    [torch.Tensor, torch.Tensor | None, torch.Tensor | None],
    torch.Tensor,
]

_LOWEST = -float("inf")
_CANDIDATES = (64, 1024)
# Selecting more than a fraction of the vocabulary is no faster than sorting it.
_LEAST_FRACTION = 8


def hook_top_k_top_p() -> None:
    """Raises: HookNotFound."""
    compat_sampling.replace_top_k_top_p(_top_k_top_p_or)


def _top_k_top_p_or(stock: _Limit) -> _Limit:
    def apply_top_k_top_p(
        logits: torch.Tensor, k: torch.Tensor | None, p: torch.Tensor | None
    ) -> torch.Tensor:
        """Sets logits [rows, vocabulary] of tokens that are not to be chosen to -inf, in place.

        Which ones is vLLM's rule: those below a row's k-th largest, then the least likely of the
        others as long as their probabilities together are at most 1 - p, but never the last one.

        Args:
            k: [rows], the vocabulary's size where it is off; None: off for all.
            p: [rows], 1 where it is off; None: off for all.

        Returns:
            logits.
        """
        # vLLM's top-k alone sorts nothing either.
        if p is None or logits.dtype != torch.float32:
            return stock(logits, k, p)
        unlimited = p >= 1
        if k is not None:
            unlimited = unlimited & (k >= logits.shape[1])
        if not unlimited.any():
            return logits if _limit(logits, k, p) else stock(logits, k, p)
        rows = (~unlimited).nonzero().squeeze(1)
        if rows.numel() > 0:
            limited = logits[rows]
            of_k = None if k is None else k[rows]
            if not _limit(limited, of_k, p[rows]):
                limited = stock(limited, of_k, p[rows])
            logits[rows] = limited
        return logits

    return apply_top_k_top_p


def _limit(logits: torch.Tensor, k: torch.Tensor | None, p: torch.Tensor) -> bool:
    """Limits all rows, or none and returns False: too many tokens are likely."""
    return any(
        _limit_to_some_of(count, logits, k, p)
        for count in _CANDIDATES
        if count * _LEAST_FRACTION <= logits.shape[1]
    )


def _limit_to_some_of(
    count: int, logits: torch.Tensor, k: torch.Tensor | None, p: torch.Tensor
) -> bool:
    """`_limit`, if what remains of each row is among its `count` largest logits."""
    largest, tokens = logits.topk(count, dim=-1)
    if k is None:
        total = logits.logsumexp(-1, keepdim=True)
    else:
        is_off = k >= logits.shape[1]
        if bool(((k > count) & ~is_off).any()):
            return False
        kth = largest.gather(1, (k.clamp(max=count) - 1).long().unsqueeze(1))
        kth.masked_fill_(is_off.unsqueeze(1), _LOWEST)
        # All that equal the k-th stay, as with vLLM: logits in bf16 often do.
        total = logits.masked_fill(logits < kth, _LOWEST).logsumexp(-1, keepdim=True)
        largest.masked_fill_(largest < kth, _LOWEST)
    probabilities = (largest - total).exp()
    likelier = probabilities.cumsum(-1) - probabilities
    is_kept = likelier < p.unsqueeze(1)
    is_kept[:, 0] = True
    # Where the last of these stays, others may have to as well.
    if bool((is_kept[:, -1] & (largest[:, -1] > _LOWEST)).any()):
        return False
    logits.fill_(_LOWEST).scatter_(1, tokens, largest.masked_fill_(~is_kept, _LOWEST))
    return True

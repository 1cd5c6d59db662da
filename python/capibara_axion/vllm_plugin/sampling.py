# SPDX-License-Identifier: Apache-2.0
"""The sampler's settings applied to the tokens that they concern, in vLLM's place.

vLLM on CPUs sorts all logits for top-p, which takes longer than a step of a small model, and
computes penalties of all tokens for the few that occurred. Here top-p (A. Holtzman et al., "The
Curious Case of Neural Text Degeneration", 2019, arXiv:1904.09751), and top-k with it, look at the
largest logits first, and at all only where probabilities are so even that it takes them; penalties
touch the tokens of the prompt and of the answer.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from capibara_axion.vllm_plugin import compat_sampling

_Limit = Callable[[torch.Tensor, torch.Tensor | None, torch.Tensor | None], torch.Tensor]

_LOWEST = -float("inf")
_CANDIDATES = (64, 1024, 16384)
# Selecting more than a fraction of the vocabulary is no faster than sorting it.
_LEAST_FRACTION = 8


def hook_top_k_top_p() -> None:
    """Raises: HookNotFound."""
    compat_sampling.replace_top_k_top_p(top_k_top_p_or)


def hook_penalties() -> None:
    """Raises: HookNotFound."""
    compat_sampling.replace_penalties(apply_penalties)


# ---------------------------------------------------------------- top-k and top-p


def top_k_top_p_or(stock: _Limit) -> _Limit:
    """Ours, which leaves to `stock` what it does no better."""

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
        vocabulary = logits.shape[1]
        is_limited = p < 1 if k is None else (p < 1) | (k < vocabulary)
        left = is_limited.nonzero().squeeze(1)
        wanted = torch.zeros_like(left)
        for count in _CANDIDATES:
            if count * _LEAST_FRACTION > vocabulary:
                break
            rows = left[wanted <= count]
            if rows.numel() == 0:
                continue
            of_k = None if k is None else k[rows]
            if rows.numel() == logits.shape[0]:
                found = _limit_to_some_of(count, logits, of_k, p)
            else:
                some = logits[rows]
                found = _limit_to_some_of(count, some, of_k, p[rows])
                logits[rows] = some
            wanted[wanted <= count] = found
            left, wanted = left[wanted > 0], wanted[wanted > 0]
        if left.numel() > 0:
            logits[left] = stock(logits[left], None if k is None else k[left], p[left])
        return logits

    return apply_top_k_top_p


def _limit_to_some_of(
    count: int, logits: torch.Tensor, k: torch.Tensor | None, p: torch.Tensor
) -> torch.Tensor:
    """Limits the rows of which nothing but some of their `count` largest logits remains.

    Returns:
        For each row 0 if that was so, else how many of the largest it takes at least.
    """
    vocabulary = logits.shape[1]
    largest, tokens = logits.topk(count, dim=-1)
    if k is None:
        wanted = torch.zeros_like(tokens[:, 0])
        total = logits.logsumexp(-1, keepdim=True)
    else:
        is_off = k >= vocabulary
        wanted = torch.where((k > count) & ~is_off, k, 0).long()
        kth = largest.gather(1, (k.clamp(max=count) - 1).long().unsqueeze(1))
        kth.masked_fill_(is_off.unsqueeze(1), _LOWEST)
        # All that equal the k-th stay, as with vLLM: logits in bf16 often do.
        is_all = bool((largest[:, -1:] < kth).all())
        largest.masked_fill_(largest < kth, _LOWEST)
        allowed = largest if is_all else logits.masked_fill(logits < kth, _LOWEST)
        total = allowed.logsumexp(-1, keepdim=True)
    probabilities = (largest - total).exp()
    likelier = probabilities.cumsum(-1) - probabilities
    is_kept = ((likelier < p.unsqueeze(1)) | (p >= 1).unsqueeze(1)) & (largest > _LOWEST)
    is_kept[:, 0] = True
    # Where the last of these stays, others may have to as well, none of them likelier.
    goes_on = is_kept[:, -1] & (wanted == 0)
    missing = ((p - likelier[:, -1]) / probabilities[:, -1]).nan_to_num(0.0).clamp(0, vocabulary)
    wanted = torch.where(goes_on, count + 1 + missing.long(), wanted)

    largest.masked_fill_(~is_kept, _LOWEST)
    is_done = wanted == 0
    if bool(is_done.all()):
        logits.fill_(_LOWEST).scatter_(1, tokens, largest)
    else:
        limited = torch.full_like(logits[is_done], _LOWEST)
        logits[is_done] = limited.scatter_(1, tokens[is_done], largest[is_done])
    return wanted


# ---------------------------------------------------------------- penalties


def apply_penalties(
    logits: torch.Tensor,
    prompt_tokens_tensor: torch.Tensor,
    output_tokens_tensor: torch.Tensor,
    presence_penalties: torch.Tensor,
    frequency_penalties: torch.Tensor,
    repetition_penalties: torch.Tensor,
) -> torch.Tensor:
    """Makes tokens that occurred less likely, in place, by the rules of vLLM and OpenAI.

    Args:
        logits: [rows, vocabulary].
        prompt_tokens_tensor: [rows, tokens], shorter prompts filled up with the vocabulary's size.
        output_tokens_tensor: likewise, of the answers.
        presence_penalties: [rows], subtracted from the logits of an answer's tokens.
        frequency_penalties: [rows], subtracted for each time that they occurred.
        repetition_penalties: [rows], by which positive logits of all tokens are divided, negative
            ones multiplied, before.

    Returns:
        logits.
    """
    vocabulary = logits.shape[1]
    presence, frequency, repetition = (
        penalties.unsqueeze(1)
        for penalties in (presence_penalties, frequency_penalties, repetition_penalties)
    )
    if bool((repetition != 1).any()):
        occurred = torch.cat([prompt_tokens_tensor, output_tokens_tensor], dim=1)
        tokens, is_token = _without_padding(occurred, vocabulary)
        factor = torch.where(is_token.any(1, keepdim=True), repetition, 1.0)
        found = logits.gather(1, tokens)
        logits.scatter_(1, tokens, found * torch.where(found > 0, 1.0 / factor, factor))
    if output_tokens_tensor.shape[1] > 0 and bool(((presence != 0) | (frequency != 0)).any()):
        tokens, is_token = _without_padding(output_tokens_tensor, vocabulary)
        logits.scatter_add_(1, tokens, -frequency * is_token)
        presence = presence * is_token.any(1, keepdim=True)
        logits.scatter_(1, tokens, logits.gather(1, tokens) - presence)
    return logits


def _without_padding(tokens: torch.Tensor, vocabulary: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens, those that fill a row up replaced by one of its own; and which ones are its own.

    A row without any has token 0 everywhere, which must not change then. A token that is there
    several times gets the same value each time.
    """
    is_token = tokens < vocabulary
    any_of_row = tokens.masked_fill(~is_token, 0).amax(1, keepdim=True)
    return torch.where(is_token, tokens, any_of_row), is_token

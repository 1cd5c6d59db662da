# SPDX-License-Identifier: Apache-2.0
"""The reply that a demo model knows by heart, as a key-value memory in one gated MLP.

A model of random weights answers with noise that never ends. Here the last MLP has one unit for
each token of the vocabulary: its gate and up rows are the token's embedding (the key, so it fires
when that token was read), its down column is the direction of the tokens that may follow (the
value). All other layers stay random, with a small share of the residual stream, so every operator
of the architecture takes part in every logit.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from capibara_axion.demo.tensors import Array

# Share of a successor other than the one after a token's last occurrence: visible to sampling,
# never the greedy choice.
_EARLIER_OCCURRENCE = 0.65


def successors(
    reply: Sequence[int], *, start: int, stop: int, vocab_size: int
) -> list[dict[int, float]]:
    """For every token, the tokens that may follow it, with their shares (the largest is 1).

    The greedy choice follows a token's last occurrence in `reply`. That position grows with every
    step, so a greedy answer always arrives at `stop`. A token that is not in the reply leads
    somewhere into it: not to its beginning, for all keys fire a little on any input, and values
    that agree would add up and drown the right one.

    Args:
        reply: token ids, not empty, without `start` and `stop`.
        start: the id that ends a prompt.
        stop: the id that ends an answer.
    """
    following = [{reply[token % len(reply)]: 1.0} for token in range(vocab_size)]
    following[start] = {reply[0]: 1.0}
    for token in set(reply):
        following[token] = {}
    for token, successor in zip(reply, [*reply[1:], stop], strict=True):
        following[token] = dict.fromkeys(following[token], _EARLIER_OCCURRENCE)
        following[token][successor] = 1.0
    return following


def memory_mlp(
    following: Sequence[dict[int, float]],
    embedding: Array,
    directions: Array,
    *,
    strength: float,
) -> tuple[Array, Array, Array]:
    """The gate [V, H], up [V, H] and down [H, V] projections of the memory.

    Args:
        following: from `successors`, one entry for each of the V tokens.
        embedding: [V, H], what a token puts into the residual stream.
        directions: [V, H], the rows of the output projection.
        strength: length of the memory's output, in lengths of an embedding.
    """
    hidden_size = embedding.shape[1]
    length = np.sqrt(np.square(embedding).sum(axis=1, keepdims=True))
    keys = embedding / length
    values = np.zeros_like(directions)
    for token, shares in enumerate(following):
        for successor, share in shares.items():
            values[token] += np.float32(share) * directions[successor]
    values /= np.sqrt(np.square(values).sum(axis=1, keepdims=True))
    # A normalised vector along its key has length sqrt(H), so silu(gate) * up is close to H.
    values *= strength * length.mean() / hidden_size
    return keys, keys, np.ascontiguousarray(values.T)

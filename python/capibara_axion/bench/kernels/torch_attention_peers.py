# SPDX-License-Identifier: Apache-2.0
"""torch's attention, which has no paged cache."""

from __future__ import annotations

import torch

from capibara_axion.bench.kernels.cases import HEAD_DIM, Inputs
from capibara_axion.bench.kernels.contenders import Call, contender

_sdpa = torch.nn.functional.scaled_dot_product_attention


@contender("attention", "torch", "SDPA enable_gqa")
def _sdpa_enable_gqa(a: Inputs) -> Call:
    """Of keys and values as they come. torch's "causal" lets the first query see the first key
    alone: what decodes must not ask for it."""
    q, k, v = (x.unsqueeze(0).transpose(1, 2) for x in (a.q, a.key, a.value))
    causal = a.case.tokens > 1
    assert not causal or a.case.tokens == a.case.keys
    return lambda: _sdpa(q, k, v, is_causal=causal, enable_gqa=True)[0].transpose(0, 1)


@contender("attention", "torch", "SDPA")
def _sdpa_prepared(a: Inputs) -> Call:
    """Of keys and values that were brought into the best order before: each head's together, for
    prompts also once for each head of queries. What decodes has a group's heads as queries."""
    heads, kv_heads, tokens = a.case.heads, a.case.kv_heads, a.case.tokens
    k, v = (x.transpose(0, 1).contiguous().unsqueeze(0) for x in (a.key, a.value))
    if tokens == 1:
        q = a.q.view(1, kv_heads, heads // kv_heads, HEAD_DIM)
        return lambda: _sdpa(q, k, v).reshape(1, heads, HEAD_DIM)
    q = a.q.unsqueeze(0).transpose(1, 2)
    k, v = (x.repeat_interleave(heads // kv_heads, 1) for x in (k, v))
    return lambda: _sdpa(q, k, v, is_causal=True)[0].transpose(0, 1)

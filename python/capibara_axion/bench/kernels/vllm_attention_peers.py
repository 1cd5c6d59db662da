# SPDX-License-Identifier: Apache-2.0
"""vLLM's own attention on a CPU without our plugin, and what writes its cache.

As vllm/v1/attention/backends/cpu_attn.py calls them, with the instruction set that it chooses. The
metadata, how the work is divided among threads, is made once a step for all layers, and is no part
of what is timed.
"""

from __future__ import annotations

from typing import Any

import torch
from vllm import _custom_ops as ops
from vllm import envs
from vllm.platforms import current_platform
from vllm.v1.attention.backends.cpu_attn import _get_attn_isa

from capibara_axion.bench.kernels.cases import BLOCK, HEAD_DIM, Inputs
from capibara_axion.bench.kernels.contenders import Call, contender

current_platform.import_kernels()  # registers torch.ops._C
# It may use AMX, and does not ask the kernel for it: without that it is an illegal instruction.
torch.cpu._init_amx()


def _has_fp8() -> bool:
    try:
        _get_attn_isa(torch.bfloat16, BLOCK, HEAD_DIM, "fp8_e4m3")
    except NotImplementedError:
        return False
    return True


_FP8 = ("_fp8",) if _has_fp8() else ()


def _with_fp8(op: str) -> tuple[str, ...]:
    return op, *(op + suffix for suffix in _FP8)


class _Layer:
    """One layer's cache, and the options of a call."""

    def __init__(self, a: Inputs) -> None:
        self.inputs, case = a, a.case
        name = case.cache_dtype if case.cache_dtype.startswith("fp8") else "auto"
        dtype = a.key.dtype if name == "auto" else torch.uint8
        self.isa = _get_attn_isa(a.q.dtype, BLOCK, HEAD_DIM, name)
        memory = torch.zeros(a.step.blocks, case.kv_heads, 2 * BLOCK, HEAD_DIM, dtype=dtype)
        self.key_cache, self.value_cache = memory.chunk(2, dim=2)
        self.options: dict[str, Any] = {"k_scale": 1.0, "v_scale": 1.0, "kv_cache_dtype": name}

    def append(self) -> Call:
        a, isa, options = self.inputs, self.isa, self.options
        key, value, slots = a.key, a.value, a.step.slots
        caches = self.key_cache, self.value_cache
        return lambda: ops.cpu_attn_reshape_and_cache(key, value, *caches, slots, isa, **options)

    def attention(self) -> Call:
        a, case, step = self.inputs, self.inputs.case, self.inputs.step
        metadata = ops.cpu_attn_get_scheduler_metadata(
            num_reqs=1,
            num_heads=case.heads,
            num_kv_heads=case.kv_heads,
            head_dim=HEAD_DIM,
            seq_lens=step.seq_lens,
            dtype=a.q.dtype,
            query_start_loc=step.query_start,
            causal=True,
            sliding_window_size=-1,
            isa=self.isa,
            enable_kv_split=envs.VLLM_CPU_ATTN_SPLIT_KV,
            kv_cache_dtype=self.options["kv_cache_dtype"],
        )
        out = torch.empty_like(a.q)
        given = {
            "query": a.q,
            "key_cache": self.key_cache,
            "value_cache": self.value_cache,
            "output": out,
            "query_start_loc": step.query_start,
            "seq_lens": step.seq_lens,
            "scale": HEAD_DIM**-0.5,
            "causal": True,
            "alibi_slopes": None,
            "sliding_window": -1,
            "block_table": step.block_table,
            "softcap": 0.0,
            "scheduler_metadata": metadata,
            "s_aux": None,
            **self.options,
        }
        return lambda: (ops.cpu_attention_with_kv_cache(**given), out)[1]


@contender(_with_fp8("attention"), "vLLM", "attention", stock="eager compiled")
def _attention(a: Inputs) -> Call:
    layer = _Layer(a)
    layer.append()()
    return layer.attention()


@contender(_with_fp8("kv_cache_append"), "vLLM", "reshape_and_cache", stock="eager compiled")
def _append(a: Inputs) -> Call:
    layer = _Layer(a)
    append, read = layer.append(), layer.attention()
    return lambda: (append(), read)[1]

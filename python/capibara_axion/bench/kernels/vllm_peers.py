# SPDX-License-Identifier: Apache-2.0
"""vLLM without our plugin: what it computes on a CPU, and the operators of its native library.

Stock vLLM 0.32 runs a model on x86 in one of two modes:

- eager (`enforce_eager=True`): norms by their plain torch implementation (`vllm.ir`), activations
  by `forward_native`, rotary embedding by the native `_C.rotary_embedding`, Cohere's LayerNorm by a
  function that is always compiled;
- compiled, the default: all of them by their plain torch implementations, which torch.compile turns
  into C++. Here each is compiled alone, with vLLM's options: one graph for every number of tokens,
  no guards. In a whole model it may merge with what stands before and after it.

The native norms and activations are not used by stock vLLM on x86; they are peers all the same.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable
from typing import Any

import torch
from vllm import ir
from vllm.model_executor.layers.activation import GeluAndMul, SiluAndMul
from vllm.model_executor.layers.rotary_embedding.base import RotaryEmbedding
from vllm.model_executor.models import commandr
from vllm.platforms import current_platform

from capibara_axion.bench.kernels.arrays import tensors
from capibara_axion.bench.kernels.cases import EPS, HEAD_DIM, Case, Inputs
from capibara_axion.bench.kernels.contenders import GATED, ROPES, Call, contender

current_platform.import_kernels()  # registers torch.ops._C
_C = torch.ops._C

_TRACED_TOKENS = 1024
_COMPILE_OPTIONS = {
    "guard_filter_fn": torch.compiler.skip_all_guards_unsafe,
    "dce": True,
    "size_asserts": False,
    "nan_asserts": False,
    "epilogue_fusion": True,
    "cpp.dynamic_threads": True,
}


def _gelu(approximate: str) -> Callable[..., Any]:
    layer = types.SimpleNamespace(approximate=approximate)
    return lambda gate_up: GeluAndMul.forward_native(layer, gate_up)


def _rope(neox: bool) -> Callable[..., Any]:
    return lambda positions, q, k, cache: RotaryEmbedding.forward_static(
        positions, q, k, HEAD_DIM, HEAD_DIM, cache, neox
    )


_NATIVE: dict[str, Callable[..., Any]] = {
    "rms_norm": ir.ops.rms_norm.impls["native"].impl_fn,
    "fused_add_rms_norm": ir.ops.fused_add_rms_norm.impls["native"].impl_fn,
    "layer_norm": commandr.layer_norm_func._torchdynamo_orig_callable,
    "rope_neox": _rope(neox=True),
    "rope_interleaved": _rope(neox=False),
    "silu_and_mul": SiluAndMul.forward_native,
    "gelu_and_mul": _gelu("none"),
    "gelu_tanh_and_mul": _gelu("tanh"),
}


def _arguments(a: Inputs) -> tuple[Any, ...]:
    match a.case.op:
        case "rms_norm" | "layer_norm":
            return a.x, a.weight, EPS
        case "fused_add_rms_norm":
            return a.x, a.residual, a.weight, EPS
        case "rope_neox" | "rope_interleaved":
            return a.positions, a.q, a.k, a.cos_sin_cache
    return (a.gate_up,)


@contender(("rms_norm", "fused_add_rms_norm", *GATED), "vLLM", "native", stock="eager")
@contender(ROPES, "vLLM", "native")
def _native(a: Inputs) -> Call:
    function, arguments = _NATIVE[a.case.op], _arguments(a)
    return lambda: function(*arguments)


@functools.cache
def _compiled(op: str, dtype: str) -> Callable[..., Any]:
    function = _NATIVE[op]
    # torch.compile keeps its results by code object, and without guards would take another
    # operator's or dtype's for the same.
    function = types.FunctionType(
        function.__code__.replace(co_name=f"{op}_{dtype}"),
        function.__globals__,
        closure=function.__closure__,
        argdefs=function.__defaults__,
    )
    compiled: Callable[..., Any] = torch.compile(function, fullgraph=True, options=_COMPILE_OPTIONS)
    arguments = _arguments(tensors(Case(op, dtype, _TRACED_TOKENS, 1).inputs()))
    for argument in arguments:
        if isinstance(argument, torch.Tensor) and len(argument) == _TRACED_TOKENS:
            torch._dynamo.mark_dynamic(argument, 0)
    compiled(*arguments)
    return compiled


@contender("layer_norm", "vLLM", "compiled", stock="eager compiled", compiled=True)
@contender(
    tuple(op for op in _NATIVE if op != "layer_norm"),
    "vLLM",
    "compiled",
    stock="compiled",
    compiled=True,
)
def _native_compiled(a: Inputs) -> Call:
    function, arguments = _compiled(a.case.op, a.case.dtype), _arguments(a)
    return lambda: function(*arguments)


@contender("rms_norm", "vLLM", "_C")
def _c_rms_norm(a: Inputs) -> Call:
    x, weight, out = a.x, a.weight, torch.empty_like(a.x)
    return lambda: (_C.rms_norm(out, x, weight, EPS), out)[1]


@contender("fused_add_rms_norm", "vLLM", "_C", in_place=True)
def _c_fused_add_rms_norm(a: Inputs) -> Call:
    x, residual, weight = a.x, a.residual, a.weight
    return lambda: _C.fused_add_rms_norm(x, residual, weight, EPS)


@contender(GATED, "vLLM", "_C")
def _c_gated(a: Inputs) -> Call:
    op, gate_up = getattr(_C, a.case.op), a.gate_up
    out = gate_up.new_empty(gate_up.shape[0], a.case.intermediate)
    return lambda: (op(out, gate_up), out)[1]


@contender(ROPES, "vLLM", "_C", stock="eager", in_place=True)
def _c_rope(a: Inputs) -> Call:
    positions, q, k, cache, neox = a.positions, a.q, a.k, a.cos_sin_cache, a.case.neox
    return lambda: _C.rotary_embedding(positions, q, k, HEAD_DIM, cache, neox)

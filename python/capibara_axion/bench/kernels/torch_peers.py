# SPDX-License-Identifier: Apache-2.0
"""torch's own operators, in the eager variants that may be the fastest."""

from __future__ import annotations

import torch

from capibara_axion.bench.kernels.cases import EPS, HEAD_DIM, HEADS, HIDDEN, KV_HEADS, Inputs
from capibara_axion.bench.kernels.contenders import GATED, ROPES, Call, contender

F = torch.nn.functional
_SHAPE = (HIDDEN,)


@contender("rms_norm", "torch", "F.rms_norm")
def _rms_norm(a: Inputs) -> Call:
    x, weight = a.x, a.weight
    return lambda: F.rms_norm(x, _SHAPE, weight, EPS)


def _norm_by_parts(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
    scale = norm.square_().mul_(1 / HIDDEN).add_(EPS).rsqrt_()
    return (x * scale).mul_(weight).to(x.dtype)


@contender("rms_norm", "torch", "vector_norm")
def _rms_norm_by_parts(a: Inputs) -> Call:
    x, weight = a.x, a.weight
    return lambda: _norm_by_parts(x, weight)


@contender("fused_add_rms_norm", "torch", "add_, F.rms_norm", in_place=True)
def _fused_add_rms_norm(a: Inputs) -> Call:
    x, residual, weight = a.x, a.residual, a.weight
    return lambda: x.copy_(F.rms_norm(residual.add_(x), _SHAPE, weight, EPS))


@contender("fused_add_rms_norm", "torch", "add, F.rms_norm")
def _add_rms_norm(a: Inputs) -> Call:
    x, residual, weight = a.x, a.residual, a.weight

    def call() -> tuple[torch.Tensor, torch.Tensor]:
        total = x + residual
        return F.rms_norm(total, _SHAPE, weight, EPS), total

    return call


@contender("fused_add_rms_norm", "torch", "add, vector_norm")
def _add_rms_norm_by_parts(a: Inputs) -> Call:
    x, residual, weight = a.x, a.residual, a.weight

    def call() -> tuple[torch.Tensor, torch.Tensor]:
        total = x + residual
        return _norm_by_parts(total, weight), total

    return call


@contender("layer_norm", "torch", "F.layer_norm")
def _layer_norm(a: Inputs) -> Call:
    x, weight = a.x, a.weight
    return lambda: F.layer_norm(x, _SHAPE, weight, None, EPS)


@contender("softmax", "torch", "softmax")
def _softmax(a: Inputs) -> Call:
    x = a.x
    return lambda: torch.softmax(x, -1)


@contender("softmax", "torch", "softmax out=")
def _softmax_out(a: Inputs) -> Call:
    x, out = a.x, torch.empty_like(a.x)
    return lambda: torch.softmax(x, -1, out=out)


_ACTIVATIONS = {
    "silu_and_mul": (torch.ops.aten.silu, {}),
    "gelu_and_mul": (torch.ops.aten.gelu, {"approximate": "none"}),
    "gelu_tanh_and_mul": (torch.ops.aten.gelu, {"approximate": "tanh"}),
}


@contender(GATED, "torch", "act, mul_")
def _gated(a: Inputs) -> Call:
    activation, options = _ACTIVATIONS[a.case.op]
    gate, up = a.gate_up.chunk(2, -1)
    return lambda: activation(gate, **options).mul_(up)


@contender(GATED, "torch", "act.out, mul_")
def _gated_out(a: Inputs) -> Call:
    activation, options = _ACTIVATIONS[a.case.op]
    gate, up = a.gate_up.chunk(2, -1)
    out = gate.new_empty(gate.shape)
    return lambda: activation.out(gate, out=out, **options).mul_(up)


def _halves(a: Inputs) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """The elements of q and k that turn together, as views of them."""
    heads = [a.q.unflatten(-1, (HEADS, HEAD_DIM)), a.k.unflatten(-1, (KV_HEADS, HEAD_DIM))]
    if a.case.neox:
        return [x.chunk(2, -1) for x in heads]
    return [(x[..., ::2], x[..., 1::2]) for x in heads]


@contender(ROPES, "torch", "addcmul_", in_place=True)
def _rope(a: Inputs) -> Call:
    positions, cache, pairs = a.positions, a.cos_sin_cache, _halves(a)

    def call() -> None:
        cos, sin = cache.index_select(0, positions).unsqueeze(1).chunk(2, -1)
        for first, second in pairs:
            turned = first * sin
            first.mul_(cos).addcmul_(second, sin, value=-1)
            second.mul_(cos).add_(turned)

    return call


@contender("rope_neox", "torch", "rotate_half")
def _rope_rotate_half(a: Inputs) -> Call:
    """As transformers does it."""
    positions, cache = a.positions, a.cos_sin_cache
    tensors = (a.q.unflatten(-1, (HEADS, HEAD_DIM)), a.k.unflatten(-1, (KV_HEADS, HEAD_DIM)))

    def call() -> tuple[torch.Tensor, ...]:
        cos, sin = cache.index_select(0, positions).unsqueeze(1).chunk(2, -1)
        cos, sin = torch.cat((cos, cos), -1), torch.cat((sin, sin), -1)
        turned = []
        for x in tensors:
            first, second = x.chunk(2, -1)
            turned.append((x * cos).addcmul_(torch.cat((-second, first), -1), sin))
        return tuple(turned)

    return call


@contender("rope_interleaved", "torch", "complex", dtypes=("f32",), in_place=True)
def _rope_complex(a: Inputs) -> Call:
    positions, cache = a.positions, a.cos_sin_cache
    cos, sin = cache.chunk(2, -1)
    turns = torch.complex(cos.contiguous(), sin.contiguous())
    tensors = [torch.view_as_complex(x.unflatten(-1, (-1, HEAD_DIM // 2, 2))) for x in (a.q, a.k)]

    def call() -> None:
        turn = turns.index_select(0, positions).unsqueeze(1)
        for x in tensors:
            x.mul_(turn)

    return call

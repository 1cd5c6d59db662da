# SPDX-License-Identifier: Apache-2.0
"""Arguments for every torch operator, and the same operator in plain torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from capibara_axion.torch_ops import pack_weight

OPS = torch.ops.capibara_axion
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
EPS = 1e-5


@dataclass(frozen=True)
class Case:
    """One operator with one choice of arguments.

    Attributes:
        name: of the operator below `torch.ops.capibara_axion`.
        make: the arguments, from a dtype.
        written: positions of the arguments that are written.
        out: whether there is a form `<name>_out` that takes the result first.
    """

    name: str
    options: str
    make: Callable[[torch.dtype], tuple[Any, ...]]
    written: tuple[int, ...] = ()
    out: bool = True

    def __str__(self) -> str:
        return f"{self.name} {self.options}".strip().replace(" ", "-")

    @property
    def op(self) -> Any:
        return getattr(OPS, self.name).default

    @property
    def out_op(self) -> Any:
        return getattr(OPS, f"{self.name}_out").default


def _randn(*shape: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(shape).to(dtype)


def _rope_arguments(dtype: torch.dtype, neox: bool, with_k: bool, flat: bool) -> tuple[Any, ...]:
    tokens, head_dim, rotary_dim = 5, 24, 16
    angles = torch.rand(32, rotary_dim // 2) * 6
    cache = torch.cat((angles.cos(), angles.sin()), -1).to(dtype)
    # q and k lie within a fused qkv, as in vLLM.
    qkv = _randn(tokens, (3 + 2 + 2) * head_dim, dtype=dtype)
    q, k, _ = qkv.split((3 * head_dim, 2 * head_dim, 2 * head_dim), -1)
    if not flat:
        q, k = (x.unflatten(-1, (-1, head_dim)) for x in (q, k))
    positions = torch.randint(0, 32, (tokens,))
    return positions, q, k if with_k else None, cache, head_dim if flat else 0, neox


PACKED_TYPES = ("f32", "bf16", "f16", "int8")


def _packed_arguments(name: str, dtype: torch.dtype) -> tuple[Any, ...]:
    return _randn(3, 4, 70, dtype=dtype), pack_weight(torch.randn(19, 70), name), 19


TYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}  # of a cache, of what it computes


def _qkv(dtype: torch.dtype, *lead: int) -> tuple[torch.Tensor, ...]:
    """Four heads of q, two of k and v, within one tensor."""
    qkv = _randn(*lead, 8, 32, dtype=dtype)
    return qkv[..., :4, :], qkv[..., 4:6, :], qkv[..., 6:, :]


def _int32(*values: Any) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32)


def _cache(dtype: torch.dtype, kind: str) -> tuple[Any, ...]:
    """data, key_scales, value_scales, type, compute: five blocks of 16 tokens, two heads of 32."""
    compute = TYPES[dtype]
    if kind == "own":
        return _randn(5, 2, 16, 64, dtype=dtype), None, None, compute, compute
    shape = {"tensor": (1,), "head": (2,), "token": (5, 2, 16)}[kind]
    codes = torch.randint(0, 0x70, (5, 2, 16, 64), dtype=torch.uint8)
    return codes, torch.rand(shape) + 0.5, torch.rand(shape) + 0.5, 3, compute


def _paged_arguments(dtype: torch.dtype, kind: str, *more: Any) -> tuple[Any, ...]:
    table, lengths = _int32([4, 0, -1], [2, 3, 1]), _int32(20, 48)
    return _qkv(dtype, 5 if more else 2)[0], *_cache(dtype, kind), table, lengths, *more


def _append_arguments(dtype: torch.dtype, kind: str) -> tuple[Any, ...]:
    _, key, value = _qkv(dtype, 4)
    return *_cache(dtype, kind), key, value, torch.tensor([3, -1, 79, 16])


def _gather_arguments(dtype: torch.dtype, kind: str) -> tuple[Any, ...]:
    key, value = (torch.empty(3, 2, 32, dtype=dtype) for _ in range(2))
    return *_cache(dtype, kind), torch.tensor([3, -1, 79]), key, value


ATTENTION = (
    Case("flash_attention", "", lambda t: _qkv(t, 2, 5)),
    Case(
        "flash_attention",
        "all options",
        lambda t: (
            *_qkv(t, 7),
            _int32(0, 3, 7),
            _int32(0, 3, 7),
            0.25,
            True,
            3,
            -1,
            20.0,
            torch.rand(4),
            torch.rand(4),
            _int32([0, 0, 2], [1, 1, 4]),
        ),
    ),
    Case("paged_attention", "", lambda t: _paged_arguments(t, "own")),
    Case("paged_attention", "fp8", lambda t: _paged_arguments(t, "tensor")),
    Case(
        "paged_attention",
        "fp8 all options",
        lambda t: _paged_arguments(
            t,
            "token",
            _int32(0, 1, 5),
            0.25,
            True,
            3,
            -1,
            20.0,
            torch.rand(4),
            torch.rand(4),
            _int32([0, 0, 2], [1, 1, 4]),
        ),
    ),
    Case("kv_cache_append", "", lambda t: _append_arguments(t, "own"), (0,), False),
    Case("kv_cache_append", "head", lambda t: _append_arguments(t, "head"), (0,), False),
    Case("kv_cache_append", "token", lambda t: _append_arguments(t, "token"), (0, 1, 2), False),
    Case("kv_cache_gather", "", lambda t: _gather_arguments(t, "own"), (6, 7), False),
    Case("kv_cache_gather", "token", lambda t: _gather_arguments(t, "token"), (6, 7), False),
    Case(
        "fp8_encode",
        "",
        lambda t: (_randn(4, 70, dtype=t), 0, 0.5, torch.empty(4, 70, dtype=torch.uint8)),
        (3,),
        False,
    ),
    Case(
        "fp8_decode",
        "",
        lambda t: (
            torch.randint(0, 0x78, (4, 70), dtype=torch.uint8),
            1,
            torch.empty(4, 70, dtype=t),
        ),
        (2,),
        False,
    ),
)

CASES = (
    *ATTENTION,
    Case("rms_norm", "", lambda t: (_randn(4, 70, dtype=t), _randn(70, dtype=t), EPS)),
    Case(
        "rms_norm",
        "float32 weight strided",
        lambda t: (_randn(3, 5, 80, dtype=t)[..., :70], torch.randn(70), EPS),
    ),
    Case(
        "fused_add_rms_norm",
        "",
        lambda t: (_randn(4, 70, dtype=t), _randn(4, 70, dtype=t), _randn(70, dtype=t), EPS),
        written=(0, 1),
        out=False,
    ),
    Case(
        "layer_norm",
        "",
        lambda t: (_randn(4, 70, dtype=t), _randn(70, dtype=t), EPS),
    ),
    Case(
        "layer_norm",
        "heads",
        lambda t: (_randn(4, 3, 32, dtype=t), _randn(3, 32, dtype=t), EPS),
    ),
    Case("softmax", "", lambda t: (3 * _randn(4, 70, dtype=t), 0.5, None)),
    Case(
        "softmax",
        "lengths",
        lambda t: (_randn(4, 70, dtype=t), 1.0, torch.tensor([0, 1, 69, 70], dtype=torch.int32)),
    ),
    *(
        Case(name, options, make)
        for name in ("silu_and_mul", "gelu_and_mul", "gelu_tanh_and_mul")
        for options, make in (
            ("packed", lambda t: (_randn(4, 140, dtype=t), None)),
            ("two tensors", lambda t: (_randn(4, 70, dtype=t), _randn(4, 70, dtype=t))),
        )
    ),
    Case("rope", "neox", lambda t: _rope_arguments(t, True, True, True), (1, 2), False),
    Case(
        "rope",
        "interleaved",
        lambda t: _rope_arguments(t, False, True, False),
        (1, 2),
        False,
    ),
    Case("rope", "q alone", lambda t: _rope_arguments(t, True, False, False), (1,), False),
    Case("matmul", "", lambda t: (_randn(4, 70, dtype=t), _randn(70, 19, dtype=t))),
    Case("matmul", "vector", lambda t: (_randn(3, 4, 70, dtype=t), _randn(70, dtype=t)), out=False),
    Case(
        "matmul",
        "batch",
        lambda t: (_randn(3, 1, 4, 70, dtype=t), _randn(2, 19, 70, dtype=t).mT),
    ),
    Case("linear", "", lambda t: (_randn(3, 4, 70, dtype=t), _randn(19, 70, dtype=t))),
    Case(
        "linear",
        "all options",
        lambda t: (
            _randn(4, 80, dtype=t)[:, :70],
            _randn(19, 70, dtype=t),
            _randn(19, dtype=t),
            _randn(4, 19, dtype=t),
            1,
        ),
    ),
    Case("packed_linear", "", partial(_packed_arguments, "int8")),
    Case(
        "packed_linear",
        "all options",
        lambda t: (
            *_packed_arguments("bf16", t),
            torch.randn(19),
            _randn(3, 4, 19, dtype=t),
            3,
        ),
    ),
)


def clone(arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """Arguments of their own memory, with the same strides."""

    def copy(x: Any) -> Any:
        if not isinstance(x, torch.Tensor):
            return x
        fresh = torch.empty_strided(x.shape, x.stride(), dtype=x.dtype)
        return fresh.copy_(x)

    return tuple(copy(x) for x in arguments)


def run(case: Case, arguments: tuple[Any, ...]) -> tuple[torch.Tensor, ...]:
    """Calls the operator and returns its results, those that were written in place included."""
    result = case.op(*arguments)
    return tuple(arguments[i] for i in case.written) if case.written else (result,)

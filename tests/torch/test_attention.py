# SPDX-License-Identifier: Apache-2.0
"""Attention, its cache and 8-bit floats on tensors: the bits of NumPy's arrays, torch's numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from cases import DTYPES, OPS, TYPES
from operators import BFLOAT16
from torch.nn.attention.bias import causal_lower_right

import capibara_axion as ax

each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
FP8 = {"fp8_e4m3": torch.float8_e4m3fn, "fp8_e5m2": torch.float8_e5m2}
EPS = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
NAMES = {dtype: str(dtype).removeprefix("torch.") for dtype in DTYPES}


def to_numpy(x: Any) -> Any:
    """The array on a tensor's memory."""
    if not isinstance(x, torch.Tensor):
        return x
    return x.view(torch.int16).numpy().view(BFLOAT16) if x.dtype == torch.bfloat16 else x.numpy()


def int32(*values: Any) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32)


def heads_of(dtype: torch.dtype, *lead: int, dim: int = 64) -> tuple[torch.Tensor, ...]:
    """q of six heads, k and v of two, as slices of one tensor."""
    qkv = torch.randn(*lead, 10 * dim).to(dtype)
    return tuple(x.unflatten(-1, (-1, dim)) for x in qkv.split((6 * dim, 2 * dim, 2 * dim), -1))


@each_dtype
@pytest.mark.parametrize("causal", [False, True])
def test_as_torch_itself(dtype: torch.dtype, causal: bool) -> None:
    """Closely: how closely is for the NumPy tests, whose bits these are."""
    for queries, keys in ((33, 33), (1, 70), (9, 40)):
        q = torch.randn(2, queries, 6, 64).to(dtype)
        k, v = (torch.randn(2, keys, 2, 64).to(dtype) for _ in range(2))
        mask = causal_lower_right(queries, keys)._materialize("cpu") if causal else None
        expected = F.scaled_dot_product_attention(
            *(x.transpose(1, 2).double() for x in (q, k, v)), attn_mask=mask, enable_gqa=True
        ).transpose(1, 2)
        given = ax.flash_attention(q, k, v, causal=causal)
        assert given.dtype == dtype
        assert given.is_contiguous()
        torch.testing.assert_close(given.double(), expected, rtol=EPS[dtype], atol=EPS[dtype])
        # The layout of torch's own function is one of strides.
        rows = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k, v)]
        assert torch.equal(ax.flash_attention(*rows, causal=causal), given)


@each_dtype
def test_the_bits_of_numpy(dtype: torch.dtype) -> None:
    arguments = {
        "window": 20,
        "softcap": 30.0,
        "scale": 0.2,
        "alibi_slopes": torch.rand(6),
        "sinks": torch.randn(6).to(dtype),
        "ranges": int32([0, 2, 9], [1, 4, 20]),
        "query_start": int32(0, 13, 40),
    }
    q, k, v = heads_of(dtype, 40)
    arrays = {name: to_numpy(x) for name, x in arguments.items()}
    given = ax.flash_attention(q, k, v, **arguments)
    expected = ax.flash_attention(to_numpy(q), to_numpy(k), to_numpy(v), **arrays)
    assert to_numpy(given).tobytes() == expected.tobytes()
    out = torch.empty_like(given)
    assert ax.flash_attention(q, k, v, **arguments, out=out) is out
    assert torch.equal(out, given)
    cut = {"window": (19, 0), "softcap": 30.0}
    given = ax.flash_attention(q[None], k[None], v[None], **cut)
    arrays = [to_numpy(x[None]) for x in (q, k, v)]
    assert to_numpy(given).tobytes() == ax.flash_attention(*arrays, **cut).tobytes()


def filled(name: str, compute: str, **options: Any) -> tuple[ax.PagedKVCache, ax.PagedKVCache]:
    """Caches of the same contents, one filled with tensors, one with arrays."""
    if name in FP8:
        options["compute_dtype"] = compute
    pair = tuple(ax.PagedKVCache(6, 16, 2, 64, name, **options) for _ in range(2))
    key, value = (torch.randn(60, 2, 64).to(getattr(torch, compute)) for _ in range(2))
    slots = torch.randperm(96)[:60]
    slots[7] = -1
    pair[0].append(key, value, slots)
    pair[1].append(to_numpy(key), to_numpy(value), slots.numpy())
    return pair


CACHES = (
    *((name, name, {}) for name in NAMES.values()),
    ("fp8_e4m3", "bfloat16", {"key_scale": 0.02}),
    ("fp8_e5m2", "float16", {"scales": "head", "key_scale": [0.1, 0.2], "value_scale": [1.0, 2.0]}),
    ("fp8_e4m3", "float32", {"scales": "token"}),
)


@pytest.mark.parametrize(("name", "compute", "options"), CACHES, ids=str)
def test_a_cache_takes_both_kinds(name: str, compute: str, options: dict[str, Any]) -> None:
    of_torch, of_numpy = filled(name, compute, **options)
    assert of_torch.data.tobytes() == of_numpy.data.tobytes()
    if of_torch.key_scales is not None:
        assert (of_torch.key_scales == of_numpy.key_scales).all()
    slots = torch.tensor([0, 95, -1, 40])
    for wanted in (None, "float32"):
        tensors = of_torch.gather(slots, wanted)
        arrays = of_torch.gather(slots.numpy(), wanted)
        for tensor, array in zip(tensors, arrays, strict=True):
            assert tensor.dtype == getattr(torch, wanted or compute)
            assert to_numpy(tensor).tobytes() == array.tobytes()
    q = heads_of(getattr(torch, compute), 5)[0]
    arguments = (int32([4, 0, 9], [2, 3, 1]), int32(20, 48))
    more = {"query_start": int32(0, 1, 5), "window": 30, "sinks": torch.rand(6)}
    given = ax.paged_attention(q, of_torch, *arguments, **more)
    arrays = {key: to_numpy(x) for key, x in more.items()}
    expected = ax.paged_attention(to_numpy(q), of_numpy, *map(to_numpy, arguments), **arrays)
    assert to_numpy(given).tobytes() == expected.tobytes()
    out = torch.empty_like(q)
    assert ax.paged_attention(q, of_torch, *arguments, **more, out=out) is out
    assert torch.equal(out, given)


@pytest.mark.parametrize(("name", "compute", "options"), CACHES, ids=str)
def test_over_a_tensor(name: str, compute: str, options: dict[str, Any]) -> None:
    """Blocks and heads at vLLM's strides, 8-bit floats as theirs or as uint8."""
    cache, _ = filled(name, compute, **options)
    dtype = FP8.get(name) or getattr(torch, name)
    memory = torch.zeros(2, 6, 16, 128, dtype=torch.uint8 if name in FP8 else dtype)
    memory = memory.view(dtype).transpose(0, 1)
    scales = {}
    if name in FP8:
        scales = {"compute_dtype": compute}
        for of, values in (("key_scale", cache.key_scales), ("value_scale", cache.value_scales)):
            scales[of] = torch.from_numpy(values.copy())
            if values.shape == (1,):
                scales[of] = float(values[0])
    other = ax.PagedKVCache.over(memory, dtype=name, **scales)
    assert other.data.data_ptr() == memory.data_ptr()
    assert other.data.stride() == memory.stride()
    assert other.scales == cache.scales
    assert other.nbytes == cache.nbytes
    other.data.copy_(torch.from_numpy(cache.data.view(np.uint8)).view(other.data.dtype))
    slots = torch.arange(96)
    for x, y in zip(other.gather(slots), cache.gather(slots), strict=True):
        assert torch.equal(x, y)
    for x, y in zip(other.gather(slots.numpy()), cache.gather(slots), strict=True):
        assert x.tobytes() == to_numpy(y).tobytes()
    other.append(torch.ones(1, 2, 64), torch.ones(1, 2, 64), torch.tensor([33]))
    assert other.gather(torch.tensor([33]), "float32")[0].sub(1).abs().max() < 0.07
    q, arguments = heads_of(getattr(torch, compute), 2)[0], (int32([4, 0], [3, 1]), int32(20, 32))
    given = ax.paged_attention(q, other, *arguments)
    assert torch.equal(given, ax.paged_attention(q, cache, *arguments))


@each_dtype
@pytest.mark.parametrize("format", ["e4m3", "e5m2"])
def test_fp8(dtype: torch.dtype, format: str) -> None:
    other = FP8[f"fp8_{format}"]
    x = torch.randn(50, 40).to(dtype)
    codes = ax.fp8_quantize(x, format)
    assert codes.dtype == torch.uint8
    assert torch.equal(codes.view(other).float(), x.to(other).float())
    assert (codes.numpy() == ax.fp8_quantize(to_numpy(x), format)).all()
    for scale in (1.0, 0.03):
        back = ax.fp8_dequantize(codes, format, scale, NAMES[dtype])
        assert back.dtype == dtype
        array = ax.fp8_dequantize(codes.numpy(), format, scale, NAMES[dtype])
        assert to_numpy(back).tobytes() == array.tobytes()
        scaled = ax.fp8_quantize(x.t(), format, scale)
        assert (scaled.numpy() == ax.fp8_quantize(to_numpy(x).T, format, scale)).all()


def test_parameters_and_gradients() -> None:
    """As the other operators: no gradients, and none asked for."""
    q, k, v = (torch.randn(1, 4, 2, 32, requires_grad=True) for _ in range(3))
    with torch.no_grad():
        expected = ax.flash_attention(q, k, v)
    with pytest.warns(UserWarning, match="autograd"):
        ax.flash_attention(q, k, v).sum().backward()
    assert q.grad is None
    assert torch.equal(expected, ax.flash_attention(q.detach(), k.detach(), v.detach()))


Q = torch.ones(2, 4, 32)
CACHE = ax.PagedKVCache(6, 16, 2, 32, "float32")


def paged(**changes: Any) -> Any:
    arguments = {"q": Q, "cache": CACHE, "block_table": int32([0], [1]), "seq_lens": int32(3, 4)}
    return ax.paged_attention(**arguments | changes)


def append(**changes: Any) -> Any:
    arguments = {"key": Q[:, :2], "value": Q[:, :2], "slot_mapping": torch.tensor([0, 1])}
    return CACHE.append(**arguments | changes)


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("q", lambda: ax.flash_attention(Q, Q, Q)),
        ("q", lambda: ax.flash_attention(Q[None].double(), Q[None], Q[None])),
        ("k", lambda: ax.flash_attention(Q[None], Q[None].half(), Q[None])),
        ("v", lambda: ax.flash_attention(Q[None], Q[None], Q[None, :, :2])),
        ("window", lambda: ax.flash_attention(Q[None], Q[None], Q[None], window=0)),
        ("softcap", lambda: ax.flash_attention(Q[None], Q[None], Q[None], softcap=-1.0)),
        ("sinks", lambda: ax.flash_attention(Q[None], Q[None], Q[None], sinks=torch.ones(3))),
        ("query_start", lambda: ax.flash_attention(Q, Q, Q, query_start=torch.tensor([0, 2]))),
        ("q", lambda: paged(q=Q.half())),
        ("seq_lens", lambda: paged(seq_lens=int32(3, 17))),
        ("seq_lens", lambda: paged(seq_lens=torch.tensor([3, 4]))),
        ("block_table", lambda: paged(block_table=int32([0], [6]))),
        ("out", lambda: paged(out=torch.ones(2, 4, 16))),
        ("out", lambda: paged(out=Q)),
        ("slot_mapping", lambda: append(slot_mapping=torch.tensor([0, 96]))),
        ("slot_mapping", lambda: append(slot_mapping=int32(0, 1))),
        ("key", lambda: append(key=Q)),
        ("slots", lambda: CACHE.gather(torch.tensor([96]))),
        ("x", lambda: ax.fp8_quantize(Q.double())),
        ("codes", lambda: ax.fp8_dequantize(Q)),
        ("data", lambda: ax.PagedKVCache.over(torch.ones(2, 2, 16, 48), dtype="float32")),
        ("data", lambda: ax.PagedKVCache.over(torch.ones(2, 2, 16, 64), dtype="bfloat16")),
        (
            "data",
            lambda: ax.PagedKVCache.over(torch.ones(2, 16, 2, 64).transpose(1, 2), dtype="float32"),
        ),
        (
            "type",
            lambda: OPS.paged_attention(
                Q, CACHE._tensors()[0], None, None, 5, 0, int32([0], [1]), int32(3, 4)
            ),
        ),
        (
            "compute",
            lambda: OPS.paged_attention(
                Q, CACHE._tensors()[0], None, None, 0, 3, int32([0], [1]), int32(3, 4)
            ),
        ),
    ],
)
def test_errors_name_the_argument(name: str, call: Any) -> None:
    with pytest.raises(ValueError, match=f"^{name}: expected .*, got "):
        call()


def test_scales_are_needed() -> None:
    data = torch.zeros(2, 2, 16, 64, dtype=torch.uint8)
    with pytest.raises(ValueError, match=r"^key_scales: expected scales, which 8-bit"):
        OPS.kv_cache_append(
            data, None, None, 3, TYPES[torch.float32], Q[:, :2], Q[:, :2], torch.tensor([0, 1])
        )


def test_wrong_kinds() -> None:
    with pytest.raises(TypeError, match=r"^cache: expected a PagedKVCache, got Tensor"):
        paged(cache=Q)
    data = torch.zeros(2, 2, 16, 64, dtype=torch.uint8).view(torch.float8_e5m2)
    with pytest.raises(TypeError, match=r"^data: expected float8_e4m3fn or uint8"):
        ax.PagedKVCache.over(data, dtype="fp8_e4m3")

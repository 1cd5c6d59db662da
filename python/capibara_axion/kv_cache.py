# SPDX-License-Identifier: Apache-2.0
"""The paged KV cache: keys and values in the layout that attention reads, in up to 16 bits or 8."""

from __future__ import annotations

import math
import sys
from typing import Any, TypeAlias

import numpy as np

from capibara_axion import _core
from capibara_axion.fp8 import known_dtype, numpy_dtype, positive_scale
from capibara_axion.ops import Array, _positive_int, _torch_ops

# In the order of CacheType in csrc/kernels/kv_cache/kv_cache.h; the first three as DType has them.
_TYPES = ("float32", "float16", "bfloat16", "fp8_e4m3", "fp8_e5m2")
_SIZES = (4, 2, 2, 1, 1)
_COMPUTE = _TYPES[:3]
_SCALES = ("tensor", "head", "token")

# data, key_scales, value_scales, type, compute: what the native module and torch's operators take.
_Memory: TypeAlias = tuple[Any, Any, Any, int, int]


class PagedKVCache:
    """Keys and values of many sequences in blocks of `block_size` tokens, for `paged_attention`.

    W. Kwon et al., "Efficient Memory Management for Large Language Model Serving with
    PagedAttention" (2023, arXiv:2309.06180). Slot `block * block_size + position` holds the keys
    and values of one token. Within a block they lie as the matrix instructions of this CPU read
    them: `append` brings them into that order, `gather` out of it. Memory is for this process, or
    others on the same CPU with the same instruction set chosen.

    8-bit floats (P. Micikevicius et al., "FP8 Formats for Deep Learning", 2022, arXiv:2209.05433)
    take half of the memory, and of the time to read it. A value x is stored as x / scale, rounded
    to nearest, ties to even, at most the format's largest finite value.

    The cache takes NumPy arrays and torch tensors, whichever a call has.

    Args:
        num_blocks: how many.
        block_size: tokens of a block, a multiple of 16.
        num_kv_heads: of keys and values.
        head_dim: elements of a head, a multiple of 16, at most 512.
        dtype: "float32", "float16", "bfloat16", "fp8_e4m3" or "fp8_e5m2".
        compute_dtype: what queries have and attention computes in: for 8-bit floats "float32",
            "float16" or "bfloat16" (if None), else dtype itself.
        scales: of 8-bit floats: "tensor", one for all keys, one for all values; "head", one for
            each head; "token", one for each token and head, found when they are stored: the largest
            magnitude becomes the format's largest.
        key_scale: for "tensor" a number, for "head" numbers `[num_kv_heads]`, from 2^-126 to 2^126;
            kept in float32.
        value_scale: likewise.

    Attributes:
        data: `[num_blocks, num_kv_heads, block_size, 2 * head_dim]`, uint8 for 8-bit floats, a
            NumPy array (bfloat16 needs the package ml_dtypes) or what `over` was given. Zeros at
            first. The last two dimensions are a block's memory, not an order of its elements.
        key_scales: float32, `[1]`, `[num_kv_heads]` or `[num_blocks, num_kv_heads, block_size]`;
            None but for 8-bit floats.
        value_scales: likewise.
        nbytes: of data and scales.
        num_blocks, block_size, num_kv_heads, head_dim, dtype, compute_dtype, scales: as given.

    Raises:
        TypeError: an argument of a wrong type; the message names it.
        ValueError: a wrong value, or options that only 8-bit floats have.
    """

    _scales: tuple[Any, Any]

    def __init__(
        self,
        num_blocks: int,
        block_size: int,
        num_kv_heads: int,
        head_dim: int,
        dtype: str = "bfloat16",
        *,
        compute_dtype: str | None = None,
        scales: str = "tensor",
        key_scale: Any = 1.0,
        value_scale: Any = 1.0,
    ) -> None:
        shape = (
            _positive_int("num_blocks", num_blocks),
            _positive_int("num_kv_heads", num_kv_heads),
            _multiple_of_16("block_size", block_size),
            2 * _multiple_of_16("head_dim", head_dim, 512),
        )
        self._set_types(dtype, compute_dtype)
        if known_dtype(scales, _SCALES, "scales") != "tensor" and self._type < 3:
            raise ValueError(f"scales: expected 'tensor' for a cache of {dtype}, got {scales!r}")
        memory = _core.aligned_empty(_SIZES[self._type] * math.prod(shape))
        memory.fill(0)
        self._set(memory, False, shape, own=True)
        if self._type < 3:
            _no_scale("key_scale", key_scale, dtype)
            _no_scale("value_scale", value_scale, dtype)
        elif scales == "token":
            _no_scale("key_scale", key_scale, "scales 'token'")
            _no_scale("value_scale", value_scale, "scales 'token'")
            self._scales = np.ones(shape[:3], np.float32), np.ones(shape[:3], np.float32)
        else:
            heads = num_kv_heads if scales == "head" else None
            self._scales = (
                _scales_of("key_scale", key_scale, heads),
                _scales_of("value_scale", value_scale, heads),
            )
        self.scales = scales

    @classmethod
    def over(
        cls,
        data: Any,
        *,
        dtype: str,
        compute_dtype: str | None = None,
        key_scale: Any = 1.0,
        value_scale: Any = 1.0,
    ) -> PagedKVCache:
        """A cache in memory of the caller's, which is neither copied nor changed by this.

        Args:
            data: `[num_blocks, num_kv_heads, block_size, 2 * head_dim]`, an array or a tensor of
                dtype, or uint8 (in torch also its 8-bit float) for 8-bit floats. Each head of a
                block is contiguous; blocks and heads may lie at any strides.
            dtype: "float32", "float16", "bfloat16", "fp8_e4m3" or "fp8_e5m2".
            compute_dtype: as for a new cache.
            key_scale: for 8-bit floats a number, numbers `[num_kv_heads]`, or the memory of a scale
                for each token, a contiguous float32 array or tensor `[num_blocks, num_kv_heads,
                block_size]` that `append` writes to.
            value_scale: likewise.

        Raises:
            TypeError: data is no array or tensor, or of another dtype.
            ValueError: another shape or layout, or a wrong value.
        """
        cache = cls.__new__(cls)
        cache._set_types(dtype, compute_dtype)
        is_torch = _torch_ops(data) is not None
        if not is_torch and not isinstance(data, np.ndarray):
            given = type(data).__name__
            raise TypeError(f"data: expected a NumPy array or a torch tensor, got {given}")
        if is_torch and str(data.dtype).startswith("torch.float8_"):
            wanted = "float8_e4m3fn" if dtype == "fp8_e4m3" else "float8_e5m2"
            if str(data.dtype) != f"torch.{wanted}":
                raise TypeError(f"data: expected {wanted} or uint8, got {data.dtype}")
            data = data.view(sys.modules["torch"].uint8)
        cache._set(data, is_torch, tuple(data.shape))
        cache.scales = "tensor"
        if cache._type < 3:
            _no_scale("key_scale", key_scale, dtype)
            _no_scale("value_scale", value_scale, dtype)
        else:
            cache.scales = _kind_of(key_scale, value_scale)
            if cache.scales == "token":
                cache._scales = key_scale, value_scale
            else:
                heads = cache.num_kv_heads if cache.scales == "head" else None
                cache._scales = (
                    _scales_of("key_scale", key_scale, heads),
                    _scales_of("value_scale", value_scale, heads),
                )
        cache._check()
        return cache

    def _set_types(self, dtype: str, compute_dtype: str | None) -> None:
        self._type = _TYPES.index(known_dtype(dtype, _TYPES))
        own = dtype if self._type < 3 else "bfloat16"
        compute = own if compute_dtype is None else compute_dtype
        known_dtype(compute, _COMPUTE if self._type >= 3 else (own,), "compute_dtype")
        self._compute = _COMPUTE.index(compute)
        self.dtype, self.compute_dtype = dtype, compute

    def _set(self, memory: Any, is_torch: bool, shape: tuple[int, ...], own: bool = False) -> None:
        self._memory, self._is_torch, self._shape, self._own = memory, is_torch, shape, own
        self._scales = (None, None)
        self._for_numpy: _Memory | None = None
        self._for_torch: _Memory | None = None
        if len(shape) == 4:
            self.num_blocks, self.num_kv_heads, self.block_size, width = shape
            self.head_dim = width // 2

    def _check(self) -> None:
        """Raises what a call would."""
        if self._is_torch:
            torch = sys.modules["torch"]
            slots = torch.empty(0, dtype=torch.int64)
            empty = torch.empty(self._empty_shape(), dtype=getattr(torch, self.compute_dtype))
            ops = torch.ops.capibara_axion
            ops.kv_cache_gather(*self._tensors(), slots, empty, empty.clone())
        else:
            tokens = np.empty(self._empty_shape(), np.float32)
            _core.kv_cache_gather(*self._arrays(), np.empty(0, np.int64), tokens, tokens.copy())

    def _empty_shape(self) -> tuple[int, int, int]:
        if len(self._shape) != 4:
            return 0, 1, 16  # refused before these matter
        return 0, self.num_kv_heads, self.head_dim

    def _arrays(self) -> _Memory:
        """(data, key_scales, value_scales, type, compute) for the native module."""
        if self._for_numpy is None:
            dtype = numpy_dtype(self.dtype) if self._type < 3 else np.dtype(np.uint8)
            if self._is_torch:
                data = _numpy_of(self._memory, dtype)
            elif self._own:
                data = self._memory.view(dtype).reshape(self._shape)
            else:
                data = self._memory
            scales = [_numpy_of(scale, None) for scale in self._scales]
            self._for_numpy = data, scales[0], scales[1], self._type, self._compute
        return self._for_numpy

    def _tensors(self) -> _Memory:
        """The same for torch's operators, on the same memory."""
        if self._for_torch is None:
            import torch

            data = self._memory
            if not self._is_torch:
                dtype = torch.uint8 if self._type >= 3 else getattr(torch, self.dtype)
                if data.dtype.name == "bfloat16":
                    data = data.view(np.int16)
                data = torch.from_numpy(data).view(dtype)
                if self._own:
                    data = data.view(self._shape)
            scales = [
                torch.from_numpy(scale) if isinstance(scale, np.ndarray) else scale
                for scale in self._scales
            ]
            self._for_torch = data, scales[0], scales[1], self._type, self._compute
        return self._for_torch

    @property
    def data(self) -> Any:
        """The memory of keys and values."""
        return self._tensors()[0] if self._is_torch else self._arrays()[0]

    @property
    def key_scales(self) -> Any:
        """float32, or None."""
        return (self._tensors() if self._is_torch else self._arrays())[1]

    @property
    def value_scales(self) -> Any:
        """float32, or None."""
        return (self._tensors() if self._is_torch else self._arrays())[2]

    @property
    def nbytes(self) -> int:
        """Bytes of keys, values and scales."""
        of_scales = sum(4 * math.prod(scale.shape) for scale in self._scales if scale is not None)
        return _SIZES[self._type] * math.prod(self._shape) + of_scales

    def append(self, key: Array, value: Array, slot_mapping: Array) -> None:
        """Stores the keys and values of tokens.

        Args:
            key: `[T, num_kv_heads, head_dim]` in the compute dtype or float32; head_dim contiguous,
                the strides of tokens and heads free.
            value: as key.
            slot_mapping: int64 `[T]`, the slot of each token, `block * block_size + position`;
                negative ones are skipped.

        Raises:
            TypeError: an argument of a wrong type or dtype; the message names it.
            ValueError: a wrong shape, a slot that the cache does not have, or a cache over memory
                that is read-only; nothing has been stored then.
        """
        if (ops := _torch_ops(key)) is None:
            _core.kv_cache_append(*self._arrays(), key, value, slot_mapping)
        else:
            ops.kv_cache_append.default(*self._tensors(), key, value, slot_mapping)

    def gather(self, slots: Array, dtype: str | None = None) -> tuple[Array, Array]:
        """The keys and values in some slots, as they are stored, times their scales.

        Args:
            slots: int64 `[T]`, as in `append`; negative ones give zeros.
            dtype: of the results: the compute dtype (if None) or "float32".

        Returns:
            (keys, values), `[T, num_kv_heads, head_dim]` each.

        Raises:
            TypeError: slots of a wrong type or dtype.
            ValueError: a slot that the cache does not have, or another dtype.
        """
        name = self.compute_dtype
        if dtype is not None:
            name = known_dtype(dtype, tuple(dict.fromkeys((name, "float32"))))
        if (ops := _torch_ops(slots)) is None:
            shape = (np.size(slots), self.num_kv_heads, self.head_dim)
            pair = np.empty(shape, numpy_dtype(name)), np.empty(shape, numpy_dtype(name))
            _core.kv_cache_gather(*self._arrays(), slots, *pair)
            return pair  # type: ignore[return-value]
        import torch

        shape = (slots.numel(), self.num_kv_heads, self.head_dim)
        keys = torch.empty(shape, dtype=getattr(torch, name))
        values = torch.empty_like(keys)
        ops.kv_cache_gather(*self._tensors(), slots, keys, values)
        return keys, values

    def __repr__(self) -> str:
        extra = f", compute_dtype={self.compute_dtype!r}, scales={self.scales!r}"
        return (
            f"PagedKVCache(num_blocks={self.num_blocks}, block_size={self.block_size}, "
            f"num_kv_heads={self.num_kv_heads}, head_dim={self.head_dim}, dtype={self.dtype!r}"
            f"{extra if self._type >= 3 else ''})"
        )


def _multiple_of_16(name: str, value: Any, most: int = 1 << 20) -> int:
    number = _positive_int(name, value)
    if number % 16 or number > most:
        raise ValueError(f"{name}: expected a multiple of 16 up to {most}, got {value}")
    return number


def _no_scale(name: str, scale: Any, what: str) -> None:
    if np.ndim(scale) != 0 or scale != 1.0:
        raise ValueError(f"{name}: expected 1.0, as {what} has none, got {scale}")


def _kind_of(*scales: Any) -> str:
    most = max(getattr(scale, "ndim", np.ndim(scale)) for scale in scales)
    return "token" if most == 3 else "head" if most else "tensor"


def _scales_of(name: str, scale: Any, heads: int | None) -> np.ndarray:
    """float32 `[1]`, or one for each of `heads`."""
    if hasattr(scale, "detach"):
        scale = scale.detach().float().numpy()
    try:
        values = np.array(scale, np.float32)
    except (TypeError, ValueError):
        given = type(scale).__name__
        raise TypeError(f"{name}: expected a number or numbers, got {given}") from None
    if values.ndim == 0:
        values = np.repeat(values, heads or 1)
    elif values.shape != (1 if heads is None else heads,):
        wanted = "a number" if heads is None else f"numbers [{heads}]"
        raise ValueError(f"{name}: expected {wanted}, got shape {list(values.shape)}")
    for value in values:
        positive_scale(name, value)
    return values


def _numpy_of(value: Any, dtype: np.dtype[Any] | None) -> Any:
    """An array on the memory of a tensor."""
    if value is None or isinstance(value, np.ndarray):
        return value
    if str(value.dtype) == "torch.bfloat16":
        value = value.view(sys.modules["torch"].int16)
    array = value.detach().numpy()
    return array if dtype is None else array.view(dtype)

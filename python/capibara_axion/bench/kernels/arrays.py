# SPDX-License-Identifier: Apache-2.0
"""Arrays that NumPy and torch share without a copy, in memory as torch's allocator gives it."""

from __future__ import annotations

import ctypes
import math
import weakref
from types import SimpleNamespace
from typing import Any

import ml_dtypes
import numpy as np

Array = np.ndarray[Any, Any]

# Of torch's CPU allocator. NumPy's own memory is aligned to 16 bytes, so that every load of a
# vector of 64 would cross a cache line.
_ALIGNMENT = 64

_libc = ctypes.CDLL(None)
_libc.aligned_alloc.argtypes = (ctypes.c_size_t, ctypes.c_size_t)
_libc.aligned_alloc.restype = ctypes.c_void_p
_libc.free.argtypes = (ctypes.c_void_p,)
_libc.free.restype = None


def empty(shape: tuple[int, ...], dtype: Any) -> Array:
    """An array of undefined values, aligned to 64 bytes, from malloc.

    Raises:
        MemoryError: there is not so much memory.
    """
    size = math.prod(shape) * np.dtype(dtype).itemsize
    # C asks for a multiple of the alignment.
    pointer = _libc.aligned_alloc(_ALIGNMENT, -(-max(size, 1) // _ALIGNMENT) * _ALIGNMENT)
    if not pointer:
        raise MemoryError(f"cannot allocate {size} bytes")
    memory = (ctypes.c_ubyte * size).from_address(pointer)
    weakref.finalize(memory, _libc.free, pointer)
    whole: Array = np.frombuffer(memory, np.uint8).view(dtype)
    return whole.reshape(shape)


def full(size: int, value: int) -> Array:
    """So many bytes of one value, in memory that has been touched."""
    memory = empty((size,), np.uint8)
    memory.fill(value)
    return memory


def copy(values: Array, dtype: Any = None) -> Array:
    """A contiguous copy in aligned memory, of another type if given."""
    copied = empty(values.shape, values.dtype if dtype is None else dtype)
    copied[...] = values
    return copied


def empty_like(values: Any) -> Any:
    """An array, or a tensor if it is one, of the same shape and type in memory of its own."""
    if isinstance(values, np.ndarray):
        return empty(values.shape, values.dtype)
    return values.new_empty(values.shape)


def tensor(values: Array) -> Any:
    """The same memory as a torch tensor."""
    import torch

    if values.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(values.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(values)


def tensors(inputs: SimpleNamespace) -> SimpleNamespace:
    """The same inputs with a torch tensor over the memory of each array."""

    def converted(value: Any) -> Any:
        if isinstance(value, np.ndarray):
            return tensor(value)
        return tensors(value) if isinstance(value, SimpleNamespace) else value

    return SimpleNamespace(**{name: converted(value) for name, value in vars(inputs).items()})


def array(values: Any) -> Array:
    """An array as it is, a torch tensor as an array over the same memory."""
    if isinstance(values, np.ndarray):
        return values
    import torch

    if values.dtype == torch.bfloat16:
        values = values.view(torch.int16)
        return np.asarray(values.detach()).view(ml_dtypes.bfloat16)
    return np.asarray(values.detach())

# SPDX-License-Identifier: Apache-2.0
"""The yardstick: a copy that reads and writes as many bytes as the operator has to, with one thread
by the C library, with several by torch."""

from __future__ import annotations

import ctypes

from capibara_axion.bench.kernels.arrays import Array, full
from capibara_axion.bench.kernels.cases import OPS, Inputs
from capibara_axion.bench.kernels.contenders import ATTENTION, Call, contender

_libc = ctypes.CDLL(None)
_libc.memmove.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)
_libc.memmove.restype = None
_libc.memchr.argtypes = (ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t)
_libc.memchr.restype = ctypes.c_void_p

_COPIES = tuple(op for op in OPS if op not in ATTENTION)


def copying(target: Array, source: Array) -> Call:
    """A call that copies the bytes of one array to another, outside of the interpreter's lock."""
    to, of, size = target.ctypes.data, source.ctypes.data, source.nbytes

    def call(buffers: tuple[Array, ...] = (target, source)) -> None:  # keeps them alive
        _libc.memmove(to, of, size)

    return call


def reading(source: Array) -> Call:
    """A call that reads an array of zeros, outside of the interpreter's lock."""
    of, size = source.ctypes.data, source.nbytes

    def call(buffer: Array = source) -> None:  # keeps it alive
        _libc.memchr(of, 1, size)  # which is not there

    return call


@contender(_COPIES, "memcpy", "memmove", single_threaded=True, arrays=True)
def _memmove(a: Inputs) -> Call:
    size = a.case.bytes_moved // 2
    return copying(full(size, 0), full(size, 1))


@contender(_COPIES, "memcpy", "copy_")
def _copy(a: Inputs) -> Call:
    import torch

    size = a.case.bytes_moved // 2
    source, target = torch.ones(size, dtype=torch.uint8), torch.zeros(size, dtype=torch.uint8)
    return lambda: target.copy_(source)


# Attention writes next to nothing: a plain read of as many bytes as it has to read and write.
@contender(ATTENTION, "memcpy", "memchr", single_threaded=True, arrays=True)
def _memchr(a: Inputs) -> Call:
    return reading(full(a.case.bytes_moved, 0))


@contender(ATTENTION, "memcpy", "sum")
def _sum(a: Inputs) -> Call:
    import torch

    source = torch.zeros(a.case.bytes_moved // 8, dtype=torch.int64)
    return lambda: source.sum()

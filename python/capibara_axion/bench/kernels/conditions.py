# SPDX-License-Identifier: Apache-2.0
"""The conditions of a measurement: the allocator's settings, and what else was running."""

from __future__ import annotations

import ctypes
import os
import time

import psutil

# Parameters of glibc's mallopt(3), with their numbers in malloc.h; the settings are those of the
# environment variables MALLOC_MMAP_MAX_, MALLOC_TRIM_THRESHOLD_ and MALLOC_TOP_PAD_.
_MALLOC = {
    "M_MMAP_MAX": (-4, 0),
    "M_TRIM_THRESHOLD": (-1, 2**31 - 1),
    "M_TOP_PAD": (-2, 256 << 20),
}


def tune_malloc() -> dict[str, int]:
    """Lets glibc keep freed memory: a new tensor then costs no page faults.

    By default glibc maps every large block anew, and torch's operators, which return new tensors,
    take up to 10 times as long for it.

    Returns:
        The settings in force; empty where the C library has none of them.
    """
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "gnu_get_libc_version"):
        return {}
    return {name: value for name, (key, value) in _MALLOC.items() if libc.mallopt(key, value)}


class Others:
    """Measures what other processes, and other virtual machines, took of the processors."""

    def __init__(self) -> None:
        self._began = time.perf_counter()
        self._busy = self._busy_seconds()

    def share(self) -> float:
        """Their part of all processors' time since the object was made, from 0 to 1."""
        elapsed = (time.perf_counter() - self._began) * (os.cpu_count() or 1)
        return max(0.0, min(1.0, (self._busy_seconds() - self._busy) / elapsed))

    @staticmethod
    def _busy_seconds() -> float:
        every, own = psutil.cpu_times(), os.times()
        busy = sum(every) - every.idle - getattr(every, "iowait", 0.0)
        busy -= getattr(every, "guest", 0.0) + getattr(every, "guest_nice", 0.0)  # counted in user
        return float(busy - own.user - own.system)

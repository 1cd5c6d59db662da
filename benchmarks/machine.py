# SPDX-License-Identifier: Apache-2.0
"""The conditions of a measurement: what they are, for the record, and the allocator's settings."""

from __future__ import annotations

import ctypes
import datetime
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]
import torch
from rich.console import Console

from capibara_axion import info

RESULTS = Path(__file__).parent / "results"

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


def describe(malloc: dict[str, int]) -> dict[str, Any]:
    """Everything that one needs to judge or to repeat a measurement, for a JSON file."""
    collected = info.collect()
    return {
        "machine": collected["machine"]
        | {
            "governor": _read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
            "transparent_hugepages": _read("/sys/kernel/mm/transparent_hugepage/enabled"),
            "load_average": os.getloadavg(),
        },
        "isa": collected["isa"]["chosen"],
        "openmp": Path(collected["threads"]["openmp"]).name,
        "versions": collected["versions"],
        "torch_cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "commit": commit(),
        "command": " ".join(["python", os.path.relpath(sys.argv[0]), *sys.argv[1:]]),
        "malloc": malloc,
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }


def title(what: str, described: dict[str, Any]) -> str:
    """A table's heading: the machine in a line, the versions in another."""
    machine, versions = described["machine"], described["versions"]
    caches = ", ".join(
        f"{level} {machine[key] // 1024} KiB"
        for level, key in (("L1d", "l1d_bytes"), ("L2", "l2_bytes"), ("L3", "l3_bytes"))
    )
    core = machine["core"] or machine["model"]
    found = " ".join(f"{name} {version}" for name, version in versions.items() if version)
    tuned = "glibc malloc keeps freed memory" if described["malloc"] else "malloc as it is"
    return (
        f"{what}\n{core}, {machine['logical_cpus']} cores ({caches}), {described['isa']} kernels, "
        f"{tuned}\n{found}, {described['date'][:10]}"
    )


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


def console() -> Console:
    """Where tables go; wide enough for them where there is no terminal to say how wide it is."""
    found = Console()
    return found if found.is_terminal else Console(width=200)


def write(result: dict[str, Any], path: Path) -> None:
    """Writes figures as JSON and says where."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(f"written to {os.path.relpath(path)}")


def _read(path: str) -> str | None:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return None


def commit() -> str | None:
    """The commit that was measured, "+" if files that are tracked differ from it."""
    root = Path(__file__).parent.parent
    try:
        found = subprocess.run(
            ("git", "describe", "--always", "--abbrev=12", "--exclude=*", "--dirty=+"),
            cwd=root,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return found.stdout.strip()

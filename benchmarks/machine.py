# SPDX-License-Identifier: Apache-2.0
"""The conditions of a measurement: what they are, for the record, and the allocator's settings."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from capibara_axion import info
from capibara_axion.bench import machine
from capibara_axion.bench.kernels.conditions import Others, tune_malloc
from capibara_axion.bench.machine import commit, now

__all__ = [
    "RESULTS",
    "Others",
    "commit",
    "console",
    "describe",
    "now",
    "title",
    "tune_malloc",
    "write",
]

RESULTS = Path(__file__).parent / "results"


def describe(malloc: dict[str, int]) -> dict[str, Any]:
    """Everything that one needs to judge or to repeat a measurement, for a JSON file."""
    found = machine.describe()
    overall = {name: found.pop(name) for name in ("isa", "versions", "commit")}
    return {
        "machine": found,
        **overall,
        "openmp": Path(info.collect()["threads"]["openmp"]).name,
        "torch_cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "command": " ".join(["python", os.path.relpath(sys.argv[0]), *sys.argv[1:]]),
        "malloc": malloc,
        "date": now(),
    }


def title(what: str, described: dict[str, Any]) -> str:
    """A table's heading: the machine in a line, the versions in another."""
    of, versions = described["machine"], described["versions"]
    caches = ", ".join(
        f"{level} {of[key] // 1024} KiB"
        for level, key in (("L1d", "l1d_bytes"), ("L2", "l2_bytes"), ("L3", "l3_bytes"))
    )
    core = of["core"] or of["model"]
    found = " ".join(f"{name} {version}" for name, version in versions.items() if version)
    tuned = "glibc malloc keeps freed memory" if described["malloc"] else "malloc as it is"
    return (
        f"{what}\n{core}, {of['logical_cpus']} cores ({caches}), {described['isa']} kernels, "
        f"{tuned}\n{found}, {described['date'][:10]}"
    )


def console() -> Console:
    """Where tables go; wide enough for them where there is no terminal to say how wide it is."""
    found = Console()
    return found if found.is_terminal else Console(width=200)


def write(result: dict[str, Any], path: Path) -> None:
    """Writes figures as JSON and says where."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(f"written to {os.path.relpath(path)}")

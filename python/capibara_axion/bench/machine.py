# SPDX-License-Identifier: Apache-2.0
"""The conditions of a measurement, for the record."""

from __future__ import annotations

import datetime
import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from capibara_axion import info


def describe() -> dict[str, Any]:
    """What one needs to know of this machine to judge a measurement.

    Returns:
        For JSON: what `info.collect()["machine"]` has, "governor" and "transparent_hugepages"
        (None: unknown), "load_average" of 1, 5 and 15 minutes, "isa" of the kernels, "versions",
        "commit".
    """
    collected = info.collect()
    return dict(collected["machine"]) | {
        "governor": _read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        "transparent_hugepages": _read("/sys/kernel/mm/transparent_hugepage/enabled"),
        "load_average": list(os.getloadavg()),
        "isa": collected["isa"]["chosen"],
        "versions": collected["versions"],
        "commit": commit(),
    }


def now() -> str:
    """The time in ISO 8601, UTC."""
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")


def command_line(arguments: Sequence[str] | None = None) -> str:
    """This process's command as one could type it. No option of `bench` takes a key."""
    return shlex.join(["capibara-axion", *(sys.argv[1:] if arguments is None else arguments)])


def commit() -> str | None:
    """The commit of this project that runs, "+" if files differ from it; None: not a checkout."""
    root = Path(__file__).parents[3]
    if not (root / "csrc").is_dir():  # installed, perhaps within somebody else's checkout
        return None
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


def _read(path: str) -> str | None:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return None

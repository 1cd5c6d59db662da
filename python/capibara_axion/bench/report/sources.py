# SPDX-License-Identifier: Apache-2.0
"""The files of a folder: results of `capibara-axion bench`, and those of the repository's own
benchmarks, which are recognised by what is in them."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from capibara_axion.bench import results
from capibara_axion.bench.errors import UsageError

_OURS = ("kernels", "latency", "load", "stream")


@dataclass(frozen=True)
class Source:
    """One file.

    Attributes:
        file: its name.
        kind: of what is in it.
        data: a model of `results` for kernels, latency, load and stream; else the JSON itself.
        machine, versions, command, date: for the reader; "" if the file does not say.
    """

    file: str
    kind: str
    data: Any
    machine: str
    versions: str
    command: str
    date: str

    @property
    def name(self) -> str:
        """The file's name as words, without its ending."""
        return self.file.removesuffix(".json").replace("_", " ")

    def slug(self, what: str = "") -> str:
        """For anchors and files: the name, then what is shown of it, in letters and digits."""
        return re.sub(r"[^a-z0-9]+", "-", f"{self.name} {what}".lower()).strip("-")


def _rows_have(*names: str) -> Callable[[dict[str, Any]], bool]:
    return lambda data: all(name in data["rows"][0] for name in names)


# How to tell a file of the repository's benchmarks.
_KINDS: dict[str, Callable[[dict[str, Any]], bool]] = {
    "instructions": lambda data: "emulator" in data and "counts" in str(data["rows"][0]),
    "attention memory": lambda data: data["unit"] == "bytes beside inputs and output",
    "operators": lambda data: data["unit"].startswith("microseconds") and "op" in data["rows"][0],
    "end to end": lambda data: data["unit"].startswith("tokens per second"),
    "weights": _rows_have("weights", "perplexity", "ratio_95"),
    "cache": _rows_have("cache", "context_128"),
    "cold start": lambda data: "cold_first_token" in data,
}


def read(directory: Path) -> tuple[list[Source], list[str]]:
    """All JSON files of a folder, by name: those that are known, and a line for each other one.

    Raises:
        UsageError: there is no such folder, or no JSON file in it.
    """
    if not directory.is_dir():
        raise UsageError(f"DIR: expected a folder of results, got {directory}")
    paths = sorted(directory.glob("*.json"))
    if not paths:
        raise UsageError(f"DIR: expected *.json files of results, found none in {directory}")
    found = [_read(path) for path in paths]
    known = [one for one in found if isinstance(one, Source)]
    return known, [one for one in found if isinstance(one, str)]


def _read(path: Path) -> Source | str:
    """The file; or a line that says why it is left out."""
    try:
        return _source(path)
    except UsageError as error:
        return f"{path.name}: {str(error).removeprefix(f'{path}: ')}"


def _source(path: Path) -> Source:
    try:
        data = json.loads(path.read_bytes())
    except OSError as error:
        raise UsageError(f"cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise UsageError(f"not JSON: {error}") from None
    if isinstance(data, dict) and data.get("kind") in _OURS:
        result = results.read(path)
        return Source(path.name, result.kind, result, *_conditions(data))
    if isinstance(data, dict):
        return Source(path.name, _kind(path.name, data), data, *_conditions(data))
    raise UsageError("no result that a report shows")


def _kind(name: str, data: dict[str, Any]) -> str:
    for kind, matches in _KINDS.items():
        with contextlib.suppress(KeyError, IndexError, TypeError, AttributeError):
            if matches(data):
                return kind
    if name.startswith("server_"):
        return "server"
    raise UsageError("no result that a report shows")


def _conditions(data: dict[str, Any]) -> tuple[str, str, str, str]:
    machine = data.get("machine")
    machine = machine if isinstance(machine, dict) else {}
    versions = machine.get("versions") or data.get("versions") or {}
    found = [f"{name} {version}" for name, version in versions.items() if version]
    commit = machine.get("commit") or data.get("commit")
    found += [f"commit {commit}"] if commit else []
    command, date = (str(data.get(key) or "") for key in ("command", "date"))
    return _machine(machine, data), ", ".join(found), command, date[:19].replace("T", " ")


def _machine(machine: dict[str, Any], data: dict[str, Any]) -> str:
    if "emulator" in data:
        return f"{data['emulator']}, core {data.get('core', '')}, {data.get('isa', '')} kernels"
    cores = machine.get("logical_cpus") or machine.get("cores")
    caches = [
        f"{level} {machine[key] // 1024} KiB"
        for level, key in (("L1d", "l1d_bytes"), ("L2", "l2_bytes"), ("L3", "l3_bytes"))
        if machine.get(key)
    ]
    load = machine.get("load_average")
    parts = [
        machine.get("core") or machine.get("model") or machine.get("architecture"),
        f"{cores} cores" if cores else None,
        ", ".join(caches),
        f"{isa} kernels" if (isa := machine.get("isa") or data.get("isa")) else None,
        f"load average {load[0]:.1f} at the start" if load else None,
    ]
    return ", ".join(part for part in parts if part)

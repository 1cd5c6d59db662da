# SPDX-License-Identifier: Apache-2.0
"""Compiles the kernels to assembly, as a build would, and collects their marked loops."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import json
import os
import re
import shlex
import subprocess
import tempfile
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import assembly

_WITH_VALUE = ("-o", "-MT", "-MF", "-MQ")  # of the object file: dropped, with their values
_DROPPED = ("-c", "-MD", "-MMD", "-MP")
_ON_STACK = re.compile(r"(?:ld|st)[ru]?[pr]?\s.*\[sp\b")
_LANES = 4  # of f32 in a vector
_TILE = re.compile(r"tile_[a-z0-9]+_(\w+)\.cc$")  # as cmake/isa_flags.cmake has it


class Unexpected(Exception):
    """The assembly has not the loops that it should have."""


@dataclasses.dataclass(frozen=True)
class MarkedLoop:
    """A loop of one operator, dtype, variant and instruction set."""

    op: str
    name: str
    dtype: str
    variant: int
    isa: str
    work: int  # vectors, or steps, an iteration
    copies: tuple[tuple[str, ...], ...]  # different code that the compiler made of the same lines
    remarks: tuple[str, ...]

    @property
    def label(self) -> str:
        return f"{self.op}.{self.name}"

    @property
    def code(self) -> tuple[str, ...]:
        return self.copies[0]

    @property
    def spills(self) -> int:
        """Loads and stores of the stack: registers that were too few."""
        return max(sum(bool(_ON_STACK.match(line)) for line in code) for code in self.copies)


@dataclasses.dataclass(frozen=True)
class Found:
    """All loops of a build, and how they were compiled."""

    loops: list[MarkedLoop]
    compiler: str
    flags: dict[str, str]  # by instruction set


@dataclasses.dataclass(frozen=True)
class _Source:
    command: tuple[str, ...]
    directory: str
    file: Path
    isa: str
    is_tile: bool  # of a matrix product, for one type and instruction set

    def defines(self, op: str) -> bool:
        if self.is_tile:
            return self.file.parent.name == op
        return (
            re.search(rf"^void {re.escape(op)}\(", self.file.read_text(), re.MULTILINE) is not None
        )

    def compile(self, *options: str) -> str:
        with tempfile.TemporaryDirectory() as scratch:
            output = Path(scratch) / "out.s"
            command = (*self.command, *options, "-S", "-o", str(output))
            done = subprocess.run(command, cwd=self.directory, capture_output=True, text=True)
            if done.returncode:
                raise Unexpected(f"{self.file.name} for {self.isa}:\n{done.stderr.strip()}")
            # Sections of debug information hold bytes that are no text.
            return output.read_text(encoding="utf-8", errors="replace")

    def loops(self) -> list[assembly.Loop]:
        marked = self.compile("-g", "-fverbose-asm")
        try:
            return list(assembly.marked_loops(marked, self.compile()))
        except ValueError as error:
            raise Unexpected(f"{self.file.name} for {self.isa}: {error}") from None


def find_loops(
    build: Path,
    expected: Mapping[tuple[str, str], Mapping[str, Collection[int]]],
    ops: Collection[str],
    tiles: Mapping[tuple[str, str], Mapping[str, Collection[str]]] = MappingProxyType({}),
) -> Found:
    """The loops of these operators.

    Args:
        build: folder with a compile_commands.json.
        expected: by operator and loop, then dtype: the variants that there have to be.
        ops: operators to compile; what else stands in the same sources comes with them.
        tiles: likewise by operator and loop, then dtype: the instruction sets that have this loop,
            where it is not every one for which the *_hwy.cc are compiled.

    Raises:
        Unexpected: one is not there, or one is that is not expected.
    """
    sources = list(_sources(build))
    if not sources:
        raise Unexpected(f"{build.name}/compile_commands.json compiles no *_hwy.cc for an ISA")
    needed = [source for source in sources if any(map(source.defines, ops))]
    with concurrent.futures.ThreadPoolExecutor(min(2, os.cpu_count() or 1)) as pool:
        results = list(pool.map(_Source.loops, needed))
    loops = [
        loop
        for source, found in zip(needed, results, strict=True)
        for loop in _by_key(source, found)
    ]
    isas = sorted({source.isa for source in needed})
    vector_isas = sorted({source.isa for source in needed if not source.is_tile})
    wanted = {key: value for key, value in expected.items() if key[0] in ops}
    _check(loops, vector_isas, wanted, expected, tiles)
    order = {key: number for number, key in enumerate(expected)}
    loops.sort(
        key=lambda one: (
            order[one.op, one.name],
            assembly.TYPES.index(one.dtype),
            list(expected[one.op, one.name][one.dtype]).index(one.variant),
            isas.index(one.isa),
        )
    )
    flags = {
        source.isa + (" tiles" if source.is_tile else ""): " ".join(_flags(source.command))
        for source in needed
    }
    return Found(loops, _compiler(needed[0]), flags)


def operator(function: str, isa: str) -> str | None:
    """The name behind that of the instruction set in a mangled function name: `capibara::neon::f`,
    or what was split off from it; None where it stands in the unnamed namespace."""
    at = function.find(f"{len(isa)}{isa}")
    rest = function[at + len(f"{len(isa)}{isa}") :] if at >= 0 else ""
    length = re.match(r"\d+", rest)
    if not length or rest.startswith("12_GLOBAL__N_1"):
        return None
    return rest[length.end() : length.end() + int(length[0])]


def _sources(build: Path) -> Iterator[_Source]:
    for entry in json.loads((build / "compile_commands.json").read_text()):
        given = entry.get("arguments") or shlex.split(entry["command"])
        isa = next((one.partition("=")[2] for one in given if "-DCAPIBARA_ISA=" in one), None)
        file = Path(entry["directory"], entry["file"])
        tile = _TILE.match(file.name)
        if isa and file.name.endswith("_hwy.cc"):
            yield _Source(tuple(_without_outputs(given)), entry["directory"], file, isa, False)
        elif tile:
            yield _Source(tuple(_without_outputs(given)), entry["directory"], file, tile[1], True)


def _without_outputs(command: list[str]) -> Iterator[str]:
    arguments = iter(command)
    for argument in arguments:
        if argument in _WITH_VALUE:
            next(arguments, None)
        elif argument not in _DROPPED:
            yield argument


def _flags(command: tuple[str, ...]) -> Iterator[str]:
    """Those that choose the code, none that names a folder."""
    for argument in command:
        if re.match(r"-(?:O|m\w|f|std|-target|DNDEBUG)", argument) and "/" not in argument:
            yield argument


def _compiler(source: _Source) -> str:
    # With `zig c++` the compiler is two words.
    words = 2 if Path(source.command[0]).name == "zig" else 1
    shown = subprocess.run((*source.command[:words], "--version"), capture_output=True, text=True)
    return (shown.stdout.splitlines() or ["unknown"])[0].strip()


def _by_key(source: _Source, found: list[assembly.Loop]) -> Iterator[MarkedLoop]:
    """Joins the copies of each loop. Where one is compiled for several amounts of work, as with and
    without unrolling, the largest is where the time goes."""
    by_key: dict[tuple[str, str, str, int], list[assembly.Loop]] = {}
    for loop in found:
        op = operator(loop.function, source.isa) or source.file.parent.name
        mark = loop.mark
        by_key.setdefault((op, mark.name, mark.dtype, mark.variant), []).append(loop)
    for (op, name, dtype, variant), loops in by_key.items():
        work = max(loop.mark.work for loop in loops)
        largest = [loop for loop in loops if loop.mark.work == work]
        yield MarkedLoop(
            op=op,
            name=name,
            dtype=dtype,
            variant=variant,
            isa=source.isa,
            work=work,
            copies=tuple(dict.fromkeys(_without_labels(loop.code) for loop in largest)),
            remarks=tuple(dict.fromkeys(remark for loop in largest for remark in _remarks(loop))),
        )


def _without_labels(code: tuple[str, ...]) -> tuple[str, ...]:
    """The code with one name for all labels, so that the same loop is the same in two sources."""
    return tuple(
        line.rpartition(" ")[0] + " .Lelsewhere" if assembly.target(line) else line for line in code
    )


def _remarks(loop: assembly.Loop) -> Iterator[str]:
    if loop.branches or loop.off_path:
        yield (
            f"{loop.branches} branches inside, taken for not taken; {loop.off_path} instructions "
            "beside the straight way are left out"
        )
    if loop.calls:
        yield f"{loop.calls} calls, which count as one instruction"
    steps = {_LANES * loop.mark.work * size for size in (1, 2, 4)}
    # 1: counts something else than elements, such as heads.
    if loop.steps() and not steps & loop.steps() and 1 not in loop.steps():
        yield f"moves by {sorted(loop.steps())}, not by the marked work: unrolled by the compiler?"


def _check(
    loops: list[MarkedLoop],
    isas: list[str],
    wanted: Mapping[tuple[str, str], Mapping[str, Collection[int]]],
    known: Mapping[tuple[str, str], Mapping[str, Any]],
    tiles: Mapping[tuple[str, str], Mapping[str, Collection[str]]] = MappingProxyType({}),
) -> None:
    there = {(one.op, one.name, one.dtype, one.variant, one.isa) for one in loops}
    missing = [
        f"{op}.{name} {dtype} variant {variant} {isa}"
        for (op, name), dtypes in wanted.items()
        for dtype, variants in dtypes.items()
        for variant in variants
        for isa in tiles.get((op, name), {}).get(dtype, isas)
        if (op, name, dtype, variant, isa) not in there
    ]
    unknown = sorted(
        {
            f"{one.label} {one.dtype} variant {one.variant}"
            for one in loops
            if one.variant not in known.get((one.op, one.name), {}).get(one.dtype, ())
        }
    )
    lines = [f"not found: {one}" for one in missing]
    lines += [f"marked, but not in the table of loops: {one}" for one in unknown]
    if lines:
        raise Unexpected("\n".join(lines))

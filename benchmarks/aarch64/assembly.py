# SPDX-License-Identifier: Apache-2.0
"""Finds marked loops in the assembly that clang writes for aarch64 with `-S -g -fverbose-asm`.

csrc/kernels/common/loop_marker.h says how a loop is marked. What counts as one is a natural loop of
the function's control flow that has no other loop inside.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Iterator

DTYPES = ("f32", "f16", "bf16")  # numbered as in csrc/base/dtype.h
TYPES = (*DTYPES, "int8")  # numbered as in csrc/kernels/common/loop_marker.h

_MARK = re.compile(r"DEBUG_VALUE:.*\bcapibara_loop_(\w+) <- (?:\[\w+\] )*(\d+)")
_LABEL = re.compile(r"([.\w$]+):")
_FUNCTION = re.compile(r"\.type\s+([.\w$]+),\s*[@%]function")
_BRANCH = re.compile(r"(?:b|b\.\w\w|bc\.\w\w|cbn?z|tbn?z)$")
_LEAVES = re.compile(r"(?:b|br|braaz?|brabz?|ret|retaa|retab|brk|udf|hlt)$")  # never falls through
_STEP = re.compile(r"(?:adds?|subs?)\s+[xw]\d+, [xw]\d+, #(\d+)$|.*\], #(-?\d+)$")


@dataclasses.dataclass(frozen=True)
class Mark:
    """The arguments of CAPIBARA_LOOP."""

    name: str
    dtype: str
    work: int
    variant: int

    @classmethod
    def decode(cls, name: str, value: int) -> Mark:
        return cls(name, TYPES[value % 10], value // 10 % 1000, value // 10000)


@dataclasses.dataclass
class Block:
    """Instructions that are entered at the first and left at the last."""

    label: str | None = None
    code: list[str] = dataclasses.field(default_factory=list)
    marks: set[Mark] = dataclasses.field(default_factory=set)
    successors: list[int] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True)
class Loop:
    """A marked loop: the way through it on which no branch is taken that could fall through."""

    function: str
    mark: Mark
    code: tuple[str, ...]
    branches: int  # conditional ones besides that at the end: taken for not taken
    off_path: int  # instructions of the loop that this way does not meet
    calls: int

    def steps(self) -> set[int]:
        """By how much an iteration may move its counter or pointers."""
        found = (_STEP.match(line) for line in self.code)
        return {abs(int(step[1] or step[2])) for step in found if step}


def functions(text: str) -> Iterator[tuple[str, list[Block]]]:
    """Each function's name and blocks, in the order of the text, with their successors."""
    names = set(_FUNCTION.findall(text))
    lines: dict[str, list[str]] = {}
    current: list[str] | None = None
    for line in text.splitlines():
        label = _LABEL.match(line)
        if label and label[1] in names:
            current = lines.setdefault(label[1], [])
        elif line.startswith(".Lfunc_end"):
            current = None
        elif current is not None:
            current.append(line)
    for name, body in lines.items():
        blocks = _blocks(body)
        _connect(blocks)
        yield name, blocks


def marked_loops(marked: str, shipped: str | None = None) -> Iterator[Loop]:
    """Every innermost loop with a mark inside, in the order of the text.

    Args:
        marked: assembly with debug information, in which the marks are.
        shipped: assembly of the same source without, from which the loops' instructions are then
            taken. Debug information leaves the code alone, but for a register's name here or there.

    Raises:
        ValueError: two different marks stand in one loop, or `shipped` has other loops.
    """
    same = dict(functions(shipped)) if shipped is not None else {}
    for name, blocks in functions(marked):
        loops = _innermost(blocks)
        others = loops if shipped is None else _innermost(same.get(name, []))
        if len(others) != len(loops):
            raise ValueError(f"{name}: debug information changes the number of loops")
        for (header, body), (other_header, other_body) in zip(loops, others, strict=True):
            marks = {mark for index in body for mark in blocks[index].marks if mark.work}
            if len(marks) > 1:
                raise ValueError(f"{name}: a loop with several marks: {sorted(map(str, marks))}")
            if not marks:
                continue
            loop = _straight(name, marks.pop(), blocks, header, body)
            if shipped is not None:
                other = _straight(name, loop.mark, same[name], other_header, other_body)
                if _mnemonics(other) != _mnemonics(loop):
                    raise ValueError(f"{name}: debug information changes the loop of {loop.mark}")
                loop = other
            yield loop


def target(line: str) -> str | None:
    """The label that a branch names; None for any other instruction."""
    return line.split()[-1] if _BRANCH.match(line.split()[0]) else None


def _blocks(lines: Iterable[str]) -> list[Block]:
    blocks = [Block()]
    for line in lines:
        if mark := _MARK.search(line):
            blocks[-1].marks.add(Mark.decode(mark[1], int(mark[2])))
            continue
        if label := _LABEL.match(line):
            # Those of debug information divide nothing: no branch names them.
            if not label[1].startswith((".Ltmp", ".Lloc")):
                blocks.append(Block(label[1]))
            continue
        code = " ".join(line.split("//")[0].split())
        if not code or code.startswith("."):
            continue
        blocks[-1].code.append(code)
        mnemonic = code.split()[0]
        if _BRANCH.match(mnemonic) or _LEAVES.match(mnemonic):
            blocks.append(Block())
    return blocks


def _connect(blocks: list[Block]) -> None:
    by_label = {block.label: index for index, block in enumerate(blocks) if block.label}
    alive = True  # whether the block is entered: by its label, or from the one above
    for index, block in enumerate(blocks):
        alive = alive or block.label is not None
        last = block.code[-1] if block.code else ""
        falls_through = not last or not _LEAVES.match(last.split()[0])
        entered, alive = alive, alive and falls_through
        if not entered:
            continue
        if falls_through and index + 1 < len(blocks):
            block.successors.append(index + 1)
        jump = target(last) if last else None
        if jump in by_label:  # else it leaves the function
            block.successors.append(by_label[jump])


def _predecessors(blocks: list[Block]) -> list[list[int]]:
    found: list[list[int]] = [[] for _ in blocks]
    for index, block in enumerate(blocks):
        for successor in block.successors:
            found[successor].append(index)
    return found


def _dominators(blocks: list[Block], predecessors: list[list[int]]) -> list[set[int]]:
    """For each block those that every way to it passes. Where a computed jump may lead is unknown:
    blocks that nothing else reaches count as entries."""
    everything = set(range(len(blocks)))
    reached = {index for index in everything if predecessors[index]}
    entries = {0} | everything - reached
    dominators = [{index} if index in entries else set(everything) for index in range(len(blocks))]
    changed = True
    while changed:
        changed = False
        for index in sorted(reached - entries):
            known = set.intersection(*(dominators[before] for before in predecessors[index]))
            known.add(index)
            if known != dominators[index]:
                dominators[index] = known
                changed = True
    return dominators


def _natural_loops(blocks: list[Block]) -> dict[int, set[int]]:
    """The bodies of the loops by their headers."""
    predecessors = _predecessors(blocks)
    dominators = _dominators(blocks, predecessors)
    bodies: dict[int, set[int]] = {}
    for index, block in enumerate(blocks):
        for header in block.successors:
            if header not in dominators[index]:
                continue
            body = bodies.setdefault(header, {header})
            todo = [index]
            while todo:
                if (member := todo.pop()) not in body:
                    body.add(member)
                    todo += predecessors[member]
    return bodies


def _innermost(blocks: list[Block]) -> list[tuple[int, set[int]]]:
    loops = _natural_loops(blocks)
    return [
        (header, body)
        for header, body in sorted(loops.items())
        if not any(other < body for other in loops.values())
    ]


def _mnemonics(loop: Loop) -> list[str]:
    return [line.split()[0] for line in loop.code]


def _straight(function: str, mark: Mark, blocks: list[Block], header: int, body: set[int]) -> Loop:
    """The way from the header back to it that falls through wherever that stays in the loop."""
    way = [header]
    while True:
        after = next(index for index in blocks[way[-1]].successors if index in body)
        if after == header:
            break
        way.append(after)
    code = tuple(line for index in way for line in blocks[index].code)
    branches = [line for line in code if target(line) and line.split()[0] != "b"]
    return Loop(
        function=function,
        mark=mark,
        code=code,
        branches=len(branches) - (code[-1] in branches[-1:]),
        off_path=sum(len(blocks[index].code) for index in body.difference(way)),
        calls=sum(line.split()[0] in ("bl", "blr") for line in code),
    )

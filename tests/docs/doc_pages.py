# SPDX-License-Identifier: Apache-2.0
"""The documentation as data: pages, their fenced blocks, commands, code and links."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))

_FENCE = re.compile(r"^```(\w*)$")
_NOT_RUN = re.compile(r"^<!-- not run:(.*)-->$")
_HEADING = re.compile(r"^#{1,6} (.+)$")
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_SPAN = re.compile(r"`([^`]+)`")


@dataclass(frozen=True)
class Block:
    """What stands between two fences.

    Attributes:
        line: number of its first line in the page, from 1.
        reason: why it is not run, as the comment right above says; None: it is run.
    """

    page: Path
    language: str
    line: int
    text: str
    reason: str | None

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    def commands(self) -> Iterator[str]:
        """Of a shell block: a line each, or several where a quotation or a backslash says so.

        Programs of the checkout's .venv/bin are on the PATH of whoever runs them.
        """
        command = ""
        for line in self.text.replace(".venv/bin/", "").splitlines():
            command += line + "\n"
            if line.endswith("\\") or not _is_complete(command):
                continue
            if shlex.split(command, comments=True):
                yield command.strip()
            command = ""
        assert not command, f"{self}: a quotation does not end"


def _is_complete(command: str) -> bool:
    try:
        shlex.split(command, comments=True)
    except ValueError:
        return False
    return True


@dataclass
class Page:
    """A file, taken apart.

    Attributes:
        anchors: what links may name of it, as GitHub makes them of headings.
        links: all that are relative.
        code: of fenced blocks and of code within lines.
    """

    path: Path
    blocks: list[Block] = field(default_factory=list)
    anchors: set[str] = field(default_factory=set)
    links: list[str] = field(default_factory=list)
    code: list[str] = field(default_factory=list)

    def of(self, *languages: str) -> list[Block]:
        return [block for block in self.blocks if block.language in languages]


@cache
def read(path: Path) -> Page:
    page = Page(path)
    lines = path.read_text().splitlines()
    number = 0
    while number < len(lines):
        line = lines[number]
        number += 1
        if fence := _FENCE.match(line):
            end = lines.index("```", number)
            above = _NOT_RUN.match(lines[number - 2]) if number > 1 else None
            text = "\n".join(lines[number:end])
            reason = above[1].strip() if above else None
            page.blocks.append(Block(path, fence[1], number + 1, text, reason))
            page.code.append(text)
            number = end + 1
            continue
        if heading := _HEADING.match(line):
            page.anchors.add(_new_anchor(heading[1], page.anchors))
        page.links += [link for link in _LINK.findall(line) if "://" not in link]
        page.code += _SPAN.findall(line)
    return page


def _new_anchor(heading: str, taken: set[str]) -> str:
    text = _LINK.sub(lambda link: link[0][1:].split("]")[0], heading)
    anchor = re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")
    same = sum(other == anchor or other.startswith(f"{anchor}-") for other in taken)
    return f"{anchor}-{same}" if anchor in taken else anchor

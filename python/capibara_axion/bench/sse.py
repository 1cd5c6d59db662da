# SPDX-License-Identifier: Apache-2.0
"""Server-sent events whose bytes were noted as they came, and are looked into afterwards.

The format is that of the HTML standard, section "Server-sent events".
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple


class Arrival(NamedTuple):
    """Bytes that a read returned, and when."""

    at: float
    data: bytes


class Event(NamedTuple):
    """An event's data, or a comment; `at` is when its last byte came."""

    at: float
    data: str
    is_comment: bool = False


def events(arrivals: Iterable[Arrival]) -> Iterator[Event]:
    """The events of a stream in their order; one that the stream's end cuts off is left out."""
    rest = b""
    data: list[str] = []
    for at, part in arrivals:
        *lines, rest = (rest + part).split(b"\n")
        for raw in lines:
            line = raw.rstrip(b"\r").decode(errors="replace")
            if line.startswith(":"):
                yield Event(at, line[1:].strip(), is_comment=True)
            elif line.startswith("data:"):
                data.append(line[5:].removeprefix(" "))
            elif not line and data:
                yield Event(at, "\n".join(data))
                data = []


def has_token(chunk: dict[str, Any]) -> bool:
    """Whether a chunk of a chat's or a completion's stream was sent because of a token.

    The first chunk, which only tells the role, and the last ones, which only tell the reason for
    the end or the usage, are not. A token that makes no text yet, such as the first half of a
    letter, comes as an empty text (from llama.cpp, not at all).
    """
    for choice in chunk.get("choices") or ():
        delta = choice.get("delta") or {}
        texts = [choice.get("text")]
        texts += [delta.get(key) for key in ("content", "reasoning", "reasoning_content")]
        if any(texts) or delta.get("tool_calls"):
            return True
        if "" in texts and "role" not in delta and choice.get("finish_reason") is None:
            return True
    return False

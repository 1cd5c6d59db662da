# SPDX-License-Identifier: Apache-2.0
"""Events and their times, however their bytes are cut."""

from __future__ import annotations

from typing import Any

import pytest

from capibara_axion.bench.prompts import KINDS, LANGUAGES, PROMPTS, Prompts
from capibara_axion.bench.sse import Arrival, Event, events, has_token

STREAM = b": ping\n\ndata: one\n\ndata:two\ndata: three\r\n\r\nevent: x\nid: 4\n\ndata: [DONE]\n\n"
EXPECTED = ["ping", "one", "two\nthree", "[DONE]"]


@pytest.mark.parametrize("size", [1, 2, 3, 7, len(STREAM)])
def test_events_do_not_depend_on_how_bytes_are_cut(size: int) -> None:
    parts = [STREAM[start : start + size] for start in range(0, len(STREAM), size)]
    found = list(events(Arrival(float(at), part) for at, part in enumerate(parts)))
    assert [event.data for event in found] == EXPECTED
    assert [event.is_comment for event in found] == [True, False, False, False]


def test_an_event_came_with_its_last_byte() -> None:
    parts = [Arrival(1.0, b"data: a\n"), Arrival(2.0, b"\ndata: b\n\ndata: c"), Arrival(3.0, b"\n")]
    assert list(events(parts)) == [Event(2.0, "a"), Event(2.0, "b")]


def test_letters_that_are_cut_are_whole_again() -> None:
    text = "data: ñandú\n\n".encode()
    parts = [Arrival(0.0, bytes([byte])) for byte in text]
    assert [event.data for event in events(parts)] == ["ñandú"]


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        ({"delta": {"content": "a"}}, True),
        ({"delta": {"content": ""}}, True),  # a token that makes no text yet
        ({"delta": {"content": "a"}, "finish_reason": "length"}, True),
        ({"delta": {"reasoning_content": "a"}}, True),
        ({"delta": {"tool_calls": [{}]}}, True),
        ({"text": "a", "finish_reason": None}, True),
        ({"delta": {"role": "assistant", "content": ""}}, False),
        ({"delta": {"role": "assistant", "content": None}}, False),
        ({"delta": {}, "finish_reason": "stop"}, False),
        ({"delta": {"content": ""}, "finish_reason": "stop"}, False),
    ],
)
def test_which_chunks_have_a_token(choice: dict[str, Any], expected: bool) -> None:
    assert has_token({"choices": [choice]}) is expected


def test_a_chunk_of_usage_has_none() -> None:
    assert not has_token({"choices": [], "usage": {"completion_tokens": 3}})
    assert not has_token({})


def test_there_are_questions_of_each_kind_in_both_languages() -> None:
    assert KINDS == ("simple", "technical", "coding", "multilingual", "complex")
    texts = [text for kind in PROMPTS.values() for some in kind.values() for text in some]
    assert {tuple(kind) for kind in PROMPTS.values()} == {LANGUAGES}
    assert len(set(texts)) == len(texts) == 40


def test_a_round_has_each_kind_and_language_once() -> None:
    prompts = Prompts(KINDS, LANGUAGES, salt=7)
    found = [prompts.get(index) for index in range(2 * prompts.round)]
    for part in (found[:10], found[10:]):
        assert len({(prompt.kind, prompt.language) for prompt in part}) == 10
    assert len({prompt.text[:10] for prompt in found}) == 20
    assert len({len(prompt.text.split(":")[0]) for prompt in found}) == 1

# SPDX-License-Identifier: Apache-2.0
"""An account of every request that the official client sends to a server, and how it ended."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Literal

import openai

_QUESTION: list[Any] = [{"role": "user", "content": "Who are you?"}]

# answered    in full
# broken      a stream that had begun, ended by an error event and [DONE]
# cancelled   by this side
# refused     429, with a Retry-After
# lost        anything else
Outcome = Literal["answered", "broken", "cancelled", "refused", "lost"]


@dataclass
class Entry:
    """One request; all times are of `time.monotonic`.

    Attributes:
        model: whom it asked.
        stream: whether it asked for a stream.
        sent, first_byte, end: when; a comment in a stream is no first byte.
        frames: events with content that came.
        largest_gap_s: between two of them.
        outcome: how it ended; None while it has not.
        detail: about an outcome that is no answer.
        retry_after_s: of a refusal.
        kills: how many workers were killed that may have had it.
        killed_at: when the last one was.
    """

    model: str
    stream: bool
    sent: float = field(default_factory=time.monotonic)
    first_byte: float | None = None
    frames: int = 0
    largest_gap_s: float = 0.0
    end: float | None = None
    outcome: Outcome | None = None
    detail: str = ""
    retry_after_s: int | None = None
    kills: int = 0
    killed_at: float | None = None
    _last_frame: float = 0.0

    def frame(self) -> None:
        now = time.monotonic()
        if self.first_byte is None:
            self.first_byte = now
        else:
            self.largest_gap_s = max(self.largest_gap_s, now - self._last_frame)
        self._last_frame = now
        self.frames += 1

    def settle(self, outcome: Outcome, detail: str = "") -> None:
        self.outcome, self.detail = outcome, detail


class Ledger:
    """Asks a server, by the official client and without its retries, and keeps account.

    Args:
        url: of the server, without a path.
    """

    def __init__(self, url: str) -> None:
        self.entries: list[Entry] = []
        self._http = openai.DefaultAsyncHttpxClient(timeout=600, base_url=url)
        self._api = openai.AsyncOpenAI(
            base_url=f"{url}/v1", api_key="none", max_retries=0, http_client=self._http
        )
        self._ask = self._api.chat.completions

    async def close(self) -> None:
        await self._api.close()

    async def stats(self) -> dict[str, Any]:
        """The server's own account."""
        answer = await self._http.get("/stats")
        stats: dict[str, Any] = answer.json()
        return stats

    async def post(self, path: str, body: dict[str, Any], key: str) -> int:
        """Send an operator's order; the status code."""
        headers = {"Authorization": f"Bearer {key}"}
        return (await self._http.post(path, json=body, headers=headers)).status_code

    async def ask(
        self, model: str, *, stream: bool, cancel_after_s: float | None = None, **fields: Any
    ) -> Entry:
        """Ask for a completion and wait until it has ended, one way or another.

        Args:
            model: name of an expert.
            stream: whether the answer is to be streamed.
            cancel_after_s: leave, if there is no answer until then.
            fields: of the client's `create`.
        """
        entry = Entry(model, stream)
        self.entries.append(entry)
        try:
            async with asyncio.timeout(cancel_after_s):
                await (self._stream if stream else self._whole)(entry, fields)
        except TimeoutError:
            entry.settle("cancelled")
        except openai.APIStatusError as error:
            entry.retry_after_s = int(error.response.headers.get("Retry-After", -1))
            refused = error.status_code == 429 and entry.retry_after_s >= 0
            entry.settle("refused" if refused else "lost", f"{error.status_code} {error.message}")
        except Exception as error:  # of the client's HTTP library, whichever it is
            entry.settle("lost", repr(error))
        finally:
            entry.end = time.monotonic()
        return entry

    async def _whole(self, entry: Entry, fields: dict[str, Any]) -> None:
        await self._ask.create(model=entry.model, messages=_QUESTION, **fields)
        entry.frame()
        entry.settle("answered")

    async def _stream(self, entry: Entry, fields: dict[str, Any]) -> None:
        """Read the events themselves: the client's iterator stops at an error, before `[DONE]`."""
        error, done = "", False
        async with self._ask.with_streaming_response.create(
            model=entry.model, messages=_QUESTION, stream=True, **fields
        ) as response:
            async for line in response.iter_lines():
                if done and line:
                    entry.settle("lost", "something came after [DONE]")
                    return
                if line == "data: [DONE]":
                    done = True
                elif line.startswith('data: {"error"'):
                    error = json.loads(line.removeprefix("data: "))["error"]["message"]
                elif line.startswith("data: "):
                    entry.frame()
        if not done:
            entry.settle("lost", f"a stream without [DONE], {entry.frames} frames, {error}")
        elif not error:
            entry.settle("answered")
        else:
            entry.settle("broken" if entry.frames else "lost", error)

    def in_hand(self, model: str) -> list[Entry]:
        """The model's requests that have not ended."""
        return [entry for entry in self.entries if entry.model == model and entry.end is None]

    def lost(self) -> list[Entry]:
        """Requests that ended as none should; a stream may break, but only by a kill."""
        fine = ("answered", "cancelled", "refused")
        return [
            entry
            for entry in self.entries
            if entry.end is not None
            and entry.outcome not in fine
            and not (entry.outcome == "broken" and entry.kills == 1)
        ]

    def summary(self) -> dict[str, Any]:
        """How many ended how, and what kills did to them."""
        hit = [entry for entry in self.entries if entry.kills]
        ends = [
            entry.end - entry.killed_at
            for entry in hit
            if entry.outcome == "broken" and entry.end is not None and entry.killed_at is not None
        ]
        return {
            "requests": len(self.entries),
            "outcomes": dict(Counter(entry.outcome or "never ended" for entry in self.entries)),
            "hit": len(hit),
            "hit_and_answered": sum(entry.outcome == "answered" for entry in hit),
            "slowest_end_s": round(max(ends, default=0.0), 3),
            "lost": [f"{entry.model}: {entry.detail}" for entry in self.lost()],
        }

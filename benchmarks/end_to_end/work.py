# SPDX-License-Identifier: Apache-2.0
"""The work that every contender does, and how the process that does it is told and answers.

Standard library only: llama.cpp is measured in an environment of its own, without torch.
"""

from __future__ import annotations

import json
import os
import random
import resource
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

VOCAB_SIZE = 151936
CONTEXT = 1024
_COMPARED = 16  # generated tokens that are kept, to be compared with the other contenders'


@dataclass(frozen=True)
class Job:
    """What one process measures.

    Attributes:
        model: the checkpoint, a folder or a GGUF file.
        seed: of the prompts; the same for all contenders of a round.
        options: what only this engine understands.
    """

    model: str
    threads: int
    prompt_tokens: int = 512
    new_tokens: int = 128
    repetitions: int = 2
    seed: int = 0
    options: dict[str, Any] = field(default_factory=dict)

    def prompts(self) -> Iterator[list[int]]:
        """One prompt a repetition, no two alike, so that no cache of prefixes can help."""
        for repetition in range(self.repetitions):
            yield prompt(self.seed * 1000 + repetition, self.prompt_tokens)

    def to_json(self) -> str:
        return json.dumps(asdict(self))


class Absent(Exception):
    """The contender cannot take part on this machine; the message says why."""


class Stopwatch:
    """Takes the time of every token of one answer."""

    def __init__(self) -> None:
        self._tokens: list[int] = []
        self._began = self._first = self._last = time.perf_counter()

    def token(self, token: int) -> None:
        self._last = time.perf_counter()
        if not self._tokens:
            self._first = self._last
        self._tokens.append(token)

    def figures(self, job: Job) -> dict[str, Any]:
        """The repetition's figures for the answer.

        Raises:
            RuntimeError: the engine generated more or fewer tokens than it was told to.
        """
        count = len(self._tokens)
        if count != job.new_tokens:
            raise RuntimeError(f"expected {job.new_tokens} generated tokens, got {count}")
        return {
            "prefill_tokens_per_s": job.prompt_tokens / (self._first - self._began),
            "decode_tokens_per_s": (count - 1) / (self._last - self._first),
            "first_tokens": self._tokens[:_COMPARED],
        }


def prompt(seed: int, length: int) -> list[int]:
    """Random token ids."""
    draw = random.Random(seed)
    return [draw.randrange(VOCAB_SIZE) for _ in range(length)]


def resident_mib() -> int:
    """Memory of this process as it is now, mapped files that it has read included."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * resource.getpagesize() >> 20


def answer(measure: Callable[[Job], dict[str, Any]]) -> None:
    """The main function of a measuring process: its job on stdin, the answer in file argv[1]."""
    job = Job(**json.load(sys.stdin))
    began = time.perf_counter()
    try:
        found = measure(job)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        found |= {"peak_rss_mib": peak // 1024, "seconds": round(time.perf_counter() - began, 1)}
    except Absent as error:
        found = {"absent": str(error)}
    except Exception:
        found = {"error": traceback.format_exc()}
    Path(sys.argv[1]).write_text(json.dumps(found), encoding="utf-8")
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # engines differ in how long they take to free their memory, and some crash at it

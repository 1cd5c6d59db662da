# SPDX-License-Identifier: Apache-2.0
"""What is a hang and what is only slow."""

from __future__ import annotations

import pytest

from capibara_axion.server.control import Beat
from capibara_axion.server.hang import HangDetector


class Worker:
    """Beats into a detector every half second."""

    def __init__(self, patience_s: float = 10.0) -> None:
        self.now, self.steps, self.cpu_s = 0.0, 0, 0.0
        self.detector = HangDetector(patience_s, 0.0)

    def live(self, seconds: float, *, running: int, steps: float = 0.0, cores: float = 0.0) -> None:
        """Go on for so long, with so many steps a second, on so many cores."""
        for _ in range(round(seconds * 2)):
            self.now += 0.5
            self.steps += round(steps * 0.5)
            self.cpu_s += cores * 0.5
            beat = Beat(running=running, steps=self.steps, tokens=self.steps, cpu_s=self.cpu_s)
            self.detector.beat(beat, self.now)

    def verdict(self, later: float = 0.0) -> str | None:
        return self.detector.verdict(self.now + later)


def test_silence_is_a_hang_with_or_without_requests() -> None:
    for running in (0, 3):
        worker = Worker()
        worker.live(5, running=running, steps=10, cores=1)
        assert worker.verdict(9.5) is None
        assert "not been heard of" in (worker.verdict(10.5) or "")


def test_an_idle_engine_never_hangs() -> None:
    worker = Worker()
    worker.live(3600, running=0)
    assert worker.verdict() is None


def test_an_engine_that_neither_steps_nor_computes_hangs_soon_after_its_usual_gap() -> None:
    worker = Worker()
    worker.live(10, running=2, steps=10, cores=2)
    worker.live(10, running=2)
    assert worker.verdict() is None
    worker.live(1, running=2)
    assert "neither stepped nor computed" in (worker.verdict() or "")


def test_long_steps_are_usual_for_some() -> None:
    worker = Worker()
    for _ in range(3):  # a step every 20 s, computing
        worker.live(20, running=1, cores=2)
        worker.live(0.5, running=1, steps=2, cores=2)
    assert worker.detector.usual_gap_s == pytest.approx(20.5, abs=1)
    worker.live(25, running=1)
    assert worker.verdict() is None
    worker.live(7, running=1)
    assert worker.verdict() is not None


def test_a_first_long_step_that_computes_is_no_hang() -> None:
    worker = Worker()
    worker.live(10, running=1, steps=10, cores=2)
    worker.live(200, running=1, cores=1)
    assert worker.verdict() is None
    worker.live(200, running=1, cores=1)
    assert "without a step" in (worker.verdict() or "")


def test_a_new_request_starts_the_clock() -> None:
    worker = Worker()
    worker.live(100, running=0)
    worker.live(9, running=1)
    assert worker.verdict() is None


def test_a_watcher_that_was_held_up_does_not_judge() -> None:
    worker = Worker()
    worker.live(5, running=1, steps=10, cores=1)
    worker.detector.pardon(worker.now + 60)
    assert worker.verdict(65) is None
    assert worker.verdict(75) is not None

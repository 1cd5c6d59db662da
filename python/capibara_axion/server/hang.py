# SPDX-License-Identifier: Apache-2.0
"""Tells a worker that hangs from one that is merely slow, by its progress and not by its age.

A worker says twice a second how many steps its engine has taken, how many tokens came out, and how
much processor time it has used. One that is not heard of hangs (it was stopped, or its event loop
is stuck). One that is heard of, has requests, and whose engine takes no step for longer than it
usually does hangs if it does not compute either; while it computes, as in a step over a long
prompt, it is given far more time, for only a loop that never ends looks like that for long.
"""

from __future__ import annotations

from capibara_axion.server.control import Beat

# An engine that waits uses next to no processor time; one that computes uses at least one core.
_IDLE_SHARE = 0.1
_COMPUTING_PATIENCE = 30
# With each step the longest gap counts for less: after 700 steps it is forgotten by half.
_DECAY = 0.999


class HangDetector:
    """Watches one worker.

    Args:
        patience_s: silence beyond the usual after which it hangs.
        now: any monotonic time in seconds.
    """

    def __init__(self, patience_s: float, now: float) -> None:
        self._patience_s = patience_s
        self._beat: Beat | None = None
        self._heard_at = now
        self._progress_at = now
        self._cpu_at_progress = 0.0
        self._usual_gap_s = 0.0

    @property
    def usual_gap_s(self) -> float:
        """The longest that its engine lately took from one step to the next."""
        return self._usual_gap_s

    def beat(self, beat: Beat, now: float) -> None:
        """Take in what the worker says."""
        before, self._beat, self._heard_at = self._beat, beat, now
        stepped = before is None or beat.steps != before.steps or beat.tokens != before.tokens
        if before is not None and before.running and stepped:
            gap = now - self._progress_at
            self._usual_gap_s = max(gap, self._usual_gap_s * _DECAY)
        if stepped or not beat.running or not (before and before.running):
            self._progress_at, self._cpu_at_progress = now, beat.cpu_s

    def pardon(self, now: float) -> None:
        """Begin anew: whoever watches was itself held up and cannot judge."""
        self._heard_at = self._progress_at = now
        if self._beat is not None:
            self._cpu_at_progress = self._beat.cpu_s

    def verdict(self, now: float) -> str | None:
        """Why the worker hangs, or None."""
        unheard = now - self._heard_at
        if unheard > self._patience_s:
            return f"it has not been heard of for {unheard:.1f} s"
        if self._beat is None or not self._beat.running:
            return None
        silent = now - self._progress_at
        limit = self._usual_gap_s + self._patience_s
        if silent <= limit:
            return None
        computed = self._beat.cpu_s - self._cpu_at_progress
        if computed < _IDLE_SHARE * silent:
            return f"its engine has neither stepped nor computed for {silent:.1f} s"
        if silent > _COMPUTING_PATIENCE * limit:
            return f"its engine has computed for {silent:.1f} s without a step"
        return None

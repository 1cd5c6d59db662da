# SPDX-License-Identifier: Apache-2.0
"""What the gateway and a worker tell each other beside the requests, over a duplex pipe.

    worker    Phase, ..., Phase, then Ready or Failed; from Ready on a Beat every `BEAT_S`
    gateway   Cores, at any time; the worker answers with the same once it is in effect

Messages are small JSON objects. A pipe takes or refuses one as a whole, and holds hundreds, so that
neither side ever waits for the other: it may have been stopped.
"""

from __future__ import annotations

import json
import select
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from typing import Any, ClassVar

# Seconds from one beat to the next.
BEAT_S = 0.5

# With a request the gateway sends: what it means by having no `stream`, 0 or 1; its id; how long it
# waited for its turn, and how much of that for the model's load, in seconds.
STREAM_DEFAULT_HEADER = "X-Capibara-Stream-Default"
REQUEST_ID_HEADER = "X-Request-Id"
QUEUE_HEADER = "X-Capibara-Queue-S"
LOAD_HEADER = "X-Capibara-Load-S"


@dataclass(frozen=True)
class Phase:
    """How far a load has come: "configuring", "loading", "starting", or any other text."""

    type: ClassVar[str] = "phase"
    phase: str


@dataclass(frozen=True)
class Ready:
    """The worker's socket accepts requests; `details` are for the gateway's statistics."""

    type: ClassVar[str] = "ready"
    details: dict[str, Any]


@dataclass(frozen=True)
class Failed:
    """The worker cannot serve and ends; the reason is fit for an API client."""

    type: ClassVar[str] = "failed"
    reason: str


@dataclass(frozen=True)
class Beat:
    """A sign of life from the worker's event loop.

    Attributes:
        running: requests that are in the engine now.
        steps: iterations of the engine so far; a part of a long prompt counts.
        tokens: tokens generated so far.
        cpu_s: processor time so far, of the worker and its engine's processes together.
    """

    type: ClassVar[str] = "beat"
    running: int
    steps: int
    tokens: int
    cpu_s: float


@dataclass(frozen=True)
class Cores:
    """To the worker: compute on these from now on, one thread on each. From it: it does."""

    type: ClassVar[str] = "cores"
    cpus: tuple[int, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "cpus", tuple(self.cpus))  # JSON has lists only


Message = Phase | Ready | Failed | Beat | Cores

_MESSAGES: dict[str, type[Message]] = {
    kind.type: kind for kind in (Phase, Ready, Failed, Beat, Cores)
}


class Channel:
    """One side's end of the pipe."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._room = select.poll()
        self._room.register(connection.fileno(), select.POLLOUT)

    def fileno(self) -> int:
        return self._connection.fileno()

    def send(self, message: Message) -> bool:
        """Send without waiting; False if the other side is gone or has not read for long."""
        data = json.dumps({"type": message.type, **asdict(message)}).encode()
        try:
            if not self._room.poll(0):
                return False
            self._connection.send_bytes(data)
        except OSError:
            return False
        return True

    @property
    def closed(self) -> bool:
        return self._connection.closed

    def pending(self) -> bool:
        """Whether `receive` has something to return or to raise."""
        return not self.closed and self._connection.poll()

    def receive(self) -> Message:
        """The next message; waits for one if none is `pending`.

        Raises:
            EOFError: the other side has closed its end or is gone.
        """
        try:
            fields = json.loads(self._connection.recv_bytes())
        except ConnectionError as error:
            raise EOFError from error
        return _MESSAGES[fields.pop("type")](**fields)

    def close(self) -> None:
        self._connection.close()

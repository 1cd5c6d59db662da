# SPDX-License-Identifier: Apache-2.0
"""An HTTP client that costs next to nothing: requests are ready-made bytes, answers barely read.

For what a gateway adds, which is less than an ordinary client takes for itself.
"""

from __future__ import annotations

import asyncio
import json
import re
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

PATH = "/v1/chat/completions"
_LENGTH = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)
_HEADERS_END = b"\r\n\r\n"
_TOKEN, _DONE = b'"token":', b"data: [DONE]"


@dataclass(frozen=True)
class Target:
    """Where requests go: a path of a Unix socket, or a port of 127.0.0.1."""

    name: str
    address: str | int

    def connect(self) -> socket.socket:
        if isinstance(self.address, str):
            sock = socket.socket(socket.AF_UNIX)
            sock.connect(self.address)
            return sock
        sock = socket.create_connection(("127.0.0.1", self.address))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return sock

    def request(self, fields: Mapping[str, Any]) -> bytes:
        """A completion request as bytes."""
        body = json.dumps(fields).encode()
        head = f"POST {PATH} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


class Connection:
    """A connection that is kept for one whole answer after the other."""

    def __init__(self, target: Target) -> None:
        self._sock = target.connect()

    def exchange(self, request: bytes) -> float:
        """Send a request and wait for the end of its answer; the seconds in between.

        Raises:
            RuntimeError: the answer is none.
        """
        began = time.perf_counter()
        self._sock.sendall(request)
        answer = b""
        while (end := answer.find(_HEADERS_END)) < 0:
            answer += self._receive()
        length = _LENGTH.search(answer, 0, end)
        if length is None or not answer.startswith(b"HTTP/1.1 200"):
            raise RuntimeError(answer.decode(errors="replace"))
        while len(answer) < end + len(_HEADERS_END) + int(length[1]):
            answer += self._receive()
        return time.perf_counter() - began

    def close(self) -> None:
        self._sock.close()

    def _receive(self) -> bytes:
        data = self._sock.recv(65536)
        if not data:
            raise RuntimeError("the server closed the connection")
        return data


async def stream(target: Target, request: bytes, tokens: int) -> list[float]:
    """Send a request on a connection of its own; when each token of the answer came.

    Raises:
        RuntimeError: not all of them came.
    """
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[None] = loop.create_future()
    sock = target.connect()
    sock.setblocking(False)
    transport, protocol = await loop.create_connection(lambda: _Stream(request, ended), sock=sock)
    try:
        await ended
    finally:
        transport.close()
    if len(protocol.times) != tokens:
        raise RuntimeError(f"expected {tokens} tokens, got {len(protocol.times)}")
    return protocol.times


class _Stream(asyncio.Protocol):
    def __init__(self, request: bytes, ended: asyncio.Future[None]) -> None:
        self.times: list[float] = []
        self._request = request
        self._ended = ended

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        # Events are so short that none is ever divided.
        self.times += [time.perf_counter()] * data.count(_TOKEN)
        if _DONE in data and not self._ended.done():
            self._ended.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._ended.done():
            self._ended.set_result(None)

# SPDX-License-Identifier: Apache-2.0
"""Malformed input, made by schemathesis from our own OpenAPI description and by hand."""

from __future__ import annotations

import asyncio
from pathlib import Path

import hypothesis
import pytest
import schemathesis
from conftest import CHAT, ask, expert, fake_service
from schemathesis import checks
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

KEY = {"Authorization": "Bearer key"}
# Every one of them must hold for whatever is sent; that the fake worker takes what vLLM would not
# is not ours to check.
CHECKS = [
    checks.not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]


async def test_whatever_our_description_allows_is_answered_as_it_says(tmp_path: Path) -> None:
    keys = {"api_key": "key", "admin_key": "key"}
    async with fake_service(tmp_path, expert("a"), expert("b"), **keys) as s:
        document = await (await s.whole.get("/openapi.json", headers=KEY)).json()
        base = str(s.whole.make_url(""))
        tried = await asyncio.to_thread(_try_all, document, base)
        assert tried > 100
        assert (await s.whole.post(CHAT, json=ask(), headers=KEY)).status == 200


def _try_all(document: dict[str, object], base: str) -> int:
    schema = schemathesis.openapi.from_dict(document)
    schema.config.update(base_url=base)
    tried = 0
    for result in schema.get_all_operations():
        operation = result.ok()
        if operation.path == "/events":  # never ends
            continue

        @hypothesis.settings(
            max_examples=12,
            deadline=None,
            derandomize=True,
            suppress_health_check=list(hypothesis.HealthCheck),
        )
        @hypothesis.given(case=operation.as_strategy())
        def once(case: schemathesis.Case) -> None:
            nonlocal tried
            tried += 1
            case.call_and_validate(headers=KEY, checks=CHECKS, timeout=30)

        once()
    return tried


RAW = {
    "no HTTP at all": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
    "an unknown method": b"BREW / HTTP/1.1\r\nHost: x\r\n\r\n",
    "a header without end": b"GET / HTTP/1.1\r\nX: " + b"a" * 100_000 + b"\r\n\r\n",
    "two lengths": b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n"
    b"Content-Length: 4\r\n\r\n{}",
    "length and chunks": b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "a negative length": b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
    "a chunk of no size": b"POST /v1/completions HTTP/1.1\r\nHost: x\r\n"
    b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
    "a body that is no gzip": b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n"
    b"Content-Encoding: gzip\r\n\r\nabcd",
}


@pytest.mark.parametrize("data", RAW.values(), ids=RAW)
async def test_malformed_http_gets_a_client_error_and_the_server_lives(
    tmp_path: Path, data: bytes
) -> None:
    async with fake_service(tmp_path, expert("a")) as s:
        url = s.whole.make_url("/health")
        reader, writer = await asyncio.open_connection(url.host, url.port)
        writer.write(data)
        await writer.drain()
        answer = await asyncio.wait_for(reader.read(4096), 10)
        writer.close()
        assert answer == b"" or answer.startswith((b"HTTP/1.1 4", b"HTTP/1.0 4"))
        assert (await s.whole.get("/health")).status == 200


async def test_a_body_that_never_comes_is_given_up(tmp_path: Path) -> None:
    settings = {"body_timeout_s": 0.3}
    async with fake_service(tmp_path, expert("a"), server_config=settings) as s:
        url = s.whole.make_url(CHAT)
        reader, writer = await asyncio.open_connection(url.host, url.port)
        writer.write(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n{")
        assert (await asyncio.wait_for(reader.readline(), 10)).startswith(b"HTTP/1.1 408")
        writer.close()


@pytest.mark.parametrize("opening", [b"[", b'{"a":'])
async def test_deep_and_large_json(tmp_path: Path, opening: bytes) -> None:
    async with fake_service(tmp_path, expert("a")) as s:
        for depth in (2_000, 2_000_000):
            answer = await s.whole.post(CHAT, data=opening * depth)
            assert answer.status == 400
        big = b'{"model": "a", "fake": {}, "x": "' + b"y" * 3_000_000 + b'"}'
        assert (await s.whole.post(CHAT, data=big)).status == 200
        beyond = b"x" * (s.config.server_config.max_body_bytes + 1)
        assert (await s.whole.post(CHAT, data=beyond)).status == 413

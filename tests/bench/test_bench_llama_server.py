# SPDX-License-Identifier: Apache-2.0
"""`bench` against what llama.cpp's own server answers, word for word.

recorded/llama_server.json has the answers of llama-server, of the llama.cpp in llama-cpp-python
0.3.36, with a demo expert (benchmarks/end_to_end/llama_server.py starts it): to requests for eight
tokens (chat, completion); the same with a copy of the expert in which the first token is marked as
a special one, which makes no text (no_text_at_first; no_text: of that token alone); and of its
router, which loads and unloads models of a folder (--models-dir). Paths are shortened, and /props
has lost what is not read.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from conftest import Outcome
from fake_openai import served

Measure = Callable[..., tuple[Outcome, Any]]

RECORDED = json.loads((Path(__file__).parent / "recorded" / "llama_server.json").read_text())
TOKENS = 8
VERSION = "b1-0c1e570"


class LlamaServer:
    """Plays back what was recorded; a token takes `gap_s`.

    Attributes:
        chat: recorded answers to chats of several tokens and of one.
        answers: recorded answers by method and path.
    """

    def __init__(self) -> None:
        self.gap_s = 0.0
        self.chat = ("chat", "chat")
        self.answers = {
            "GET /health": "health",
            "GET /v1/models": "models",
            "GET /props": "props",
            "POST /v1/completions": "completion",
        }
        self.asked: list[str] = []
        self.on_request: Callable[[str], None] = lambda _: None

    def application(self) -> web.Application:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._answer)
        return app

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        called = f"{request.method} {request.path}"
        self.asked.append(called)
        name = self.answers.get(called, "not_found")
        if called == "POST /v1/chat/completions":
            several, one = self.chat
            name = one if (await request.json())["max_tokens"] == 1 else several
        self.on_request(called)
        recorded = RECORDED[name]
        response = web.StreamResponse(
            status=recorded["status"], headers={"Content-Type": recorded["content_type"]}
        )
        await response.prepare(request)
        if recorded["content_type"] != "text/event-stream":
            await response.write("\n".join(recorded["lines"]).encode())
            return response
        # One more where a special token has made no text.
        await asyncio.sleep(self.gap_s * (1 + ("no_text" in name)))
        for line in recorded["lines"]:
            await response.write(line.encode() + b"\n\n")
            if '"finish_reason":null' in line:
                await asyncio.sleep(self.gap_s)
        return response


@pytest.fixture
def llama() -> LlamaServer:
    return LlamaServer()


@pytest.fixture
def url(llama: LlamaServer) -> Iterator[str]:
    with served(llama.application()) as (address,):
        yield address


def latency(url: str, *more: str) -> list[str]:
    fixed = [f"--tokens={TOKENS}", "--requests=2", "--pause=0", "--kind=simple"]
    return ["latency", "--url", url, *fixed, *more]


@pytest.mark.parametrize(("api", "prompt_tokens"), [("chat", 46), ("completions", 1)])
def test_each_token_and_the_usage_are_found(
    url: str, measure: Measure, api: str, prompt_tokens: int
) -> None:
    outcome, result = measure(*latency(url, f"--api={api}"))
    assert outcome.code == 0, outcome.err
    assert result.server.models == ["qwen_coder"]
    assert (result.server.health, result.server.version) == ("200", VERSION)
    assert [request.start for request in result.requests] == ["first", "warm", "warm"]
    for request in result.requests:
        assert (request.outcome, request.completion_tokens) == ("ok", TOKENS)
        assert len(request.tokens_s) == TOKENS
        assert request.prompt_tokens == prompt_tokens
        assert request.timings["predicted_n"] == TOKENS
    assert (result.events, result.memory) == ([], [])


def test_a_load_is_answered(url: str, measure: Measure) -> None:
    arguments = ("--rate=20", "--duration=0.5", f"--tokens={TOKENS}", "--kind=simple")
    outcome, result = measure("load", "--url", url, *arguments)
    assert outcome.code == 0, outcome.err
    assert {request.outcome for request in result.requests} == {"ok"}


@pytest.mark.parametrize("chat", [("chat", "chat"), ("no_text_at_first", "no_text")])
def test_its_stream_is_one(
    llama: LlamaServer, url: str, measure: Measure, chat: tuple[str, str]
) -> None:
    """Even if the answers of a single token, which are compared with, have no chunk with text."""
    llama.gap_s, llama.chat = 0.015, chat
    outcome, result = measure("stream", "--url", url, f"--tokens={TOKENS}")
    (verdict,) = result.verdicts
    assert outcome.code == 0, verdict.reasons
    assert verdict.streams
    assert verdict.tokens_per_chunk == TOKENS / (TOKENS - (chat[0] != "chat"))
    assert verdict.held_back < 0.3


def test_a_server_that_still_loads_its_model(
    llama: LlamaServer, url: str, bench: Callable[..., Outcome]
) -> None:
    llama.answers |= {"GET /health": "loading", "GET /v1/models": "loading"}
    outcome = bench(*latency(url))
    assert outcome.code == 2
    assert f"--url: {url} is not ready yet: /v1/models answers 503" in outcome.err


def test_it_stops_when_the_server_is_not_well(
    llama: LlamaServer, url: str, measure: Measure
) -> None:
    def fall_ill(called: str) -> None:
        if called.startswith("POST"):
            llama.answers["GET /health"] = "loading"

    llama.on_request = fall_ill
    outcome, result = measure(*latency(url))
    assert outcome.code == 1
    assert result.stopped == "/health answers 503"


def test_prompts_that_are_too_long_fail(llama: LlamaServer, url: str, measure: Measure) -> None:
    llama.chat = ("too_long", "too_long")
    outcome, result = measure(*latency(url))
    assert outcome.code == 1
    assert {request.status for request in result.requests} == {400}
    assert "exceeds the available context size" in outcome.err


@pytest.mark.parametrize(("model", "start"), [("qwen_coder", "warm"), ("second", "cold")])
def test_its_router_tells_what_is_loaded(
    llama: LlamaServer, url: str, measure: Measure, model: str, start: str
) -> None:
    llama.answers["GET /v1/models"] = "router_models"
    outcome, result = measure(*latency(url, "--model", model))
    assert outcome.code == 0, outcome.err
    assert {request.start for request in result.requests} == {start}


@pytest.mark.parametrize("answer", ["router_unload", "router_unload_again"])
def test_its_router_unloads(
    llama: LlamaServer,
    url: str,
    measure: Measure,
    monkeypatch: pytest.MonkeyPatch,
    answer: str,
) -> None:
    """It answers 400 if the model is not loaded, which is what was wanted."""
    monkeypatch.setenv("CAPIBARA_AXION_ADMIN_KEY", "any")
    llama.answers |= {"GET /v1/models": "router_models", "POST /models/unload": answer}
    outcome, result = measure(*latency(url, "--model=second", "--cold=1"))
    assert outcome.code == 0, outcome.err
    assert llama.asked.count("POST /models/unload") == 1
    assert result.requests[0].start == "cold"

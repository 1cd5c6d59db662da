# SPDX-License-Identifier: Apache-2.0
"""The real server, as a user starts it, over the five demo experts and the official client."""

from __future__ import annotations

import base64
import io
import json
import signal
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import psutil
import pytest
from conftest import ServerProcess, changed_config, gone, wait_until

EXPERTS = (
    "phi4_fast",
    "mistral_balanced",
    "qwen_coder",
    "gemma3_multimodal",
    "aya_expanse_multilingual",
)
QUESTION: list[Any] = [{"role": "user", "content": "Who are you?"}]


def client(server: ServerProcess, *, streaming: bool = False) -> openai.OpenAI:
    url = server.url(streaming=streaming)
    return openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=60)


def post(url: str, body: bytes) -> tuple[int, str, bytes]:
    """Status, content type and body of a plain POST."""
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, answer.headers.get_content_type(), answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.headers.get_content_type(), error.read()


def chat(model: str, **more: Any) -> bytes:
    return json.dumps({"model": model, "messages": QUESTION, "max_tokens": 8, **more}).encode()


def endless_stream(server: ServerProcess) -> openai.Stream[Any]:
    """An answer under way that would take seconds to end by itself."""
    stream = client(server).chat.completions.create(
        model="qwen_coder",
        messages=QUESTION,
        max_tokens=1900,
        stream=True,
        extra_body={"ignore_eos": True},
    )
    next(iter(stream))
    return stream


@pytest.mark.parametrize("model", EXPERTS)
def test_whole_and_streamed_answers_agree(server: ServerProcess, model: str) -> None:
    ask = {"model": model, "messages": QUESTION, "max_tokens": 24, "temperature": 0}
    whole = client(server).chat.completions.create(**ask)
    assert whole.model == model
    assert whole.usage is not None
    assert whole.usage.completion_tokens > 4

    began = time.monotonic()
    stream = client(server).chat.completions.create(
        **ask, stream=True, stream_options={"include_usage": True}
    )
    chunks = [(time.monotonic() - began, chunk) for chunk in stream]
    deltas = [(at, c.choices[0].delta) for at, c in chunks if c.choices]
    assert deltas[0][1].role == "assistant"
    text = [(at, delta.content) for at, delta in deltas if delta.content]
    assert "".join(piece for _, piece in text) == whole.choices[0].message.content
    assert len({round(at, 4) for at, _ in text}) > 4  # apart in time, not one burst
    finish = [c.choices[0].finish_reason for _, c in chunks if c.choices]
    assert finish[-1] in ("stop", "length")
    assert set(finish[:-1]) == {None}
    assert chunks[-1][1].usage == whole.usage


def test_each_expert_answers_as_itself(server: ServerProcess) -> None:
    for model in EXPERTS[:3]:
        answer = client(server).chat.completions.create(
            model=model, messages=QUESTION, max_tokens=64, temperature=0
        )
        assert model in (answer.choices[0].message.content or "")


def test_defaults_of_the_two_listeners(server: ServerProcess) -> None:
    path = "/v1/chat/completions"
    whole, streaming = server.url(path), server.url(path, streaming=True)
    assert post(whole, chat("qwen_coder"))[1] == "application/json"
    assert post(streaming, chat("qwen_coder"))[1] == "text/event-stream"
    assert post(whole, chat("qwen_coder", stream=True))[1] == "text/event-stream"
    assert post(streaming, chat("qwen_coder", stream=False))[1] == "application/json"


def test_text_completions_and_log_probabilities(server: ServerProcess) -> None:
    completion = client(server).completions.create(
        model="mistral_balanced", prompt="Good day", max_tokens=4, logprobs=2, seed=7
    )
    logprobs = completion.choices[0].logprobs
    assert logprobs is not None
    assert len(logprobs.token_logprobs or ()) == 4
    chunks = client(server, streaming=True).completions.create(
        model="mistral_balanced", prompt="Good day", max_tokens=4, seed=7, stream=True
    )
    assert "".join(chunk.choices[0].text for chunk in chunks) == completion.choices[0].text


def test_json_schema_and_several_choices(server: ServerProcess) -> None:
    schema = {
        "type": "object",
        "properties": {"ok": {"type": "boolean"}},
        "required": ["ok"],
        "additionalProperties": False,
    }
    answer = client(server).chat.completions.create(
        model="qwen_coder",
        messages=QUESTION,
        max_tokens=64,
        n=2,
        response_format={"type": "json_schema", "json_schema": {"name": "r", "schema": schema}},
    )
    assert len(answer.choices) == 2
    for choice in answer.choices:
        if choice.finish_reason == "stop":
            assert isinstance(json.loads(choice.message.content or "")["ok"], bool)


def image(color: tuple[int, int, int]) -> dict[str, Any]:
    pillow = pytest.importorskip("PIL.Image")
    data = io.BytesIO()
    pillow.new("RGB", (64, 48), color).save(data, "PNG")
    url = "data:image/png;base64," + base64.b64encode(data.getvalue()).decode()
    return {"type": "image_url", "image_url": {"url": url}}


def test_images_as_data_urls(server: ServerProcess) -> None:
    text = {"type": "text", "text": "What is this?"}
    api = client(server)

    def ask(*content: Any) -> Any:
        return api.chat.completions.create(
            model="gemma3_multimodal",
            messages=[{"role": "user", "content": list(content)}],
            max_tokens=16,
            temperature=0,
        )

    with_image, without = ask(image((200, 30, 30)), text), ask(text)
    assert with_image.choices[0].message.content
    assert with_image.usage.prompt_tokens > without.usage.prompt_tokens


@pytest.mark.parametrize("url", ["http://127.0.0.1:1/x.png", "file:///etc/hostname"])
def test_other_image_urls_are_not_fetched(server: ServerProcess, url: str) -> None:
    content: list[Any] = [{"type": "image_url", "image_url": {"url": url}}]
    with pytest.raises(openai.BadRequestError) as refused:
        client(server).chat.completions.create(
            model="gemma3_multimodal", messages=[{"role": "user", "content": content}]
        )
    assert refused.value.code == "invalid_media_url"


def test_errors_as_the_official_client_expects_them(server: ServerProcess) -> None:
    api = client(server)
    with pytest.raises(openai.NotFoundError) as missing:
        api.chat.completions.create(model="gpt-0", messages=QUESTION)
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.NotFoundError):
        api.models.retrieve("gpt-0")
    with pytest.raises(openai.BadRequestError) as too_hot:
        api.chat.completions.create(model="qwen_coder", messages=QUESTION, temperature=-1)
    assert "temperature" in too_hot.value.message
    long: list[Any] = [{"role": "user", "content": "word " * 5000}]
    with pytest.raises(openai.BadRequestError) as too_long:
        api.chat.completions.create(model="qwen_coder", messages=long)
    assert too_long.value.code == "context_length_exceeded"
    status, kind, body = post(server.url("/v1/chat/completions"), b"{bad")
    assert (status, kind) == (400, "application/json")
    assert json.loads(body)["error"]["code"] == "invalid_json"


def test_models_and_stats(server: ServerProcess) -> None:
    assert [model.id for model in client(server).models.list()] == list(EXPERTS)
    assert client(server).models.retrieve("qwen_coder").id == "qwen_coder"
    assert set(server.get("/stats")["models"]) == set(EXPERTS)


def test_a_leaving_client_aborts_in_the_engine(server: ServerProcess) -> None:
    stream = endless_stream(server)
    (engine,) = psutil.Process(server.model("qwen_coder")["pid"]).children()
    assert server.model("qwen_coder")["running"] == 1
    stream.close()
    wait_until(lambda: server.model("qwen_coder")["running"] == 0, 1, "request forgotten")
    time.sleep(0.1)
    before = engine.cpu_times().user
    time.sleep(0.5)
    assert engine.cpu_times().user - before < 0.1  # it would be busy for seconds


@pytest.fixture
def own_server(
    demo_config: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> Iterator[ServerProcess]:
    """A server of the test's own; its marker's arguments are sections of the configuration."""
    marker = request.node.get_closest_marker("configuration")
    config = changed_config(demo_config, tmp_path, **(marker.kwargs if marker else {}))
    process = ServerProcess(config, tmp_path / "log.txt")
    yield process
    process.close()


@pytest.mark.configuration(
    lazy_loading={"auto_unload_after_s": 1.5, "max_loaded_experts": 1},
)
def test_loading_once_evicting_and_unloading(own_server: ServerProcess) -> None:
    """Concurrent first requests share a load; the second model evicts the first, then idles out.

    In one test because the forkserver's imports take seconds.
    """
    server = own_server
    with ThreadPoolExecutor(6) as pool:
        url = server.url("/v1/chat/completions")
        answers = list(pool.map(lambda _: post(url, chat("qwen_coder")), range(6)))
    assert [status for status, _, _ in answers] == [200] * 6
    assert server.model("qwen_coder")["loads_total"] == 1

    assert post(url, chat("phi4_fast"))[0] == 200
    assert server.model("qwen_coder")["unloads_total"] == {"evicted": 1}
    workers = [p for p in server.family() if p.pid == server.model("phi4_fast")["pid"]]
    engine = workers[0].children()
    wait_until(lambda: server.model("phi4_fast")["state"] == "unloaded", 10, "idle unload")
    assert server.model("phi4_fast")["unloads_total"] == {"idle": 1}
    assert gone(workers + engine)


def test_no_process_survives_the_gateway(own_server: ServerProcess) -> None:
    endless_stream(own_server)
    family = own_server.family()
    assert len(family) >= 4  # gateway, forkserver, worker, engine
    own_server.signal(signal.SIGKILL)
    wait_until(lambda: gone(family), 5, "all processes gone")


def test_a_second_sigterm_does_not_wait(own_server: ServerProcess) -> None:
    chunks = endless_stream(own_server)
    family = own_server.family()
    own_server.signal(signal.SIGTERM)
    wait_until(lambda: "shutting down" in own_server.log.read_text(), 5, "draining")
    own_server.signal(signal.SIGTERM)
    with pytest.raises(openai.APIError, match="worker ended"):
        list(chunks)
    assert own_server.wait(5) == 0
    assert gone(family)


def test_a_killed_engine_is_replaced_and_sigterm_drains(own_server: ServerProcess) -> None:
    server = own_server
    url = server.url("/v1/chat/completions")
    assert post(url, chat("qwen_coder"))[0] == 200
    worker = psutil.Process(server.model("qwen_coder")["pid"])
    (engine,) = worker.children()
    engine.kill()
    status, _, body = post(url, chat("qwen_coder"))
    assert status == 200, body
    assert server.model("qwen_coder")["worker_exits_total"] == 1

    family = server.family()
    stream = client(server).chat.completions.create(
        model="qwen_coder",
        messages=QUESTION,
        max_tokens=400,
        stream=True,
        extra_body={"ignore_eos": True},
    )
    chunks = iter(stream)
    next(chunks)
    server.signal(signal.SIGTERM)
    finish = [chunk.choices[0].finish_reason for chunk in chunks][-1]
    assert finish == "length"
    assert server.wait(15) == 0
    assert gone(family)
    log = server.log.read_text()
    assert "Traceback" not in log.split("shutting down")[-1]


def test_experts_in_four_bits_answer_as_themselves(demo_config: Path, tmp_path: Path) -> None:
    """AWQ checkpoints in half precision with an FP8 cache, as older configurations have them."""
    config = changed_config(demo_config.with_name("awq.json"), tmp_path)
    process = ServerProcess(config, tmp_path / "log.txt")
    try:
        for model in EXPERTS[:3]:
            answer = client(process).chat.completions.create(
                model=model, messages=QUESTION, max_tokens=64, temperature=0
            )
            assert model in (answer.choices[0].message.content or "")
    finally:
        process.close()


@pytest.mark.configuration(experts_with={"qwen_coder": {"pipeline_parallel_size": 2}})
def test_a_model_in_two_stages(own_server: ServerProcess) -> None:
    answer = client(own_server).chat.completions.create(
        model="qwen_coder", messages=QUESTION, max_tokens=64, temperature=0
    )
    assert "qwen_coder" in (answer.choices[0].message.content or "")
    assert len(own_server.family()) >= 6  # gateway, forkserver, worker, engine, two ranks

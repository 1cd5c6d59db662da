# SPDX-License-Identifier: Apache-2.0
"""A real worker with a demo expert, without a gateway: what it tells, answers, and is told."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from conftest import gone
from worker_host import HEADERS, STREAM, HostedWorker

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
QUESTION = [{"role": "user", "content": "Who are you?"}]
# Of a step, so that a prompt takes several.
STEP_TOKENS = 64


@contextmanager
def started(config: Path, name: str, **fields: Any) -> Iterator[HostedWorker]:
    worker = HostedWorker(config, name, **fields)
    try:
        yield worker
    finally:
        worker.close()


@pytest.fixture(scope="module")
def worker(demo_config: Path) -> Iterator[HostedWorker]:
    expert = {"max_num_batched_tokens": STEP_TOKENS, "enable_prefix_caching": False}
    with started(demo_config, "qwen_coder", cpus=[0], expert=expert) as worker:
        yield worker


@pytest.fixture(scope="module")
def worker_with_images(demo_config: Path) -> Iterator[HostedWorker]:
    limits = {"max_images": 2, "max_image_bytes": 10**5}
    with started(demo_config, "gemma3_multimodal", cpus=[0], **limits) as worker:
        yield worker


def test_a_load_has_phases_and_details(worker: HostedWorker) -> None:
    assert worker.phases == ["configuring", "loading", "starting", "ready"]
    assert worker.details["max_model_len"] == 2048
    assert worker.details["kv_cache_bytes"] > 0
    assert worker.details["compiled"] is False


async def test_a_whole_answer_has_its_times(worker: HostedWorker) -> None:
    body = {"model": "auto", "messages": QUESTION, "max_tokens": 8, "ignore_eos": True}
    began = time.monotonic()
    answer = await worker.ask(CHAT, {**body, "keep_alive": "5m", "fake": {"die_at": 0}})
    took = time.monotonic() - began
    assert answer["status"] == 200
    assert answer["id"] == "chatcmpl-r1"
    assert answer["model"] == "qwen_coder"
    times = answer["timings"]
    assert (times["queue_s"], times["load_s"]) == (1.5, 1.25)
    assert 0 < times["ttft_s"] < times["total_s"] < took
    rate = 7 / (times["total_s"] - times["ttft_s"])
    assert times["tokens_per_s"] == pytest.approx(rate, rel=0.5)


async def test_a_chat_stream_is_in_order_and_its_last_event_has_the_times(
    worker: HostedWorker,
) -> None:
    body = {"messages": QUESTION, "max_tokens": 8, "ignore_eos": True}
    for usage in (False, True):
        *events, done = await worker.stream(
            CHAT, {**body, "stream_options": {"include_usage": usage}}
        )
        assert done == "[DONE]"
        chunks = [json.loads(event) for event in events]
        assert {chunk["id"] for chunk in chunks} == {"chatcmpl-r1"}
        with_choice = [chunk for chunk in chunks if chunk["choices"]]
        assert with_choice[0]["choices"][0]["delta"]["role"] == "assistant"
        finish = [chunk["choices"][0]["finish_reason"] for chunk in with_choice]
        assert finish == [None] * (len(finish) - 1) + ["length"]
        assert ["usage" in chunk for chunk in chunks] == [False] * len(with_choice) + [True] * usage
        assert ["timings" in chunk for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
        assert chunks[-1]["timings"]["queue_s"] == 1.5
        assert chunks[-1]["timings"]["tokens_per_s"] > 0


async def test_times_come_once_however_many_choices(worker: HostedWorker) -> None:
    body = {"messages": QUESTION, "n": 3, "max_tokens": 5, "temperature": 1.0}
    *events, _ = await worker.stream(CHAT, body)
    chunks = [json.loads(event) for event in events]
    finished = [c["index"] for chunk in chunks for c in chunk["choices"] if c["finish_reason"]]
    assert sorted(finished) == [0, 1, 2]
    assert ["timings" in chunk for chunk in chunks] == [False] * (len(chunks) - 1) + [True]


async def test_usage_in_every_event_delays_none(worker: HostedWorker) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    body = {"prompt": "x", "max_tokens": 40, "ignore_eos": True, "stream_options": options}
    async with worker.post(COMPLETIONS, body, STREAM) as answer:
        times = [time.monotonic() async for line in answer.content if b'"text"' in line]
    assert len(times) > 4
    assert times[-1] > times[0]


async def test_a_stream_of_text_completions(worker: HostedWorker) -> None:
    *events, done = await worker.stream(COMPLETIONS, {"prompt": "Good day", "max_tokens": 4})
    assert done == "[DONE]"
    last = json.loads(events[-1])
    assert last["id"] == "cmpl-r1"
    assert last["choices"][0]["finish_reason"] == "length"
    assert last["timings"]["load_s"] == 1.25


async def test_a_failure_before_the_first_event_has_a_status(worker: HostedWorker) -> None:
    async with worker.post(CHAT, {"messages": QUESTION, "temperature": -1}, STREAM) as answer:
        assert answer.status == 400
        assert "temperature" in (await answer.json())["error"]["message"]


async def test_a_model_that_generates_has_no_embeddings(worker: HostedWorker) -> None:
    error = await worker.ask("/v1/embeddings", {"input": "hello"})
    assert (error["status"], error["code"]) == (400, "unsupported_endpoint")
    assert "'qwen_coder' does not support embeddings" in error["message"]


async def test_metrics_are_vllms_alone_and_carry_the_experts_name(worker: HostedWorker) -> None:
    await worker.ask(COMPLETIONS, {"prompt": "x", "max_tokens": 2})
    lines = (await worker.metrics()).splitlines()
    samples = [line for line in lines if not line.startswith("#")]
    assert all(line.startswith("vllm:") for line in samples)
    assert all('model_name="qwen_coder"' in line for line in samples)
    assert await worker.generated() >= 2


async def test_every_part_of_a_long_prompt_is_a_step(worker: HostedWorker) -> None:
    before = worker.next_beat()
    parts = 12
    body = {"prompt": [5] * (STEP_TOKENS * parts), "max_tokens": 1}
    assert (await worker.ask(COMPLETIONS, body))["status"] == 200
    after = worker.next_beat()
    assert after["tokens"] - before["tokens"] == 1
    assert parts <= after["steps"] - before["steps"] <= parts + 1  # the last one only cleans up
    assert after["running"] == 0
    assert after["cpu_s"] > before["cpu_s"]


async def test_cores_change_between_steps_and_answers_do_not(worker: HostedWorker) -> None:
    body = {"prompt": [7] * 300, "max_tokens": 200, "temperature": 0, "logprobs": 0}
    body["ignore_eos"] = True

    async def answer() -> list[float]:
        choice = (await worker.ask(COMPLETIONS, body))["choices"][0]
        logprobs: list[float] = choice["logprobs"]["token_logprobs"]
        return logprobs

    cpus = sorted(psutil.Process().cpu_affinity())
    undisturbed = await answer()
    changes = asyncio.ensure_future(asyncio.to_thread(worker.set_cores, *cpus[:2]))
    assert await answer() == undisturbed  # and meanwhile:
    await changes
    for threads in psutil.Process(worker.engine.pid).threads():
        assert psutil.Process(threads.id).cpu_affinity() == cpus[:2]
    worker.set_cores(cpus[-1])
    assert worker.engine.cpu_affinity() == [cpus[-1]]
    assert await answer() == undisturbed
    worker.set_cores(cpus[0])


@pytest.mark.parametrize("headers", [STREAM, HEADERS], ids=["stream", "whole"])
async def test_a_client_that_leaves_stops_the_engine_in_time(
    worker: HostedWorker, headers: dict[str, str]
) -> None:
    body = {"prompt": "x", "max_tokens": 1900, "ignore_eos": True}
    before = await worker.generated()
    async with worker.post(COMPLETIONS, body, STREAM) as answer:
        await answer.content.readline()
        answer.close()
    if headers is HEADERS:
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(worker.ask(COMPLETIONS, body), 0.3)
    await asyncio.sleep(0.25)
    stopped = await worker.generated()
    assert before < stopped < before + 1900
    await asyncio.sleep(0.2)
    assert await worker.generated() == stopped


def image_url(width: int, height: int, kind: str = "PNG", mode: str = "1") -> str:
    pillow = pytest.importorskip("PIL.Image")
    pillow.MAX_IMAGE_PIXELS = None
    data = io.BytesIO()
    pillow.new(mode, (width, height)).save(data, kind)
    return "data:image/png;base64," + base64.b64encode(data.getvalue()).decode()


def with_images(*urls: str) -> dict[str, Any]:
    content = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    return {"messages": [{"role": "user", "content": content}], "max_tokens": 2}


async def test_an_image_within_the_limits(worker_with_images: HostedWorker) -> None:
    answer = await worker_with_images.ask(CHAT, with_images(image_url(64, 48, mode="RGB")))
    assert answer["status"] == 200, answer


@pytest.mark.parametrize(
    ("urls", "status", "words"),
    [
        ([(9000, 9000)], 400, "64000000 pixels"),  # 80 million: more than we allow
        ([(20000, 20000)], 400, "64000000 pixels"),  # 400 million: more than Pillow opens
        ([(16, 16)] * 3, 400, "2 images"),
        ([(1000, 1000, "BMP")], 413, "max_image_bytes"),
    ],
    ids=["large", "bomb", "many", "heavy"],
)
async def test_images_beyond_the_limits(
    worker_with_images: HostedWorker, urls: list[Any], status: int, words: str
) -> None:
    error = await worker_with_images.ask(CHAT, with_images(*(image_url(*url) for url in urls)))
    assert error["status"] == status, error
    assert words in error["message"]
    assert "VLLM" not in error["message"]


async def test_what_is_no_image(worker_with_images: HostedWorker) -> None:
    for data in ("", "AAAA", base64.b64encode(b"GIF89a" + bytes(50)).decode()):
        error = await worker_with_images.ask(CHAT, with_images(f"data:image/png;base64,{data}"))
        assert error["status"] == 400, error


def shared_memory() -> set[Path]:
    return set(Path("/dev/shm").glob("vllm_*"))


async def test_two_ranks_answer_as_one_and_leave_nothing_behind(
    demo_config: Path, worker: HostedWorker
) -> None:
    cpus = sorted(psutil.Process().cpu_affinity())
    if len(cpus) < 2:
        pytest.skip("needs two cores")
    body = {"prompt": [9] * 100, "max_tokens": 20, "temperature": 0, "logprobs": 0}
    body["ignore_eos"] = True
    shared = shared_memory()
    expert = {"tensor_parallel_size": 2}
    with started(demo_config, "qwen_coder", cpus=cpus[:2], expert=expert) as divided:
        ranks = divided.engine.children()
        assert [rank.cpu_affinity() for rank in ranks] == [[cpu] for cpu in cpus[:2]]
        divided.set_cores(*reversed(cpus[:2]))
        assert [rank.cpu_affinity() for rank in ranks] == [[cpu] for cpu in reversed(cpus[:2])]
        answers = [(await one.ask(COMPLETIONS, body))["choices"][0] for one in (worker, divided)]
        assert answers[0]["text"] == answers[1]["text"]
        alone, together = (answer["logprobs"]["token_logprobs"] for answer in answers)
        assert together == pytest.approx(alone, abs=0.05)  # sums in another order, in bfloat16
        beat = divided.next_beat()
        assert beat["tokens"] == 20
        assert beat["cpu_s"] >= sum(sum(rank.cpu_times()[:2]) for rank in ranks)
    assert gone(ranks)
    assert shared_memory() <= shared


async def test_ranks_die_with_a_killed_server(demo_config: Path) -> None:
    cpus = sorted(psutil.Process().cpu_affinity())
    if len(cpus) < 2:
        pytest.skip("needs two cores")
    worker = HostedWorker(
        demo_config, "qwen_coder", cpus=cpus[:2], expert={"tensor_parallel_size": 2}
    )
    family = [worker.engine, *worker.engine.children(), worker.engine.parent()]
    async with worker.post(COMPLETIONS, {"prompt": "x", "max_tokens": 1900}, STREAM) as answer:
        await answer.content.readline()
        family[1].suspend()  # the other rank waits for it without end
        worker.kill()
        assert gone(family)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory, demo_config: Path) -> Iterator[HostedWorker]:
    """A tiny embedding model, of random weights."""
    transformers = pytest.importorskip("transformers")
    directory = tmp_path_factory.mktemp("encoder")
    config = transformers.BertConfig(
        vocab_size=1024, hidden_size=128, num_hidden_layers=2, num_attention_heads=2
    )
    transformers.BertModel(config).save_pretrained(directory / "bert")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(demo_config.parent / "qwen_coder" / name, directory / "bert")
    content = {"experts": [{"expert_id": "bert", "model_path": "bert", "dtype": "float32"}]}
    (directory / "config.json").write_text(json.dumps(content))
    with started(directory / "config.json", "bert", cpus=[0]) as worker:
        yield worker


async def test_embeddings(encoder: HostedWorker) -> None:
    body = {"model": "bert", "input": ["hello", "hello", "good day"]}
    answer = await encoder.ask("/v1/embeddings", body)
    first, second, third = (item["embedding"] for item in answer["data"])
    assert len(first) == 128
    assert first == pytest.approx(second, abs=1e-6)
    assert first != pytest.approx(third, abs=1e-3)
    assert answer["usage"]["prompt_tokens"] > 0
    assert answer["timings"]["total_s"] > 0
    error = await encoder.ask("/v1/embeddings", {"input": 3.5})
    assert (error["status"], error["param"]) == (400, "input")


async def test_an_embedding_model_does_not_chat(encoder: HostedWorker) -> None:
    for path, body in ((CHAT, {"messages": QUESTION}), (COMPLETIONS, {"prompt": "x"})):
        error = await encoder.ask(path, body)
        assert (error["status"], error["code"]) == (400, "unsupported_endpoint")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"kv_cache_memory_bytes": 100_000}, "No available memory for the cache blocks"),
        ({"tensor_parallel_size": 3}, "attention heads (4) must be divisible"),
        ({"model_path": "/nowhere"}, "there is no model directory /nowhere"),
    ],
    ids=["engine process", "settings", "path"],
)
def test_a_failed_load_gives_its_reason(
    demo_config: Path, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(AssertionError) as failed:
        HostedWorker(demo_config, "qwen_coder", cpus=[0], expert=changes)
    assert words in str(failed.value)

# SPDX-License-Identifier: Apache-2.0
"""Routes about the server: readiness, metrics, events, loading and unloading, `auto`, origins."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from conftest import CHAT, ask, error_of, eventually, expert, fake_service
from prometheus_client.parser import text_string_to_metric_families

ADMIN = {"Authorization": "Bearer operator"}


def below(directory: Path, name: str) -> Path:
    """A folder of its own for one of several services."""
    (directory / name).mkdir()
    return directory / name


async def events_of(answer: Any) -> list[dict[str, Any]]:
    text = await answer.text()
    return [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]


async def test_readiness_needs_a_scheduler_that_moves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with fake_service(tmp_path, expert("a")) as s:
        assert (await s.whole.get("/livez")).status == 200
        assert (await (await s.whole.get("/readyz")).json())["status"] == "ready"

        def broken(*_: Any) -> None:
            raise RuntimeError("stuck")

        monkeypatch.setattr(s.pool._scheduler, "handle", broken)
        answer = await s.whole.get("/readyz")
        assert answer.status == 503
        assert "stuck" in (await answer.json())["reason"]
        assert (await s.whole.get("/livez")).status == 200
        monkeypatch.undo()
        s.gateway.operations.draining = True
        assert (await (await s.whole.get("/readyz")).json())["reason"] == "draining"


async def test_running_lists_what_is_loaded(tmp_path: Path) -> None:
    async with fake_service(tmp_path, expert("a"), expert("b")) as s:
        assert await (await s.whole.get("/running")).json() == {"running": []}
        await s.whole.post(CHAT, json=ask())
        (one,) = (await (await s.whole.get("/running")).json())["running"]
        assert (one["model"], one["state"]) == ("a", "ready")


async def test_metrics_are_ours_and_the_workers(tmp_path: Path) -> None:
    async with fake_service(tmp_path, expert("a"), expert("b"), expert("c")) as s:
        for name in "ab":
            await s.whole.post(CHAT, json=ask(name))
        stream = await s.streaming.post(CHAT, json=ask(tokens=100, gap_s=0.05))
        await stream.content.readline()
        stream.close()
        await eventually(lambda: s.pool.statistics()["a"]["running"] == 0)
        answer = await s.whole.get("/metrics")
        assert answer.content_type == "text/plain"
        samples = {
            (sample.name, *sorted(sample.labels.values())): sample.value
            for family in text_string_to_metric_families(await answer.text())
            for sample in family.samples
        }
        assert samples["capibara:model_state", "a", "ready"] == 1
        assert samples["capibara:model_state", "c", "unloaded"] == 1
        assert samples["capibara:model_load_seconds_count", "b"] == 1
        assert samples["capibara:client_cancels_total", "a", "streaming"] == 1
        assert samples["capibara:requests_total", "b", "ok"] == 1
        assert samples["capibara:gateway_overhead_seconds_count",] == 3
        assert {key for key in samples if key[0] == "vllm:num_requests_running"} == {
            ("vllm:num_requests_running", "a"),
            ("vllm:num_requests_running", "b"),
        }


async def test_loading_and_unloading_need_the_admin_key(tmp_path: Path) -> None:
    async with fake_service(below(tmp_path, "1"), expert("a"), api_key="client") as s:
        failed = await error_of(await s.whole.post("/models/load", json={"model": "a"}))
        assert (failed["status"], failed["code"]) == (403, "no_admin_key")
    keys = {"api_key": "client", "admin_key": "operator"}
    async with fake_service(below(tmp_path, "2"), expert("a"), **keys) as s:
        for headers in ({}, {"Authorization": "Bearer client"}):
            answer = await s.whole.post("/models/load", json={"model": "a"}, headers=headers)
            assert (await error_of(answer))["status"] == 401
        assert (await s.whole.get("/stats", headers=ADMIN)).status == 200


async def test_an_operator_loads_and_unloads(tmp_path: Path) -> None:
    async with fake_service(tmp_path, expert("a"), admin_key="operator") as s:
        loaded = await s.whole.post("/models/load", json={"model": "a"}, headers=ADMIN)
        assert (loaded.status, (await loaded.json())["status"]) == (200, "ready")
        assert s.journal()[0] == "a loaded"
        unloaded = await s.whole.post("/models/unload", json={"model": "a"}, headers=ADMIN)
        assert unloaded.status == 200
        await eventually(lambda: s.pool.state_of("a") == "unloaded")
        missing = await s.whole.post("/models/load", json={"model": "z"}, headers=ADMIN)
        assert (await error_of(missing))["code"] == "model_not_found"


async def test_the_progress_of_a_load_comes_as_events(tmp_path: Path) -> None:
    slow = expert("a", phases={"configuring": 0.3, "loading": 1.5})
    async with fake_service(tmp_path, slow, admin_key="operator") as s:
        body = {"model": "a", "stream": True}
        events = await events_of(await s.whole.post("/models/load", json=body, headers=ADMIN))
        phases = [event["phase"] for event in events if event["event"] == "loading"]
        assert phases[:2] == ["configuring", "loading"]
        assert any(event["event"] == "progress" for event in events)
        assert events[-1]["event"] == "done"


async def test_a_load_that_fails_says_why_in_its_events(tmp_path: Path) -> None:
    async with fake_service(tmp_path, expert("a", fail="no weights"), admin_key="operator") as s:
        body = {"model": "a", "stream": True}
        events = await events_of(await s.whole.post("/models/load", json=body, headers=ADMIN))
        assert "no weights" in events[-1]["error"]["message"]


async def test_events_tell_what_happens(tmp_path: Path) -> None:
    async with fake_service(tmp_path, expert("a")) as s:
        listener = await s.whole.get("/events")
        assert await listener.content.readline() == b": listening\n"
        await s.whole.post(CHAT, json=ask())
        seen: list[str] = []
        while "state ready" not in seen:
            line = await asyncio.wait_for(listener.content.readline(), 20)
            if line.startswith(b"data: "):
                event = json.loads(line[6:])
                seen.append(f"{event['event']} {event.get('state', '')}".strip())
        assert seen[0] == "state loading"
        assert "loaded" in seen
        listener.close()


@pytest.mark.parametrize(
    ("content", "chosen"),
    [
        ("hola", "general"),
        ("```python\nprint(1)\n```\nWhat does this do?", "coding"),
        ([{"type": "image_url", "image_url": {"url": "data:image/png;base64,"}}], "multimodal"),
        ("Übersetze das bitte, und erkläre mir, was es bedeutet", "multilingual"),
    ],
)
async def test_auto_goes_to_an_expert_and_says_why(
    tmp_path: Path, content: Any, chosen: str
) -> None:
    domains = ("general", "technical", "coding", "multimodal", "multilingual")
    experts = [{**expert(domain), "domain": domain} for domain in domains]
    async with fake_service(tmp_path, *experts) as s:
        body = {"model": "auto", "messages": [{"role": "user", "content": content}], "fake": {}}
        answer = await s.whole.post(CHAT, json=body)
        echo = await answer.json()
        assert (answer.headers["X-Capibara-Model"], echo["model"]) == (chosen, chosen)
        assert echo["echo"] == {**body, "model": chosen}
        assert chosen in answer.headers["X-Capibara-Route"]
        routing = (await (await s.whole.get("/stats")).json())["routing"]
        assert routing["by_model"] == {chosen: 1}
        assert routing["last"][0]["reasons"]


async def test_origins_are_allowed_only_if_configured(tmp_path: Path) -> None:
    origin = {"Origin": "https://page.example"}
    async with fake_service(below(tmp_path, "1"), expert("a")) as s:
        answer = await s.whole.get("/v1/models", headers=origin)
        assert "Access-Control-Allow-Origin" not in answer.headers
    settings = {"cors_origins": ["https://page.example"]}
    async with fake_service(below(tmp_path, "2"), expert("a"), server_config=settings) as s:
        answer = await s.whole.get("/v1/models", headers=origin)
        assert answer.headers["Access-Control-Allow-Origin"] == "https://page.example"
        other = await s.whole.get("/v1/models", headers={"Origin": "https://other.example"})
        assert "Access-Control-Allow-Origin" not in other.headers
        asked = {**origin, "Access-Control-Request-Method": "POST"}
        preflight = await s.whole.options(CHAT, headers=asked)
        assert preflight.status == 200
        assert "POST" in preflight.headers["Access-Control-Allow-Methods"]


async def test_a_new_configuration_takes_effect_without_disturbing_the_rest(
    tmp_path: Path,
) -> None:
    async with fake_service(tmp_path, expert("a"), expert("b")) as s:
        for name in "ab":
            await s.whole.post(CHAT, json=ask(name))
        pid = s.pool.statistics()["a"]["pid"]
        config = s.config.model_copy(deep=True)
        config.experts[1].dtype = "float32"
        config.experts.append(config.experts[0].model_copy(update={"expert_id": "c"}))
        s.pool.reconfigure(config, frozenset("b"))
        await eventually(lambda: s.pool.state_of("b") == "unloaded")
        assert s.pool.statistics()["a"]["pid"] == pid
        assert (await s.whole.post(CHAT, json=ask("c"))).status == 200
        config = config.model_copy(update={"experts": config.experts[:1]})
        s.pool.reconfigure(config, frozenset())
        assert (await error_of(await s.whole.post(CHAT, json=ask("c"))))["status"] == 404
        assert (await s.whole.post(CHAT, json=ask("a"))).status == 200

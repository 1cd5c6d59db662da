# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from conftest import expert, fake_service

from capibara_axion.server.errors import ApiError
from capibara_axion.server.openapi import document

DOCUMENT = document(["phi", "qwen"])


def operations(document: dict[str, Any] = DOCUMENT) -> Iterator[tuple[str, dict[str, Any]]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield f"{method} {path}", operation


def is_valid(schema: str, value: Any) -> bool:
    """Whether it fits the document's schema of this name."""
    whole = {"$ref": f"#/components/schemas/{schema}", "components": DOCUMENT["components"]}
    return bool(jsonschema.Draft202012Validator(whole).is_valid(value))


@pytest.mark.parametrize("models", [[], ["phi"]])
@pytest.mark.parametrize("needs_key", [True, False])
def test_it_is_a_valid_openapi_document(models: list[str], needs_key: bool) -> None:
    validator = pytest.importorskip("openapi_spec_validator")
    validator.validate(document(models, needs_key=needs_key))


def test_it_is_json_and_every_reference_leads_somewhere() -> None:
    def check(value: Any) -> int:
        if isinstance(value, list):
            return sum(map(check, value))
        if not isinstance(value, dict):
            return 0
        found = 0
        if "$ref" in value:
            target: Any = DOCUMENT
            for part in value["$ref"].removeprefix("#/").split("/"):
                target = target[part]
            found = 1
        return found + sum(map(check, value.values()))

    assert check(json.loads(json.dumps(DOCUMENT))) > 50


def test_it_has_the_routes_of_the_server() -> None:
    assert {name for name, _ in operations()} == {
        "post /v1/chat/completions",
        "post /v1/completions",
        "post /v1/embeddings",
        "get /v1/models",
        "get /v1/models/{model}",
        "get /health",
        "get /livez",
        "get /readyz",
        "get /stats",
        "get /metrics",
        "get /running",
        "get /events",
        "get /openapi.json",
        "get /ui/",
        "post /models/load",
        "post /models/unload",
    }


def test_routes_want_the_keys_that_the_server_has() -> None:
    def wanted(document: dict[str, Any]) -> dict[str, list[str]]:
        return {
            name: [key for choice in operation["security"] for key in choice]
            for name, operation in operations(document)
        }

    admin = {"post /models/load", "post /models/unload"}
    free = {"get /health", "get /livez", "get /readyz", "get /ui/"}
    with_key, without = wanted(DOCUMENT), wanted(document(needs_key=False))
    assert {name for name, keys in with_key.items() if keys == ["adminKey"]} == admin
    assert {name for name, keys in with_key.items() if keys == []} == free
    assert {name for name, keys in with_key.items() if keys == ["key"]} == {
        *with_key
    } - admin - free
    assert without == {name: ["adminKey"] if name in admin else [] for name in without}


def test_only_routes_with_a_key_refuse_one() -> None:
    for name, operation in operations():
        assert ("401" in operation["responses"]) == bool(operation["security"]), name


def test_completions_answer_whole_or_in_events_and_say_when_to_come_again() -> None:
    for route in ("/v1/chat/completions", "/v1/completions"):
        responses = DOCUMENT["paths"][route]["post"]["responses"]
        assert set(responses["200"]["content"]) == {"application/json", "text/event-stream"}
        statuses = {"200", "400", "401", "404", "405", "408", "413", "429", "503"}
        assert set(responses) == statuses
    for name in ("TooManyRequests", "Unavailable"):
        assert "Retry-After" in DOCUMENT["components"]["responses"][name]["headers"]


CHAT = {"model": "phi", "messages": [{"role": "user", "content": "Hello"}]}


@pytest.mark.parametrize(
    ("schema", "body"),
    [
        ("ChatCompletionRequest", CHAT),
        ("ChatCompletionRequest", CHAT | {"model": "auto", "keep_alive": -1, "min_p": 0.1}),
        ("ChatCompletionRequest", CHAT | {"keep_alive": "1.5h"}),
        (
            "ChatCompletionRequest",
            {
                "model": "phi",
                "messages": [
                    {"role": "user", "content": [{"type": "text", "text": "What is it?"}]},
                    {"role": "assistant", "content": None, "tool_calls": []},
                ],
                "stream": True,
                "stream_options": {"include_usage": True},
                "tool_choice": "auto",
                "stop": ["\n"],
            },
        ),
        ("CompletionRequest", {"model": "phi", "prompt": "Hello", "logprobs": 3}),
        ("CompletionRequest", {"model": "phi", "prompt": [[1, 2], [3]]}),
        ("EmbeddingRequest", {"model": "qwen", "input": ["a", "b"]}),
        ("LoadRequest", {"model": "qwen", "stream": True}),
        ("UnloadRequest", {"model": "qwen"}),
    ],
)
def test_requests_that_the_server_takes(schema: str, body: dict[str, Any]) -> None:
    assert is_valid(schema, body)


@pytest.mark.parametrize(
    ("schema", "body"),
    [
        ("ChatCompletionRequest", {"model": "phi"}),
        ("ChatCompletionRequest", {"messages": CHAT["messages"]}),
        ("ChatCompletionRequest", CHAT | {"messages": []}),
        ("ChatCompletionRequest", CHAT | {"model": "unknown"}),
        ("ChatCompletionRequest", CHAT | {"model": None}),
        ("ChatCompletionRequest", CHAT | {"temperature": -1}),
        ("ChatCompletionRequest", CHAT | {"n": 0}),
        ("ChatCompletionRequest", CHAT | {"keep_alive": "a while"}),
        ("CompletionRequest", {"model": "phi"}),
        ("EmbeddingRequest", {"model": "auto", "input": "a"}),
        ("LoadRequest", {"model": "auto"}),
        ("LoadRequest", {"model": "phi", "stream": "yes"}),
    ],
)
def test_requests_that_the_server_refuses(schema: str, body: dict[str, Any]) -> None:
    assert not is_valid(schema, body)


def test_errors_are_those_that_the_server_makes() -> None:
    assert is_valid("Error", ApiError(404, "no", code="model_not_found").envelope())
    assert is_valid("Error", ApiError(500, "no").envelope())
    assert not is_valid("Error", {"error": "no"})


async def test_answers_are_those_that_the_server_gives(tmp_path: Path) -> None:
    async with fake_service(tmp_path, expert("phi")) as service:
        for path, schema in (
            ("/v1/models", "ModelList"),
            ("/v1/models/phi", "Model"),
            ("/v1/models/none", "Error"),
            ("/nowhere", "Error"),
            ("/health", "Status"),
        ):
            answer = await service.whole.get(path)
            assert is_valid(schema, await answer.json()), path

# SPDX-License-Identifier: Apache-2.0
"""Answers OpenAI requests with vLLM's own serving classes (vLLM 0.32).

Chat templates, tools, log-probabilities, JSON schemas, images and the order of a stream's events
are vLLM's. Added are the times of each answer, limits on media, and errors as OpenAI words them.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any

from PIL.Image import DecompressionBombError
from prometheus_client import REGISTRY, Metric, generate_latest
from pydantic import TypeAdapter, ValidationError
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.entrypoints.openai.chat_completion.serving import OpenAIServingChat
from vllm.entrypoints.openai.completion.protocol import CompletionRequest
from vllm.entrypoints.openai.completion.serving import OpenAIServingCompletion
from vllm.entrypoints.openai.models.protocol import BaseModelPath
from vllm.entrypoints.openai.models.serving import OpenAIServingModels
from vllm.entrypoints.pooling.embed.protocol import EmbeddingRequest
from vllm.entrypoints.pooling.embed.serving import ServingEmbedding
from vllm.entrypoints.serve import create_error_response
from vllm.entrypoints.serve.engine.protocol import ErrorResponse
from vllm.renderers.chat_utils import ChatTemplateConfig, load_chat_template
from vllm.renderers.online_renderer import OnlineRenderer

from capibara_axion.server import engine_process
from capibara_axion.server.control import REQUEST_ID_HEADER, Beat
from capibara_axion.server.engine_extension import EngineExtension, groups_of_cores
from capibara_axion.server.engine_process import CpuClock, RunningEngine, current_request
from capibara_axion.server.errors import ApiError
from capibara_axion.server.launcher import WorkerSpec
from capibara_axion.server.media import MAX_PIXELS, check_media
from capibara_axion.server.worker_request import WorkerRequest

# Fields of a request that are for the gateway.
_OUR_FIELDS = ("keep_alive", "fake")

_DONE = "data: [DONE]\n\n"

# How vLLM names in its messages what the user of this server knows by another name.
_WORDS = {
    "--enable-auto-tool-choice and --tool-call-parser": "the expert's tool_call_parser",
    "--tool-call-parser": "the expert's tool_call_parser",
    " Set VLLM_MAX_IMAGE_PIXELS to increase this limit.": "",
}

Answer = bytes | AsyncGenerator[bytes, None]


class Engine:
    """A running vLLM engine behind OpenAI's protocols."""

    def __init__(self, engine: RunningEngine, spec: WorkerSpec) -> None:
        self.details = engine.details
        self._llm = engine.llm
        self._process = engine.process
        self._counters = engine.counters
        self._clock = CpuClock(engine.process)
        self._spec = spec
        models = OpenAIServingModels(
            engine_client=self._llm,
            base_model_paths=[BaseModelPath(spec.expert.expert_id, spec.expert.model_path)],
        )
        chat_template = load_chat_template(spec.expert.chat_template)
        self._serving: dict[str, tuple[TypeAdapter[Any], Callable[..., Awaitable[Any]]]] = {}
        if self._llm.model_config.runner_type == "pooling":
            embedding = ServingEmbedding(
                self._llm,
                models,
                request_logger=None,
                chat_template_config=ChatTemplateConfig(chat_template),
            )
            self._serving["embeddings"] = TypeAdapter(EmbeddingRequest), embedding
            return
        tools: dict[str, Any] = {
            "enable_auto_tools": spec.expert.tool_call_parser is not None,
            "tool_parser": spec.expert.tool_call_parser,
        }
        template: dict[str, Any] = {
            "chat_template": chat_template,
            "chat_template_content_format": "auto",
        }
        renderer = OnlineRenderer(
            model_config=self._llm.model_config,
            renderer=self._llm.renderer,
            request_logger=None,
            **template,
            **tools,
        )
        chat = OpenAIServingChat(
            self._llm,
            models,
            "assistant",
            online_renderer=renderer,
            request_logger=None,
            **template,
            **tools,
        )
        completion = OpenAIServingCompletion(
            self._llm, models, online_renderer=renderer, request_logger=None
        )
        self._serving["chat completions"] = (
            TypeAdapter(ChatCompletionRequest),
            chat.create_chat_completion,
        )
        self._serving["completions"] = TypeAdapter(CompletionRequest), completion.create_completion

    @property
    def sentinel(self) -> int:
        """A file descriptor that becomes readable when the engine process ends."""
        return self._process.sentinel

    async def chat(self, request: WorkerRequest) -> Answer:
        """Answer `/v1/chat/completions`: whole as JSON, or as server-sent events.

        Raises:
            ApiError: the request is not valid or failed; from a stream only before its first event.
        """
        return await self._answer("chat completions", request)

    async def complete(self, request: WorkerRequest) -> Answer:
        """Answer `/v1/completions`; otherwise like `chat`."""
        return await self._answer("completions", request)

    async def embed(self, request: WorkerRequest) -> Answer:
        """Answer `/v1/embeddings`, as JSON; otherwise like `chat`."""
        return await self._answer("embeddings", request)

    def beat(self) -> Beat:
        """What the engine does and has done."""
        return Beat(
            running=self._llm.get_num_unfinished_requests(),
            steps=self._counters.steps,
            tokens=self._counters.tokens,
            cpu_s=round(self._clock.seconds(), 3),
        )

    def metrics(self) -> bytes:
        """vLLM's own metrics as Prometheus text."""
        return generate_latest(_VllmMetrics(self._spec.expert.expert_id))

    async def finish_start(self) -> None:
        """Do what needs the event loop; then it may serve."""
        await self._call(EngineExtension.capibara_finish_load)
        if self._spec.expert.ranks > 1:
            await self._call(EngineExtension.capibara_unlink_shared_memory)

    async def set_cores(self, cpus: Sequence[int]) -> None:
        """Compute on these cores; returns once it does, after the engine's step of this moment."""
        groups = groups_of_cores(cpus, self._spec.expert.ranks)
        await self._call(EngineExtension.capibara_compute_on, groups)

    def shutdown(self) -> None:
        """Stop the engine process. Nothing may be running."""
        if self._spec.expert.ranks == 1:
            # It holds nothing but memory, and taking a second to unwind would delay whoever
            # waits for that memory.
            self._process.kill()
            self._process.join()
        else:
            self._llm.shutdown(timeout=5.0)

    async def _call(self, method: Callable[..., None], *arguments: Any) -> None:
        """Call a method of our extension in every rank, between two steps."""
        await self._llm.collective_rpc(method.__name__, args=arguments)

    async def _answer(self, kind: str, request: WorkerRequest) -> Answer:
        if kind not in self._serving:
            text = f"the model {self._spec.expert.expert_id!r} does not support {kind}"
            raise ApiError(400, text, code="unsupported_endpoint", param="model")
        request_type, create = self._serving[kind]
        fields = self._fields(request, kind)
        current_request.set(request)
        try:
            answer = await create(
                request_type.validate_python(fields), _RawRequest(request.request_id)
            )
        except ValidationError as error:
            raise _invalid_request(error) from None
        except DecompressionBombError:
            text = f"an image has more than the {MAX_PIXELS} pixels that are allowed"
            raise ApiError(400, text, code="image_too_large", param="image_url") from None
        except Exception as error:
            await self._wait_for_the_end_if_dead()
            raise _api_error(create_error_response(error)) from error
        if isinstance(answer, ErrorResponse):
            await self._wait_for_the_end_if_dead()
            raise _api_error(answer)
        if isinstance(answer, AsyncGenerator):
            return self._events(answer, request)
        text = answer.body.decode() if kind == "embeddings" else answer.model_dump_json()
        return request.with_timings(text).encode()

    def _fields(self, request: WorkerRequest, kind: str) -> dict[str, Any]:
        """The request's fields as vLLM is to have them."""
        fields: dict[str, Any] = json.loads(request.body)
        for name in _OUR_FIELDS:
            fields.pop(name, None)
        fields["model"] = self._spec.expert.expert_id  # the gateway chose it, if "auto" was asked
        if kind != "embeddings" and fields.get("stream") is None:
            fields["stream"] = request.stream_default
        check_media(fields, self._spec)
        return fields

    async def _events(
        self, events: AsyncGenerator[str, None], request: WorkerRequest
    ) -> AsyncGenerator[bytes, None]:
        first, held = True, ""
        async with contextlib.aclosing(events):
            async for event in events:
                if event.startswith('data: {"error"'):
                    await self._wait_for_the_end_if_dead()
                    if first:
                        fields = json.loads(event.removeprefix("data: "))
                        raise _api_error(ErrorResponse.model_validate(fields))
                first = False
                if held:
                    yield (request.with_timings(held) if event == _DONE else held).encode()
                    held = ""
                if _may_be_last(event):
                    held = event  # what follows at once tells
                else:
                    yield event.encode()

    async def _wait_for_the_end_if_dead(self) -> None:
        # The worker ends as soon as it sees the engine's end. Answering first would make the
        # gateway take an accident for the request's own failure.
        if self._llm.errored:
            await asyncio.Event().wait()


def start_engine(spec: WorkerSpec, tell: Callable[[str], object]) -> Engine:
    """Load the model and start its engine process. Blocks; call it in the main thread.

    Args:
        spec: what to load, and on which cores.
        tell: called with each phase of the load as it begins.

    Raises:
        Exception: whatever vLLM raises for a model or settings that it cannot serve.
    """
    engine = engine_process.start(spec, tell)
    tell("starting")
    return Engine(engine, spec)


class _RawRequest:
    """What vLLM's serving classes ask of the web framework's request."""

    def __init__(self, request_id: str | None) -> None:
        self.headers = {} if request_id is None else {REQUEST_ID_HEADER: request_id}
        self.state = SimpleNamespace()


class _VllmMetrics:
    """vLLM's part of the process's metrics, all of it with the model's name."""

    def __init__(self, model_name: str) -> None:
        self._model_name = model_name

    def collect(self) -> Iterator[Metric]:
        for metric in REGISTRY.collect():
            if metric.name.startswith("vllm:"):
                for sample in metric.samples:
                    sample.labels.setdefault("model_name", self._model_name)
                yield metric


def _may_be_last(event: str) -> bool:
    # In the texts of an answer these quotes would be escaped.
    return '"finish_reason":"' in event or '"choices":[]' in event


def _invalid_request(error: ValidationError) -> ApiError:
    fault = error.errors()[0]
    # Parts with brackets name a type that the value was tried as.
    where = ".".join(str(part) for part in fault["loc"] if "[" not in str(part))
    return ApiError(400, f"{where}: {fault['msg']}" if where else fault["msg"], param=where or None)


def _api_error(response: ErrorResponse) -> ApiError:
    error = response.error
    message = error.message
    for theirs, ours in _WORDS.items():
        message = message.replace(theirs, ours)
    code = "context_length_exceeded" if "maximum context length" in message else None
    return ApiError(error.code, message, param=error.param, code=code)

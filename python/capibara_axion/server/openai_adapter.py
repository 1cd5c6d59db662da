# SPDX-License-Identifier: Apache-2.0
"""The one file of the server that knows vLLM's internals (vLLM 0.32).

It starts an engine and answers OpenAI requests with vLLM's own serving classes, so that chat
templates, tools, log-probabilities, JSON schemas and images are vLLM's.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from multiprocessing.context import ForkContext, ForkProcess
from typing import Any

import torch
import vllm.v1.engine.utils as engine_utils
from pydantic import ValidationError
from vllm.config import VllmConfig
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.entrypoints.openai.chat_completion.serving import OpenAIServingChat
from vllm.entrypoints.openai.completion.protocol import CompletionRequest
from vllm.entrypoints.openai.completion.serving import OpenAIServingCompletion
from vllm.entrypoints.openai.models.protocol import BaseModelPath
from vllm.entrypoints.openai.models.serving import OpenAIServingModels
from vllm.entrypoints.serve import create_error_response
from vllm.entrypoints.serve.engine.protocol import ErrorResponse
from vllm.model_executor.models.registry import ModelRegistry
from vllm.plugins import load_general_plugins
from vllm.renderers.chat_utils import load_chat_template
from vllm.renderers.online_renderer import OnlineRenderer
from vllm.usage.usage_lib import UsageContext
from vllm.v1.engine.async_llm import AsyncLLM

from capibara_axion.server import processes
from capibara_axion.server.errors import ApiError
from capibara_axion.server.launcher import WorkerSpec
from capibara_axion.server.memory import kv_cache_bytes

# Architectures whose classes the forkserver imports; any other is imported by its first worker.
_PRELOADED_ARCHITECTURES = (
    "Phi3ForCausalLM",
    "MistralForCausalLM",
    "Qwen2ForCausalLM",
    "Gemma3ForCausalLM",
    "Gemma3ForConditionalGeneration",
    "CohereForCausalLM",
)

# No host has this name (RFC 2606): a request must not make the server fetch what its sender could
# not reach.
_NO_MEDIA_DOMAIN = "data-urls-only.invalid"

_MM_PROCESSOR_CACHE_GIB = 0.25


def preload() -> None:
    """Do once, in the forkserver, all of a worker's start that does not depend on its model."""
    import vllm.v1.engine.core
    import vllm.v1.executor.uniproc_executor
    import vllm.v1.worker.cpu_worker  # noqa: F401

    load_general_plugins()
    for architecture in _PRELOADED_ARCHITECTURES:
        _register_in_process(architecture)


def _register_in_process(architecture: str) -> None:
    # vLLM inspects a class that it has not imported in a subprocess, which imports everything
    # again. Processes here are meant to have the class in memory anyway.
    entry = ModelRegistry.models.get(architecture)
    if entry is not None:
        with contextlib.suppress(ImportError):
            ModelRegistry.register_model(architecture, entry.load_model_cls())


class Engine:
    """A running vLLM engine with OpenAI's two completion protocols.

    Attributes:
        sentinel: a file descriptor that becomes readable when the engine process ends.
        details: what the start took, for the gateway's statistics.
    """

    def __init__(self, llm: AsyncLLM, process: ForkProcess, spec: WorkerSpec) -> None:
        self._llm = llm
        self._process = process
        self._ranks = spec.expert.ranks
        self.sentinel: int = process.sentinel
        self.details: dict[str, Any] = {}
        expert = spec.expert
        chat_template = load_chat_template(expert.chat_template)
        models = OpenAIServingModels(
            engine_client=llm,
            base_model_paths=[BaseModelPath(expert.expert_id, expert.model_path)],
        )
        tools: dict[str, Any] = {
            "enable_auto_tools": expert.tool_call_parser is not None,
            "tool_parser": expert.tool_call_parser,
        }
        renderer = OnlineRenderer(
            model_config=llm.model_config,
            renderer=llm.renderer,
            request_logger=None,
            chat_template=chat_template,
            chat_template_content_format="auto",
            **tools,
        )
        self._chat = OpenAIServingChat(
            llm,
            models,
            "assistant",
            online_renderer=renderer,
            request_logger=None,
            chat_template=chat_template,
            chat_template_content_format="auto",
            **tools,
        )
        self._completion = OpenAIServingCompletion(
            llm, models, online_renderer=renderer, request_logger=None
        )

    async def chat(self, body: bytes, stream_default: bool) -> bytes | AsyncGenerator[bytes, None]:
        """Answer a body of `/v1/chat/completions`: whole as JSON, or as server-sent events.

        Raises:
            ApiError: the request is not valid or failed; from a stream only before its first event.
        """
        return await self._answer(
            ChatCompletionRequest, self._chat.create_chat_completion, body, stream_default
        )

    async def complete(
        self, body: bytes, stream_default: bool
    ) -> bytes | AsyncGenerator[bytes, None]:
        """Answer a body of `/v1/completions`; otherwise like `chat`."""
        return await self._answer(
            CompletionRequest, self._completion.create_completion, body, stream_default
        )

    def shutdown(self) -> None:
        """Stop the engine process. Nothing may be running."""
        if self._ranks == 1:
            # It holds nothing but memory, and taking a second to unwind would delay whoever
            # waits for that memory.
            self._process.kill()
            self._process.join()
        else:
            self._llm.shutdown(timeout=5.0)

    async def _answer(
        self,
        request_type: type[ChatCompletionRequest] | type[CompletionRequest],
        create: Callable[[Any], Awaitable[Any]],
        body: bytes,
        stream_default: bool,
    ) -> bytes | AsyncGenerator[bytes, None]:
        fields = json.loads(body)
        if fields.get("stream") is None:
            fields["stream"] = stream_default
        _check_media_urls(fields)
        try:
            answer = await create(request_type.model_validate(fields))
        except ValidationError as error:
            raise _invalid_request(error) from None
        except Exception as error:
            await self._wait_for_the_end_if_dead()
            raise _api_error(create_error_response(error)) from error
        if isinstance(answer, ErrorResponse):
            await self._wait_for_the_end_if_dead()
            raise _api_error(answer)
        if hasattr(answer, "model_dump_json"):
            return bytes(answer.model_dump_json(), "utf-8")
        return self._events(answer)

    async def _events(self, events: AsyncGenerator[str, None]) -> AsyncGenerator[bytes, None]:
        first = True
        async with contextlib.aclosing(events):
            async for event in events:
                if event.startswith('data: {"error"'):
                    await self._wait_for_the_end_if_dead()
                    if first:
                        fields = json.loads(event.removeprefix("data: "))
                        raise _api_error(ErrorResponse.model_validate(fields))
                first = False
                yield event.encode()

    async def _wait_for_the_end_if_dead(self) -> None:
        # The worker ends as soon as it sees the engine's end. Answering first would make the
        # gateway take an accident for the request's own failure.
        if self._llm.errored:
            await asyncio.Event().wait()


def start_engine(spec: WorkerSpec) -> Engine:
    """Load the model and start its engine process. Blocks; call it in the main thread.

    Raises:
        Exception: whatever vLLM raises for a model or settings that it cannot serve.
    """
    began = time.monotonic()
    # The engine process is forked from this one: a team of OpenMP threads started here, for
    # instance by an image processor, would be missing in the child and hang it.
    torch.set_num_threads(1)
    if spec.expert.linear_backend is not None:
        # The plugin reads it when the engine process, forked from here, loads the weights.
        os.environ["CAPIBARA_AXION_LINEAR"] = spec.expert.linear_backend
    load_general_plugins()
    vllm_config = _vllm_config(spec)
    configured = time.monotonic()
    context = _EngineContext(spec)
    engine_utils.get_mp_context = lambda: context
    llm = AsyncLLM.from_vllm_config(vllm_config, disable_log_stats=True)
    assert context.process is not None
    engine = Engine(llm, context.process, spec)
    engine.details = {
        "configure_s": round(configured - began, 3),
        "engine_s": round(time.monotonic() - configured, 3),
        "kv_cache_bytes": vllm_config.cache_config.kv_cache_memory_bytes,
        "max_model_len": vllm_config.model_config.max_model_len,
    }
    return engine


def _vllm_config(spec: WorkerSpec) -> VllmConfig:
    expert = spec.expert
    if os.path.isabs(expert.model_path) and not os.path.isdir(expert.model_path):
        raise FileNotFoundError(f"there is no model directory {expert.model_path}")
    for architecture in _architectures(expert.model_path):
        _register_in_process(architecture)
    if expert.ranks > 1:
        # Left alone, vLLM gives every rank a NUMA node, and refuses where there are fewer.
        os.environ["VLLM_CPU_OMP_THREADS_BIND"] = _cores_of_ranks(spec)
    config = AsyncEngineArgs(
        model=expert.model_path,
        served_model_name=expert.expert_id,
        dtype=expert.dtype,
        quantization=expert.quantization,
        kv_cache_dtype=expert.kv_cache_dtype,
        kv_cache_memory_bytes=expert.kv_cache_memory_bytes,
        tensor_parallel_size=expert.tensor_parallel_size,
        pipeline_parallel_size=expert.pipeline_parallel_size,
        distributed_executor_backend="uni" if expert.ranks == 1 else "mp",
        max_model_len=expert.max_model_len,
        max_num_seqs=expert.max_num_seqs,
        max_num_batched_tokens=expert.max_num_batched_tokens,
        enable_chunked_prefill=expert.enable_chunked_prefill,
        enable_prefix_caching=expert.enable_prefix_caching,
        enforce_eager=_is_eager(spec),
        trust_remote_code=expert.trust_remote_code,
        allowed_media_domains=[_NO_MEDIA_DOMAIN],
        mm_processor_cache_gb=_MM_PROCESSOR_CACHE_GIB,
        skip_mm_profiling=True,
        use_tqdm_on_load=spec.log_level == "debug",
        disable_log_stats=True,
    ).create_engine_config(UsageContext.ENGINE_CONTEXT)
    if config.cache_config.kv_cache_memory_bytes is None:
        config.cache_config.kv_cache_memory_bytes = _kv_cache_bytes(config, spec)
    return config


def _cores_of_ranks(spec: WorkerSpec) -> str:
    """vLLM's notation for consecutive equal groups of the engine's cores: "0,1|2,3"."""
    ranks = spec.expert.ranks
    size = len(spec.cpus) // ranks
    if size == 0:
        raise ValueError(f"{ranks} ranks need as many cores, this engine has {len(spec.cpus)}")
    groups = (spec.cpus[rank * size : (rank + 1) * size] for rank in range(ranks))
    return "|".join(",".join(map(str, group)) for group in groups)


def _is_eager(spec: WorkerSpec) -> bool:
    return spec.expert.enforce_eager is not False


def _kv_cache_bytes(config: VllmConfig, spec: WorkerSpec) -> int:
    model, parallel = config.model_config, config.parallel_config
    cache_dtype = config.cache_config.cache_dtype
    return kv_cache_bytes(
        layers=model.get_num_layers(parallel),
        kv_heads=model.get_num_kv_heads(parallel),
        head_size=model.get_head_size(),
        element_bytes=1 if cache_dtype.startswith("fp8") else model.dtype.itemsize,
        max_model_len=model.max_model_len,
        tokens=spec.expert.kv_cache_tokens(),
    )


def _architectures(model_path: str) -> list[str]:
    try:
        with open(os.path.join(model_path, "config.json"), encoding="utf-8") as file:
            return list(json.load(file).get("architectures") or ())
    except (OSError, ValueError):
        return []  # a hub name, or not a model: vLLM finds out and says so


class _EngineContext(ForkContext):
    """Forks the engine process from the worker, whose imports it then shares."""

    def __init__(self, spec: WorkerSpec) -> None:
        super().__init__()
        self._spec = spec
        self.process: ForkProcess | None = None

    def Process(self, **kwargs: Any) -> ForkProcess:  # type: ignore[override]
        self.process = _EngineProcess(self._spec, os.getpid(), **kwargs)
        return self.process


class _EngineProcess(ForkProcess):
    def __init__(self, spec: WorkerSpec, worker_pid: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._spec = spec
        self._worker_pid = worker_pid

    def run(self) -> None:
        processes.die_with_parent(self._worker_pid)
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, self._spec.cpus)
        torch.set_num_threads(len(self._spec.cpus))
        if _is_eager(self._spec):
            # vLLM compiles some helpers (log-probabilities, Cohere's norm) even in eager mode,
            # which costs seconds and a C++ compiler at their first use.
            torch.compiler.set_stance("force_eager")
        super().run()


def _check_media_urls(fields: dict[str, Any]) -> None:
    """Let no request name a file or host for the server to read from.

    vLLM's own limits (`_NO_MEDIA_DOMAIN`, no local media path) stand behind this; here the client
    learns what it did wrong.
    """
    messages = fields.get("messages")
    for message in messages if isinstance(messages, list) else ():
        content = message.get("content") if isinstance(message, dict) else None
        for part in content if isinstance(content, list) else ():
            for kind in ("image_url", "video_url", "audio_url"):
                media = part.get(kind) if isinstance(part, dict) else None
                url = media.get("url") if isinstance(media, dict) else media
                if isinstance(url, str) and not url.startswith("data:"):
                    scheme = url.split(":", 1)[0][:20]
                    text = f"only data: URLs are accepted for media, got {scheme!r}"
                    raise ApiError(400, text, code="invalid_media_url", param=kind)


def _invalid_request(error: ValidationError) -> ApiError:
    fault = error.errors()[0]
    where = ".".join(str(part) for part in fault["loc"])
    return ApiError(400, f"{where}: {fault['msg']}" if where else fault["msg"], param=where or None)


def _api_error(response: ErrorResponse) -> ApiError:
    error = response.error
    message = error.message
    for flag in ("--enable-auto-tool-choice and --tool-call-parser", "--tool-call-parser"):
        message = message.replace(flag, "the expert's tool_call_parser")
    code = "context_length_exceeded" if "maximum context length" in message else None
    return ApiError(error.code, message, param=error.param, code=code)

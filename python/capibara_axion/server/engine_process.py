# SPDX-License-Identifier: Apache-2.0
"""Starts vLLM's engine for a worker (vLLM 0.32): its settings, its processes, its counters.

The engine process is forked from the worker, and the ranks of a model that is spread over several
processes are forked from the engine process, so that all share what the forkserver has imported.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import threading
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.context import ForkContext, ForkProcess
from typing import Any

import psutil
import torch
import vllm.v1.engine.utils as engine_utils
import vllm.v1.executor.multiproc_executor as multiproc_executor
from vllm.config import VllmConfig
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.outputs import RequestOutput
from vllm.renderers import BaseRenderer, ChatParams
from vllm.renderers.chat_utils import load_chat_template
from vllm.usage.usage_lib import UsageContext
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.metrics.loggers import PrometheusStatLogger, StatLoggerBase

from capibara_axion import env
from capibara_axion.server import engine_preload, media, processes
from capibara_axion.server.engine_extension import (
    EngineExtension,
    compute_on,
    groups_of_cores,
    prepare_products_for,
)
from capibara_axion.server.launcher import WorkerSpec
from capibara_axion.server.memory import kv_cache_bytes
from capibara_axion.server.worker_request import WorkerRequest

# No host has this name (RFC 2606): a request must not make the server fetch what its sender could
# not reach. An empty list would allow all hosts.
_NO_MEDIA_DOMAIN = "data-urls-only.invalid"

_MM_PROCESSOR_CACHE_GIB = 0.25

# Copies that are used at a time: by the thread that renders, and by the event loop's.
_TOKENIZERS = 2
_LOWEST_PRIORITY = 19

# What the names of architectures that generate text end in.
_GENERATES = ("ForCausalLM", "ForConditionalGeneration")

# The request that the current task answers.
current_request: ContextVar[WorkerRequest] = ContextVar("current_request")


@dataclass
class RunningEngine:
    """An engine that serves.

    Attributes:
        llm: vLLM's client of it.
        process: the engine process; ranks are its children.
        counters: what it has done.
        details: what its start took, for the gateway's statistics.
    """

    llm: AsyncLLM
    process: ForkProcess
    counters: EngineCounters
    details: dict[str, Any]


def start(spec: WorkerSpec, tell: Callable[[str], object]) -> RunningEngine:
    """Load the model and start its engine process. Blocks; call it in the main thread.

    Args:
        spec: what to load, and on which cores.
        tell: called with each phase of the load as it begins.

    Raises:
        Exception: whatever vLLM raises for a model or settings that it cannot serve.
    """
    began = time.monotonic()
    tell("configuring")
    # The engine process is forked from this one: a team of OpenMP threads started here, for
    # instance by an image processor, would be missing in the child and hang it.
    torch.set_num_threads(1)
    os.environ.update(_environment(spec))
    engine_preload.call_plugins()
    vllm_config = _vllm_config(spec)
    configured = time.monotonic()
    tell("loading")
    context = _EngineContext(spec)
    engine_utils.get_mp_context = lambda: context
    counters = EngineCounters()
    try:
        with _chat_warmed_up_meanwhile(spec):
            llm = _TimingLLM.from_vllm_config(
                vllm_config,
                # And none that writes to the log.
                stat_loggers=[lambda config, index: counters, _LatePrometheus],
                disable_log_stats=True,
            )
    except Exception as error:
        raise context.failure() or error from error
    assert context.process is not None
    details = {
        "configure_s": round(configured - began, 3),
        "engine_s": round(time.monotonic() - configured, 3),
        "kv_cache_bytes": vllm_config.cache_config.kv_cache_memory_bytes,
        "max_model_len": vllm_config.model_config.max_model_len,
        "compiled": spec.expert.compiled,
    }
    return RunningEngine(llm, context.process, counters, details)


class EngineCounters(StatLoggerBase):
    """Counts what the engine does. vLLM calls `record` after each of its iterations."""

    def __init__(self) -> None:
        self.steps = 0
        self.tokens = 0

    def record(
        self,
        scheduler_stats: Any,
        iteration_stats: Any,
        mm_cache_stats: Any = None,
        engine_idx: int = 0,
    ) -> None:
        # An iteration that only took in a part of a prompt has no `iteration_stats`.
        if scheduler_stats is not None:
            self.steps += 1
        if iteration_stats is not None:
            self.tokens += iteration_stats.num_generation_tokens

    def log_engine_initialized(self) -> None:
        pass


class _LatePrometheus(PrometheusStatLogger):
    """Takes its time only after a step's tokens have gone out."""

    def record(self, *args: Any, **kwargs: Any) -> None:
        asyncio.get_running_loop().call_soon(
            lambda: super(_LatePrometheus, self).record(*args, **kwargs)
        )


class CpuClock:
    """The processor time of this process and of an engine's together.

    Args:
        engine: the engine process, with all its ranks started.
    """

    def __init__(self, engine: ForkProcess) -> None:
        root = psutil.Process(engine.pid)
        self._engine = [root, *root.children(recursive=True)]

    def seconds(self) -> float:
        total = time.process_time()
        for process in self._engine:
            with contextlib.suppress(psutil.Error):  # it ended, and so will this one
                times = process.cpu_times()
                total += times.user + times.system
        return total


class _TimingLLM(AsyncLLM):
    """Notes on the current request when its tokens come."""

    async def generate(self, *args: Any, **kwargs: Any) -> AsyncGenerator[RequestOutput, None]:
        request = current_request.get()
        async with contextlib.aclosing(super().generate(*args, **kwargs)) as outputs:
            async for output in outputs:
                stats = output.metrics
                request.generated(
                    sum(len(choice.token_ids) for choice in output.outputs),
                    stats and stats.arrival_time + stats.first_token_latency,
                )
                yield output


def _environment(spec: WorkerSpec) -> dict[str, str]:
    """What this expert's processes are to find in their environment."""
    expert = spec.expert
    disabled = env.disabled_ops().union(expert.disabled_ops)
    variables = {**media.settings(spec), "CAPIBARA_AXION_DISABLE": ",".join(sorted(disabled))}
    if expert.linear_backend is not None:
        variables["CAPIBARA_AXION_LINEAR"] = expert.linear_backend
    if expert.ranks > 1:
        # vLLM would give every rank a NUMA node, and refuses where there are fewer.
        variables["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
    return variables


@contextlib.contextmanager
def _chat_warmed_up_meanwhile(spec: WorkerSpec) -> Iterator[None]:
    """Render first messages while the engine process loads, instead of for the first requests."""
    threads: list[threading.Thread] = []
    stock = BaseRenderer.start_mm_warmup_in_background
    template = ChatParams(load_chat_template(spec.expert.chat_template))

    def render(renderer: BaseRenderer) -> None:
        # The engine comes first: it measures which of two operators is faster (`linear_choice`).
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _LOWEST_PRIORITY)
        with contextlib.suppress(Exception):  # no chat template, for instance
            renderer.render_chat([[{"role": "user", "content": "warm-up"}]], template)

    def start(renderer: BaseRenderer) -> None:
        # vLLM calls it when the engine process exists: a thread would not survive the fork.
        stock(renderer)
        for _ in range(_TOKENIZERS):
            threads.append(threading.Thread(target=render, args=(renderer,), daemon=True))
            threads[-1].start()

    BaseRenderer.start_mm_warmup_in_background = start
    try:
        yield
    finally:
        BaseRenderer.start_mm_warmup_in_background = stock
    for thread in threads:
        thread.join()


def _vllm_config(spec: WorkerSpec) -> VllmConfig:
    expert = spec.expert
    if os.path.isabs(expert.model_path) and not os.path.isdir(expert.model_path):
        raise FileNotFoundError(f"there is no model directory {expert.model_path}")
    architectures = _architectures(expert.model_path)
    for architecture in architectures:
        engine_preload.register_in_process(architecture)
    max_num_seqs, max_num_batched_tokens = expert.step_limits
    if expert.profile is None and not any(name.endswith(_GENERATES) for name in architectures):
        max_num_batched_tokens = expert.max_num_batched_tokens
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
        worker_extension_cls=f"{EngineExtension.__module__}.{EngineExtension.__qualname__}",
        max_model_len=expert.max_model_len,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_batched_tokens,
        enable_chunked_prefill=expert.enable_chunked_prefill,
        enable_prefix_caching=expert.enable_prefix_caching,
        enforce_eager=not expert.compiled,
        trust_remote_code=expert.trust_remote_code,
        allowed_media_domains=list(spec.allowed_media_domains) or [_NO_MEDIA_DOMAIN],
        mm_processor_cache_gb=_MM_PROCESSOR_CACHE_GIB,
        skip_mm_profiling=True,
        use_tqdm_on_load=spec.log_level == "debug",
        disable_log_stats=True,
    ).create_engine_config(UsageContext.ENGINE_CONTEXT)
    if config.cache_config.kv_cache_memory_bytes is None:
        config.cache_config.kv_cache_memory_bytes = _kv_cache_bytes(config, spec)
    return config


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


def _be_ready_for_other_cores(spec: WorkerSpec) -> None:
    if not spec.expert.compiled:
        cores = psutil.Process().cpu_affinity() if psutil.LINUX else []
        most = spec.expert.threads or len(cores or spec.cpus)
        prepare_products_for(max(1, most // spec.expert.ranks))


class _EngineContext(ForkContext):
    """Forks the engine process from the worker."""

    def __init__(self, spec: WorkerSpec) -> None:
        super().__init__()
        self._spec = spec
        self._failures, self._told = self.Pipe(duplex=False)
        self.process: ForkProcess | None = None

    def Process(self, **kwargs: Any) -> ForkProcess:  # type: ignore[override]
        self.process = _EngineProcess(self._spec, self._told, **kwargs)
        return self.process

    def failure(self) -> Exception | None:
        """Why the engine process could not start, if it has said so: the client knows less."""
        return RuntimeError(self._failures.recv()) if self._failures.poll() else None


class _EngineProcess(ForkProcess):
    def __init__(self, spec: WorkerSpec, failures: Connection, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._spec = spec
        self._failures = failures
        self._worker_pid = os.getpid()

    def run(self) -> None:
        processes.die_with_parent(self._worker_pid)
        _be_ready_for_other_cores(self._spec)
        compute_on(self._spec.cpus)
        if not self._spec.expert.compiled:
            # vLLM compiles some helpers (log-probabilities, Cohere's norm) even in eager mode,
            # which costs seconds and a C++ compiler at their first use.
            torch.compiler.set_stance("force_eager")
        if self._spec.expert.ranks > 1:
            context = _RankContext(self._spec)
            multiproc_executor.get_mp_context = lambda: context
        try:
            super().run()
        except Exception as error:
            self._failures.send(str(error) or type(error).__name__)
            raise


class _RankContext(ForkContext):
    """Forks the ranks' processes from the engine process."""

    def __init__(self, spec: WorkerSpec) -> None:
        super().__init__()
        self._groups = groups_of_cores(spec.cpus, spec.expert.ranks)

    def Process(self, **kwargs: Any) -> ForkProcess:  # type: ignore[override]
        return _RankProcess(self._groups[kwargs["kwargs"]["rank"]], **kwargs)


class _RankProcess(ForkProcess):
    def __init__(self, cpus: list[int], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._cpus = cpus
        self._engine_pid = os.getpid()

    def run(self) -> None:
        processes.die_with_parent(self._engine_pid)
        compute_on(self._cpus)
        super().run()

# SPDX-License-Identifier: Apache-2.0
"""The server's configuration: pydantic models, defaults, and what must fit together.

The file's shape is that of a deployment written for an older vLLM. Keys of that shape which have
another meaning today, or none, are marked `Obsolete`; keys of no known shape are errors.

`config_file` reads a file, `config_report` says what became of its keys.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from capibara_axion.server.config_expert import ExpertConfig as ExpertConfig
from capibara_axion.server.config_fields import Bytes, Count, FilePath, Seconds, Section, Text
from capibara_axion.server.config_obsolete import (
    CachedTokens,
    ChunkSize,
    Consensus,
    ConsensusModel,
    CpuOffload,
    EmbeddingModel,
    FastClassifier,
    LongestCapture,
    OptimizationFlags,
    Rag,
    RoutingThreshold,
    SchedulerSteps,
    SpeculativeRouting,
    SwapSpace,
    V2BlockManager,
)

LogLevel = Literal["debug", "info", "warning", "error"]

# Steps of the scheduler up to which an older file asked for quick first tokens.
_FEW_SCHEDULER_STEPS = 2


class LazyLoading(Section):
    """When experts are loaded and unloaded."""

    enabled: bool = True
    """Load an expert when it is needed. `false` loads all of them when the server starts and keeps
    them."""

    warmup_pool_size: Annotated[int, Field(ge=0)] = 2
    """Experts that are kept loaded without being asked for, by priority, as long as there is
    room."""

    warm_refill_after_s: Seconds = 10.0
    """Seconds without an eviction until those that had to go are loaded again."""

    max_loaded_experts: Count = 5
    """Experts that may be loaded at a time."""

    memory_threshold: Annotated[float, Field(gt=0, le=1)] = 0.8
    """Part of the memory (of the machine, or of the control group if that has less) that loaded
    experts may take together."""

    memory_budget_gib: Annotated[float, Field(gt=0, le=2**20)] | None = None
    """GiB that loaded experts may take together; instead of `memory_threshold`."""

    auto_unload_after_s: Seconds = 300.0
    """Seconds after its last request until an expert is unloaded."""

    @model_validator(mode="after")
    def _the_pool_fits(self) -> LazyLoading:
        asked = "warmup_pool_size" in self.model_fields_set
        if asked and self.warmup_pool_size > self.max_loaded_experts:
            raise ValueError(
                f"warmup_pool_size: expected at most max_loaded_experts "
                f"({self.max_loaded_experts}), got {self.warmup_pool_size}"
            )
        return self


class ServerSettings(Section):
    """Where the server listens, and its limits."""

    host: Annotated[str, Field(min_length=1, max_length=255)] = "127.0.0.1"
    """Interface to listen on; anything but loopback needs an API key."""

    port: int = Field(default=8082, ge=0, le=65535)
    """Port that answers whole unless a request asks for a stream; 0 takes a free one."""

    stream_port: int = Field(default=8083, ge=0, le=65535)
    """Port that streams unless a request asks for a whole answer; 0 takes a free one."""

    unix_socket: FilePath | None = None
    """Unix socket to listen on as well, relative to this file."""

    log_level: LogLevel = "info"
    """How much to log."""

    log_format: Literal["text", "json"] = "text"
    """Lines for people, or one JSON object a line."""

    max_requests: Count = 256
    """Requests that may wait or run at a time; more are refused with 429."""

    max_requests_per_model: Count = 64
    """Of those, how many for one expert."""

    max_body_bytes: Bytes = 32 * 1024 * 1024
    """Largest body of a request."""

    max_images: Annotated[int, Field(ge=0, le=10_000)] = 16
    """Images in one request."""

    max_image_bytes: Bytes = 20 * 1024 * 1024
    """Largest image, decoded from its URL."""

    allowed_media_domains: list[Annotated[str, Field(pattern=r"^[A-Za-z0-9.-]{1,253}$")]] = Field(
        default_factory=list
    )
    """Hosts that images are fetched from if a request names a URL there; others must be in the
    request (`data:` URLs)."""

    body_timeout_s: Seconds = 60.0
    """Seconds that a client has for sending its request."""

    send_timeout_s: Seconds = 60.0
    """Seconds after which a client that reads nothing of its answer is cut off."""

    queue_timeout_s: Seconds = 600.0
    """Seconds that a request waits for its turn at most."""

    max_wait_s: Seconds = 30.0
    """Seconds that a request for an expert that is not loaded waits before busy ones take no new
    requests, to make room for it."""

    load_timeout_s: Seconds = 600.0
    """Seconds that loading an expert may take."""

    restart_backoff_s: Seconds = 10.0
    """Seconds until an expert that failed is started again; doubled with each further failure."""

    restart_backoff_max_s: Seconds = 300.0
    """The longest such pause."""

    hang_timeout_s: Seconds = 10.0
    """Seconds without progress, beyond an expert's usual pause between two tokens, after which it
    is replaced."""

    ping_interval_s: Seconds = 15.0
    """Seconds between comments in a stream that has nothing else to send."""

    drain_timeout_s: Seconds = 30.0
    """Seconds that running requests have for ending when the server is stopped."""

    cors_origins: list[Annotated[str, Field(pattern=r"^(\*|https?://[^\s/]+)$")]] = Field(
        default_factory=list
    )
    """Origins whose pages may use the server from a browser, as `https://example.org`; "*": all."""

    allow_credentials: bool | None = None
    """Whether pages of those origins may send cookies and the like."""

    @model_validator(mode="after")
    def _fits_together(self) -> ServerSettings:
        if self.allow_credentials and "*" in self.cors_origins:
            raise ValueError(
                'allow_credentials: expected false while cors_origins has "*", since every page '
                "could act in its visitor's name; name the origins instead"
            )
        if self.restart_backoff_max_s < self.restart_backoff_s:
            raise ValueError(
                f"restart_backoff_max_s: expected at least restart_backoff_s "
                f"({self.restart_backoff_s:g}), got {self.restart_backoff_max_s:g}"
            )
        return self


class PerformanceTuning(Section):
    """What holds for experts that do not set the same key themselves."""

    enforce_eager: bool | None = None
    """What an expert's key of this name is unless the expert sets it."""

    enable_prefix_caching: bool | None = None
    """What an expert's key of this name is unless the expert sets it."""

    enable_chunked_prefill: bool | None = None
    """What an expert's key of this name is unless the expert sets it."""

    max_num_batched_tokens: Count | None = None
    """What an expert's key of this name is unless the expert sets it."""

    use_captured_graph: bool | None = None
    """What an expert's key of this name is unless the expert sets it."""

    num_scheduler_steps: SchedulerSteps = None
    """What an expert's key of this name is unless the expert sets it."""

    swap_space: SwapSpace = None
    """What an expert's key of this name is unless the expert sets it."""

    cpu_offload_gb: CpuOffload = None
    """What an expert's key of this name is unless the expert sets it."""

    max_context_len_to_capture: LongestCapture = None
    """What an expert's key of this name is unless the expert sets it."""

    use_v2_block_manager: V2BlockManager = None
    """What an expert's key of this name is unless the expert sets it."""

    max_num_cached_tokens: CachedTokens = None
    """Tokens in the KV cache."""


# Keys of `performance_tuning` that an expert takes over as they are.
_SHARED = (
    "enforce_eager",
    "enable_prefix_caching",
    "enable_chunked_prefill",
    "max_num_batched_tokens",
    "use_captured_graph",
)


class ServerConfig(Section):
    """A configuration file."""

    json_schema: Text | None = Field(default=None, alias="$schema")
    """Where editors find the schema of this file."""

    experts: list[ExpertConfig] = Field(min_length=1)
    """The models."""

    lazy_loading: LazyLoading = Field(default_factory=LazyLoading)
    """When experts are loaded and unloaded."""

    server_config: ServerSettings = Field(default_factory=ServerSettings)
    """Where the server listens, and its limits."""

    performance_tuning: PerformanceTuning = Field(default_factory=PerformanceTuning)
    """What holds for experts that do not set the same key themselves."""

    notes: dict[str, Any] | None = None
    """Anything, for people to read."""

    embedding_model: EmbeddingModel = None
    """Model that questions were compared by."""

    rag: Rag = None
    """Retrieval of documents."""

    speculative_routing: SpeculativeRouting = None
    """Starting on an expert before the choice was certain."""

    enable_consensus: Consensus = None
    """Asking several experts."""

    consensus_model: ConsensusModel = None
    """Model that merged their answers."""

    chunk_size: ChunkSize = None
    """Size of the pieces that answers were sent in."""

    routing_threshold: RoutingThreshold = None
    """Certainty from which an expert was chosen."""

    use_fast_classifier: FastClassifier = None
    """Choosing the expert by a small model."""

    optimization_flags: OptimizationFlags = None
    """How the kernels were built."""

    @model_validator(mode="after")
    def _fill_and_check(self) -> ServerConfig:
        for expert in self.experts:
            self._fill(expert)
        if faults := list(self._faults()):
            raise ValueError("\n".join(faults))
        return self

    def _fill(self, expert: ExpertConfig) -> None:
        tuning = self.performance_tuning
        for name in _SHARED:
            if getattr(expert, name) is None:
                expert.fill(name, getattr(tuning, name))
        steps = expert.num_scheduler_steps or tuning.num_scheduler_steps
        if expert.profile is None and steps is not None:
            expert.fill("profile", "latency" if steps <= _FEW_SCHEDULER_STEPS else "throughput")

    def _faults(self) -> Iterator[str]:
        seen: set[str] = set()
        for index, expert in enumerate(self.experts):
            where = f"experts[{index}]"
            if expert.expert_id in seen:
                yield (
                    f"{where}.expert_id: {expert.expert_id!r} is used twice; every expert needs "
                    "an id of its own"
                )
            seen.add(expert.expert_id)
            yield from (f"{where}.{fault}" for fault in _faults_of(expert))
        kept = sum(expert.pinned for expert in self.experts)
        if not self.lazy_loading.enabled:
            kept = len(self.experts)
        if kept > self.lazy_loading.max_loaded_experts:
            why = "pinned" if self.lazy_loading.enabled else "kept loaded (enabled is false)"
            yield (
                f"lazy_loading.max_loaded_experts: expected at least {kept}, the number of "
                f"experts that are {why}, got {self.lazy_loading.max_loaded_experts}"
            )


def _faults_of(expert: ExpertConfig) -> Iterator[str]:
    if expert.expert_id == "auto":
        yield 'expert_id: "auto" lets the server choose; call the expert something else'
    if expert.threads is not None and expert.threads < expert.ranks:
        yield (
            f"threads: expected at least tensor_parallel_size x pipeline_parallel_size "
            f"({expert.ranks}), got {expert.threads}"
        )
    batched, longest = expert.max_num_batched_tokens, expert.max_model_len
    if batched is None:
        return
    if batched < expert.max_num_seqs:
        yield (
            f"max_num_batched_tokens: expected at least max_num_seqs ({expert.max_num_seqs}), a "
            f"token for each, got {batched}"
        )
    if expert.enable_chunked_prefill is False and longest is not None and batched < longest:
        yield (
            f"max_num_batched_tokens: expected at least max_model_len ({longest}) while "
            f"enable_chunked_prefill is false, got {batched}"
        )


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server that listens on `host`."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False

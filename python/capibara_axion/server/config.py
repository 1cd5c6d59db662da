# SPDX-License-Identifier: Apache-2.0
"""The server's configuration file: pydantic models, defaults, and errors that name the path.

The file's shape is that of a deployment written for an older vLLM. Keys of that shape which have
no meaning any more, or none yet, are accepted with the right type and listed by
`ineffective_keys`; keys of no known shape are errors.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic.config import JsonDict

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_EXPERT_ID = r"^[A-Za-z0-9][A-Za-z0-9._/-]{0,127}$"

PositiveInt = Annotated[int, Field(gt=0)]
Seconds = Annotated[float, Field(gt=0, le=7 * 24 * 3600)]
LogLevel = Literal["debug", "info", "warning", "error"]

# Marks a field that is read and type-checked but changes nothing in this server.
_INEFFECTIVE: JsonDict = {"ineffective": True}


def _ineffective() -> Any:
    return Field(default=None, json_schema_extra=_INEFFECTIVE)


class ConfigError(ValueError):
    """The configuration file cannot be used; the message says where and why."""


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, protected_namespaces=())


class ExpertConfig(_Model):
    """One model and how its engine is set up.

    `kv_cache_memory_bytes`, `threads`, `chat_template` and `tool_call_parser` are optional
    overrides; the others are named as vLLM names them. `linear_backend` says who computes linear
    layers, as `CAPIBARA_AXION_LINEAR` does for experts without it.
    """

    expert_id: str = Field(pattern=_EXPERT_ID)
    model_path: str = Field(min_length=1)
    domain: str = ""
    description: str = ""
    priority: int = 0
    use_cases: list[str] = Field(default_factory=list)

    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    quantization: str | None = None
    linear_backend: Literal["auto", "capibara", "stock"] | None = None
    kv_cache_dtype: str = "auto"
    tensor_parallel_size: PositiveInt = 1
    pipeline_parallel_size: PositiveInt = 1
    max_model_len: PositiveInt | None = None
    max_num_seqs: PositiveInt = 64
    max_num_batched_tokens: PositiveInt | None = None
    enable_chunked_prefill: bool | None = None
    enable_prefix_caching: bool | None = None
    enforce_eager: bool | None = None
    trust_remote_code: bool = False

    # Together they say how many tokens the KV cache holds, which is what sizes it here.
    block_size: PositiveInt | None = None
    num_gpu_blocks_override: PositiveInt | None = None
    kv_cache_memory_bytes: PositiveInt | None = None

    threads: PositiveInt | None = None
    chat_template: str | None = None
    tool_call_parser: str | None = None

    gpu_memory_utilization: float | None = _ineffective()
    enable_neon: bool | None = _ineffective()
    enable_flash_attention: bool | None = _ineffective()
    use_v2_block_manager: bool | None = _ineffective()
    device: Literal["cpu"] | None = _ineffective()
    use_captured_graph: bool | None = _ineffective()
    swap_space: float | None = _ineffective()
    cpu_offload_gb: float | None = _ineffective()
    max_context_len_to_capture: int | None = _ineffective()
    num_scheduler_steps: int | None = _ineffective()
    neon_optimizations: dict[str, bool] | None = _ineffective()
    flash_attention_config: dict[str, int] | None = _ineffective()

    @property
    def ranks(self) -> int:
        """Processes that the model is spread over."""
        return self.tensor_parallel_size * self.pipeline_parallel_size

    def kv_cache_tokens(self) -> int | None:
        """Capacity asked of the KV cache in tokens, or None when the file does not say."""
        if self.num_gpu_blocks_override is None:
            return None
        return self.num_gpu_blocks_override * (self.block_size or 16)


class LazyLoading(_Model):
    """When models are loaded and unloaded. Times are in seconds."""

    max_loaded_experts: PositiveInt = 5
    auto_unload_after_s: Seconds = 300.0

    enabled: bool | None = _ineffective()
    warmup_pool_size: int | None = _ineffective()
    memory_threshold: float | None = _ineffective()


class ServerSettings(_Model):
    """Addresses, limits and times of the gateway. Sizes are in bytes, times in seconds."""

    host: str = Field(default="127.0.0.1", min_length=1)
    port: int = Field(default=8082, ge=0, le=65535)
    stream_port: int = Field(default=8083, ge=0, le=65535)
    log_level: LogLevel = "info"

    max_requests: PositiveInt = 256
    max_body_bytes: PositiveInt = 32 * 1024 * 1024
    body_timeout_s: Seconds = 60.0
    queue_timeout_s: Seconds = 600.0
    load_timeout_s: Seconds = 600.0
    load_retry_after_s: Seconds = 10.0
    drain_timeout_s: Seconds = 30.0

    allow_credentials: bool | None = _ineffective()


class PerformanceTuning(_Model):
    """Defaults for experts that do not set the same key themselves."""

    enforce_eager: bool | None = None
    enable_prefix_caching: bool | None = None
    enable_chunked_prefill: bool | None = None
    max_num_batched_tokens: PositiveInt | None = None

    swap_space: float | None = _ineffective()
    cpu_offload_gb: float | None = _ineffective()
    max_context_len_to_capture: int | None = _ineffective()
    use_v2_block_manager: bool | None = _ineffective()
    num_scheduler_steps: int | None = _ineffective()
    max_num_cached_tokens: int | None = _ineffective()
    use_captured_graph: bool | None = _ineffective()


class ServerConfig(_Model):
    """The whole file."""

    experts: list[ExpertConfig] = Field(min_length=1)
    lazy_loading: LazyLoading = Field(default_factory=LazyLoading)
    server_config: ServerSettings = Field(default_factory=ServerSettings)
    performance_tuning: PerformanceTuning = Field(default_factory=PerformanceTuning)

    embedding_model: dict[str, Any] | None = _ineffective()
    rag: dict[str, Any] | None = _ineffective()
    speculative_routing: dict[str, Any] | None = _ineffective()
    enable_consensus: bool | None = _ineffective()
    consensus_model: str | None = _ineffective()
    chunk_size: int | None = _ineffective()
    routing_threshold: float | None = _ineffective()
    use_fast_classifier: bool | None = _ineffective()
    optimization_flags: dict[str, Any] | None = _ineffective()
    notes: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _expert_ids_are_unique(self) -> ServerConfig:
        seen: set[str] = set()
        for index, expert in enumerate(self.experts):
            if expert.expert_id in seen:
                raise ValueError(
                    f"experts[{index}].expert_id: {expert.expert_id!r} is used twice; "
                    "every expert needs an id of its own"
                )
            seen.add(expert.expert_id)
        return self

    @model_validator(mode="after")
    def _apply_shared_tuning(self) -> ServerConfig:
        for expert in self.experts:
            for name in (
                "enforce_eager",
                "enable_prefix_caching",
                "enable_chunked_prefill",
                "max_num_batched_tokens",
            ):
                if getattr(expert, name) is None:
                    setattr(expert, name, getattr(self.performance_tuning, name))
        return self


def load_config(path: Path) -> ServerConfig:
    """Read and check a configuration file.

    A relative `model_path` is taken relative to the file; `owner/name` means a Hugging Face
    repository unless there is a directory `owner` beside the file.

    Args:
        path: a JSON file.

    Raises:
        ConfigError: the file is missing, not JSON, or does not fit; every fault is listed with
            its path, what was expected and what was given.
    """
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: not a JSON file: {error}") from error
    try:
        config = ServerConfig.model_validate(raw)
    except ValidationError as error:
        faults = "\n".join(f"  {line}" for line in _describe(error))
        raise ConfigError(f"{path}: not a usable configuration:\n{faults}") from error
    for expert in config.experts:
        expert.model_path = _resolve_model_path(expert.model_path, path.parent)
        if expert.chat_template is not None:
            expert.chat_template = str((path.parent / expert.chat_template).resolve())
    return config


def ineffective_keys(config: ServerConfig) -> list[str]:
    """The keys present in the file that change nothing, sorted, each once."""
    return sorted(set(_ineffective_in(config, "")))


def _ineffective_in(model: BaseModel, prefix: str) -> Iterator[str]:
    for name, field in type(model).model_fields.items():
        value = getattr(model, name)
        if field.json_schema_extra == _INEFFECTIVE:
            if name in model.model_fields_set:
                yield f"{prefix}{name}"
        elif isinstance(value, BaseModel):
            yield from _ineffective_in(value, f"{prefix}{name}.")
        elif isinstance(value, list):
            for item in value:
                if isinstance(item, BaseModel):
                    yield from _ineffective_in(item, f"{prefix}{name}[].")


def _resolve_model_path(model_path: str, base: Path) -> str:
    owner = model_path.split("/")[0]
    if _HUB_ID.fullmatch(model_path) and not (base / owner).is_dir():
        return model_path
    return str((base / Path(model_path).expanduser()).resolve())


def _describe(error: ValidationError) -> Iterator[str]:
    for fault in error.errors():
        where = _dotted(fault["loc"])
        if fault["type"] == "extra_forbidden":
            yield f"{where}: unknown key{_suggestion(fault['loc'])}"
        elif fault["type"] == "value_error":
            yield fault["msg"].removeprefix("Value error, ")
        elif fault["type"] == "missing":
            yield f"{where}: required, but missing"
        else:
            yield f"{where or 'the file'}: {fault['msg']}, got {_shown(fault['input'])}"


def _dotted(location: tuple[int | str, ...]) -> str:
    text = ""
    for part in location:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


_SECTIONS: dict[int | str, type[BaseModel]] = {
    "experts": ExpertConfig,
    "lazy_loading": LazyLoading,
    "server_config": ServerSettings,
    "performance_tuning": PerformanceTuning,
}


def _suggestion(location: tuple[int | str, ...]) -> str:
    model = ServerConfig if len(location) == 1 else _SECTIONS[location[0]]
    close = difflib.get_close_matches(str(location[-1]), model.model_fields, n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=repr)
    return text if len(text) <= 80 else text[:77] + "..."

# SPDX-License-Identifier: Apache-2.0
"""What became of the keys of a configuration file, where that is not what they say."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import NamedTuple

from capibara_axion.server.config import ServerConfig, is_loopback
from capibara_axion.server.config_expert import ExpertConfig
from capibara_axion.server.config_fields import Section
from capibara_axion.server.config_file import is_hub_name
from capibara_axion.server.config_obsolete import RemarkKind, obsolete

_FP8_ATTENTION = (
    "attention stays ours with an FP8 kv_cache_dtype, which vLLM's own takes on x86 with AVX-512 "
    "or AMX only"
)


class Remark(NamedTuple):
    """What is to be said of a key that does not act as it is written.

    Attributes:
        path: of the key, with "[]" for the indices of lists.
        kind: "mapped": it stands for something else; "no effect": it changes nothing.
        text: the reason, and what to use instead.
    """

    path: str
    kind: RemarkKind
    text: str


def remarks(config: ServerConfig) -> list[Remark]:
    """The keys of the file that do not act as they are written, sorted by path, each once."""
    found = {*_obsolete_keys(config, ""), *_overruled(config)}
    for expert in config.experts:
        for name, reason in _overruled_of_expert(expert):
            found.add(Remark(f"experts[].{name}", "no effect", reason))
        if not expert.enable_neon and expert.has_fp8_cache:
            text = f"switches the other operators off; {_FP8_ATTENTION}"
            found.add(Remark("experts[].enable_neon", "mapped", text))
    return sorted(found)


def by_reason(found: list[Remark]) -> dict[tuple[RemarkKind, str], list[str]]:
    """The paths of the remarks by their kind and text."""
    paths: dict[tuple[RemarkKind, str], list[str]] = {}
    for remark in found:
        paths.setdefault((remark.kind, remark.text), []).append(remark.path)
    return paths


def remarks_text(found: list[Remark]) -> str:
    """Remarks for people: a line for each reason, with the keys that it holds for."""
    return "\n".join(
        f"{', '.join(paths)}: {kind}: {text}" for (kind, text), paths in by_reason(found).items()
    )


def cautions(config: ServerConfig, *, has_api_key: bool) -> list[str]:
    """What may keep the server from doing what the file says, or is unsafe; beginning with the key.

    Args:
        has_api_key: whether the environment provides one for the clients.
    """
    settings = config.server_config
    found = []
    if not is_loopback(settings.host) and not has_api_key:
        found.append(
            f"server_config.host: others can reach {settings.host!r}, so serve wants an API key: "
            "set CAPIBARA_AXION_API_KEY, or say serve --host 127.0.0.1"
        )
    if settings.port == settings.stream_port != 0:
        found.append(f"server_config.stream_port: is {settings.port}, as port is; serve wants two")
    for index, expert in enumerate(config.experts):
        where = f"experts[{index}]"
        if not is_hub_name(expert.model_path) and not os.path.isdir(expert.model_path):
            found.append(f"{where}.model_path: there is no folder {expert.model_path}")
        if expert.chat_template is not None and not os.path.isfile(expert.chat_template):
            found.append(f"{where}.chat_template: there is no file {expert.chat_template}")
        if expert.trust_remote_code:
            found.append(
                f"{where}.trust_remote_code: Python code that comes with {expert.expert_id}'s "
                "checkpoint runs with the server's rights"
            )
    return found


def _obsolete_keys(section: Section, prefix: str) -> Iterator[Remark]:
    for name in section.model_fields_set:
        value = getattr(section, name)
        if (mark := obsolete(type(section), name)) is not None:
            yield Remark(f"{prefix}{name}", mark.kind, mark.text)
        elif isinstance(value, Section):
            yield from _obsolete_keys(value, f"{prefix}{name}.")
        elif isinstance(value, list):
            for item in value:
                if isinstance(item, Section):
                    yield from _obsolete_keys(item, f"{prefix}{name}[].")


def _overruled(config: ServerConfig) -> Iterator[Remark]:
    """Keys of the server that another one makes ineffective."""
    lazy, settings = config.lazy_loading, config.server_config
    if not lazy.enabled:
        idle = {"warmup_pool_size", "warm_refill_after_s", "auto_unload_after_s"}
        for name in idle & lazy.model_fields_set:
            yield Remark(f"lazy_loading.{name}", "no effect", "enabled is false: all are kept")
    if lazy.memory_budget_gib is not None and "memory_threshold" in lazy.model_fields_set:
        yield Remark("lazy_loading.memory_threshold", "no effect", "memory_budget_gib decides")
    if settings.allow_credentials and not settings.cors_origins:
        reason = "cors_origins names no pages that could send any"
        yield Remark("server_config.allow_credentials", "no effect", reason)


def _overruled_of_expert(expert: ExpertConfig) -> Iterator[tuple[str, str]]:
    """Keys of an expert that another one makes ineffective, and why."""
    given = expert.model_fields_set
    if expert.pinned and "keep_alive_s" in given:
        yield "keep_alive_s", "pinned keeps it"
    if expert.kv_cache_memory_bytes is not None and "num_gpu_blocks_override" in given:
        yield "num_gpu_blocks_override", "kv_cache_memory_bytes decides"
    if expert.use_captured_graph and not expert.compiled:
        yield "use_captured_graph", "enforce_eager is true"
    if expert.enforce_eager is False and not expert.compiled:
        yield "enforce_eager", "use_captured_graph is false"
    if expert.has_fp8_cache and not expert.neon_optimizations.flash_attention:
        yield "neon_optimizations.flash_attention", _FP8_ATTENTION
    if expert.has_fp8_cache and not expert.enable_flash_attention:
        yield "enable_flash_attention", _FP8_ATTENTION
    if not expert.neon_optimizations.matmul_8x8:
        if expert.linear_backend != "stock":
            yield "neon_optimizations.matmul_8x8", "linear_backend decides"
        elif (expert.quantization or "").startswith("capibara_"):
            reason = f"only our products take weights of {expert.quantization}"
            yield "neon_optimizations.matmul_8x8", reason

# SPDX-License-Identifier: Apache-2.0
"""Every key of the file acts, is mapped, or is named with the reason."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from test_config import deployment, one

from capibara_axion.server.config import ServerConfig
from capibara_axion.server.config_fields import section_in
from capibara_axion.server.config_obsolete import obsolete
from capibara_axion.server.config_reference import SECTIONS
from capibara_axion.server.config_report import cautions, remarks, remarks_text

# What a file of an older deployment has, and acts as it is written.
ACTING = {
    "experts[].dtype",
    "experts[].description",
    "experts[].domain",
    "experts[].enable_chunked_prefill",
    "experts[].enable_flash_attention",
    "experts[].enable_neon",
    "experts[].enable_prefix_caching",
    "experts[].enforce_eager",
    "experts[].expert_id",
    "experts[].kv_cache_dtype",
    "experts[].max_model_len",
    "experts[].max_num_batched_tokens",
    "experts[].max_num_seqs",
    "experts[].model_path",
    "experts[].neon_optimizations.matmul_8x8",
    "experts[].neon_optimizations.rmsnorm",
    "experts[].neon_optimizations.rope",
    "experts[].neon_optimizations.swiglu",
    "experts[].num_gpu_blocks_override",
    "experts[].priority",
    "experts[].quantization",
    "experts[].tensor_parallel_size",
    "experts[].trust_remote_code",
    "experts[].use_captured_graph",
    "experts[].use_cases",
    "lazy_loading.auto_unload_after_s",
    "lazy_loading.enabled",
    "lazy_loading.max_loaded_experts",
    "lazy_loading.memory_threshold",
    "lazy_loading.warmup_pool_size",
    "notes",
    "performance_tuning.enable_chunked_prefill",
    "performance_tuning.enable_prefix_caching",
    "performance_tuning.enforce_eager",
    "performance_tuning.max_num_batched_tokens",
    "performance_tuning.use_captured_graph",
    "server_config.host",
    "server_config.log_level",
    "server_config.port",
}


def keys(content: dict[str, Any], section: type = ServerConfig, prefix: str = "") -> Iterator[str]:
    """The paths of a file's keys, down to those that are not sections, or are obsolete whole."""
    for name, value in content.items():
        inner = section_in(section.model_fields[name].annotation)  # type: ignore[attr-defined]
        if inner is None or obsolete(section, name) is not None:
            yield f"{prefix}{name}"
        elif isinstance(value, list):
            for item in value:
                yield from keys(item, inner, f"{prefix}{name}[].")
        else:
            yield from keys(value, inner, f"{prefix}{name}.")


def found(content: dict[str, Any]) -> dict[str, tuple[str, str]]:
    """Kind and text of the remarks on a file, by path."""
    config = ServerConfig.model_validate(content)
    by_path = {remark.path: (remark.kind, remark.text) for remark in remarks(config)}
    assert len(by_path) == len(remarks(config))
    return by_path


def test_every_key_of_the_deployment_acts_or_is_named() -> None:
    content = deployment()
    named = found(content)
    assert set(keys(content)) == ACTING | set(named)
    assert not ACTING & set(named)


def test_every_obsolete_key_is_named_when_a_file_has_it() -> None:
    marked = {
        f"{prefix}{name}"
        for prefix, section in SECTIONS
        for name in section.model_fields
        if obsolete(section, name) is not None
    }
    assert marked < set(found(deployment()))
    assert found(one()) == {}


def test_a_reason_is_said_once_with_all_its_keys() -> None:
    config = ServerConfig.model_validate(deployment())
    lines = remarks_text(remarks(config)).splitlines()
    reasons = [line.split(": ", 1)[1] for line in lines]
    assert len(reasons) == len(set(reasons))
    (swap,) = [line for line in lines if "swap_space" in line]
    assert swap.startswith("experts[].swap_space, performance_tuning.swap_space: no effect: vLLM ")


FP8_OFF = {"kv_cache_dtype": "fp8", "neon_optimizations": {"flash_attention": False}}


@pytest.mark.parametrize(
    ("keys", "path", "kind", "words"),
    [
        ({"num_scheduler_steps": 2}, "num_scheduler_steps", "mapped", 'profile "latency"'),
        ({"block_size": 8}, "block_size", "mapped", "128 tokens"),
        (FP8_OFF, "neon_optimizations.flash_attention", "no effect", "attention stays ours"),
        (
            {"kv_cache_dtype": "fp8_e5m2", "enable_flash_attention": False},
            "enable_flash_attention",
            "no effect",
            "attention stays ours",
        ),
        (
            {"kv_cache_dtype": "fp8", "enable_neon": False},
            "enable_neon",
            "mapped",
            "the other operators off",
        ),
        (
            {"neon_optimizations": {"matmul_8x8": False}, "linear_backend": "capibara"},
            "neon_optimizations.matmul_8x8",
            "no effect",
            "linear_backend decides",
        ),
        (
            {"neon_optimizations": {"matmul_8x8": False}, "quantization": "capibara_int8"},
            "neon_optimizations.matmul_8x8",
            "no effect",
            "capibara_int8",
        ),
        ({"pinned": True, "keep_alive_s": 5}, "keep_alive_s", "no effect", "pinned"),
        (
            {"kv_cache_memory_bytes": 1 << 30, "num_gpu_blocks_override": 9},
            "num_gpu_blocks_override",
            "no effect",
            "kv_cache_memory_bytes",
        ),
        (
            {"use_captured_graph": True, "enforce_eager": True},
            "use_captured_graph",
            "no effect",
            "enforce_eager is true",
        ),
        (
            {"use_captured_graph": False, "enforce_eager": False},
            "enforce_eager",
            "no effect",
            "use_captured_graph is false",
        ),
    ],
)
def test_keys_of_an_expert_that_another_overrules(
    keys: dict[str, Any], path: str, kind: str, words: str
) -> None:
    named = found(one(**keys))
    assert set(named) == {f"experts[].{path}"}
    assert named[f"experts[].{path}"][0] == kind
    assert words in named[f"experts[].{path}"][1]


@pytest.mark.parametrize(
    "keys",
    [
        {"neon_optimizations": {"flash_attention": False}},
        {"neon_optimizations": {"matmul_8x8": False, "rope": False}},
        {"neon_optimizations": {"matmul_8x8": False}, "linear_backend": "stock"},
        {"enable_neon": False},
        {"kv_cache_dtype": "fp8", "enable_flash_attention": True},
        {"pinned": False, "keep_alive_s": -1},
        {"use_captured_graph": True, "enforce_eager": False},
        {"num_gpu_blocks_override": 9},
    ],
)
def test_keys_that_act_are_not_named(keys: dict[str, Any]) -> None:
    assert found(one(**keys)) == {}


def test_keys_of_the_server_that_another_overrules() -> None:
    lazy = {"enabled": False, "auto_unload_after_s": 5, "memory_budget_gib": 8}
    content = {**one(), "lazy_loading": {**lazy, "memory_threshold": 0.5}}
    assert set(found(content)) == {
        "lazy_loading.auto_unload_after_s",
        "lazy_loading.memory_threshold",
    }
    credentials: dict[str, Any] = {"allow_credentials": True}
    path = "server_config.allow_credentials"
    assert path in found({**one(), "server_config": credentials})
    credentials["cors_origins"] = ["https://example.org"]
    assert found({**one(), "server_config": credentials}) == {}


def test_what_is_to_be_seen_to(tmp_path: Any) -> None:
    settings = {"host": "0.0.0.0", "port": 9000, "stream_port": 9000}
    path = str(tmp_path / "missing")
    entry = one(model_path=path, chat_template=path, trust_remote_code=True)
    config = ServerConfig.model_validate({**entry, "server_config": settings})
    paths = [line.split(": ")[0] for line in cautions(config, has_api_key=False)]
    assert paths == [
        "server_config.host",
        "server_config.stream_port",
        "experts[0].model_path",
        "experts[0].chat_template",
        "experts[0].trust_remote_code",
    ]
    assert not any("host" in line for line in cautions(config, has_api_key=True))
    present = ServerConfig.model_validate(one(model_path=str(tmp_path)))
    assert cautions(present, has_api_key=False) == []

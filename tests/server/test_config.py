# SPDX-License-Identifier: Apache-2.0
"""The configuration file: what is accepted, what is refused, and what the refusal says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from capibara_axion.server.config import ConfigError, ServerConfig, ineffective_keys, load_config
from capibara_axion.server.memory import kv_cache_bytes
from capibara_axion.server.serve import worker_environment


def deployment() -> dict[str, Any]:
    """A file in the full shape of a deployment written for an older vLLM."""
    kernels = ("matmul_8x8", "flash_attention", "rmsnorm", "rope", "swiglu", "softmax_fast_exp")
    text = {
        "expert_id": "fast",
        "model_path": "/srv/models/fast",
        "domain": "general",
        "description": "Respuestas simples",
        "priority": 5,
        "quantization": "awq",
        "tensor_parallel_size": 1,
        "gpu_memory_utilization": 0.85,
        "max_num_seqs": 64,
        "enable_neon": True,
        "enable_chunked_prefill": True,
        "max_num_batched_tokens": 32768,
        "max_model_len": 4096,
        "enforce_eager": False,
        "kv_cache_dtype": "fp8",
        "use_v2_block_manager": True,
        "enable_prefix_caching": True,
        "device": "cpu",
        "dtype": "float16",
        "use_captured_graph": True,
        "swap_space": 4,
        "cpu_offload_gb": 0,
        "neon_optimizations": dict.fromkeys(kernels, True),
        "use_cases": ["saludos"],
        "block_size": 8,
        "num_gpu_blocks_override": 4096,
        "max_context_len_to_capture": 4096,
        "num_scheduler_steps": 2,
    }
    images = {
        **text,
        "expert_id": "images",
        "quantization": None,
        "enable_flash_attention": True,
        "trust_remote_code": True,
        "neon_optimizations": {**dict.fromkeys(kernels, True), "acl_gemm": True},
        "flash_attention_config": {
            "block_size": 64,
            "enable_for_seq_len_above": 512,
            "max_seq_len": 32768,
        },
    }
    return {
        "experts": [text, images],
        "lazy_loading": {
            "enabled": True,
            "warmup_pool_size": 2,
            "max_loaded_experts": 5,
            "memory_threshold": 0.8,
            "auto_unload_after_s": 300,
        },
        "embedding_model": {"model_name": "MiniLM", "cache_size": 20000, "use_neon": True},
        "rag": {"enabled": True, "bridge_url": "http://localhost:8001"},
        "speculative_routing": {"enabled": True, "speculation_threshold": 0.85},
        "enable_consensus": True,
        "consensus_model": "/srv/models/fast",
        "chunk_size": 64,
        "routing_threshold": 0.7,
        "use_fast_classifier": True,
        "server_config": {
            "host": "0.0.0.0",
            "port": 8082,
            "log_level": "info",
            "allow_credentials": True,
        },
        "performance_tuning": {
            "swap_space": 12,
            "cpu_offload_gb": 0,
            "enforce_eager": False,
            "max_context_len_to_capture": 8192,
            "enable_prefix_caching": True,
            "use_v2_block_manager": False,
            "num_scheduler_steps": 2,
            "enable_chunked_prefill": True,
            "max_num_cached_tokens": 32768,
            "use_captured_graph": True,
            "max_num_batched_tokens": 4096,
        },
        "optimization_flags": {"arm_neon": True, "batch_scheduler": "vllm_default"},
        "notes": {"deployment": "anything", "nested": {"lists": ["are", "fine"]}},
    }


def load(tmp_path: Path, content: Any) -> ServerConfig:
    path = tmp_path / "config.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return load_config(path)


def test_the_whole_shape_is_accepted_unchanged(tmp_path: Path) -> None:
    config = load(tmp_path, deployment())
    fast, images = config.experts
    assert (fast.expert_id, fast.quantization, fast.kv_cache_dtype) == ("fast", "awq", "fp8")
    assert fast.kv_cache_tokens() == 8 * 4096
    assert images.trust_remote_code
    assert config.lazy_loading.max_loaded_experts == 5


def test_keys_without_effect_are_named_once_each(tmp_path: Path) -> None:
    names = ineffective_keys(load(tmp_path, deployment()))
    assert {"rag", "experts[].swap_space", "performance_tuning.num_scheduler_steps"} <= set(names)
    assert len(names) == len(set(names))
    assert not {"experts[].dtype", "lazy_loading.auto_unload_after_s", "notes"} & set(names)
    minimal = {"experts": [{"expert_id": "a", "model_path": "m"}]}
    assert ineffective_keys(load(tmp_path, minimal)) == []


def test_shared_tuning_fills_what_an_expert_leaves_open(tmp_path: Path) -> None:
    content = {
        "experts": [
            {"expert_id": "open", "model_path": "m"},
            {"expert_id": "own", "model_path": "m", "max_num_batched_tokens": 512},
        ],
        "performance_tuning": {"max_num_batched_tokens": 4096, "enforce_eager": False},
    }
    is_open, own = load(tmp_path, content).experts
    assert (is_open.max_num_batched_tokens, is_open.enforce_eager) == (4096, False)
    assert own.max_num_batched_tokens == 512


def change(path: str, value: Any) -> dict[str, Any]:
    content = deployment()
    target: Any = content
    *parents, last = [int(p) if p.isdigit() else p for p in path.split(".")]
    for part in parents:
        target = target[part]
    target[last] = value
    return content


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (
            change("experts.0.max_num_seqs", "many"),
            ["experts[0].max_num_seqs", "integer", '"many"'],
        ),
        (change("experts.1.max_model_len", 0), ["experts[1].max_model_len", "greater than 0", "0"]),
        (change("experts.0.dtype", "int3"), ["experts[0].dtype", "'bfloat16'", '"int3"']),
        (change("experts.0.enforce_eager", "no"), ["experts[0].enforce_eager", '"no"']),
        (change("experts.0.max_num_seq", 1), ["experts[0].max_num_seq", "mean 'max_num_seqs'"]),
        (change("experts.1.expert_id", "fast"), ["experts[1].expert_id", "'fast' is used twice"]),
        (change("experts.1.expert_id", "a b"), ["experts[1].expert_id", '"a b"']),
        (change("experts", []), ["experts", "at least 1"]),
        (change("lazy_loading.auto_unload_after_s", -1), ["auto_unload_after_s", "-1"]),
        (change("server_config.port", 70000), ["server_config.port", "65535", "70000"]),
        (change("lazyloading", {}), ["lazyloading", "mean 'lazy_loading'"]),
        ([], ["the file", "[]"]),
        ("{", ["not a JSON file"]),
        ("[" * 100_000, ["not a JSON file"]),
    ],
    ids=lambda value: "+".join(value)[:40] if isinstance(value, list) else "",
)
def test_faults_are_named_with_path_expectation_and_value(
    tmp_path: Path, content: Any, words: list[str]
) -> None:
    with pytest.raises(ConfigError) as raised:
        load(tmp_path, content)
    for word in [*words, "config.json"]:
        assert word in str(raised.value)


def test_all_faults_are_listed(tmp_path: Path) -> None:
    content = change("experts.0.dtype", 1)
    content["chunk_size"] = "x"
    with pytest.raises(ConfigError) as raised:
        load(tmp_path, content)
    assert "experts[0].dtype" in str(raised.value)
    assert "chunk_size" in str(raised.value)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.json: cannot be read"):
        load_config(tmp_path / "none.json")


def test_model_paths_are_relative_to_the_file_or_hub_names(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    paths = ("here", "models/a", "./b/c", "/abs", "Qwen/Qwen2.5-Coder-1.5B")
    experts = [{"expert_id": f"e{i}", "model_path": path} for i, path in enumerate(paths)]
    resolved = [e.model_path for e in load(tmp_path, {"experts": experts}).experts]
    local = [str(tmp_path / path) for path in ("here", "models/a", "b/c")]
    assert resolved == [*local, "/abs", "Qwen/Qwen2.5-Coder-1.5B"]


def test_the_kv_cache_holds_what_is_asked_and_one_sequence_at_least() -> None:
    shape = {"layers": 32, "kv_heads": 8, "head_size": 128, "element_bytes": 2}
    token = 2 * 32 * 8 * 128 * 2
    assert kv_cache_bytes(**shape, max_model_len=4096, tokens=32768) >= 32768 * token
    assert kv_cache_bytes(**shape, max_model_len=4096, tokens=32) >= 4096 * token
    assert kv_cache_bytes(**shape, max_model_len=4096) >= 4 * 4096 * token


def test_workers_never_see_the_api_key(tmp_path: Path) -> None:
    minimal = {"experts": [{"expert_id": "a", "model_path": "m"}]}
    environment = worker_environment(load(tmp_path, minimal), tmp_path, "info")
    assert environment["CAPIBARA_AXION_API_KEY"] is None  # removed, not merely empty
    assert environment["OMP_WAIT_POLICY"] == "PASSIVE"
    assert environment["HF_HUB_OFFLINE"] == "1"
    minimal["experts"][0]["model_path"] = "owner/name"
    assert worker_environment(load(tmp_path, minimal), tmp_path, "info")["HF_HUB_OFFLINE"] is None

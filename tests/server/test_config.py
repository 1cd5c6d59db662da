# SPDX-License-Identifier: Apache-2.0
"""The configuration file: what is accepted, what is refused, and what the refusal says."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from capibara_axion.demo.experts import EXPERTS, server_config
from capibara_axion.demo.huggingface import huggingface_config
from capibara_axion.server.config import ExpertConfig, ServerConfig, is_loopback
from capibara_axion.server.config_file import ConfigError, load_config
from capibara_axion.server.config_report import cautions, remarks
from capibara_axion.server.memory import kv_cache_bytes
from capibara_axion.server.serve import worker_environment


def deployment() -> dict[str, Any]:
    """A file in the full shape of a deployment written for an older vLLM."""
    kernels = ("matmul_8x8", "rmsnorm", "rope", "swiglu", "softmax_fast_exp")
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
        "neon_optimizations": {**dict.fromkeys(kernels, True), "flash_attention": False},
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
        "neon_optimizations": {
            **dict.fromkeys(kernels, True),
            "flash_attention": True,
            "quantization_q4": True,
            "acl_gemm": True,
        },
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


def one(**keys: Any) -> dict[str, Any]:
    """A file with one expert."""
    return {"experts": [{"expert_id": "a", "model_path": "m", **keys}]}


def expert(**keys: Any) -> ExpertConfig:
    (read,) = ServerConfig.model_validate(one(**keys)).experts
    return read


def refusal(tmp_path: Path, content: Any) -> ConfigError:
    with pytest.raises(ConfigError) as raised:
        load(tmp_path, content)
    assert str(tmp_path / "config.json") in str(raised.value)
    return raised.value


def test_the_whole_shape_is_accepted_unchanged(tmp_path: Path) -> None:
    config = load(tmp_path, deployment())
    fast, images = config.experts
    assert (fast.expert_id, fast.quantization, fast.kv_cache_dtype) == ("fast", "awq", "fp8")
    assert fast.kv_cache_tokens() == 8 * 4096
    assert fast.profile == images.profile == "latency"
    assert fast.compiled
    assert fast.disabled_ops == ()  # its cache is FP8, so attention stays ours
    assert images.trust_remote_code
    assert config.lazy_loading.max_loaded_experts == 5


def test_shared_tuning_fills_what_an_expert_leaves_open(tmp_path: Path) -> None:
    tuning = {
        "max_num_batched_tokens": 4096,
        "enforce_eager": True,
        "enable_prefix_caching": False,
        "enable_chunked_prefill": True,
        "use_captured_graph": True,
        "num_scheduler_steps": 8,
    }
    own = {name: not value for name, value in tuning.items() if isinstance(value, bool)}
    own |= {"max_num_batched_tokens": 512, "profile": "latency"}
    experts = [
        {"expert_id": "open", "model_path": "m"},
        {"expert_id": "own", "model_path": "m", **own},
    ]
    read = load(tmp_path, {"experts": experts, "performance_tuning": tuning}).experts
    expected = {**tuning, "profile": "throughput", "num_scheduler_steps": None}
    assert {name: getattr(read[0], name) for name in expected} == expected
    assert read[0].model_fields_set == {"expert_id", "model_path"}  # what the file says itself
    assert {name: getattr(read[1], name) for name in own} == own


@pytest.mark.parametrize(
    ("steps", "profile", "expected"),
    [
        (1, None, "latency"),
        (2, None, "latency"),
        (3, None, "throughput"),
        (8, "latency", "latency"),
        (None, None, None),
        (None, "throughput", "throughput"),
    ],
)
def test_scheduler_steps_become_a_profile(
    steps: int | None, profile: str | None, expected: str | None
) -> None:
    assert expert(num_scheduler_steps=steps, profile=profile).profile == expected


@pytest.mark.parametrize(
    ("graph", "eager", "compiled"),
    [
        (None, None, False),
        (True, None, True),
        (False, None, False),
        (None, False, True),
        (None, True, False),
        (True, True, False),
        (True, False, True),
        (False, False, False),
    ],
)
def test_captured_graphs_compile_unless_eager_is_enforced(
    graph: bool | None, eager: bool | None, compiled: bool
) -> None:
    assert expert(use_captured_graph=graph, enforce_eager=eager).compiled is compiled


NORMS = ("rms_norm", "fused_add_rms_norm", "layer_norm")
GATES = ("silu_and_mul", "gelu_and_mul")


@pytest.mark.parametrize(
    ("keys", "disabled", "linear"),
    [
        ({}, (), None),
        ({"neon_optimizations": {"rmsnorm": False}}, NORMS, None),
        ({"neon_optimizations": {"rope": False, "swiglu": False}}, ("rope", *GATES), None),
        ({"neon_optimizations": {"flash_attention": False}}, ("attention",), None),
        ({"neon_optimizations": {"matmul_8x8": False}}, (), "stock"),
        ({"neon_optimizations": {"matmul_8x8": False}, "linear_backend": "auto"}, (), "auto"),
        ({"enable_flash_attention": False}, ("attention",), None),
        ({"enable_flash_attention": False, "kv_cache_dtype": "fp8_e5m2"}, (), None),
        ({"enable_neon": False}, (*NORMS, "rope", *GATES, "attention"), "stock"),
        ({"enable_neon": False, "kv_cache_dtype": "fp8"}, (*NORMS, "rope", *GATES), "stock"),
    ],
)
def test_switches_leave_operators_to_vllm(
    keys: dict[str, Any], disabled: tuple[str, ...], linear: str | None
) -> None:
    assert expert(**keys).disabled_ops == disabled
    assert expert(**keys).linear_backend == linear


def test_operators_are_named_as_the_plugin_names_them() -> None:
    register = pytest.importorskip("capibara_axion.vllm_plugin.register")
    assert set(expert(enable_neon=False).disabled_ops) < set(register.OPS)


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
        (change("experts.0.kv_cache_dtype", "fp4"), ["kv_cache_dtype", "'fp8_e4m3'", '"fp4"']),
        (change("experts.0.enforce_eager", "no"), ["experts[0].enforce_eager", '"no"']),
        (change("experts.0.max_num_seq", 1), ["experts[0].max_num_seq", "mean 'max_num_seqs'"]),
        (
            change("experts.1.neon_optimizations.rms_norm", False),
            ["experts[1].neon_optimizations.rms_norm", "mean 'rmsnorm'"],
        ),
        (
            change("experts.1.flash_attention_config.blocksize", 64),
            ["experts[1].flash_attention_config.blocksize", "mean 'block_size'"],
        ),
        (change("experts.1.expert_id", "fast"), ["experts[1].expert_id", "'fast' is used twice"]),
        (change("experts.1.expert_id", "a b"), ["experts[1].expert_id", '"a b"']),
        (change("experts.1.expert_id", "auto"), ["experts[1].expert_id", "lets the server choose"]),
        (change("experts.1.keep_alive_s", -0.5), ["experts[1].keep_alive_s: expected -1", "-0.5"]),
        (change("experts.1.model_path", "a\0b"), ["experts[1].model_path", "pattern"]),
        (change("experts", []), ["experts", "at least 1"]),
        (change("lazy_loading.auto_unload_after_s", -1), ["auto_unload_after_s", "-1"]),
        (change("lazy_loading.auto_unload_after_s", 1e7), ["auto_unload_after_s", "604800"]),
        (change("lazy_loading.memory_threshold", 1.5), ["lazy_loading.memory_threshold", "1.5"]),
        (change("lazy_loading.memory_budget_gib", 0), ["lazy_loading.memory_budget_gib", "0"]),
        (change("lazy_loading.warmup_pool_size", 6), ["lazy_loading.warmup_pool_size", "(5)", "6"]),
        (
            change("lazy_loading", {"enabled": False, "max_loaded_experts": 1}),
            ["lazy_loading.max_loaded_experts", "at least 2", "enabled is false", "got 1"],
        ),
        (change("server_config.port", 70000), ["server_config.port", "65535", "70000"]),
        (change("server_config.cors_origins", ["a/b"]), ["cors_origins[0]", "pattern", "a/b"]),
        (
            change("server_config.cors_origins", ["https://a.org", "*"]),
            ["server_config.allow_credentials: expected false", "cors_origins"],
        ),
        (
            change("server_config.restart_backoff_max_s", 5),
            ["server_config.restart_backoff_max_s", "restart_backoff_s (10)", "got 5"],
        ),
        (
            change("server_config.unix_socket", "x" * 120),
            ["server_config.unix_socket", "at most 107 bytes"],
        ),
        (change("server_config.load_retry_after_s", 1), ["load_retry_after_s", "unknown key"]),
        (change("lazyloading", {}), ["lazyloading", "mean 'lazy_loading'"]),
        ([], ["the file", "[]"]),
        ("{", ["not a JSON file"]),
        ("[" * 100_000, ["not a JSON file"]),
        ('{"experts": [], "experts": []}', ["not a JSON file", "'experts' is there twice"]),
        ('{"chunk_size": NaN}', ["not a JSON file", "NaN"]),
    ],
    ids=lambda value: "+".join(value)[:40] if isinstance(value, list) else "",
)
def test_faults_are_named_with_path_expectation_and_value(
    tmp_path: Path, content: Any, words: list[str]
) -> None:
    message = str(refusal(tmp_path, content))
    for word in words:
        assert word in message


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        (
            {"threads": 3, "tensor_parallel_size": 2, "pipeline_parallel_size": 2},
            "experts[0].threads: expected at least tensor_parallel_size x pipeline_parallel_size "
            "(4), got 3",
        ),
        (
            {"max_num_batched_tokens": 32},
            "experts[0].max_num_batched_tokens: expected at least max_num_seqs (64), a token for "
            "each, got 32",
        ),
        (
            {"max_num_batched_tokens": 100, "max_model_len": 200, "enable_chunked_prefill": False},
            "experts[0].max_num_batched_tokens: expected at least max_model_len (200) while "
            "enable_chunked_prefill is false, got 100",
        ),
    ],
)
def test_keys_that_do_not_fit_together(tmp_path: Path, keys: dict[str, Any], words: str) -> None:
    assert refusal(tmp_path, one(**keys)).faults == (words,)


def test_experts_that_are_kept_need_room(tmp_path: Path) -> None:
    content = deployment()
    for entry in content["experts"]:
        entry["pinned"] = True
    content["lazy_loading"] = {"max_loaded_experts": 2}
    assert load(tmp_path, content)
    content["lazy_loading"] = {"max_loaded_experts": 1}
    (fault,) = refusal(tmp_path, content).faults
    assert fault.startswith("lazy_loading.max_loaded_experts: expected at least 2")
    assert "pinned" in fault


def test_all_faults_are_listed(tmp_path: Path) -> None:
    content = change("experts.0.dtype", 1)
    content["chunk_size"] = "x"
    content["lazy_loading"] = {"max_loaded_expert": 1, "warmup_pool_size": -1}
    paths = [fault.split(": ")[0] for fault in refusal(tmp_path, content).faults]
    assert sorted(paths) == [
        "chunk_size",
        "experts[0].dtype",
        "lazy_loading.max_loaded_expert",
        "lazy_loading.warmup_pool_size",
    ]
    twice = one()
    twice["experts"] += [*twice["experts"], {**twice["experts"][0], "max_num_batched_tokens": 1}]
    assert len(refusal(tmp_path, twice).faults) == 3


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.json: cannot be read"):
        load_config(tmp_path / "none.json")


def test_paths_are_relative_to_the_file_and_hub_names_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    (tmp_path / "models").mkdir()
    paths = ("here", "models/a", "./b/c", "/abs", "~/d", "Qwen/Qwen2.5-Coder-1.5B")
    experts = [
        {"expert_id": f"e{i}", "model_path": path, "chat_template": "chat.jinja"}
        for i, path in enumerate(paths)
    ]
    settings = {"unix_socket": "run/s.sock"}
    config = load(tmp_path, {"experts": experts, "server_config": settings})
    base = os.path.realpath(tmp_path)
    local = [f"{base}/{path}" for path in ("here", "models/a", "b/c")]
    resolved = [e.model_path for e in config.experts]
    assert resolved == [*local, "/abs", "/home/somebody/d", "Qwen/Qwen2.5-Coder-1.5B"]
    assert {e.chat_template for e in config.experts} == {f"{base}/chat.jinja"}
    assert config.server_config.unix_socket == f"{base}/run/s.sock"


def test_the_shipped_configurations_say_what_they_do(tmp_path: Path) -> None:
    for content in (server_config(), huggingface_config()):
        config = load(tmp_path, content)
        assert [e.expert_id for e in config.experts] == [e.expert_id for e in EXPERTS]
        assert [e.priority for e in config.experts] == [5, 4, 3, 2, 2]
        assert config.lazy_loading.warmup_pool_size == 2
        assert remarks(config) == []
    assert [e.model_path for e in config.experts] == [
        "microsoft/Phi-4-mini-instruct",
        "mistralai/Mistral-7B-Instruct-v0.2",
        "Qwen/Qwen2.5-Coder-1.5B-Instruct",
        "google/gemma-3-27b-it",
        "CohereLabs/aya-expanse-8b",
    ]
    assert cautions(config, has_api_key=False) == []


def test_loopback() -> None:
    assert all(map(is_loopback, ("localhost", "127.0.0.1", "127.8.8.8", "::1", "[::1]")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "10.0.0.1", "example.org", "")))


def test_the_kv_cache_holds_what_is_asked_and_one_sequence_at_least() -> None:
    shape = {"layers": 32, "kv_heads": 8, "head_size": 128, "element_bytes": 2}
    token = 2 * 32 * 8 * 128 * 2
    assert kv_cache_bytes(**shape, max_model_len=4096, tokens=32768) >= 32768 * token
    assert kv_cache_bytes(**shape, max_model_len=4096, tokens=32) >= 4096 * token
    assert kv_cache_bytes(**shape, max_model_len=4096) >= 4 * 4096 * token


def test_workers_never_see_the_api_key(tmp_path: Path) -> None:
    environment = worker_environment(load(tmp_path, one()), tmp_path, "info")
    assert environment["CAPIBARA_AXION_API_KEY"] is None  # removed, not merely empty
    assert environment["OMP_WAIT_POLICY"] == "PASSIVE"
    assert environment["HF_HUB_OFFLINE"] == "1"
    hub = load(tmp_path, one(model_path="owner/name"))
    assert worker_environment(hub, tmp_path, "info")["HF_HUB_OFFLINE"] is None


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({}, (64, 512)),
        ({"max_num_seqs": 1000}, (1000, 1000)),
        ({"profile": "latency"}, (16, 512)),
        ({"profile": "throughput"}, (64, 8192)),
        ({"profile": "latency", "max_num_seqs": 5}, (5, 512)),
        ({"profile": "latency", "max_num_batched_tokens": 2048}, (16, 2048)),
        ({"profile": "latency", "enable_chunked_prefill": False}, (16, None)),
    ],
)
def test_a_profile_fills_in_what_the_file_leaves_open(
    keys: dict[str, Any], expected: tuple[int, int | None]
) -> None:
    entry = {"expert_id": "a", "model_path": "m", **keys}
    (expert,) = ServerConfig.model_validate({"experts": [entry]}).experts
    assert expert.step_limits == expected

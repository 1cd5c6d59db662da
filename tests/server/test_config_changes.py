# SPDX-License-Identifier: Apache-2.0
"""What reading the configuration again would change."""

from __future__ import annotations

from typing import Any

import pytest

from capibara_axion.server.config import ServerConfig
from capibara_axion.server.config_changes import Changes, changes

NONE = Changes((), (), (), (), (), ())


def config(*experts: dict[str, Any], **sections: Any) -> ServerConfig:
    entries = [{"expert_id": "a", "model_path": "/m", **keys} for keys in experts or ({},)]
    return ServerConfig.model_validate({"experts": entries, **sections})


def difference(before: dict[str, Any], after: dict[str, Any]) -> Changes:
    return changes(config(before), config(after))


def test_nothing_changed() -> None:
    assert changes(config(), config()) == NONE
    b = {"expert_id": "b"}
    assert changes(config({}, b), config(b, {})) == NONE  # only their order


def test_added_and_removed() -> None:
    a, b, c = ({"expert_id": name} for name in "abc")
    found = changes(config(a, b), config(c, b))
    assert found == Changes(("c",), ("a",), (), (), (), ())


@pytest.mark.parametrize(
    "keys",
    [
        {"model_path": "/other"},
        {"dtype": "float32"},
        {"quantization": "awq"},
        {"kv_cache_dtype": "fp8"},
        {"tensor_parallel_size": 2},
        {"max_model_len": 128},
        {"max_num_seqs": 1},
        {"linear_backend": "stock"},
        {"use_captured_graph": True},
        {"enforce_eager": False},
        {"num_gpu_blocks_override": 4},
        {"enable_neon": False},
        {"neon_optimizations": {"rope": False}},
        {"enable_flash_attention": False},
        {"num_scheduler_steps": 2},  # by way of the profile
        {"threads": 2},
        {"trust_remote_code": True},
    ],
    ids=lambda keys: next(iter(keys)),
)
def test_another_engine_is_loaded_anew(keys: dict[str, Any]) -> None:
    assert difference({}, keys) == Changes((), (), ("a",), (), (), ())
    # Also if it says something else about who may use it.
    assert difference({}, {**keys, "priority": 3}) == Changes((), (), ("a",), (), (), ())


@pytest.mark.parametrize(
    "keys",
    [
        {"priority": 1},
        {"pinned": True},
        {"keep_alive_s": 5},
        {"max_requests": 5},
        {"description": "d"},
        {"domain": "d"},
        {"use_cases": ["u"]},
    ],
    ids=lambda keys: next(iter(keys)),
)
def test_policy_does_not_touch_the_engine(keys: dict[str, Any]) -> None:
    assert difference({}, keys) == Changes((), (), (), ("a",), (), ())


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({}, {"swap_space": 4, "device": "cpu", "use_v2_block_manager": True}),
        ({"block_size": 8}, {"block_size": 16}),
        ({"block_size": 8, "num_gpu_blocks_override": 4}, {"num_gpu_blocks_override": 2}),
        ({"num_scheduler_steps": 1}, {"profile": "latency"}),
        ({"use_captured_graph": True}, {"enforce_eager": False}),
        ({}, {"enforce_eager": True, "use_captured_graph": True}),
        ({"enable_flash_attention": False}, {"neon_optimizations": {"flash_attention": False}}),
    ],
)
def test_other_words_for_the_same_engine_change_nothing(
    before: dict[str, Any], after: dict[str, Any]
) -> None:
    assert difference(before, after) == NONE


def test_shared_tuning_changes_those_that_take_it_over() -> None:
    experts = ({}, {"expert_id": "b", "max_num_batched_tokens": 512})
    new = config(*experts, performance_tuning={"max_num_batched_tokens": 4096})
    assert changes(config(*experts), new).changed == ("a",)


def test_settings_that_apply_and_those_that_need_a_restart() -> None:
    new = config(
        lazy_loading={"auto_unload_after_s": 5},
        server_config={
            "host": "localhost",
            "port": 1,
            "stream_port": 2,
            "unix_socket": "/s",
            "log_format": "json",
            "log_level": "debug",
            "max_requests": 5,
            "max_body_bytes": 5,
            "cors_origins": ["https://example.org"],
            "allow_credentials": True,
        },
    )
    found = changes(config(), new)
    assert set(found.needs_restart) == {
        "server_config.host",
        "server_config.port",
        "server_config.stream_port",
        "server_config.log_level",
        "server_config.log_format",
        "server_config.unix_socket",
        "server_config.max_body_bytes",
        "server_config.cors_origins",
        "server_config.allow_credentials",
    }
    assert set(found.settings) == {
        "lazy_loading.auto_unload_after_s",
        "server_config.max_requests",
    }
    assert (found.added, found.removed, found.changed, found.policy) == ((), (), (), ())

# SPDX-License-Identifier: Apache-2.0
"""Which attention layers are ours, and what they are told of a step: no engine."""

from __future__ import annotations

import logging
import types
from typing import Any

import pytest
import torch

pytest.importorskip("vllm")

from capibara_axion.info import call_counts, reset_call_counts
from capibara_axion.kv_cache import PagedKVCache
from capibara_axion.vllm_plugin import attention, compat, compat_attention
from capibara_axion.vllm_plugin.compat_attention import Wanted

DECODER = Wanted("decoder", 128, torch.bfloat16, "auto", None, "")


@pytest.fixture(autouse=True)
def _warn_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "_warned", set())


@pytest.mark.parametrize("kv_cache_dtype", ["auto", "bfloat16", "fp8", "fp8_e4m3", "fp8_e5m2"])
@pytest.mark.parametrize("head_size", [16, 48, 80, 256, 512])
@pytest.mark.parametrize("block_size", [None, 16, 128])
def test_decoders_are_ours(
    kv_cache_dtype: str, head_size: int, block_size: int | None, caplog: pytest.LogCaptureFixture
) -> None:
    wanted = DECODER._replace(
        kv_cache_dtype=kv_cache_dtype, head_size=head_size, block_size=block_size
    )
    assert attention.reason_for_stock(wanted) == ""
    assert not caplog.records


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"kind": "encoder_only"}, "encoder-only layers"),
        ({"kind": "encoder_decoder"}, "encoder-decoder layers"),
        ({"kind": "encoder"}, "encoder layers"),
        ({"dtype": torch.float64}, "torch.float64"),
        ({"head_size": 72}, "heads of 72 elements"),
        ({"head_size": 576}, "heads of 576 elements"),
        ({"kv_cache_dtype": "float16"}, "a KV cache of float16 in a model of bfloat16"),
        ({"kv_cache_dtype": "int8_per_token_head"}, "a KV cache of int8_per_token_head"),
        ({"block_size": 8}, "blocks of 8 tokens"),
        ({"other": "use_non_causal"}, "layers that ask for use_non_causal"),
    ],
)
def test_others_are_left_to_vllm_with_one_warning(
    change: dict[str, Any], reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(3):
        assert reason in attention.reason_for_stock(DECODER._replace(**change))
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert reason in record.getMessage()


# ---------------------------------------------------------------- in vLLM's place


@pytest.fixture
def platform(monkeypatch: pytest.MonkeyPatch) -> Any:
    """vLLM's platform for the CPU with our backend in place."""
    module = pytest.importorskip("vllm.platforms.cpu")
    registry = pytest.importorskip("vllm.v1.attention.backends.registry")

    class Platform(module.CpuPlatform):
        pass

    monkeypatch.setattr(registry, "_ATTN_OVERRIDES", {})
    monkeypatch.setattr(module, "CpuPlatform", Platform)
    attention.hook_attention()
    attention.hook_whole_images()
    return Platform


def _config(**wanted: Any) -> Any:
    selector = pytest.importorskip("vllm.v1.attention.selector")
    config = selector.AttentionSelectorConfig(128, torch.bfloat16, "auto", None)
    return config._replace(**wanted)


def test_the_backend_of_a_layer(platform: Any) -> None:
    ours = "capibara_axion.vllm_plugin.attention.AttentionBackend"
    stock = "vllm.v1.attention.backends.cpu_attn.CPUAttentionBackend"
    for flag in ("has_sink", "use_mm_prefix", "has_sliding_window"):
        assert platform.get_attn_backend_cls(None, _config(**{flag: True})) == ours
    assert platform.get_attn_backend_cls(None, _config(kv_cache_dtype=None)) == ours
    for flag in ("use_non_causal", "use_kv_connector", "use_dcp", "use_pcp", "use_rswa"):
        assert platform.get_attn_backend_cls(None, _config(**{flag: True})) == stock
    backend = pytest.importorskip("vllm.v1.attention.backend")
    for kind in backend.AttentionType:
        expected = ours if kind.value == "decoder" else stock
        assert platform.get_attn_backend_cls(None, _config(attn_type=kind)) == expected
    latent = platform.get_attn_backend_cls(None, _config(use_mla=True))
    assert latent not in (ours, stock)
    with pytest.raises(compat.HookNotFound, match="already replaced"):
        attention.hook_attention()


def test_our_backend_is_known_by_vllms_name(platform: Any) -> None:
    registry = pytest.importorskip("vllm.v1.attention.backends.registry")
    backend = registry.AttentionBackendEnum.CPU_ATTN.get_class()
    assert backend is attention.AttentionBackend
    assert backend.get_name() == "CPU_ATTN"
    assert backend.supports_block_size(16)
    assert not backend.supports_block_size(24)
    assert backend.supports_head_size(48)
    assert backend.supports_mm_prefix()
    assert backend.supports_sink()


def test_images_are_prefilled_whole(platform: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    given = []
    monkeypatch.setattr(
        platform.__mro__[1],
        "check_and_update_config",
        classmethod(lambda cls, vllm_config: given.append(vllm_config)),
    )
    monkeypatch.delattr(platform, "check_and_update_config")
    attention.hook_whole_images()
    for is_prefix_lm in (False, True):
        config = types.SimpleNamespace(
            model_config=types.SimpleNamespace(is_mm_prefix_lm=is_prefix_lm),
            scheduler_config=types.SimpleNamespace(
                is_multimodal_model=True, disable_chunked_mm_input=False
            ),
        )
        platform.check_and_update_config(config)
        assert config.scheduler_config.disable_chunked_mm_input is is_prefix_lm
        assert given[-1] is config
    platform.check_and_update_config(
        types.SimpleNamespace(model_config=None, scheduler_config=None)
    )


def test_a_selector_of_another_version(monkeypatch: pytest.MonkeyPatch) -> None:
    registry = pytest.importorskip("vllm.v1.attention.backends.registry")
    selector = pytest.importorskip("vllm.v1.attention.selector")
    monkeypatch.setattr(registry, "_ATTN_OVERRIDES", {})
    monkeypatch.setattr(
        selector, "AttentionSelectorConfig", types.SimpleNamespace(_fields=("head_size",))
    )
    with pytest.raises(compat.HookNotFound, match="block_size"):
        attention.hook_attention()
    assert not registry._ATTN_OVERRIDES


def test_an_old_native_module(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention._core, "call_counts", lambda: {"rms_norm": 0})
    with pytest.raises(RuntimeError, match="install the project again"):
        attention.hook_attention()


# ---------------------------------------------------------------- a step


def _common(queries: list[int], lengths: list[int], **more: Any) -> Any:
    starts = torch.tensor([0, *queries]).cumsum(0).int()
    fields = {
        "num_actual_tokens": sum(queries),
        "max_query_len": max(queries),
        "query_start_loc": starts,
        "max_seq_len": max(lengths),
        "seq_lens": torch.tensor(lengths, dtype=torch.int32),
        "block_table_tensor": torch.arange(8, dtype=torch.int32).view(2, 4)[: len(queries)],
        "slot_mapping": torch.arange(sum(queries)),
        "causal": True,
        "mm_req_doc_ranges": None,
    }
    return types.SimpleNamespace(**(fields | more))


@pytest.mark.parametrize(
    ("queries", "lengths", "images", "expected"),
    [
        ([10], [10], None, None),
        ([10], [10], {}, None),
        ([10], [10], {0: []}, None),
        ([10], [10], {0: [(2, 5)]}, [(0, 2, 6)]),
        ([10, 6], [10, 20], {1: [(15, 16), (1, 9)], 0: [(2, 5)]}, [(0, 2, 6), (1, 15, 17)]),
        ([4], [10], {0: [(2, 5)]}, None),
        ([4], [10], {0: [(2, 6)]}, [(0, 2, 7)]),
        ([1], [30], {0: [(2, 6)]}, None),
        ([10], [10], {0: [(8, 15)]}, [(0, 8, 10)]),
        ([10], [10], {0: [(10, 15)]}, None),
    ],
    ids=[
        "no images in the model",
        "none in the step",
        "none in the sequence",
        "one",
        "two sequences",
        "before the queries",
        "its last token is a query",
        "decoding",
        "goes on after the step",
        "after the step",
    ],
)
def test_ranges(
    queries: list[int],
    lengths: list[int],
    images: Any,
    expected: list[tuple[int, int, int]] | None,
) -> None:
    ranges = attention._ranges(_common(queries, lengths, mm_req_doc_ranges=images))
    assert (None if ranges is None else [tuple(row) for row in ranges.tolist()]) == expected
    assert ranges is None or ranges.dtype == torch.int32


def _builder() -> Any:
    return attention.AttentionBuilder(None, ["layer"], None, torch.device("cpu"))


def test_the_metadata_of_a_step() -> None:
    common = _common([3, 1], [3, 40], causal=False, mm_req_doc_ranges={0: [(0, 1)]})
    common.num_actual_tokens = 16  # padded
    metadata = _builder().build(0, common)
    assert metadata.num_actual_tokens == 4
    assert metadata.causal is False
    assert metadata.seq_lens is common.seq_lens
    assert metadata.block_table is common.block_table_tensor
    assert metadata.query_start_loc is common.query_start_loc
    assert metadata.ranges.tolist() == [[0, 0, 2]]


def test_a_causal_flag_for_each_sequence() -> None:
    with pytest.raises(NotImplementedError, match="CAPIBARA_AXION_DISABLE=attention"):
        _builder().build(0, _common([1], [1], causal=torch.tensor([True])))


def _impl(**changes: Any) -> Any:
    impl = attention.AttentionImpl.__new__(attention.AttentionImpl)
    fields: dict[str, Any] = {
        "scale": 0.25,
        "sliding_window": -1,
        "logits_soft_cap": 0,
        "alibi_slopes": None,
        "sinks": None,
        "kv_cache_dtype": "auto",
        "_window": None,
        "_cache": None,
        "_cache_of": (),
        "_sinks": None,
        "_call_directly": False,
    }
    vars(impl).update(fields | changes)
    return impl


def _layer(**changes: Any) -> Any:
    return types.SimpleNamespace(**({"_k_scale_float": 1.0, "_v_scale_float": 1.0} | changes))


@pytest.mark.parametrize(
    ("kv_cache_dtype", "scales"),
    [("auto", (1.0, 1.0)), ("fp8", (1.0, 1.0)), ("fp8_e4m3", (0.5, 2.0)), ("fp8_e5m2", (1.0, 1.0))],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_layer(kv_cache_dtype: str, scales: tuple[float, float], dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(1)
    qkv = torch.randn(20, (4 + 2 + 2) * 32, generator=generator).to(dtype)
    query, key, value = (x.unflatten(-1, (-1, 32)) for x in qkv.split([128, 64, 64], -1))
    storage = dtype if kv_cache_dtype == "auto" else torch.uint8
    kv_cache = torch.zeros(4, 2, 32, 64, dtype=storage)
    impl = _impl(kv_cache_dtype=kv_cache_dtype)
    layer = _layer(_k_scale_float=scales[0], _v_scale_float=scales[1])
    slots = torch.arange(20) + 32
    reset_call_counts()
    # vLLM's tensors may have more rows than the step.
    padded = torch.cat([key, key[:3]]), torch.cat([value, value[:3]])
    impl.do_kv_cache_update(layer, *padded, kv_cache, slots)
    impl.do_kv_cache_update(layer, key, value, kv_cache, torch.cat([slots, slots]))
    common = _common([20], [20], block_table_tensor=torch.tensor([[1, 0]], dtype=torch.int32))
    output = torch.full((20, 4, 32), torch.nan, dtype=dtype)
    metadata = _builder().build(0, common)
    assert impl.forward(layer, query, key, value, kv_cache, metadata, output) is output
    assert call_counts()["attention"] == 1
    assert torch.equal(kv_cache[0], torch.zeros_like(kv_cache[0]))

    kind = attention._FP8.get(kv_cache_dtype, attention._DTYPES[dtype])
    stored = PagedKVCache.over(
        kv_cache,
        dtype=kind,
        compute_dtype=attention._DTYPES[dtype],
        **({} if kv_cache_dtype == "auto" else {"key_scale": scales[0], "value_scale": scales[1]}),
    ).gather(slots)
    keys, values = (x.double().transpose(0, 1).repeat_interleave(2, 0) for x in stored)
    scores = 0.25 * query.double().transpose(0, 1) @ keys.transpose(1, 2)
    scores = scores.masked_fill(torch.ones(20, 20).triu(1).bool(), -torch.inf)
    expected = (scores.softmax(-1) @ values).transpose(0, 1)
    assert (output.double() - expected).abs().max() <= 4 * torch.finfo(
        dtype
    ).eps * values.abs().max()
    assert (keys[0] - key[:, 0].double()).abs().max() <= (0.5 if storage == torch.uint8 else 0)


def test_a_warm_up_and_a_quantised_result() -> None:
    output = torch.zeros(2, 4, 32)
    nothing = [None] * 4
    assert _impl().forward(_layer(), *nothing, None, output) is output
    with pytest.raises(NotImplementedError, match="quantise"):
        _impl().forward(_layer(), *nothing, None, output, torch.ones(1))


def test_the_view_of_a_cache_is_kept_as_long_as_it_fits() -> None:
    impl, layer = _impl(kv_cache_dtype="fp8"), _layer()
    first = torch.zeros(2, 1, 16, 32, dtype=torch.uint8)
    view = impl._paged(layer, first, torch.float32)
    assert impl._paged(layer, first, torch.float32) is view
    layer._k_scale_float = 0.5
    scaled = impl._paged(layer, first, torch.float32)
    assert scaled is not view
    assert impl._paged(layer, first.clone(), torch.float32) is not scaled


@pytest.mark.parametrize("is_eager", [True, False])
def test_without_a_compiler_vllm_calls_us_directly(is_eager: bool) -> None:
    config = pytest.importorskip("vllm.config")
    wanted = config.VllmConfig()
    mode = config.CompilationMode.NONE if is_eager else config.CompilationMode.VLLM_COMPILE
    wanted.compilation_config.mode = mode
    with config.set_current_vllm_config(wanted):
        assert compat_attention.no_compiler_sees_layers() is is_eager
    assert not compat_attention.no_compiler_sees_layers()

    layer, query = _layer(use_direct_call=False), torch.zeros(2, 4, 32)
    kv_cache, metadata = torch.zeros(4, 2, 16, 64), _builder().build(0, _common([2], [2]))
    impl = _impl(_call_directly=is_eager)
    impl.forward(layer, query, None, None, kv_cache, metadata, query.clone())
    assert layer.use_direct_call is is_eager


def test_windows() -> None:
    assert _impl()._window_if(True) is None
    assert _impl(_window=8)._window_if(True) == 8
    assert _impl(_window=8)._window_if(False) == (7, 7)


def test_images_that_a_layer_clamps_to_its_window() -> None:
    ranges = torch.tensor([(0, 2, 10), (1, 0, 9)], dtype=torch.int32)
    clamping = _layer(mm_prefix_clamp_sliding_window=True)
    assert _impl()._ranges_of(clamping, ranges) is ranges
    assert _impl(_window=8)._ranges_of(_layer(), ranges) is ranges
    assert _impl(_window=8)._ranges_of(clamping, ranges).tolist() == [[0, 2, 10]]
    assert _impl(_window=8)._ranges_of(clamping, None) is None


def test_sinks_are_taken_as_float32() -> None:
    sinks = torch.nn.Parameter(torch.tensor([0.5, -1.0], dtype=torch.bfloat16))
    impl = _impl(sinks=sinks)
    impl.process_weights_after_loading(torch.bfloat16)
    assert impl._sinks.dtype == torch.float32
    assert impl._sinks.tolist() == [0.5, -1.0]
    assert not impl._sinks.requires_grad


def test_the_classes_that_a_backend_is_made_from(monkeypatch: pytest.MonkeyPatch) -> None:
    module = pytest.importorskip("vllm.v1.attention.backends.cpu_attn")
    assert compat_attention.attention_classes().Backend is module.CPUAttentionBackend
    monkeypatch.setattr(module.CPUAttentionBackendImpl, "forward", lambda self, layer, q: q)
    with pytest.raises(compat.HookNotFound, match="attn_metadata"):
        compat_attention.attention_classes()


@pytest.mark.parametrize("kv_cache_dtype", ["auto", "fp8", "fp8_e4m3", "fp8_e5m2"])
def test_the_server_asks_for_the_experts_cache(
    kv_cache_dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("aiohttp")
    config = pytest.importorskip("capibara_axion.server.config")
    launcher = pytest.importorskip("capibara_axion.server.launcher")
    engine = pytest.importorskip("capibara_axion.server.engine_process")
    entry = {"expert_id": "a", "model_path": "m", "kv_cache_dtype": kv_cache_dtype}
    (expert,) = config.ServerConfig.model_validate({"experts": [entry]}).experts
    asked = {}

    class EngineArguments:
        def __init__(self, **arguments: Any) -> None:
            asked.update(arguments)

        def create_engine_config(self, context: Any) -> Any:
            cache = types.SimpleNamespace(kv_cache_memory_bytes=1)
            return types.SimpleNamespace(cache_config=cache)

    monkeypatch.setattr(engine, "AsyncEngineArgs", EngineArguments)
    engine._vllm_config(launcher.WorkerSpec(expert, "/nowhere", (0,), "info"))
    assert asked["kv_cache_dtype"] == kv_cache_dtype

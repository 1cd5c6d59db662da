# SPDX-License-Identifier: Apache-2.0
"""Linear layers: who computes them, what is remembered of that, and which weights are kept."""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import CASES
from conftest import Engines

from capibara_axion import env, torch_ops
from capibara_axion.info import call_counts, reset_call_counts
from capibara_axion.vllm_plugin import compat_linear, linear, linear_choice
from capibara_axion.vllm_plugin.linear import LinearHook
from capibara_axion.vllm_plugin.linear_cache import ChoiceCache
from capibara_axion.vllm_plugin.linear_choice import Chooser, Times, is_ours_faster, prefill_rows

# ---------------------------------------------------------------- the rule and the race


@pytest.mark.parametrize(
    ("ours", "expected"),
    [
        ((1.0, 16.0), True),
        ((0.5, 8.0), True),
        ((0.5, 18.3), True),  # what prefill loses, 16 tokens gain several times
        ((0.9, 18.3), False),  # here they do not
        ((0.5, 18.5), False),  # too much for any gain
        ((1.04, 15.3), True),
        ((1.04, 15.5), False),
        ((1.06, 8.0), False),  # decoding would get slower
        ((2.0, 32.0), False),
    ],
)
def test_rule(ours: tuple[float, float], expected: bool) -> None:
    assert is_ours_faster(Times(*ours), Times(1.0, 16.0), 128) is expected


class Track:
    """A clock, and two products that move it; by how much is a function of rows and call."""

    def __init__(self, ours: Callable[[int, int], float], stock: Callable[[int, int], float]):
        self.now = 0.0
        self.switches = 0
        self.calls = {"ours": 0, "stock": 0}
        self._seconds = {"ours": ours, "stock": stock}

    def chooser(self, cache: ChoiceCache) -> Chooser:
        return Chooser(
            self._maker("ours"),
            self._maker("stock"),
            cache,
            "1",
            lambda: self.now,
            lambda: self.switches,
        )

    def _maker(self, name: str) -> linear_choice.MakeProduct:
        def product(x: torch.Tensor) -> torch.Tensor:
            self.calls[name] += 1
            self.now += self._seconds[name](len(x), self.calls[name])
            return x

        return lambda weight: product


@pytest.fixture(autouse=True)
def _no_sweeping(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Chooser, "_sweep", lambda self: None)


def fast(rows: int, call: int) -> float:
    return 1e-5 * rows


def slow(rows: int, call: int) -> float:
    return 2e-5 * rows


def test_the_faster_one_is_chosen_and_raced_once() -> None:
    weight = torch.zeros(8, 16)
    for contenders, expected in (((fast, slow), True), ((slow, fast), False)):
        track = Track(*contenders)
        chooser = track.chooser(ChoiceCache(None))
        assert chooser.is_ours(weight) is expected
        assert chooser.is_ours(torch.ones(8, 16)) is expected
        assert chooser.raced == 1
        assert chooser.seconds == pytest.approx(track.now)


def test_one_disturbed_round_changes_nothing() -> None:
    def disturbed(rows: int, call: int) -> float:
        return 1.0 if call == 3 else 1e-4

    track = Track(disturbed, lambda rows, call: 2e-4)
    assert track.chooser(ChoiceCache(None)).is_ours(torch.zeros(8, 16))


def test_what_was_found_on_a_busy_machine_is_not_remembered_on_disk(tmp_path: Path) -> None:
    def preempted(rows: int, call: int) -> float:
        track.switches += 1
        return 1e-6

    file = tmp_path / "linear.json"
    track = Track(preempted, slow)
    chooser = track.chooser(ChoiceCache(file))
    assert chooser.is_ours(torch.zeros(8, 16))
    assert chooser.is_ours(torch.zeros(8, 16))
    assert chooser.raced == 1
    assert not file.exists()


def test_what_few_rounds_found_is_not_remembered_on_disk(tmp_path: Path) -> None:
    file = tmp_path / "linear.json"
    assert (
        Track(lambda *_: 0.2, lambda *_: 0.3).chooser(ChoiceCache(file)).is_ours(torch.zeros(8, 16))
    )
    assert not file.exists()


def test_a_race_ends_with_its_budget() -> None:
    track = Track(lambda rows, call: 0.2, lambda rows, call: 0.1)
    assert not track.chooser(ChoiceCache(None)).is_ours(torch.zeros(8, 16))
    # Once to warm up and one round, for one row and for many.
    assert track.calls == {"ours": 4, "stock": 4}


def test_a_race_that_fails_leaves_the_weight_to_vllm(caplog: pytest.LogCaptureFixture) -> None:
    def fails(rows: int, call: int) -> float:
        raise RuntimeError("no such instruction")

    assert not Track(fast, fails).chooser(ChoiceCache(None)).is_ours(torch.zeros(8, 16))
    assert "no such instruction" in caplog.text


def test_a_large_weight_is_raced_in_part() -> None:
    raced = []

    def make(weight: torch.Tensor) -> linear_choice.Product:
        raced.append(tuple(weight.shape))
        return lambda x: x

    weight = torch.empty(151936, 4096, dtype=torch.bfloat16, device="meta")
    Chooser(make, make, ChoiceCache(None), "1").is_ours(weight)
    assert raced == [((64 << 20) // 8192, 4096)] * 2


def test_rows_for_prefill() -> None:
    assert prefill_rows(128, 128, 1) == 128
    assert prefill_rows(4096, 4096, 1) == 32
    assert prefill_rows(4096, 4096, 64) == 128
    assert prefill_rows(1 << 16, 1 << 16, 1) == 16


# ---------------------------------------------------------------- the file


def test_a_choice_is_found_by_the_next_process(tmp_path: Path) -> None:
    file = tmp_path / "new" / "folder" / "linear.json"
    weight = torch.zeros(8, 16)
    assert Track(fast, slow).chooser(ChoiceCache(file)).is_ours(weight)
    track = Track(slow, fast)
    chooser = track.chooser(ChoiceCache(file))
    assert chooser.is_ours(weight)
    assert chooser.raced == 0
    for other in (torch.zeros(16, 8), weight.bfloat16()):
        assert not chooser.is_ours(other)
    assert chooser.raced == 2
    assert list(file.parent.iterdir()) == [file]


def test_the_key_names_all_that_matters(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = torch.zeros(8, 16)
    keys = [linear_choice.key_of(weight, "1"), linear_choice.key_of(weight, "2")]
    monkeypatch.setattr(torch, "get_num_threads", lambda: 99)
    keys.append(linear_choice.key_of(weight, "1"))
    monkeypatch.setattr(linear_choice._core, "chosen_isa", lambda: "other")
    keys.append(linear_choice.key_of(weight, "1"))
    assert len(set(keys)) == 4
    assert all("float32 | 8x16" in key for key in keys)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[" * 100_000,
        "[]",
        '{"format": 99, "choices": {"a": {"ours": true}}}',
        '{"format": 1, "choices": []}',
        '{"format": 1, "choices": {"a": true}}',
        '{"format": 1, "choices": {"a": {"ours": "yes"}}}',
        b"\xff\xfe\x00",
    ],
    ids=range(9),
)
def test_a_file_of_something_else_is_replaced(tmp_path: Path, content: str | bytes) -> None:
    file = tmp_path / "linear.json"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    cache = ChoiceCache(file)
    assert cache.get("a") is None
    cache.put("b", True, {})
    assert ChoiceCache(file).get("b") is True


def test_entries_of_others_are_kept(tmp_path: Path) -> None:
    file = tmp_path / "linear.json"
    first, second = ChoiceCache(file), ChoiceCache(file)
    assert second.get("a") is None
    first.put("a", True, {"rows": [1, 2]})
    second.put("b", False, {})
    entries = json.loads(file.read_text())["choices"]
    assert entries == {"a": {"ours": True, "rows": [1, 2]}, "b": {"ours": False}}


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    cache = ChoiceCache(tmp_path / "file" / "linear.json")
    cache.put("a", True, {})
    assert cache.get("a") is True
    (tmp_path / "linear.json").mkdir()  # nor can a folder be replaced
    cache = ChoiceCache(tmp_path / "linear.json")
    cache.put("a", True, {})
    assert cache.get("a") is True
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "linear.json"]


def _write_many(file: Path, writer: int) -> None:
    cache = ChoiceCache(file)
    for number in range(50):
        cache.put(f"{writer} {number}", number % 2 == 0, {})
        assert ChoiceCache(file).get("first") is True


def test_writers_at_the_same_time(tmp_path: Path) -> None:
    file = tmp_path / "linear.json"
    ChoiceCache(file).put("first", True, {})
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_write_many, args=(file, writer)) for writer in range(3)]
    for process in writers:
        process.start()
    for process in writers:
        process.join()
    assert [process.exitcode for process in writers] == [0, 0, 0]
    assert list(tmp_path.iterdir()) == [file]


def test_variables(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("CAPIBARA_AXION_LINEAR", raising=False)
    assert env.linear_backend() == "auto"
    monkeypatch.setenv("CAPIBARA_AXION_LINEAR", "Stock")
    assert env.linear_backend() == "stock"
    monkeypatch.setenv("CAPIBARA_AXION_LINEAR", "onednn")
    with pytest.raises(ValueError, match=r"CAPIBARA_AXION_LINEAR.*auto, capibara, stock.*onednn"):
        env.linear_backend()

    monkeypatch.delenv("CAPIBARA_AXION_LINEAR_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert env.linear_cache_file() == tmp_path / "capibara-axion" / "linear.json"
    monkeypatch.setenv("XDG_CACHE_HOME", "not/absolute")
    monkeypatch.setenv("HOME", "/home/somebody")
    assert env.linear_cache_file() == Path("/home/somebody/.cache/capibara-axion/linear.json")
    monkeypatch.setenv("CAPIBARA_AXION_LINEAR_CACHE", "/elsewhere.json")
    assert env.linear_cache_file() == Path("/elsewhere.json")
    monkeypatch.setenv("CAPIBARA_AXION_LINEAR_CACHE", "0")
    assert env.linear_cache_file() is None


def test_the_server_knows_the_same_backends() -> None:
    config = pytest.importorskip("capibara_axion.server.config")
    for backend in (*env.LINEAR_BACKENDS, None):
        expert = {"expert_id": "a", "model_path": "/a", "linear_backend": backend}
        (read,) = config.ServerConfig.model_validate({"experts": [expert]}).experts
        assert read.linear_backend == backend
    with pytest.raises(ValueError, match="linear_backend"):
        config.ServerConfig.model_validate({"experts": [expert | {"linear_backend": "onednn"}]})


# ---------------------------------------------------------------- layers


class Layer(torch.nn.Module):
    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(weight, requires_grad=False)


def stock_dispatch(layer: Any, remove_weight: bool) -> None:
    layer.stock = remove_weight
    layer.cpu_linear = torch.nn.functional.linear


@pytest.fixture
def hook(monkeypatch: pytest.MonkeyPatch) -> LinearHook:
    monkeypatch.setenv("CAPIBARA_AXION_LINEAR", "capibara")
    reset_call_counts()
    return LinearHook(stock_dispatch)


def _weight(dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(24, 40, generator=torch.Generator().manual_seed(1)).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("remove_weight", [True, False])
def test_a_layer_of_ours(hook: LinearHook, dtype: torch.dtype, remove_weight: bool) -> None:
    weight = _weight(dtype)
    layer = Layer(weight)
    hook.dispatch(layer, remove_weight)
    assert not hasattr(layer, "stock")
    assert layer.weight.numel() == (0 if remove_weight else weight.numel())
    assert layer.weight.dtype == dtype
    x = torch.randn(2, 3, 40).to(dtype)
    for bias in (None, torch.randn(24).to(dtype), torch.randn(24)):
        expected = torch.nn.functional.linear(x.double(), weight.double())
        expected += 0 if bias is None else bias.double()
        output = layer.cpu_linear(x, layer.weight, bias)
        assert output.dtype == dtype
        # One rounding of the result, and of f32 sums of 40 products of up to about 10.
        tolerance = torch.finfo(dtype).eps * expected.abs() + 40 * 10 * 2**-24
        assert ((output.double() - expected).abs() <= tolerance).all()
    name = {torch.float32: "f32", torch.bfloat16: "bf16", torch.float16: "f16"}[dtype]
    assert call_counts()[f"gemm_{name}"] == 3


@pytest.mark.parametrize(
    "weight",
    [
        torch.zeros(4, 1, 4),
        torch.zeros(8, 16, device="meta"),
        torch.zeros(8, 16, dtype=torch.float64),
        torch.zeros(0, 16),
        torch.zeros(8, 0),
    ],
    ids=["3-D", "meta", "f64", "no rows", "no columns"],
)
def test_other_weights_go_to_vllm(hook: LinearHook, weight: torch.Tensor) -> None:
    layer = Layer(weight)
    hook.dispatch(layer, True)
    assert layer.stock is True
    assert layer.weight.shape == weight.shape


def test_a_weight_that_cannot_be_packed_goes_to_vllm(
    hook: LinearHook, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(weight: torch.Tensor, dtype: str | None) -> torch.Tensor:
        raise ValueError("too small")

    monkeypatch.setattr(torch_ops, "pack_weight", refuse)
    layer = Layer(_weight())
    hook.dispatch(layer, True)
    assert layer.stock is True


def test_stock_means_vllm(hook: LinearHook, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAPIBARA_AXION_LINEAR", "stock")
    layer = Layer(_weight())
    hook.dispatch(layer, False)
    assert layer.stock is False


@pytest.mark.parametrize("ours", [True, False])
def test_auto_asks_the_cache(
    hook: LinearHook, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, ours: bool
) -> None:
    file = tmp_path / "linear.json"
    key = linear_choice.key_of(_weight(), "7")
    ChoiceCache(file).put(key, ours, {})
    monkeypatch.setenv("CAPIBARA_AXION_LINEAR", "auto")
    monkeypatch.setenv("CAPIBARA_AXION_LINEAR_CACHE", str(file))
    monkeypatch.setattr(linear.compat, "vllm_version", lambda: "7")
    layer = Layer(_weight())
    hook.dispatch(layer, True)
    assert hasattr(layer, "stock") is not ours


def test_an_embedding_is_packed_only_when_used(
    hook: LinearHook, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compat_linear, "is_lookup", lambda layer: True)
    layer = Layer(_weight())
    hook.dispatch(layer, False)
    later = layer.cpu_linear
    x = torch.randn(2, 40)
    output = later(x, layer.weight, None)
    assert layer.cpu_linear is not later
    torch.testing.assert_close(output, x @ layer.weight.T)
    assert torch.equal(layer.weight, _weight())


def test_a_layer_can_be_traced(hook: LinearHook) -> None:
    layer = Layer(_weight())
    hook.dispatch(layer, True)
    compiled = torch.compile(
        lambda x: layer.cpu_linear(x, layer.weight, None) + 1, backend="aot_eager", fullgraph=True
    )
    x = torch.randn(3, 40)
    torch.testing.assert_close(compiled(x), x @ _weight().T + 1)
    assert call_counts()["gemm_f32"] == 1


# ---------------------------------------------------------------- inside vLLM


def test_every_shape_is_raced_when_a_model_is_loaded(engines: Engines, tmp_path: Path) -> None:
    (case,) = (case for case in CASES if case.name == "qwen2")
    file = tmp_path / "linear.json"
    auto = {"CAPIBARA_AXION_LINEAR": "auto", "CAPIBARA_AXION_LINEAR_CACHE": str(file)}
    answer = engines.run(case, **auto)
    reference = engines.run(case, CAPIBARA_AXION_PLUGIN="0")
    assert answer["tokens"] == reference["tokens"]
    pairs = zip(answer["logprobs"], reference["logprobs"], strict=True)
    assert max(abs(ours - theirs) for ours, theirs in pairs) <= 2e-6
    # qkv, o, gate and up, down, lm_head; not every race need be calm enough for the file.
    assert len(ChoiceCache(file)._read()) <= 5
    (line,) = answer["log"]
    assert line.startswith("linear layers (auto): ")
    assert "17 layers; 5 races" in line


def test_weights_are_kept_and_freed_as_in_vllm(engines: Engines) -> None:
    for name in ("mistral", "gemma3", "cohere"):
        (case,) = (case for case in CASES if case.name == name)
        ours = engines.run(case, CAPIBARA_AXION_LINEAR="capibara")["parameters"]
        assert ours == engines.run(case, CAPIBARA_AXION_PLUGIN="0")["parameters"]
        assert ours["linear"] == 0
        assert ours["lookup"] > 0

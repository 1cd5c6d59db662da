# SPDX-License-Identifier: Apache-2.0
"""`CAPIBARA_AXION_LINEAR=auto`: the rule, the race with a clock that tests move, and the file."""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from capibara_axion import env
from capibara_axion.vllm_plugin import linear_choice
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


def _preempted(track: Track, seconds: Callable[[int, int], float]) -> Callable[[int, int], float]:
    def preempted(rows: int, call: int) -> float:
        track.switches += 1
        return seconds(rows, call)

    return preempted


def _raced(file: Path, ours: Callable[[int, int], float], is_busy: bool) -> tuple[bool, int]:
    """The choice of a new process, and how many races it ran for it."""
    track = Track(ours, slow)
    if is_busy:
        track._seconds["ours"] = _preempted(track, ours)
    chooser = track.chooser(ChoiceCache(file))
    weight = torch.zeros(8, 16)
    assert chooser.is_ours(weight) == chooser.is_ours(weight)
    return chooser.is_ours(weight), chooser.raced


def _slower(rows: int, call: int) -> float:
    return 3e-5 * rows


def test_three_races_on_a_busy_machine_settle_a_choice(tmp_path: Path) -> None:
    file = tmp_path / "linear.json"
    for _ in range(3):
        assert _raced(file, fast, is_busy=True) == (True, 1)
    assert _raced(file, _slower, is_busy=True) == (True, 0)


def test_races_on_a_busy_machine_must_agree(tmp_path: Path) -> None:
    file = tmp_path / "linear.json"
    for ours, choice in ((fast, True), (fast, True), (_slower, False), (fast, True), (fast, True)):
        assert _raced(file, ours, is_busy=True) == (choice, 1)
    assert _raced(file, fast, is_busy=True) == (True, 1)
    assert _raced(file, _slower, is_busy=True) == (True, 0)


def test_a_calm_race_settles_it_at_once(tmp_path: Path) -> None:
    file = tmp_path / "linear.json"
    assert _raced(file, fast, is_busy=True) == (True, 1)
    assert _raced(file, _slower, is_busy=False) == (False, 1)
    assert _raced(file, fast, is_busy=False) == (False, 0)


def test_an_unsettled_entry_that_is_broken_counts_as_none(tmp_path: Path) -> None:
    file = tmp_path / "linear.json"
    _raced(file, fast, is_busy=True)
    content = json.loads(file.read_text())
    (key,) = content["choices"]
    content["choices"][key]["races"] = "many"
    file.write_text(json.dumps(content))
    assert _raced(file, fast, is_busy=True) == (True, 1)
    assert json.loads(file.read_text())["choices"][key]["races"] == 1


def test_an_unsettled_result_leaves_what_another_process_has_settled(tmp_path: Path) -> None:
    file = tmp_path / "linear.json"
    late = ChoiceCache(file)
    assert late.get("8x16") is None
    ChoiceCache(file).put("8x16", False, {"settled": True})
    late.put("8x16", True, {"settled": False})
    assert late.get("8x16") is True
    assert ChoiceCache(file).get("8x16") is False


def test_few_rounds_do_not_settle_it(tmp_path: Path) -> None:
    file = tmp_path / "linear.json"
    for races in (1, 1, 1, 0):
        track = Track(lambda *_: 0.2, lambda *_: 0.3)
        chooser = track.chooser(ChoiceCache(file))
        assert chooser.is_ours(torch.zeros(8, 16))
        assert chooser.raced == races


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
        '{"format": 2, "choices": []}',
        '{"format": 2, "choices": {"a": true}}',
        '{"format": 2, "choices": {"a": {"ours": "yes"}}}',
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

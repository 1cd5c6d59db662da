# SPDX-License-Identifier: Apache-2.0
"""`bench compare`: equal runs are not told apart, and a small slow-down is found."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Outcome

from capibara_axion.bench.compare import change, is_told_apart, verdict
from capibara_axion.bench.pairs import Pair, pairs_of
from capibara_axion.bench.results import (
    Change,
    KernelResult,
    KernelRow,
    LatencyResult,
    LoadResult,
    read,
)
from capibara_axion.bench.statistics import (
    _student,
    block_length,
    median_interval,
    ratio_of_rounds,
)

RECORDED = Path(__file__).parent / "recorded"
Bench = Callable[..., Outcome]


def noise(generator: np.random.Generator, rounds: int, correlation: float) -> list[float]:
    """Times with 3 % of noise, part of which lasts for several rounds, and a few outliers."""
    slow = [0.0]
    for shock in generator.normal(0, 1, rounds):
        slow.append(correlation * slow[-1] + np.sqrt(1 - correlation**2) * shock)
    fast = generator.normal(0, 0.02, rounds) + 0.02 * np.array(slow[1:])
    spikes = generator.exponential(0.2, rounds) * (generator.random(rounds) < 0.03)
    return list(1e-3 * np.exp(fast + spikes))


def kernels(
    seed: int, *, rows: int = 6, rounds: int = 60, slower: dict[int, float] | None = None
) -> KernelResult:
    generator = np.random.default_rng(seed)
    return KernelResult(
        machine={},
        date="2026-01-01",
        command="capibara-axion bench kernels",
        rows=[
            KernelRow(
                op=f"op{row}",
                shape="T=1",
                dtype="bf16",
                threads=1,
                contender="ours",
                samples_s=[
                    sample * (slower or {}).get(row, 1.0)
                    for sample in noise(generator, rounds, 0.3)
                ],
            )
            for row in range(rows)
        ],
    )


def changes(
    before: KernelResult | LatencyResult | LoadResult,
    after: KernelResult | LatencyResult | LoadResult,
) -> list[Change]:
    pairs = pairs_of(before, after, "a and b")
    count = sum(pair.can_tell for pair in pairs)
    return [change(pair, count, np.random.default_rng(0)) for pair in pairs]


def says_no_difference(found: list[Change]) -> bool:
    return all(one.verdict.startswith("no difference") for one in found)


def test_equal_kernels_are_not_told_apart() -> None:
    runs = [
        changes(kernels(2 * seed, rows=3), kernels(2 * seed + 1, rows=3)) for seed in range(100)
    ]
    assert sum(not any(is_told_apart(one) for one in found) for found in runs) >= 95
    # Of a few rows it says that their samples are too much alike to say anything.
    assert sum(says_no_difference([one]) for found in runs for one in found) >= 0.95 * 300


def test_a_small_slow_down_of_one_op_is_found() -> None:
    found = wrong = covered = 0
    for seed in range(20):
        before = kernels(2 * seed, rows=6, rounds=120)
        after = kernels(2 * seed + 1, rows=6, rounds=120, slower={3: 1.05})
        one, *others = sorted(changes(before, after), key=lambda change: change.what[:3] != "op3")
        wrong += any(is_told_apart(other) for other in others)
        found += one.verdict.startswith("slower by ")
        covered += one.low is not None and one.high is not None and one.low < 1.05 < one.high
    assert found >= 18
    assert covered >= 19
    assert wrong <= 1  # 5 %


@pytest.mark.parametrize("kind", ["latency", "load"])
def test_equal_recorded_runs_are_not_told_apart(kind: str) -> None:
    """Neighbours of recorded runs are dealt to two new runs by lot."""
    recorded = read(RECORDED / f"{kind}_1.json")
    assert isinstance(recorded, LatencyResult | LoadResult)
    kept = [r for r in recorded.requests if r.start == "warm" and r.stage >= 0][:100]
    equal = said = 0
    for seed in range(100):
        swap = np.random.default_rng(seed).integers(2, size=len(kept))
        sides = [
            recorded.model_copy(
                update={"requests": [r for i, r in enumerate(kept) if (i + swap[i // 2]) % 2 == s]}
            )
            for s in (0, 1)
        ]
        found = changes(*sides)
        equal += not any(is_told_apart(one) for one in found)
        said += says_no_difference(found)
    assert equal >= 95
    assert said >= 90  # else too few samples


@pytest.mark.parametrize("kind", ["latency", "load"])
def test_a_recorded_run_and_its_slower_copy(kind: str) -> None:
    before = read(RECORDED / f"{kind}_1.json")
    assert isinstance(before, LatencyResult | LoadResult)
    after = before.model_copy(deep=True)
    for request in after.requests:
        at = request.scheduled_s
        request.tokens_s = [at + 1.3 * (time - at) for time in request.tokens_s]
        request.end_s = request.tokens_s[-1]
    told = [one for one in changes(before, after) if one.verdict != "too few samples"]
    assert {one.measure for one in told} == {"ttft", "gap", "total"}
    for one in told:
        assert one.ratio == pytest.approx(1.3, rel=0.02)
        assert one.verdict.startswith("slower by ")


def test_recorded_runs_in_turn_are_not_told_apart() -> None:
    """40 equal runs, one after another, on a machine that was busy with other work.

    Their medians (TTFT, gap, total) differ by 9 % where those of one run differ by 1 %, so that
    one run of each cannot be compared here. Which of two neighbours is called before is by lot.
    """
    medians = np.array(json.loads((RECORDED / "medians_of_40_runs.json").read_text()))
    generator = np.random.default_rng(0)
    for rounds in (3, 6, 10):
        equal = 0
        for _ in range(100):
            start = generator.integers(len(medians) - 2 * rounds + 1)
            taken = medians[start : start + 2 * rounds].reshape(rounds, 2, 3)
            swap = generator.integers(2, size=(rounds, 1, 1)) == 1
            taken = np.where(swap, taken[:, ::-1], taken)
            found = [
                ratio_of_rounds(list(taken[:, 1, measure] / taken[:, 0, measure]), 1 - 0.05 / 3)
                for measure in range(3)
            ]
            equal += all(one is not None and one[1] <= 1 <= one[2] for one in found)
        assert equal >= 95


def test_in_turn(bench: Bench, tmp_path: Path) -> None:
    """A drift that is larger than the difference, which is found all the same."""
    paths = []
    for number in range(8):
        drift, change = 1.3 ** (number // 2), 1.05 if number % 2 else 1.0
        result = kernels(number, rows=2, slower={0: drift * change, 1: drift})
        path = tmp_path / f"{number}.json"
        path.write_text(result.model_dump_json(by_alias=True))
        paths.append(path)
    out = bench("compare", "--in-turn", *paths).out
    (first,) = [line for line in out.splitlines() if "op0" in line]
    (second,) = [line for line in out.splitlines() if "op1" in line]
    assert "slower by" in first
    assert "no difference" in second
    assert "4, 4" in first


@pytest.mark.parametrize("count", [2, 4, 7])
def test_in_turn_needs_rounds(bench: Bench, count: int) -> None:
    outcome = bench("compare", "--in-turn", *[RECORDED / "load_1.json"] * count)
    assert outcome.code == 2
    assert (
        f"--in-turn: expected before and after in turn, 3 of each or more; got {count} files"
        in (outcome.err)
    )


@pytest.mark.parametrize(
    ("tail", "freedom", "quantile"),
    [(0.025, 1, 12.706), (0.025, 2, 4.303), (0.005, 5, 4.032), (0.0005, 10, 4.587)],
)
def test_students_distribution(tail: float, freedom: float, quantile: float) -> None:
    assert _student(tail, freedom) == pytest.approx(quantile, rel=1e-3)


@pytest.mark.parametrize(
    ("count", "ranks"), [(5, None), (6, (1, 6)), (20, (6, 15)), (100, (40, 61))]
)
def test_the_interval_of_a_median(count: int, ranks: tuple[int, int] | None) -> None:
    """Ranks as tables of the binomial distribution have them (Conover, table A3)."""
    assert median_interval(np.linspace(1, count, count)) == ranks


def test_blocks_are_long_where_samples_depend_on_each_other() -> None:
    generator = np.random.default_rng(0)
    independent = generator.normal(size=400)
    walk = np.cumsum(generator.normal(size=400))
    assert block_length(independent) == 7  # the cube root
    assert block_length(walk) > 20
    assert block_length(np.ones(400)) == 7


def test_two_recorded_runs(bench: Bench, tmp_path: Path) -> None:
    files = [RECORDED / f"load_{number}.json" for number in (1, 2)]
    output = tmp_path / "out.json"
    outcome = bench("compare", *files, "--output", output)
    assert outcome.code == 0
    assert outcome.out.count("no difference (") == 3
    result = json.loads(output.read_text())
    assert result["kind"] == "compare"
    assert [one["measure"] for one in result["comparisons"][0]["changes"]] == [
        "ttft",
        "gap",
        "total",
    ]


def test_the_seed_decides(bench: Bench) -> None:
    files = [RECORDED / f"load_{number}.json" for number in (1, 2)]
    first = bench("compare", *files).out
    assert bench("compare", *files).out == first
    assert bench("compare", *files, "--seed=1").out != first


def test_several_runs_against_the_first(bench: Bench, tmp_path: Path) -> None:
    paths = []
    for number in range(3):
        path = tmp_path / f"{number}.json"
        result = kernels(number, rows=2, slower={0: 1.2} if number == 2 else None)
        path.write_text(result.model_dump_json(by_alias=True))
        paths.append(path)
    out = bench("compare", *paths).out
    first, second = out.split(f"{paths[2]} against")
    assert first.count("no difference") == 2
    assert "slower by" in second
    assert second.count("no difference") == 1


def test_prompts_of_other_lengths_cancel_out() -> None:
    """Kinds of questions that take ten times as long do not hide a change of both."""
    recorded = read(RECORDED / "latency_1.json")
    assert isinstance(recorded, LatencyResult)
    (pair,) = [
        pair
        for pair in pairs_of(recorded, recorded, "a and a")
        if (pair.what, pair.measure) == ("a warm", "total")
    ]
    stretched = recorded.model_copy(deep=True)
    for request in stretched.requests:
        if request.prompt_kind == "coding" and request.end_s is not None:
            request.end_s = request.scheduled_s + 10 * (request.end_s - request.scheduled_s)
    (other,) = [
        pair
        for pair in pairs_of(stretched, stretched, "a and a")
        if (pair.what, pair.measure) == ("a warm", "total")
    ]
    assert other.before == pytest.approx(pair.before)


@pytest.mark.parametrize(
    ("figures", "words"),
    [
        ((1.01, 0.98, 1.04), "no difference (-2.0%..+4.0%)"),
        ((1.05, 1.03, 1.08), "slower by 5.0% (3.0%..8.0%)"),
        ((0.5, 0.4, 0.8), "faster by 100.0% (25.0%..150.0%)"),
    ],
)
def test_verdicts(figures: tuple[float, float, float], words: str) -> None:
    assert verdict(*figures) == words


def test_too_few_samples_are_not_judged() -> None:
    few = np.array([1.0, 1.1, 1.2, 0.9, 1.0, 1.1])
    pair = Pair("a", "ttft", few, 10 * few)
    assert change(pair, 1, np.random.default_rng(0)).verdict == "too few samples"
    # Enough for one interval, not for one of a thousand.
    some = np.random.default_rng(0).normal(1.0, 0.01, 14)
    pair = Pair("a", "ttft", some, 10 * some)
    assert change(pair, 1, np.random.default_rng(0)).verdict.startswith("slower")
    assert change(pair, 1000, np.random.default_rng(0)).verdict == "too few samples"


@pytest.mark.parametrize(
    ("key", "value"),
    [("tokens", 64), ("concurrency", 2), ("models", ["b"]), ("prompts", "0"), ("api", "x")],
)
def test_other_work_is_refused(bench: Bench, tmp_path: Path, key: str, value: Any) -> None:
    path = RECORDED / "latency_1.json"
    changed = json.loads(path.read_text())
    was = changed["work"][key]
    changed["work"][key] = value
    other = tmp_path / "other.json"
    other.write_text(json.dumps(changed))
    outcome = bench("compare", path, other)
    assert outcome.code == 2
    assert f"expected the same work, but {key} is {was!r} and {value!r}" in outcome.err
    assert outcome.out == ""


def test_other_kinds_are_refused(bench: Bench, tmp_path: Path) -> None:
    outcome = bench("compare", RECORDED / "latency_1.json", RECORDED / "load_1.json")
    assert outcome.code == 2
    assert "expected the same kind, got latency and load" in outcome.err
    path = tmp_path / "kernels.json"
    path.write_text(kernels(0).model_dump_json(by_alias=True))
    assert bench("compare", path, RECORDED / "load_1.json").code == 2
    outcome = bench("compare", path, tmp_path / "missing.json")
    assert outcome.code == 2
    assert "missing.json: cannot be read" in outcome.err


def test_kernels_without_a_common_row_are_refused(bench: Bench, tmp_path: Path) -> None:
    one, other = kernels(0, rows=1), kernels(0, rows=1)
    other.rows[0].shape = "T=2"
    for name, result in (("a", one), ("b", other)):
        (tmp_path / name).write_text(result.model_dump_json(by_alias=True))
    outcome = bench("compare", tmp_path / "a", tmp_path / "b")
    assert outcome.code == 2
    assert "no row has the same op, shape, dtype, threads, contender" in outcome.err


def test_another_machine_is_said(bench: Bench, tmp_path: Path) -> None:
    path = RECORDED / "load_1.json"
    changed = json.loads(path.read_text())
    changed["machine"]["model"] = "Neoverse-V2"
    other = tmp_path / "other.json"
    other.write_text(json.dumps(changed))
    outcome = bench("compare", path, other)
    assert outcome.code == 0
    assert "another machine: model is" in outcome.out

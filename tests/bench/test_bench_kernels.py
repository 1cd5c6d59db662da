# SPDX-License-Identifier: Apache-2.0
"""`bench kernels`: a tiny run, what it leaves behind, and what it refuses."""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch

from capibara_axion import cli
from capibara_axion.bench import results
from capibara_axion.bench.kernels import arrays, rows, timing
from capibara_axion.bench.kernels.cases import OPS, Case, dtypes, shapes
from capibara_axion.bench.kernels.measure import Measurement, Settings

TINY = ("--op", "softmax", "--dtype", "f32", "--tokens", "1", "--threads", "1", "--time", "0.01")


def run(*options: str) -> subprocess.CompletedProcess[str]:
    """In a process of its own: contenders stay where they have been entered."""
    command = [sys.executable, "-m", "capibara_axion.cli", "bench", "kernels", "--quick"]
    return subprocess.run([*command, *options], capture_output=True, text=True, timeout=120)


def test_tiny_run_beside_torch(tmp_path: Path) -> None:
    output = tmp_path / "kernels.json"
    done = run(*TINY, "--rounds", "9", "--compare", "torch", "--output", str(output))
    assert done.returncode == 0, done.stderr
    result = results.read(output)
    assert isinstance(result, results.KernelResult)
    assert not result.interrupted
    assert result.left_out == []
    assert result.settings["compare"] == ["torch"]
    assert {row.contender.split()[0] for row in result.rows} == {"ours", "torch", "memcpy"}
    for row in result.rows:
        assert (row.op, row.dtype, row.shape, row.threads) == ("softmax", "f32", "1", 1)
        assert (row.bytes, row.operations) == (2 * 4 * 4096, 5 * 4096)
        assert len(row.samples_s) >= 9
    (roof,) = result.roofs
    assert set(roof.operations_per_s) == {"f32", "bf16", "int8"}
    assert "softmax" in done.stdout
    assert "torch softmax" in done.stdout
    assert "1 thread here: reads" in done.stdout


def test_numpy_alone_loads_no_torch(tmp_path: Path) -> None:
    code = (
        "import sys; from capibara_axion import cli; code = cli.main(sys.argv[1:]);"
        "print('loaded', sorted({'torch', 'vllm'} & set(sys.modules))); sys.exit(code)"
    )
    output = tmp_path / "kernels.json"
    options = ["bench", "kernels", "--quick", *TINY, "--compare", "numpy", "--output", str(output)]
    done = subprocess.run(
        [sys.executable, "-c", code, *options], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert "loaded []" in done.stdout
    result = results.read(output)
    assert isinstance(result, results.KernelResult)
    contenders = {row.contender for row in result.rows}
    assert contenders == {"ours NumPy out", "memcpy memmove", "NumPy exp"}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--op", "nonsense"], "--op: expected any of rms_norm, "),
        (["--compare", "torch,jax"], "--compare: expected any of numpy, torch, vllm"),
        (["--threads", "99999"], "--threads: expected at most"),
        (["--threads", "0"], "expected a positive whole number, got '0'"),
        (["--time", "soon"], "expected seconds greater than 0, got 'soon'"),
        (["--time", "nan"], "expected seconds greater than 0, got 'nan'"),
        (["--op", "attention", "--tokens", "3"], "nothing to measure"),
        (["--output", "/dev/null/kernels.json"], "--output: expected a file that can be written"),
    ],
)
def test_bad_options(options: list[str], expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        code = cli.main(["bench", "kernels", "--compare", "numpy", *options])
    except SystemExit as exit_:
        code = exit_.code
    assert code == 2
    output = capsys.readouterr()
    assert expected in output.err
    assert output.out == ""


def settings(**changed: Any) -> Settings:
    chosen: dict[str, Any] = {
        "ops": ("softmax",), "dtypes": ("f32",), "tokens": (1,), "threads": (1,), "rounds": 2,
        "time_s": 0.001, "compiled": False,
    }  # fmt: skip
    return Settings(**chosen | changed)


def fake_row() -> results.KernelRow:
    return results.KernelRow(
        op="softmax", shape="1", dtype="f32", threads=1, contender="ours out", samples_s=[1e-6]
    )


def roof_of(threads: int) -> results.Roof:
    return results.Roof(
        threads=threads, read_bytes_per_s=1e10, copy_bytes_per_s=1e10, buffer_bytes=1 << 20,
        operations_per_s={"f32": 1e11},
    )  # fmt: skip


def test_interrupted_run_keeps_what_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(self: Measurement, cases: Any) -> Iterator[list[results.KernelRow]]:
        yield [fake_row()]
        raise KeyboardInterrupt

    monkeypatch.setattr(Measurement, "rows", interrupted)
    monkeypatch.setattr(Measurement, "roof", lambda self, threads: roof_of(threads))
    output = tmp_path / "kernels.json"
    options = ["--compare", "numpy", "--threads", "1", "--output", str(output)]
    assert cli.main(["bench", "kernels", *options]) == 130
    result = results.read(output)
    assert isinstance(result, results.KernelResult)
    assert result.interrupted
    assert result.rows == [fake_row()]
    captured = capsys.readouterr()
    assert "interrupted after 1 of " in captured.err
    assert "softmax" in captured.out


def test_missing_peer_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("capibara_axion.bench.kernels.contenders.installed", lambda: ("numpy",))
    monkeypatch.setattr(Measurement, "rows", lambda self, cases: iter([[fake_row()]]))
    monkeypatch.setattr(Measurement, "roof", lambda self, threads: roof_of(threads))
    assert cli.main(["bench", "kernels", "--threads", "1", "--compare", "vllm,numpy"]) == 0
    told = capsys.readouterr().err
    assert "vllm is not installed here" in told
    assert "numpy is not" not in told


def test_contender_that_is_wrong_or_fails_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    from capibara_axion.bench.kernels import contenders

    def broken(inputs: Any) -> Any:
        raise RuntimeError("no such instruction\nand more")

    candidates = [
        contenders.Contender("ours", "right", lambda a: lambda: _softmax(a.x), frozenset(),
                             arrays=True),
        contenders.Contender("NumPy", "wrong", lambda a: lambda: a.x, frozenset(), arrays=True),
        contenders.Contender("torch", "broken", broken, frozenset()),
    ]  # fmt: skip
    monkeypatch.setattr(
        "capibara_axion.bench.kernels.measure.contenders", lambda case, compiled: candidates
    )
    measurement = Measurement(settings())
    (found,) = measurement.rows(settings().cases())
    assert [row.contender for row in found] == ["ours right"]
    wrong, failed = measurement.left_out
    assert "NumPy wrong is off by" in wrong
    assert failed.endswith("torch broken: RuntimeError: no such instruction")
    assert not measurement.failed
    candidates[0] = contenders.Contender("ours", "failing", broken, frozenset())
    assert list(Measurement.rows(measurement, settings().cases())) == [[]]
    assert measurement.failed


def _softmax(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    powers = np.exp(x - x.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def test_cases_of_all_operators() -> None:
    for op, dtype in itertools.product(OPS, ("bf16", "f32")):
        if dtype in dtypes(op):
            for shape in shapes(op):
                case = Case(op, dtype, **shape)
                assert case.bytes_moved > 0
                assert (case.operations > 0) == (op != "kv_cache_append")
    assert Case("linear", "bf16", 2, outputs=3, features=5).operations == 2 * 2 * 3 * 5


def test_torch_and_numpy_share_memory() -> None:
    values = arrays.copy(np.arange(6).reshape(2, 3), ml_dtypes.bfloat16)
    assert values.ctypes.data % 64 == 0
    tensor = arrays.tensor(values[:, 1:])  # a view of rows that are longer
    assert tensor.dtype == torch.bfloat16
    tensor.fill_(9)
    assert values.tolist() == [[0, 9, 9], [3, 9, 9]]
    assert arrays.array(tensor).dtype == ml_dtypes.bfloat16
    assert arrays.empty((0, 3), np.float32).shape == (0, 3)


def test_rounds_pair_the_ratios() -> None:
    own = fake_row().model_copy(update={"samples_s": [1.0, 2.0, 4.0]})
    peer = own.model_copy(update={"contender": "NumPy exp", "samples_s": [2.0, 4.0]})
    assert rows.ratio(own, peer) == (2.0, 2.0, 2.0)  # the peer left after two rounds
    assert rows.fastest([peer, own], "ours") is own
    assert rows.fastest([own], "NumPy") is None
    assert rows.peak_type("linear_int4", "bf16") == "int8"
    assert rows.peak_type("rms_norm", "bf16") == "f32"


def test_rounds_asked_for_are_made() -> None:
    timings = timing.interleave({"a": lambda: None}, 0.0, min_rounds=timing.MAX_ROUNDS + 5)
    assert len(timings["a"].seconds) == timing.MAX_ROUNDS + 5


def test_benchmarks_of_the_repository_import_them() -> None:
    root = Path(__file__).parents[2]
    command = [sys.executable, "benchmarks/run.py", "--help"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "--refcheck" in done.stdout

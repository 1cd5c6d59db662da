# SPDX-License-Identifier: Apache-2.0
"""What is chosen when the package is imported: instruction set, threads, and nothing heavy."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from capibara_axion import _core, env

ISAS = [isa["name"] for isa in _core.isas() if isa["runs_here"]]
# The others have implementations of nothing but matrix products.
VECTOR_ISAS = {isa for op in _core.ops() if op["name"] == "rms_norm" for isa in op["built"]}
FORCED_TEST = "test_values.py::test_the_forced_isa_is_the_chosen_one"
# Attention reads the layout of the instruction set's own tiles.
ATTENTION_TESTS = (
    "test_attention_values.py::test_any",
    "test_kv_cache.py::test_any_batch",
    "test_kv_cache.py::test_every_head_size",
)
HERE = Path(__file__).parent


def run(
    *arguments: str, check: bool = False, **environment: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=check,
        timeout=900,
    )


# The last one is chosen by itself: the tests run with it anyway.
@pytest.mark.parametrize("isa", ISAS[:-1])
def test_every_isa_passes_the_same_tests(isa: str) -> None:
    """test_values.py begins with a test that the forced one is what runs."""
    vector = isa in VECTOR_ISAS
    tests = ("test_values.py", "test_every_gate.py") if vector else (FORCED_TEST,)
    tests = (*tests, *ATTENTION_TESTS, "test_gemm_values.py", "test_int4.py::test_any")
    files = (str(HERE / name) for name in tests)
    done = run("-m", "pytest", "-q", *files, CAPIBARA_AXION_ISA=isa)
    assert done.returncode == 0, done.stdout[-4000:]


def test_the_best_isa_is_chosen_by_itself() -> None:
    done = run("-c", "from capibara_axion import _core; print(_core.chosen_isa())", check=True)
    assert done.stdout.strip() == ISAS[-1]


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("CAPIBARA_AXION_ISA", "mmx", "expected one of scalar"),
        ("CAPIBARA_AXION_NUM_THREADS", "0", "from 1 to 4096"),
        ("CAPIBARA_AXION_NUM_THREADS", "two", "from 1 to 4096"),
    ],
)
def test_mistakes_fail_early(name: str, value: str, expected: str) -> None:
    done = run("-c", "from capibara_axion import rms_norm", **{name: value})
    assert done.returncode == 1
    assert "ImportError" in done.stderr
    assert name in done.stderr
    assert expected in done.stderr
    command = run(
        "-c", "import sys, capibara_axion.cli as c; sys.exit(c.main(['info']))", **{name: value}
    )
    assert command.returncode == 2
    assert name in command.stderr
    assert "Traceback" not in command.stderr


def test_threads_from_the_environment() -> None:
    code = "import capibara_axion as ax; print(ax.get_num_threads())"
    assert run("-c", code, check=True, CAPIBARA_AXION_NUM_THREADS="3").stdout.strip() == "3"


def test_info_as_json() -> None:
    code = "import sys, capibara_axion.cli as c; sys.exit(c.main(['info', '--json']))"
    info = json.loads(run("-c", code, check=True, CAPIBARA_AXION_ISA="scalar").stdout)
    text = json.dumps(info)
    for word in ("scalar", "rms_norm", "gelu_tanh_and_mul", "numpy", _core.__version__):
        assert word in text


def test_info_for_people() -> None:
    code = "import sys, capibara_axion.cli as c; sys.exit(c.main(['info']))"
    text = run("-c", code, check=True).stdout
    for word in (ISAS[-1], "rope", "OpenMP"):
        assert word in text


def test_plugin_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CAPIBARA_AXION_PLUGIN", raising=False)
    monkeypatch.setenv("CAPIBARA_AXION_DISABLE", " rope, ,rms_norm")
    assert env.plugin_enabled()
    assert env.disabled_ops() == {"rope", "rms_norm"}
    monkeypatch.setenv("CAPIBARA_AXION_PLUGIN", "off")
    assert not env.plugin_enabled()
    monkeypatch.setenv("CAPIBARA_AXION_PLUGIN", "perhaps")
    with pytest.raises(ValueError, match="CAPIBARA_AXION_PLUGIN"):
        env.plugin_enabled()

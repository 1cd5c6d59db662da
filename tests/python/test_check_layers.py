# SPDX-License-Identifier: Apache-2.0
"""The scripts that check the source tree find what they are for, and nothing else."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"


def check_layers(root: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, SCRIPTS / "check_layers.py", "--no-imports", "--root", root]
    return subprocess.run(command, capture_output=True, text=True)


def write_tree(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("csrc/cpu/isa.h", '#include "base/dtype.h"'),
        ("csrc/kernels/norm/norm_hwy.cc", '#include "kernels/norm/norm.h"'),
        ("csrc/kernels/norm/norm_hwy.cc", '#include "norm.h"'),
        ("csrc/kernels/softmax/softmax_hwy.cc", '#include "kernels/math/exp-inl.h"'),
        ("csrc/kernels/softmax/softmax_hwy.cc", '#include "kernels/common/vec-inl.h"'),
        ("csrc/ops/norm.cc", '#include "kernels/softmax/softmax.h"'),
        ("csrc/ops/norm.cc", "#include <omp.h>"),
        ("csrc/bindings/core.cc", "#include <pybind11/numpy.h>"),
        ("csrc/backends/acl/gemm.cc", "#include <arm_compute/core/Types.h>"),
        ("csrc/cpu/environment.cc", 'const char* value = std::getenv("CAPIBARA_AXION_ISA");'),
        ("python/capibara_axion/env.py", 'import os\nA = os.environ.get("CAPIBARA_AXION_PLUGIN")'),
        ("python/capibara_axion/ops.py", 'A = "set CAPIBARA_AXION_ISA to one of these"'),
        ("python/capibara_axion/server/x.py", 'env = {}\nenv["CAPIBARA_AXION_NUM_THREADS"] = "1"'),
    ],
)
def test_allowed(tmp_path: Path, file: str, line: str) -> None:
    write_tree(tmp_path, {"csrc/kernels/norm/norm.h": "", file: line + "\n"})
    done = check_layers(tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("file", "line", "message"),
    [
        ("csrc/base/dtype.h", '#include "cpu/isa.h"', "base/ stands below cpu/"),
        ("csrc/cpu/isa.h", '#include "../kernels/norm/norm.h"', "cpu/ stands below kernels/"),
        ("csrc/kernels/norm/norm.cc", '#  include "ops/norm.h"', "kernels/ stands below ops/"),
        ("csrc/backends/acl/gemm.cc", '#include "ops/gemm.h"', "backends/ stands below ops/"),
        ("csrc/ops/norm.cc", '#include "bindings/arrays.h"', "ops/ stands below bindings/"),
        ("csrc/kernels/rope/rope.cc", '#include "kernels/norm/norm.h"', "another op's folder"),
        ("csrc/kernels/math/exp.h", '#include "kernels/norm/norm.h"', "another op's folder"),
        ("csrc/ops/norm.cc", "#include <torch/extension.h>", "framework header"),
        ("csrc/ops/gemm.cc", "#include <arm_compute/core/Types.h>", "Arm Compute Library's"),
        ("csrc/base/dtype.h", "#include <Python.h>", "framework header"),
        ("csrc/kernels/norm/norm.cc", "#include <omp.h>", "uses threads"),
        ("csrc/kernels/norm/norm.cc", "#pragma omp parallel for", "uses threads"),
        ("csrc/ops/norm.cc", 'std::getenv("HOME");', "reads the environment"),
        ("csrc/extra/x.cc", "", "in none of the layers"),
        (
            "python/capibara_axion/x.py",
            'import os\nos.environ["CAPIBARA_AXION_ISA"]',
            "only env.py",
        ),
        ("python/capibara_axion/x.py", 'os.getenv("CAPIBARA_AXION_ISA")', "only env.py"),
        ("python/capibara_axion/a/env.py", '"CAPIBARA_AXION_ISA" in os.environ', "only env.py"),
    ],
)
def test_forbidden(tmp_path: Path, file: str, line: str, message: str) -> None:
    write_tree(tmp_path, {"csrc/kernels/norm/norm.h": "", file: line + "\n"})
    done = check_layers(tmp_path)
    assert done.returncode == 1
    assert message in done.stdout
    assert len(done.stdout.splitlines()) == 1


@pytest.mark.skipif(shutil.which("c++") is None, reason="compiles an object file to look at")
@pytest.mark.parametrize(
    ("source", "leaks"),
    [
        ("static int twice(int x) { return 2 * x; } int f(int x) { return twice(x); }", 0),
        ("inline int twice(int x) { return 2 * x; } int (*f())(int) { return twice; }", 1),
        ("template <class T> T one() { return 1; } template int one<int>();", 1),
        ("inline int counter = 0; int* f() { return &counter; }", 1),
        (
            "namespace capibara::avx2 { inline int twice(int x) { return 2 * x; } }"
            "int (*f())(int) { return capibara::avx2::twice; }",
            0,
        ),
        (
            "namespace capibara::avx512 { inline int twice(int x) { return 2 * x; } }"
            "int (*f())(int) { return capibara::avx512::twice; }",
            1,
        ),
    ],
)
def test_isa_symbols(tmp_path: Path, source: str, leaks: int) -> None:
    folder = tmp_path / "CMakeFiles" / "kernels_isa_avx2.dir"
    folder.mkdir(parents=True)
    compile_it = ["c++", "-std=c++17", "-O0", "-x", "c++", "-c", "-", "-o", folder / "x.o"]
    subprocess.run(compile_it, input=source, text=True, check=True)
    check = [sys.executable, SCRIPTS / "check_isa_symbols.py", "--build", tmp_path]
    done = subprocess.run(check, capture_output=True, text=True)
    assert done.returncode == (1 if leaks else 0), done.stdout + done.stderr
    assert f"1 files, {leaks} leaks" in done.stdout


def test_isa_symbols_without_objects(tmp_path: Path) -> None:
    check = [sys.executable, SCRIPTS / "check_isa_symbols.py", "--build", tmp_path]
    assert subprocess.run(check, capture_output=True).returncode == 2


def test_isa_symbols_of_unknown_isa(tmp_path: Path) -> None:
    check = [sys.executable, SCRIPTS / "check_isa_symbols.py", tmp_path / "x.o"]
    done = subprocess.run(check, capture_output=True, text=True)
    assert done.returncode == 2
    assert "--isa" in done.stderr

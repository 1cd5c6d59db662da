# SPDX-License-Identifier: Apache-2.0
"""What a call costs before it computes: RMSNorm of 1 x 16 elements, by every route into it.

    python benchmarks/call_overhead.py [--seconds 3] [--output FILE]

The routes by which the operator could be a torch operator stand beside each other: C++ functions
registered through torch's stable C interface (the one that is used), or Python ones. The floor is
an operator in C++ that does nothing, compiled here (needs a C++ compiler and ninja), by
torch's usual C++ interface and by the stable one.
"""

from __future__ import annotations

import argparse
import importlib.util
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import torch
from rich.table import Table

import capibara_axion
import capibara_axion.torch_ops  # registers the operators
import machine
from capibara_axion import _core
from capibara_axion.bench.kernels import timing

F = torch.nn.functional
ROWS, COLS, EPS = 1, 16, 1e-6
DTYPES = {"bf16": torch.bfloat16, "f32": torch.float32}

# Each of the two interfaces has an operator that returns a new tensor and one that does nothing.
_EMPTY_OPERATORS = """
#include <ATen/ops/empty_like.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/library.h>

at::Tensor usual(const at::Tensor& x, const at::Tensor&, double) { return at::empty_like(x); }
void usual_out(at::Tensor&, const at::Tensor&, const at::Tensor&, double) {}

using torch::stable::Tensor;
Tensor stable(Tensor x, Tensor, double) { return torch::stable::empty_like(x); }
void stable_out(Tensor, Tensor, Tensor, double) {}

TORCH_LIBRARY(call_overhead, library) {
  library.def("usual(Tensor x, Tensor weight, float eps) -> Tensor");
  library.def("usual_out(Tensor(a!) out, Tensor x, Tensor weight, float eps) -> ()");
  library.def("stable(Tensor x, Tensor weight, float eps) -> Tensor");
  library.def("stable_out(Tensor(a!) out, Tensor x, Tensor weight, float eps) -> ()");
}
TORCH_LIBRARY_IMPL(call_overhead, CPU, library) {
  library.impl("usual", &usual);
  library.impl("usual_out", &usual_out);
}
STABLE_TORCH_LIBRARY_IMPL(call_overhead, CPU, library) {
  library.impl("stable", TORCH_BOX(&stable));
  library.impl("stable_out", TORCH_BOX(&stable_out));
}
"""


def main() -> int:
    arguments = _parser().parse_args()
    found = machine.describe(machine.tune_malloc())
    torch.set_num_threads(1)
    floor, library = _compile_empty_operators(), _python_operators()
    rows = []
    with torch.inference_mode():
        for dtype in DTYPES:
            calls = _calls(dtype, floor)
            _check(calls)
            timings = timing.interleave(calls, arguments.seconds, min_rounds=50)
            rows += [_row(dtype, name, one) for name, one in timings.items()]
    del library
    result = found | {"unit": "microseconds a call, median", "shape": [ROWS, COLS], "rows": rows}
    _print(result)
    machine.write(result, arguments.output)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0] if __doc__ else None)
    parser.add_argument("--seconds", type=float, default=3.0, help="time for each dtype")
    parser.add_argument(
        "--output",
        type=Path,
        default=machine.RESULTS / "call_overhead.json",
        help="where the figures go as JSON",
    )
    return parser


def _compile_empty_operators() -> bool:
    """Compiles and loads them; False, and a word on it, where there is no compiler."""
    if not (shutil.which("c++") and shutil.which("ninja")):
        print("no C++ compiler or no ninja: the empty operators are left out", file=sys.stderr)
        return False
    from torch.utils import cpp_extension

    with tempfile.TemporaryDirectory() as scratch:
        cpp_extension.load_inline(
            "call_overhead",
            cpp_sources=_EMPTY_OPERATORS,
            extra_cflags=["-O2"],
            build_directory=scratch,
            is_python_module=False,
            no_implicit_headers=True,
        )
    return True


def _as_numpy(x: torch.Tensor) -> np.ndarray:
    if x.dtype == torch.bfloat16:
        return x.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return x.numpy()


def _in_python(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """The operator as it would be without C++ that knows torch: the kernel gets NumPy views."""
    out = torch.empty_like(x)
    _core.rms_norm(_as_numpy(x), _as_numpy(weight), eps, _as_numpy(out))
    return out


def _python_operators() -> torch.library.Library:
    """Registers `_in_python` in both ways that torch has; to be kept as long as they are used."""
    library = torch.library.Library("call_overhead_python", "DEF")
    library.define("by_library(Tensor x, Tensor weight, float eps) -> Tensor")
    library.impl("by_library", _in_python, "CPU")
    torch.library.custom_op(
        "call_overhead_python::by_custom_op", _in_python, mutates_args=(), device_types="cpu"
    )
    return library


def _calls(dtype: str, floor: bool) -> dict[str, Callable[[], Any]]:
    x, weight = torch.randn(ROWS, COLS).to(DTYPES[dtype]), torch.ones(COLS, dtype=DTYPES[dtype])
    out = torch.empty_like(x)
    x_numpy, weight_numpy, out_numpy = map(_as_numpy, (x, weight, out))
    ops, python = torch.ops.capibara_axion, torch.ops.call_overhead_python
    empty, function = torch.ops.call_overhead, capibara_axion.rms_norm
    calls: dict[str, Callable[[], Any]] = {
        "ours: torch op, new": lambda: ops.rms_norm(x, weight, EPS),
        "ours: torch op, out": lambda: ops.rms_norm_out(out, x, weight, EPS),
        "ours: function, torch, new": lambda: function(x, weight, EPS),
        "ours: function, torch, out": lambda: function(x, weight, EPS, out),
        "ours: function, NumPy, new": lambda: function(x_numpy, weight_numpy, EPS),
        "ours: function, NumPy, out": lambda: function(x_numpy, weight_numpy, EPS, out_numpy),
    }
    if floor:
        calls |= {
            "empty: C++ op, new": lambda: empty.usual(x, weight, EPS),
            "empty: C++ op, out": lambda: empty.usual_out(out, x, weight, EPS),
            "empty: C++ op, stable ABI, new": lambda: empty.stable(x, weight, EPS),
            "empty: C++ op, stable ABI, out": lambda: empty.stable_out(out, x, weight, EPS),
        }
    calls |= {
        "Python op: torch.library.Library": lambda: python.by_library(x, weight, EPS),
        "Python op: torch.library.custom_op": lambda: python.by_custom_op(x, weight, EPS),
        "torch: F.rms_norm": lambda: F.rms_norm(x, (COLS,), weight, EPS),
    }
    if importlib.util.find_spec("vllm"):
        from vllm.platforms import current_platform

        current_platform.import_kernels()
        calls["vLLM: _C.rms_norm, out"] = lambda: torch.ops._C.rms_norm(out, x, weight, EPS)
    return calls


def _check(calls: dict[str, Callable[[], Any]]) -> None:
    """Routes that return a result return the same."""
    expected = calls["torch: F.rms_norm"]()
    for name, call in calls.items():
        if (result := call()) is None or name.startswith("empty"):
            continue
        if isinstance(result, np.ndarray):
            result = torch.from_numpy(result.astype(np.float32))
        torch.testing.assert_close(result.float(), expected.float(), rtol=1e-2, atol=1e-2)


def _row(dtype: str, name: str, one: timing.Timing) -> dict[str, Any]:
    return {
        "route": name,
        "dtype": dtype,
        "us": round(one.median * 1e6, 3),
        "quartiles": [round(value * 1e6, 3) for value in timing.quartiles(one.seconds)],
        "rounds": len(one.seconds),
        "calls_a_sample": one.calls,
    }


def _print(result: dict[str, Any]) -> None:
    heading = f"microseconds a call, {ROWS} x {COLS} elements, torch.inference_mode"
    table = Table(title=machine.title(heading, result), title_justify="left")
    table.add_column("route")
    for dtype in DTYPES:
        table.add_column(f"{dtype}, median", justify="right")
        table.add_column("quartiles", justify="right")
    by_route: dict[str, list[str]] = {}
    for row in result["rows"]:
        cells = by_route.setdefault(row["route"], [])
        cells += [f"{row['us']:.2f}", "-".join(f"{value:.2f}" for value in row["quartiles"])]
    for route, cells in by_route.items():
        table.add_row(route, *cells)
    machine.console().print(table)


if __name__ == "__main__":
    sys.exit(main())

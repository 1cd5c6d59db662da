# SPDX-License-Identifier: Apache-2.0
"""Runs every operator for every instruction set that this CPU has, with NumPy as the only package.

For an installed wheel: standard library, NumPy and `capibara_axion`, nothing else, so that a
requirement which the wheel does not declare shows. bfloat16 is left out, as its NumPy type would
need a third package. How exact the operators are is for the other tests; these bounds only tell
right from wrong.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from typing import Any

NOT_NEEDED = ("torch", "vllm", "aiohttp", "pydantic", "ml_dtypes")
# Around the vector lengths of all instruction sets, and long enough for several threads.
SIZES = (*range(1, 36), 64, 100, 4095, 4096)
ROWS = 3


def main() -> int:
    """Prints a line for each instruction set; 1 if one failed."""
    found = [name for name in NOT_NEEDED if importlib.util.find_spec(name)]
    if found:
        print(f"there are other packages than NumPy here: {', '.join(found)}", file=sys.stderr)
        return 2
    read_end, write_end = os.pipe()
    failed = in_child(lambda: os.write(write_end, " ".join(isas_here()).encode()))
    os.close(write_end)
    with open(read_end, encoding="ascii") as names:
        isas = names.read().split()
    if failed or not isas:
        return 1
    return 1 if sum(in_child(lambda isa=isa: print(check(isa))) for isa in isas) else 0


def in_child(run: Callable[[], Any]) -> int:
    """Calls `run` in a child process; 0 if it returned.

    The native module chooses its instruction set once per process. Forking works where a new
    interpreter cannot be started: sys.executable of an emulated one is for another machine. Before
    the fork nothing has been imported that starts threads.
    """
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            run()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        print(f"killed by signal {os.WTERMSIG(status)}", file=sys.stderr)
    return int(status != 0)


def isas_here() -> list[str]:
    """The instruction sets that were built and run here."""
    os.environ.pop("CAPIBARA_AXION_ISA", None)
    from capibara_axion import _core

    return [isa["name"] for isa in _core.isas() if isa["runs_here"]]


def check(isa: str) -> str:
    """Runs every operator for one instruction set, and sums up.

    Some sets have implementations of matrix products, and of what is made of them, alone: then only
    those run.

    Raises:
        AssertionError: a result is wrong, an operator was left out or ran for another set.
    """
    os.environ["CAPIBARA_AXION_ISA"] = isa
    import numpy as np

    from capibara_axion import _core

    assert _core.chosen_isa() == isa, f"{_core.chosen_isa()} was chosen instead of {isa}"
    required = {entry["name"]: set(entry["required"]) for entry in _core.isas()}
    own = {op["name"] for op in _core.ops() if isa in op["built"]}
    assert own, f"nothing is built for {isa}"
    kinds = (results, products, attention) if "rms_norm" in own else (products, attention)
    comparisons = 0
    for dtype in (np.float32, np.float16):
        rng = np.random.default_rng(7)
        for size in SIZES:
            for what, result, exact in (one for kind in kinds for one in kind(rng, size, dtype)):
                assert_close(result, exact, f"{isa} {what} {np.dtype(dtype)} {size}")
                comparisons += 1
    counts = _core.call_counts()
    for op in _core.ops():
        # The best of those that this one includes.
        best = [name for name in op["built"] if required[name] <= required[isa]][-1]
        assert op["chosen"] == best, op
        if op["name"] in own:
            assert counts[op["name"]] > 0, f"{op['name']} was never called"
    # An exception unwinds through code that nothing above has run.
    try:
        _core.rms_norm(np.ones((2, 4)), np.ones(4), 1e-6, None)
    except TypeError as error:
        assert "float64" in str(error), error
    else:
        raise AssertionError("rms_norm took float64")
    return f"{isa:12} {len(own)} operators, {comparisons} results, {_core.num_threads()} threads"


def results(rng: Any, size: int, dtype: Any) -> Iterator[tuple[str, Any, Any]]:
    """(operator, its result, what it should be) for each operator and its options."""
    import numpy as np

    import capibara_axion as ax
    from capibara_axion import reference

    def normal(*shape: int) -> Any:
        return rng.standard_normal(shape, np.float32).astype(dtype)

    def wide(x: Any) -> Any:
        return x.astype(np.float64)

    x, weight = normal(ROWS, size), normal(size)
    yield "rms_norm", ax.rms_norm(x, weight), reference.rms_norm(wide(x), weight)
    yield "layer_norm", ax.layer_norm(x, weight), reference.layer_norm(wide(x), weight)

    residual = normal(ROWS, size)
    _, total = reference.fused_add_rms_norm(x, residual, weight)
    expected = reference.rms_norm(wide(total), weight)
    normalised, added = ax.fused_add_rms_norm(x.copy(), residual, weight)
    yield "fused_add_rms_norm", normalised, expected
    yield "fused_add_rms_norm's sum", added, wide(total)

    lengths = rng.integers(0, size + 1, ROWS)
    yield "softmax", ax.softmax(x, 0.5), reference.softmax(wide(x), 0.5)
    exact = reference.softmax(wide(x), lengths=lengths)
    yield "softmax with lengths", ax.softmax(x, lengths=lengths), exact

    packed = normal(ROWS, 2 * size)
    exact = reference.silu_and_mul(wide(packed))
    yield "silu_and_mul", ax.silu_and_mul(packed), exact
    for approximate in ("none", "tanh"):
        exact = reference.gelu_and_mul(wide(packed), approximate=approximate)
        result = ax.gelu_and_mul(packed, approximate=approximate)
        yield f"gelu_and_mul {approximate}", result, exact

    angles = rng.uniform(-4, 4, (11, size))
    cache = np.concatenate([np.cos(angles), np.sin(angles)], axis=-1).astype(np.float32)
    positions = rng.integers(0, 11, ROWS)
    for neox in (True, False):
        q, k = normal(ROWS, 2, 2 * size + 3), normal(ROWS, 1, 2 * size + 3)
        exact_q, exact_k = reference.rope(wide(q), wide(k), cache, positions, neox=neox)
        ax.rope(q, k, cache, positions, neox=neox)
        style = "neox" if neox else "interleaved"
        yield f"rope {style} q", q, exact_q
        yield f"rope {style} k", k, exact_k


def products(rng: Any, size: int, dtype: Any) -> Iterator[tuple[str, Any, Any]]:
    """The same for the matrix products, `size` being what is summed over.

    Integers of -3 to 3, and one 127 a row, so that 8-bit integers have a scale of 1: every type
    holds them.
    """
    import numpy as np

    import capibara_axion as ax

    def integers(*shape: int) -> Any:
        values = rng.integers(-3, 4, shape)
        values[:, 0] = 127
        return values.astype(dtype)

    x, weight = integers(ROWS, size), integers(21, size)
    bias, residual = rng.integers(-9, 10, 21).astype(dtype), integers(ROWS, 21)
    product = x.astype(np.float64) @ weight.astype(np.float64).T
    if product.max() > np.finfo(dtype).max:
        return
    yield "matmul", ax.matmul(x, weight.T.copy()), product
    yield "matmul of a transpose", ax.matmul(x, weight.T), product
    yield "linear", ax.linear(x, weight, bias, residual=residual), product + bias + residual
    for packed in ("f32", "bf16", "f16", "int8"):
        layer = ax.PackedLinear(weight, packed, bias)
        yield f"PackedLinear {packed}", layer(x, residual=residual), product + bias + residual
    small = np.clip(weight.astype(np.int64), -8, 7)
    layer = ax.PackedLinear.from_int4(
        (small + 8).astype(np.uint8), np.ones((21, 1), np.float32), bias=bias, method="w4a16"
    )
    product = x.astype(np.float64) @ small.T
    yield "PackedLinear int4", layer(x, residual=residual), product + bias + residual


def attention(rng: Any, size: int, dtype: Any) -> Iterator[tuple[str, Any, Any]]:
    """The same for attention over `size` keys and its caches.

    Keys and values are eighths that 8-bit floats hold, values of one sign: then a rounded
    exponential is a relative error of the result.
    """
    import numpy as np

    import capibara_axion as ax
    from capibara_axion import reference

    queries, blocks = min(size, 3), -(-size // 16)
    q = rng.standard_normal((1, queries, 4, 16), np.float32).astype(dtype)
    k = (rng.integers(-8, 9, (1, size, 2, 16)) / 8).astype(dtype)
    v = (rng.integers(4, 9, (1, size, 2, 16)) / 8).astype(dtype)
    exact = reference.flash_attention(*(x.astype(np.float64) for x in (q, k, v)))
    yield "flash_attention", ax.flash_attention(q, k, v), exact
    table, starts = np.arange(blocks, dtype=np.int32)[None], np.array([0, queries], np.int32)
    name = np.dtype(dtype).name
    for kind, options in ((name, {}), ("fp8_e4m3", {"compute_dtype": name})):
        cache = ax.PagedKVCache(blocks, 16, 2, 16, dtype=kind, **options)
        cache.append(k[0], v[0], np.arange(size))
        result = ax.paged_attention(
            q[0], cache, table, np.array([size], np.int32), query_start=starts
        )
        yield f"paged_attention of {kind}", result, exact[0]
    yield "fp8", ax.fp8_dequantize(ax.fp8_quantize(k), dtype=name), k.astype(np.float64)


def assert_close(result: Any, exact: Any, what: str) -> None:
    """|result - exact| is within some thousand roundings to float32 and one to result's type."""
    import numpy as np

    eps = float(np.finfo(result.dtype).eps)
    scale = float(np.abs(exact).max(initial=0.0))
    allowed = 1e-4 * scale + eps * np.abs(exact) + float(np.finfo(result.dtype).tiny) * eps
    error = np.abs(result.astype(np.float64) - exact)
    assert result.shape == exact.shape, f"{what}: shape {result.shape}, expected {exact.shape}"
    # Not `error > allowed`, which NaN would pass.
    assert (error <= allowed).all(), f"{what}: off by {error.max()}, expected {exact!r}"


if __name__ == "__main__":
    sys.exit(main())

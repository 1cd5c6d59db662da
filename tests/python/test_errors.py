# SPDX-License-Identifier: Apache-2.0
"""Bad arguments: the right exception, and a message that names the argument."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from refusals import check_refused

import capibara_axion as ax
from capibara_axion import reference

F32, F16 = np.float32, np.float16
BF16 = ml_dtypes.bfloat16


def x(*shape: int, dtype: Any = F32) -> np.ndarray:
    return np.ones(shape, dtype)


def rope(**changes: Any) -> None:
    arguments = {
        "q": x(3, 2, 8),
        "k": x(3, 1, 8),
        "cos_sin_cache": x(10, 8),
        "positions": np.arange(3),
        "head_dim": None,
        "neox": True,
    }
    ax.rope(**arguments | changes)


# (what is wrong, call, exception, start of the message)
CASES: list[tuple[str, Callable[[], Any], type[Exception], str]] = [
    # types
    ("a list", lambda: ax.rms_norm([1.0], x(1)), TypeError, "x: expected a NumPy array"),
    ("a number", lambda: ax.silu_and_mul(3.0), TypeError, "gate_up: expected a NumPy array"),
    ("a scalar", lambda: ax.softmax(F32(1)), TypeError, "x: expected a NumPy array"),
    ("None", lambda: ax.rms_norm(x(4), None), TypeError, "weight: expected a NumPy array"),
    ("a list", lambda: ax.rms_norm(x(4), x(4), out=[0.0] * 4), TypeError, "out: expected a NumPy"),
    ("a list", lambda: ax.silu_and_mul(x(4), [1.0] * 4), TypeError, "up: expected a NumPy array"),
    ("a list", lambda: rope(k=[1.0]), TypeError, "k: expected a NumPy array"),
    ("a list", lambda: rope(positions=[0, 1, 2]), TypeError, "positions: expected a NumPy array"),
    # dtypes
    ("float64", lambda: ax.rms_norm(x(4, dtype=float), x(4)), TypeError, "x: expected float32, "),
    ("complex", lambda: ax.softmax(x(4, dtype=complex)), TypeError, "x: expected float32, "),
    ("integers", lambda: ax.softmax(x(4, dtype=np.int32)), TypeError, "x: expected float32, "),
    ("bytes", lambda: ax.softmax(x(4, dtype=np.uint16)), TypeError, "x: expected float32, "),
    ("objects", lambda: ax.softmax(x(4, dtype=object)), TypeError, "x: expected float32, "),
    ("strings", lambda: ax.softmax(np.array(["a"])), TypeError, "x: expected float32, "),
    (
        "float8",
        lambda: ax.softmax(x(4, dtype=ml_dtypes.float8_e4m3fn)),
        TypeError,
        "x: expected float32, ",
    ),
    ("a structure", lambda: ax.softmax(np.zeros(4, "f4,f4")), TypeError, "x: expected float32, "),
    ("other byte order", lambda: ax.softmax(x(4, dtype=">f4")), TypeError, "x: expected float32, "),
    ("other byte order", lambda: ax.softmax(x(4, dtype=">f2")), TypeError, "x: expected float32, "),
    (
        "other byte order",
        lambda: ax.softmax(x(4).astype(BF16).astype(np.dtype(BF16).newbyteorder())),
        TypeError,
        "x: expected float32, ",
    ),
    (
        "weight of another dtype",
        lambda: ax.rms_norm(x(4), x(4, dtype=F16)),
        TypeError,
        "weight: expected the dtype of x, float32, got float16",
    ),
    (
        "weight of another dtype",
        lambda: ax.rms_norm(x(4, dtype=BF16), x(4, dtype=F16)),
        TypeError,
        "weight: expected the dtype of x, bfloat16, got float16",
    ),
    (
        "residual of another dtype",
        lambda: ax.fused_add_rms_norm(x(4), x(4, dtype=F16), x(4)),
        TypeError,
        "residual: expected the dtype of x",
    ),
    (
        "up of another dtype",
        lambda: ax.silu_and_mul(x(4), x(4, dtype=F16)),
        TypeError,
        "up: expected the dtype of gate",
    ),
    (
        "out of another dtype",
        lambda: ax.softmax(x(4), out=x(4, dtype=F16)),
        TypeError,
        "out: expected the dtype of x",
    ),
    ("k of another dtype", lambda: rope(k=x(3, 1, 8, dtype=F16)), TypeError, "k: expected the dty"),
    (
        "cache of another dtype",
        lambda: rope(cos_sin_cache=x(10, 8, dtype=F16)),
        TypeError,
        "cos_sin_cache: expected the dtype of q",
    ),
    ("positions as floats", lambda: rope(positions=x(3)), TypeError, "positions: expected int64"),
    ("positions unsigned", lambda: rope(positions=np.arange(3, dtype="u8")), TypeError, "positi"),
    ("lengths as floats", lambda: ax.softmax(x(2, 4), lengths=x(2)), TypeError, "lengths: expect"),
    ("lengths as truth", lambda: ax.softmax(x(4), lengths=True), TypeError, "lengths: expected i"),
    # shapes
    ("no dimension", lambda: ax.rms_norm(x(), x(1)), ValueError, "x: expected at least 1 dim"),
    ("no dimension", lambda: ax.softmax(x()), ValueError, "x: expected at least 1 dimension"),
    ("no dimension", lambda: ax.silu_and_mul(x()), ValueError, "gate_up: expected at least 1 dim"),
    ("9 dimensions", lambda: ax.softmax(x(*[1] * 9)), ValueError, "x: expected at most 8 dim"),
    (
        "a longer weight",
        lambda: ax.rms_norm(x(2, 4), x(5)),
        ValueError,
        r"weight: expected shape \[4\], got \[5\]",
    ),
    (
        "weight of heads",
        lambda: ax.rms_norm(x(2, 4), x(2, 4)),
        ValueError,
        r"weight: expected shape \[4\], got \[2, 4\]",
    ),
    ("scalar weight", lambda: ax.rms_norm(x(1), x()), ValueError, r"weight: expected shape \[1\]"),
    (
        "weight of fewer heads",
        lambda: ax.layer_norm(x(5, 3, 4), x(2, 4)),
        ValueError,
        r"weight: expected shape \[4\] or \[3, 4\], got \[2, 4\]",
    ),
    (
        "another residual",
        lambda: ax.fused_add_rms_norm(x(2, 4), x(3, 4), x(4)),
        ValueError,
        r"residual: expected the shape of x, \[2, 4\], got \[3, 4\]",
    ),
    (
        "a smaller out",
        lambda: ax.softmax(x(2, 4), out=x(2, 3)),
        ValueError,
        r"out: expected the shape of x, \[2, 4\], got \[2, 3\]",
    ),
    ("a flat out", lambda: ax.softmax(x(2, 4), out=x(8)), ValueError, "out: expected the shape"),
    ("odd width", lambda: ax.silu_and_mul(x(2, 5)), ValueError, "gate_up: expected an even last"),
    (
        "another up",
        lambda: ax.gelu_and_mul(x(2, 4), x(2, 2)),
        ValueError,
        r"up: expected the shape of gate, \[2, 4\], got \[2, 2\]",
    ),
    ("out as wide", lambda: ax.silu_and_mul(x(2, 4), out=x(2, 4)), ValueError, "out: expected the"),
    (
        "too few lengths",
        lambda: ax.softmax(x(2, 4), lengths=[1]),
        ValueError,
        r"lengths: expected one length a row, shape \[2\], got \[1\]",
    ),
    ("q without heads", lambda: rope(q=x(3, 16)), ValueError, "q: expected shape .* and no head_d"),
    ("q flat, of half a head", lambda: rope(q=x(3, 12), head_dim=8), ValueError, "q: expected sha"),
    ("q of one dimension", lambda: rope(q=x(24), head_dim=8), ValueError, "q: expected shape"),
    ("another head_dim", lambda: rope(head_dim=4), ValueError, "q: expected shape"),
    ("k of other heads", lambda: rope(k=x(3, 1, 10)), ValueError, "k: expected"),
    ("fewer q", lambda: rope(q=x(2, 2, 8)), ValueError, "q: expected 3 tokens"),
    ("fewer k", lambda: rope(k=x(2, 1, 8)), ValueError, "k: expected 3 tokens"),
    ("flat cache", lambda: rope(cos_sin_cache=x(80)), ValueError, r"cos_sin_cache: expected shape"),
    ("odd rotary_dim", lambda: rope(cos_sin_cache=x(10, 7)), ValueError, "cos_sin_cache: expected"),
    ("wide rotary_dim", lambda: rope(cos_sin_cache=x(10, 10)), ValueError, "cos_sin_cache: expect"),
    ("positions of two dimensions", lambda: rope(positions=np.zeros((3, 1), int)), ValueError, "p"),
    # values
    (
        "eps below zero",
        lambda: ax.rms_norm(x(4), x(4), -1e-6),
        ValueError,
        "eps: expected a number that",
    ),
    (
        "eps NaN",
        lambda: ax.layer_norm(x(4), x(4), np.nan),
        ValueError,
        "eps: expected a number that",
    ),
    ("eps infinite", lambda: ax.rms_norm(x(4), x(4), np.inf), ValueError, "eps: expected a finite"),
    ("eps beyond float32", lambda: ax.rms_norm(x(4), x(4), 1e39), ValueError, "eps: expected"),
    ("scale NaN", lambda: ax.softmax(x(4), np.nan), ValueError, "scale: expected a finite"),
    ("scale beyond float32", lambda: ax.softmax(x(4), -1e39), ValueError, "scale: expected a fi"),
    ("long length", lambda: ax.softmax(x(2, 4), lengths=[1, 5]), ValueError, "lengths: expected v"),
    ("negative length", lambda: ax.softmax(x(4), lengths=-1), ValueError, "lengths: expected val"),
    ("huge length", lambda: ax.softmax(x(4), lengths=2**32 + 1), ValueError, "lengths: expected v"),
    (
        "position out of range",
        lambda: rope(positions=np.array([0, 10, 1])),
        ValueError,
        "positions: expected values from 0 to 9, got 10",
    ),
    ("position below zero", lambda: rope(positions=np.array([0, -1, 1])), ValueError, "positions:"),
    ("no position", lambda: rope(cos_sin_cache=x(0, 8)), ValueError, "positions: expected"),
    (
        "unknown approximation",
        lambda: ax.gelu_and_mul(x(4), approximate="quick"),
        ValueError,
        "approximate: expected 'none' or 'tanh', got 'quick'",
    ),
    (
        "unknown approximation",
        lambda: reference.gelu_and_mul(x(4), approximate="quick"),
        ValueError,
        "approximate: expected 'none' or 'tanh', got 'quick'",
    ),
    ("head_dim below zero", lambda: rope(head_dim=-8), ValueError, "head_dim: expected a positive"),
    ("head_dim zero", lambda: rope(head_dim=0), ValueError, "head_dim: expected a positive"),
    ("head_dim huge", lambda: rope(head_dim=2**70), ValueError, "head_dim: expected a positive"),
    ("no threads", lambda: ax.set_num_threads(-1), ValueError, "threads: expected 1 to 4096"),
    ("too many threads", lambda: ax.set_num_threads(5000), ValueError, "threads: expected 1 to 40"),
    # scalars of another type
    ("eps a string", lambda: ax.rms_norm(x(4), x(4), "small"), TypeError, ".*eps"),
    ("scale a list", lambda: ax.softmax(x(4), [1.0]), TypeError, ".*scale"),
    ("head_dim a float", lambda: rope(q=x(3, 16), k=None, head_dim=8.5), TypeError, ".*head_dim"),
]


@pytest.mark.parametrize(
    ("call", "exception", "message"),
    [case[1:] for case in CASES],
    ids=[f"{case[3].split(':')[0].strip('.*')}: {case[0]}" for case in CASES],
)
def test_message_names_the_argument(
    call: Callable[[], Any], exception: type[Exception], message: str
) -> None:
    check_refused(call, exception, message)


def test_a_refused_call_writes_nothing() -> None:
    q, k = x(3, 2, 8), x(3, 1, 8)
    with pytest.raises(ValueError, match=r"^positions"):
        rope(q=q, k=k, positions=np.array([0, 1, 99]), cos_sin_cache=2 * x(10, 8))
    assert (q == 1).all()
    assert (k == 1).all()
    residual = x(2, 4)
    with pytest.raises(ValueError, match=r"^weight"):
        ax.fused_add_rms_norm(x(2, 4), residual, x(5))
    assert (residual == 1).all()


@pytest.mark.parametrize("overlap", ["q and k", "weight and residual"])
def test_written_arguments_lie_apart(overlap: str) -> None:
    if overlap == "q and k":
        qk = x(3, 2, 8)
        with pytest.raises(ValueError, match=r"^k: expected memory apart from q"):
            rope(q=qk, k=qk)
    else:
        residual = x(2, 4)
        with pytest.raises(ValueError, match=r"^(x|residual|weight): expected memory apart"):
            ax.fused_add_rms_norm(x(2, 4), residual, residual[1])


def test_unknown_attribute() -> None:
    with pytest.raises(AttributeError, match="no_such_operator"):
        _ = ax.no_such_operator  # type: ignore[attr-defined]
    assert "rms_norm" in dir(ax)


def test_no_reference_is_kept() -> None:
    """Neither a call nor a refusal holds on to its arguments."""
    weight, lengths, positions = x(4), np.array([1, 2], np.int32), np.array([0, 1])
    q, cache = x(2, 3, 4), x(4, 4)
    shared = (weight, lengths, positions, q, cache)
    before = [sys.getrefcount(array) for array in shared]
    for _ in range(50):
        ax.rms_norm(x(2, 4), weight)
        ax.softmax(x(2, 4), lengths=lengths, out=x(2, 4))
        ax.rope(q, None, cache, positions)
        for call in (
            lambda: ax.rms_norm(x(2, 5), weight),
            lambda: ax.rms_norm(x(2, 4), weight, out=x(3, 4)),
            lambda: ax.softmax(x(2, 1), lengths=lengths),
            lambda: ax.rope(q, weight, cache, positions),
        ):
            with pytest.raises(ValueError, match="expected"):
                call()
    assert [sys.getrefcount(array) for array in shared] == before

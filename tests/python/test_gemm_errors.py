# SPDX-License-Identifier: Apache-2.0
"""Bad arguments of the matrix products: the right exception, and a message that names the one."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from refusals import check_refused

import capibara_axion as ax
from capibara_axion import _core, reference

F32, F16, BF16 = np.float32, np.float16, ml_dtypes.bfloat16


def x(*shape: int, dtype: Any = F32) -> np.ndarray:
    return np.ones(shape, dtype)


def layer(**options: Any) -> ax.PackedLinear:
    return ax.PackedLinear(x(3, 4), **options)


def packed_linear(**changes: Any) -> Any:
    arguments = {
        "x": x(2, 4),
        "packed": layer()._packed,
        "out_features": 3,
        "bias": None,
        "residual": None,
        "activation": 0,
        "out": None,
    }
    return _core.packed_linear(**arguments | changes)


def elsewhere(packed: np.ndarray, offset: int) -> np.ndarray:
    memory = _core.aligned_empty(packed.size + offset)
    memory[offset:] = packed
    return memory[offset:]


def changed(at: int) -> np.ndarray:
    packed = layer()._packed.copy()
    packed = elsewhere(packed, 0)
    packed[at] ^= 1
    return packed


# (what is wrong, call, exception, start of the message)
CASES: list[tuple[str, Callable[[], Any], type[Exception], str]] = [
    # types
    ("a list", lambda: ax.matmul([1.0], x(1)), TypeError, "a: expected a NumPy array or a torch"),
    ("a list", lambda: ax.matmul(x(1), [1.0]), TypeError, "b: expected a NumPy array"),
    ("a list", lambda: ax.matmul(x(1, 1), x(1, 1), out=[1.0]), TypeError, "out: expected a NumPy"),
    ("a list", lambda: ax.linear([1.0], x(1, 1)), TypeError, "x: expected a NumPy array"),
    ("None", lambda: ax.linear(x(4), None), TypeError, "weight: expected a NumPy array"),
    ("a list", lambda: ax.linear(x(4), x(3, 4), [1.0] * 3), TypeError, "bias: expected a NumPy"),
    ("a list", lambda: ax.linear(x(4), x(3, 4), residual=[1]), TypeError, "residual: expected a N"),
    ("a list", lambda: ax.PackedLinear([[1.0]]), TypeError, "weight: expected a NumPy array or a"),
    ("a list", lambda: layer(bias=[1.0] * 3), TypeError, "bias: expected a NumPy array, as weight"),
    (
        "a list",
        lambda: layer()([1.0] * 4),
        TypeError,
        "x: expected a NumPy array or a torch tensor",
    ),
    ("a number", lambda: layer(dtype=8), TypeError, "dtype: expected a string, got int"),
    # dtypes
    ("float64", lambda: ax.matmul(x(1, dtype=float), x(1)), TypeError, "a: expected float32, "),
    ("bytes", lambda: ax.matmul(x(1, dtype=np.uint8), x(1)), TypeError, "a: expected float32, "),
    ("another", lambda: ax.matmul(x(4), x(4, dtype=F16)), TypeError, "b: expected the dtype of a"),
    (
        "another",
        lambda: ax.matmul(x(1, 4), x(4, 1), out=x(1, 1, dtype=F16)),
        TypeError,
        "out: expected the dtype of a, float32, got float16",
    ),
    (
        "another",
        lambda: ax.linear(x(4), x(3, 4, dtype=BF16)),
        TypeError,
        "weight: expected the dtype of x, float32, got bfloat16",
    ),
    (
        "another",
        lambda: ax.linear(x(4, dtype=BF16), x(3, 4, dtype=BF16), x(3, dtype=F16)),
        TypeError,
        "bias: expected the dtype of x, bfloat16, got float16",
    ),
    (
        "another",
        lambda: ax.linear(x(4), x(3, 4), residual=x(3, dtype=F16)),
        TypeError,
        "residual: expected the dtype of x",
    ),
    (
        "another",
        lambda: layer()(x(4, dtype=F16), out=x(3)),
        TypeError,
        "out: expected the dtype of x, float16, got float32",
    ),
    ("integers", lambda: layer()(x(4, dtype=np.int32)), TypeError, "x: expected float32, "),
    (
        "float64",
        lambda: ax.PackedLinear(x(3, 4, dtype=float)),
        TypeError,
        "weight: expected float32, float16 or bfloat16, got float64",
    ),
    (
        "float64",
        lambda: ax.PackedLinear(x(3, 4, dtype=float), "bf16"),
        TypeError,
        "weight: expected float32, float16 or bfloat16, got float64",
    ),
    ("int8", lambda: ax.PackedLinear(x(3, 4, dtype=np.int8)), TypeError, "weight: expected float"),
    (
        "another",
        lambda: layer(bias=x(3, dtype=F16)),
        TypeError,
        "bias: expected the dtype of weight, float32, or float32, got float16",
    ),
    # shapes
    ("no dimension", lambda: ax.matmul(x(), x(1)), ValueError, "a: expected at least 1 dimension"),
    ("no dimension", lambda: ax.matmul(x(1), x()), ValueError, "b: expected at least 1 dimension"),
    ("9 dimensions", lambda: ax.matmul(x(*[1] * 9), x(1)), ValueError, "a: expected at most 8 di"),
    (
        "fewer rows",
        lambda: ax.matmul(x(2, 4), x(3, 4)),
        ValueError,
        r"b: expected a second to last dimension of 4, as a's last, got shape \[3, 4\]",
    ),
    (
        "a shorter vector",
        lambda: ax.matmul(x(2, 4), x(3)),
        ValueError,
        r"b: expected 4 elements, as a's last, got shape \[3\]",
    ),
    (
        "other leading dimensions",
        lambda: ax.matmul(x(2, 1, 4), x(3, 4, 1)),
        ValueError,
        r"b: expected leading dimensions that broadcast with those of a, shape \[2, 1, 4\], got",
    ),
    (
        "a smaller out",
        lambda: ax.matmul(x(2, 4), x(4, 3), out=x(2, 2)),
        ValueError,
        r"out: expected shape \[2, 3\], got \[2, 2\]",
    ),
    (
        "out of a vector",
        lambda: ax.matmul(x(2, 4), x(4), out=x(2, 1)),
        ValueError,
        r"out: expected shape \[2\], got \[2, 1\]",
    ),
    (
        "a column out",
        lambda: ax.matmul(x(2, 4), x(4, 3), out=x(3, 2).T),
        ValueError,
        "out: expected a last dimension of stride 1, got stride 2",
    ),
    (
        "misaligned out",
        lambda: ax.matmul(x(4), x(4, 3), out=x(13, dtype=np.uint8)[1:].view(F32)),
        ValueError,
        "out: expected elements that are aligned, got a misaligned array",
    ),
    (
        "broadcast out",
        lambda: ax.matmul(x(2, 4), x(4, 3), out=np.broadcast_to(x(3), (2, 3))),
        ValueError,
        "out: expected a writable array",
    ),
    ("no dimension", lambda: ax.linear(x(), x(3, 4)), ValueError, "x: expected at least 1 dimens"),
    (
        "a wider weight",
        lambda: ax.linear(x(2, 4), x(3, 5)),
        ValueError,
        r"weight: expected shape \[out_features, 4\], got \[3, 5\]",
    ),
    (
        "a vector",
        lambda: ax.linear(x(4), x(4)),
        ValueError,
        r"weight: expected shape \[out_features, in_features\], got \[4\]",
    ),
    (
        "a shorter bias",
        lambda: ax.linear(x(2, 4), x(3, 4), x(2)),
        ValueError,
        r"bias: expected shape \[3\], got \[2\]",
    ),
    ("bias of rows", lambda: ax.linear(x(2, 4), x(3, 4), x(1, 3)), ValueError, "bias: expected sh"),
    (
        "another residual",
        lambda: ax.linear(x(2, 4), x(3, 4), residual=x(3)),
        ValueError,
        r"residual: expected the shape of out, \[2, 3\], got \[3\]",
    ),
    (
        "a flat out",
        lambda: ax.linear(x(2, 4), x(3, 4), out=x(6)),
        ValueError,
        r"out: expected shape \[2, 3\], got \[6\]",
    ),
    (
        "a vector",
        lambda: ax.PackedLinear(x(4)),
        ValueError,
        r"weight: expected shape \[out_features, in_features\], got \[4\]",
    ),
    (
        "a shorter bias",
        lambda: layer(bias=x(4)),
        ValueError,
        r"bias: expected shape \[3\], got \[4\]",
    ),
    (
        "a wider x",
        lambda: layer()(x(2, 5)),
        ValueError,
        r"x: expected a last dimension of 4, as packed has, got shape \[2, 5\]",
    ),
    (
        "deep int8",
        lambda: ax.PackedLinear(np.zeros((1, 65537), F32), "int8"),
        ValueError,
        r"weight: expected at most 65536 columns, whose sums int32 holds, got shape \[1, 65537\]",
    ),
    # values
    (
        "unknown activation",
        lambda: ax.linear(x(4), x(3, 4), activation="relu"),
        ValueError,
        "activation: expected one of None, 'silu', 'gelu', 'gelu_tanh', got 'relu'",
    ),
    (
        "unknown activation",
        lambda: reference.linear(x(4), x(3, 4), activation="relu"),
        ValueError,
        "activation: expected one of None, 'silu', 'gelu', 'gelu_tanh', got 'relu'",
    ),
    ("a list", lambda: layer()(x(4), activation=[]), ValueError, "activation: expected one of"),
    (
        "unknown type",
        lambda: layer(dtype="fp8"),
        ValueError,
        "dtype: expected one of 'f32', 'bf16', 'f16', 'int8', 'int4', got 'fp8'",
    ),
    # the native module's own arguments
    (
        "another activation",
        lambda: packed_linear(activation=4),
        ValueError,
        "activation: expected a number from 0 to 3, got 4",
    ),
    ("another type", lambda: _core.packed_nbytes(4, 1, 1), ValueError, "type: expected a number f"),
    (
        "huge",
        lambda: _core.packed_nbytes(0, 2**62, 2),
        ValueError,
        "weight: expected at most 2^40".replace("^", r"\^"),
    ),
    ("negative", lambda: _core.packed_nbytes(0, -1, 2), ValueError, "weight: expected at most"),
    ("negative", lambda: _core.aligned_empty(-1), ValueError, "nbytes: expected a number that is"),
    (
        "another number of rows",
        lambda: packed_linear(out_features=4),
        ValueError,
        "out_features: expected 3, as packed has, got 4",
    ),
    (
        "floats",
        lambda: packed_linear(packed=x(64)),
        TypeError,
        "packed: expected uint8, got float3",
    ),
    (
        "two dimensions",
        lambda: packed_linear(packed=layer()._packed.reshape(1, -1)),
        ValueError,
        "packed: expected one dimension",
    ),
    (
        "every second byte",
        lambda: packed_linear(packed=layer()._packed[::2]),
        ValueError,
        "packed: expected bytes that follow one another, got stride 2",
    ),
    (
        "nothing",
        lambda: packed_linear(packed=np.zeros(0, np.uint8)),
        ValueError,
        "packed: expected weights that were packed here, got something else",
    ),
    (
        "other bytes",
        lambda: packed_linear(packed=np.zeros(4096, np.uint8)),
        ValueError,
        "packed: expected weights that were packed here, got something else",
    ),
    (
        "of another version",
        lambda: packed_linear(packed=changed(8)),
        ValueError,
        "packed: expected weights that were packed here, got something else",
    ),
    (
        "cut off",
        lambda: packed_linear(packed=layer()._packed[:-64]),
        ValueError,
        "packed: expected weights that were packed here, got .* bytes that should be",
    ),
    (
        "misaligned",
        lambda: packed_linear(packed=elsewhere(layer()._packed, 16)),
        ValueError,
        "packed: expected weights that were packed here, got memory that is not aligned",
    ),
    (
        "fewer bytes",
        lambda: _core.pack_linear(x(3, 4), _core.aligned_empty(64), 0),
        ValueError,
        "packed: expected [0-9]+ bytes, got 64",
    ),
    (
        "misaligned",
        lambda: _core.pack_linear(
            x(3, 4), _core.aligned_empty(16 + _core.packed_nbytes(0, 3, 4))[16:], 0
        ),
        ValueError,
        "packed: expected memory aligned to 64 bytes",
    ),
]


@pytest.mark.parametrize(
    ("call", "exception", "message"),
    [case[1:] for case in CASES],
    ids=[f"{case[3].split(':')[0]}: {case[0]}" for case in CASES],
)
def test_message_names_the_argument(
    call: Callable[[], Any], exception: type[Exception], message: str
) -> None:
    check_refused(call, exception, message)


def test_packed_memory_is_read_only_where_it_must_not_be() -> None:
    packed = _core.aligned_empty(_core.packed_nbytes(0, 3, 4))
    packed.flags.writeable = False
    with pytest.raises(ValueError, match=r"^packed: expected a writable array"):
        _core.pack_linear(x(3, 4), packed, 0)


def test_a_refused_call_writes_nothing() -> None:
    out = np.full((2, 3), 7, F32)
    with pytest.raises(ValueError, match=r"^bias"):
        ax.linear(x(2, 4), x(3, 4), x(4), out=out)
    with pytest.raises(ValueError, match=r"^residual"):
        layer()(x(2, 4), residual=x(3, 3), out=out)
    assert (out == 7).all()


def test_no_reference_is_kept() -> None:
    weight, bias, residual, a = x(3, 4), x(3), x(2, 3), x(2, 4)
    packed = layer(bias=bias)
    shared = (weight, bias, residual, a, packed._packed, packed._bias)
    before = [sys.getrefcount(array) for array in shared]
    for _ in range(50):
        ax.linear(a, weight, bias, residual=residual)
        packed(a, residual=residual, out=x(2, 3))
        ax.matmul(a, weight.T)
        for call in (
            lambda: ax.linear(a, weight, residual=a),
            lambda: packed(a, residual=a),
            lambda: packed(weight, residual=residual),
            lambda: ax.matmul(a, weight),
        ):
            with pytest.raises(ValueError, match="expected"):
                call()
    assert [sys.getrefcount(array) for array in shared] == before

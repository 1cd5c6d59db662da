# SPDX-License-Identifier: Apache-2.0
"""Bad arguments: an exception of the right type whose message begins with the argument's name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import capibara_axion as ax


def ones(*shape: int, dtype: Any = np.float32) -> np.ndarray:
    return np.ones(shape, dtype)


def read_only(x: np.ndarray) -> np.ndarray:
    x.flags.writeable = False
    return x


HEADS, CACHE, PLACES = ones(2, 3, 8), ones(4, 8), np.array([0, 1])

WRONG_TYPES: dict[str, tuple[str, Callable[[], Any]]] = {
    "list": ("x", lambda: ax.rms_norm([1.0], ones(1))),
    "None": ("x", lambda: ax.softmax(None)),
    "float64": ("x", lambda: ax.rms_norm(ones(2, 4, dtype=np.float64), ones(4))),
    "integers": ("x", lambda: ax.softmax(ones(2, 4, dtype=np.int32))),
    "complex": ("gate_up", lambda: ax.silu_and_mul(ones(2, 4, dtype=np.complex64))),
    "byte-swapped": ("x", lambda: ax.rms_norm(ones(2, 4).astype(">f4"), ones(4))),
    "other weight": ("weight", lambda: ax.rms_norm(ones(2, 4), ones(4, dtype=np.float16))),
    "other up": ("up", lambda: ax.silu_and_mul(ones(2, 4), ones(2, 4, dtype=np.float16))),
    "other out": ("out", lambda: ax.softmax(ones(2, 4), out=ones(2, 4, dtype=np.float16))),
    "other k": ("k", lambda: ax.rope(ones(2, 3, 8), HEADS.astype("f2"), CACHE, PLACES)),
    "float positions": ("positions", lambda: ax.rope(ones(2, 3, 8), None, CACHE, ones(2))),
    "float lengths": ("lengths", lambda: ax.softmax(ones(2, 4), lengths=[1.5, 2.0])),
    "eps": ("eps", lambda: ax.rms_norm(ones(2, 4), ones(4), eps="small")),
    "scale": ("scale", lambda: ax.softmax(ones(2, 4), scale=None)),
    "missing weight": ("weight", lambda: ax.layer_norm(ones(2, 4), None)),
}

WRONG_VALUES: dict[str, tuple[str, Callable[[], Any]]] = {
    "scalar": ("x", lambda: ax.softmax(ones())),
    "nine dimensions": ("x", lambda: ax.softmax(ones(*[1] * 9))),
    "weight's length": ("weight", lambda: ax.rms_norm(ones(2, 4), ones(3))),
    "weight's dimensions": ("weight", lambda: ax.rms_norm(ones(2, 4), ones(2, 4))),
    "weight of heads": ("weight", lambda: ax.layer_norm(ones(2, 3, 4), ones(2, 4))),
    "negative eps": ("eps", lambda: ax.rms_norm(ones(2, 4), ones(4), eps=-1e-6)),
    "eps NaN": ("eps", lambda: ax.layer_norm(ones(2, 4), ones(4), eps=float("nan"))),
    "eps above float32": ("eps", lambda: ax.rms_norm(ones(2, 4), ones(4), eps=1e39)),
    "infinite scale": ("scale", lambda: ax.softmax(ones(2, 4), scale=float("inf"))),
    "residual": ("residual", lambda: ax.fused_add_rms_norm(ones(2, 4), ones(2, 3), ones(4))),
    "out's shape": ("out", lambda: ax.rms_norm(ones(2, 4), ones(4), out=ones(4, 2))),
    "out read-only": ("out", lambda: ax.softmax(ones(2, 4), out=read_only(ones(2, 4)))),
    "out strided": ("out", lambda: ax.softmax(ones(2, 4), out=ones(2, 8)[:, ::2])),
    "odd packed": ("gate_up", lambda: ax.silu_and_mul(ones(2, 5))),
    "up's shape": ("up", lambda: ax.gelu_and_mul(ones(2, 4), ones(2, 5))),
    "approximate": ("approximate", lambda: ax.gelu_and_mul(ones(2, 4), approximate="erf")),
    "length too large": ("lengths", lambda: ax.softmax(ones(2, 4), lengths=5)),
    "length negative": ("lengths", lambda: ax.softmax(ones(2, 4), lengths=[-1, 2])),
    "length beyond int32": ("lengths", lambda: ax.softmax(ones(2, 4), lengths=[2**32, 2])),
    "lengths' shape": ("lengths", lambda: ax.softmax(ones(2, 4), lengths=[1, 2, 3])),
    "q without head_dim": ("q", lambda: ax.rope(ones(2, 24), None, CACHE, PLACES)),
    "q's head_dim": ("q", lambda: ax.rope(ones(2, 3, 8), None, CACHE, PLACES, head_dim=4)),
    "head_dim": ("head_dim", lambda: ax.rope(ones(2, 24), None, CACHE, PLACES, head_dim=-8)),
    "tokens": ("q", lambda: ax.rope(ones(3, 3, 8), None, CACHE, PLACES)),
    "k's head_dim": ("k", lambda: ax.rope(ones(2, 3, 8), ones(2, 3, 6), CACHE, PLACES)),
    "cache's shape": ("cos_sin_cache", lambda: ax.rope(ones(2, 3, 8), None, ones(8), PLACES)),
    "odd rotary_dim": ("cos_sin_cache", lambda: ax.rope(HEADS.copy(), None, ones(4, 7), PLACES)),
    "wide rotary_dim": ("cos_sin_cache", lambda: ax.rope(HEADS.copy(), None, ones(4, 10), PLACES)),
    "position too large": ("positions", lambda: ax.rope(HEADS.copy(), None, CACHE, PLACES + 3)),
    "position negative": ("positions", lambda: ax.rope(HEADS.copy(), None, CACHE, PLACES - 1)),
    "threads": ("threads", lambda: ax.set_num_threads(-1)),
}


@pytest.mark.parametrize(("name", "call"), WRONG_TYPES.values(), ids=WRONG_TYPES)
def test_wrong_types(name: str, call: Callable[[], Any]) -> None:
    with pytest.raises(TypeError, match=f"^{name}: expected .*, got "):
        call()


@pytest.mark.parametrize(("name", "call"), WRONG_VALUES.values(), ids=WRONG_VALUES)
def test_wrong_values(name: str, call: Callable[[], Any]) -> None:
    with pytest.raises(ValueError, match=f"^{name}: expected .*, got "):
        call()


def test_what_is_refused_is_left_alone() -> None:
    q = ones(2, 3, 8)
    with pytest.raises(ValueError, match="positions"):
        ax.rope(q, None, 2 * CACHE, np.array([0, 9]))
    assert (q == 1).all()


def test_unknown_attribute() -> None:
    with pytest.raises(AttributeError, match="no_such_operator"):
        _ = ax.no_such_operator  # type: ignore[attr-defined]
    assert "rms_norm" in dir(ax)

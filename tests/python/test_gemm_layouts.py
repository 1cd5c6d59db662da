# SPDX-License-Identifier: Apache-2.0
"""Shapes and memory of the matrix products: NumPy's rules of `@`, strides, `out`, threads.

test_layouts.py and test_threads.py run over the products too; here is what is theirs alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest
import tolerances
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.lib.stride_tricks import as_strided
from operators import BFLOAT16, DTYPES, FLOAT32, Array, normal
from products import EMULATED, TYPES, expect_matmul

import capibara_axion as ax
from capibara_axion import reference

each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: dtype.name)


@pytest.fixture(autouse=True)
def _restore() -> Iterator[None]:
    yield
    ax.set_num_threads(0)


def integers(rng: np.random.Generator, *shape: int, dtype: np.dtype = FLOAT32) -> Array:
    """So small that every sum is exact, in any order and dtype."""
    return rng.integers(-3, 4, shape).astype(dtype)


def same(a: Array, b: Array) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and bool((a == b).all())


SHAPES = [
    ((4,), (4,)),
    ((4,), (4, 3)),
    ((2, 4), (4,)),
    ((4,), (5, 4, 3)),
    ((5, 2, 4), (4,)),
    ((2, 4), (4, 3)),
    ((5, 2, 4), (4, 3)),
    ((2, 4), (5, 4, 3)),
    ((5, 2, 4), (5, 4, 3)),
    ((5, 2, 4), (1, 4, 3)),
    ((6, 1, 2, 4), (5, 4, 3)),
    ((1, 5, 2, 4), (6, 1, 4, 3)),
    ((6, 5, 1, 4), (4, 3)),
    ((2, 1, 2, 1, 2, 1, 2, 4), (3, 1, 1, 1, 1, 4, 3)),
    ((0, 4), (4, 3)),
    ((2, 4), (4, 0)),
    ((2, 0), (0, 3)),
    ((0,), (0,)),
    ((0, 2, 4), (4, 3)),
    ((0, 2, 4), (1, 4, 3)),
    ((5, 0, 4), (5, 4, 3)),
]


@each_dtype
@pytest.mark.parametrize(("a_shape", "b_shape"), SHAPES, ids=str)
def test_shapes_are_those_of_numpy(
    rng: np.random.Generator, a_shape: tuple[int, ...], b_shape: tuple[int, ...], dtype: np.dtype
) -> None:
    a, b = integers(rng, *a_shape, dtype=dtype), integers(rng, *b_shape, dtype=dtype)
    expected = np.asarray(np.matmul(a.astype(np.float32), b.astype(np.float32))).astype(dtype)
    assert same(ax.matmul(a, b), expected)
    assert same(reference.matmul(a, b), expected)
    out = np.full(expected.shape, 9, dtype)
    assert ax.matmul(a, b, out=out) is out
    assert same(out, expected)
    if b.ndim > 1:
        transposed = np.array(b.swapaxes(-1, -2), order="C").swapaxes(-1, -2)
        assert same(ax.matmul(a, transposed), expected)


@st.composite
def operands(draw: st.DrawFn) -> tuple[Array, Array]:
    """Any views: leading dimensions that broadcast, in any order, every dimension of any step."""
    m, n, k = (draw(st.integers(1, 9)) for _ in range(3))
    batch = [draw(st.integers(1, 3)) for _ in range(draw(st.integers(0, 3)))]
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    dtype = draw(st.sampled_from(DTYPES))

    def view(*matrix: int) -> Array:
        own = batch[draw(st.integers(0, len(batch))) :]
        shape = [size if draw(st.booleans()) else 1 for size in own] + list(matrix)
        steps = [draw(st.sampled_from([1, 1, 1, 2, -1])) for _ in shape]
        order = draw(st.permutations(range(len(shape))))
        base = integers(rng, *(abs(steps[i]) * shape[i] for i in order), dtype=dtype)
        slices = tuple(slice(None, None, step) for step in steps)
        return base.transpose(np.argsort(order))[slices]

    return view(m, k), view(k, n)


@settings(max_examples=100 if EMULATED else 400, deadline=None)
@given(pair=operands())
def test_any_strides(pair: tuple[Array, Array]) -> None:
    a, b = pair
    before = a.copy(), b.copy()
    expected = np.matmul(a.astype(np.float32), b.astype(np.float32)).astype(a.dtype)
    assert same(ax.matmul(a, b), expected)
    assert same(a, before[0])
    assert same(b, before[1])


@each_dtype
def test_out_of_matmul(rng: np.random.Generator, dtype: np.dtype) -> None:
    a, b = integers(rng, 3, 4, 5, dtype=dtype), integers(rng, 3, 5, 6, dtype=dtype)
    expected = ax.matmul(a, b)
    memory = np.full((4, 6, 9), 7, dtype)
    for out in (
        memory[:3, :4, 1:7],
        memory[::-1][:3, 1:5, :6],
        memory.swapaxes(0, 1)[1:4, :, 3:],
        memory[:3, 5:1:-1, :6],
    ):
        memory[...] = 7
        assert ax.matmul(a, b, out=out) is out
        assert same(out, expected)
        assert np.count_nonzero(memory == 7) == memory.size - np.count_nonzero(out != 7)
    # A vector's result has its rows at any stride.
    columns = np.full((3, 4, 2), 7, dtype)
    ax.matmul(a, b[0, :, 0], out=columns[..., 1])
    assert same(columns[..., 1], ax.matmul(a, b[0, :, :1])[..., 0])
    assert (columns[..., 0] == 7).all()


@each_dtype
@pytest.mark.parametrize("packed", [None, *TYPES])
def test_linear_of_more_dimensions(
    rng: np.random.Generator, dtype: np.dtype, packed: str | None
) -> None:
    weight, bias = normal(rng, (6, 10), dtype), normal(rng, (6,), dtype)
    layer = ax.PackedLinear(weight, packed, bias) if packed else None

    def call(x: Array, **options: Array) -> Array:
        return layer(x, **options) if layer else ax.linear(x, weight, bias, **options)

    x, residual = normal(rng, (3, 4, 10), dtype), normal(rng, (3, 4, 6), dtype)
    expected = call(x.reshape(12, 10), residual=residual.reshape(12, 6)).reshape(3, 4, 6)
    wider = np.zeros((3, 8, 20), dtype)[:, ::2, 3:13]
    nested = np.zeros((5, 4, 10), dtype)[::2]
    swapped = np.zeros((4, 3, 10), dtype).swapaxes(0, 1)
    for moved in (wider, nested, swapped):
        moved[...] = x
        assert same(call(moved, residual=residual), expected)
    for moved in (residual, np.zeros((5, 4, 6), dtype)[::2], np.zeros((3, 4, 9), dtype)[..., 2:8]):
        moved[...] = residual
        assert same(call(x, residual=moved), expected)
        nested[...] = x
        assert same(call(nested, residual=moved), expected)
    assert same(call(x[1, 2]), call(x[1:2, 2:3])[0, 0])
    assert call(np.zeros((0, 4, 10), dtype)).shape == (0, 4, 6)
    # Into a result at one stride, which may be the residual.
    out = np.full((3, 4, 9), 7, dtype)
    assert call(x, residual=residual, out=out[..., 1:7]).base is out
    assert same(out[..., 1:7], expected)
    assert (out[..., 0] == 7).all()
    assert (out[..., 7:] == 7).all()
    same_memory = residual.copy()
    assert call(x, residual=same_memory, out=same_memory) is same_memory
    assert same(same_memory, expected)
    with pytest.raises(ValueError, match=r"^out: expected rows at one stride, got more"):
        call(x, out=np.zeros((5, 4, 6), dtype)[::2])


def test_weights_may_be_transposes(rng: np.random.Generator) -> None:
    x, weight = normal(rng, (5, 33), BFLOAT16), normal(rng, (17, 33), BFLOAT16)
    upside_down = weight[::-1].copy()[::-1]
    backwards = weight[:, ::-1].copy()[:, ::-1]
    for moved in (np.asfortranarray(weight), upside_down, backwards):
        assert same(ax.linear(x, moved), ax.linear(x, weight))
        assert same(ax.PackedLinear(moved)(x), ax.PackedLinear(weight)(x))


def test_operands_may_be_broadcast(rng: np.random.Generator) -> None:
    row = integers(rng, 1, 7)
    for a, b in (
        (np.broadcast_to(row, (4, 7)), integers(rng, 7, 3)),
        (integers(rng, 4, 7), np.broadcast_to(row, (5, 7)).T),
        (integers(rng, 4, 5), np.broadcast_to(row, (5, 7))),
        (as_strided(integers(rng, 20), (4, 7), (8, 4)), integers(rng, 7, 3)),
    ):
        assert same(ax.matmul(a, b), ax.matmul(a.copy(), b.copy()))


def test_out_lies_apart() -> None:
    memory = np.zeros((16, 24), np.float32)
    a, b, residual, bias = memory[:8, :8], memory[:8, 8:16], memory[8:, :8], memory[15, 16:]
    calls: dict[str, Callable[..., Array]] = {
        "matmul": lambda **o: ax.matmul(a, b, **o),
        "linear": lambda **o: ax.linear(a, b, **o),
        "packed_linear": lambda **o: ax.PackedLinear(b)(a, **o),
    }
    for name, call in calls.items():
        call(out=memory[:8, 16:])
        for out in (a, memory[1:9, :8], memory[:8, 1:9]):
            with pytest.raises(ValueError, match=r"^out: expected memory apart from (a|x), got an"):
                call(out=out)
        if name != "packed_linear":
            with pytest.raises(ValueError, match=r"^out: expected memory apart from (b|weight), g"):
                call(out=b)
        if name != "matmul":
            with pytest.raises(ValueError, match=r"^out: expected memory apart from residual, or"):
                call(residual=residual, out=memory[8:, 1:9])
            call(residual=residual, out=residual)
    with pytest.raises(ValueError, match=r"^out: expected memory apart from bias"):
        ax.linear(a, b, bias, out=memory[8:, 16:])
    layer = ax.PackedLinear(b)
    inside = layer._packed.view(np.float32)[-64:].reshape(8, 8)
    with pytest.raises(ValueError, match=r"^out: expected memory apart from packed"):
        layer(a, out=inside)


@each_dtype
@pytest.mark.parametrize("packed", [None, *TYPES])
def test_no_bit_depends_on_the_number_of_threads(
    rng: np.random.Generator, dtype: np.dtype, packed: str | None
) -> None:
    """Rows and columns of several blocks, a decoding step's single row, batches of small ones."""
    results = []
    shapes = ((1, 500, 300), (7, 150, 260), (70, 90, 130))
    pairs = [(normal(rng, (m, k), dtype), normal(rng, (n, k), dtype)) for m, n, k in shapes]
    batches = normal(rng, (6, 20, 70), dtype), normal(rng, (6, 70, 65), dtype)
    for threads in (1, 2, 3, 4):
        ax.set_num_threads(threads)
        if packed:
            results.append([ax.PackedLinear(w, packed)(x).tobytes() for x, w in pairs])
        else:
            results.append([ax.linear(x, w).tobytes() for x, w in pairs])
            results[-1] += [ax.matmul(x, np.array(w.T, order="C")).tobytes() for x, w in pairs]
            results[-1] += [ax.matmul(a, batches[1]).tobytes() for a in (batches[0], batches[0][0])]
    assert all(result == results[0] for result in results)


@each_dtype
def test_rows_do_not_depend_on_each_other(rng: np.random.Generator, dtype: np.dtype) -> None:
    """A token's result is within the bounds whichever tokens are computed with it."""
    a, b = normal(rng, (30, 90), dtype), normal(rng, (90, 40), dtype)
    for rows in (slice(0, 1), slice(3, 5), slice(7, 30)):
        exact, bound = expect_matmul(a[rows], b)
        tolerances.assert_within(ax.matmul(a, b)[rows], exact, bound, str(rows))

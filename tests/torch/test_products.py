# SPDX-License-Identifier: Apache-2.0
"""The matrix products on tensors: torch's rules of `@`, packed weights, errors."""

from __future__ import annotations

import copy
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import DTYPES, OPS, PACKED_TYPES

import capibara_axion as ax
from capibara_axion import _core
from capibara_axion.torch_ops import pack_weight

F = torch.nn.functional
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
each_type = pytest.mark.parametrize("packed", PACKED_TYPES)


def integers(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """So small that every sum is exact, in any order and dtype."""
    return torch.randint(-3, 4, shape).to(dtype)


@each_dtype
@pytest.mark.parametrize(
    ("a_shape", "b_shape"),
    [
        ((4,), (4,)),
        ((4,), (4, 3)),
        ((2, 4), (4,)),
        ((4,), (5, 4, 3)),
        ((5, 2, 4), (4,)),
        ((5, 2, 4), (4, 3)),
        ((2, 4), (5, 4, 3)),
        ((6, 1, 2, 4), (5, 4, 3)),
        ((2, 0), (0, 3)),
        ((0, 2, 4), (1, 4, 3)),
    ],
    ids=str,
)
def test_shapes_are_those_of_torch(
    a_shape: tuple[int, ...], b_shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    a, b = integers(*a_shape, dtype=dtype), integers(*b_shape, dtype=dtype)
    expected = torch.matmul(a.double(), b.double()).to(dtype)
    given = ax.matmul(a, b)
    assert given.shape == expected.shape
    assert torch.equal(given, expected)
    fake = OPS.matmul(a.to("meta"), b.to("meta"))
    assert (fake.shape, fake.dtype) == (expected.shape, expected.dtype)
    out = torch.full(expected.shape, 9.0, dtype=dtype)
    assert ax.matmul(a, b, out=out) is out
    assert torch.equal(out, expected)


ACTIVATIONS = {
    None: lambda x: x,
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
}


@each_dtype
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_linear_as_torch_itself(dtype: torch.dtype, activation: str | None) -> None:
    """Closely: how closely is for the NumPy tests, whose bits these are."""
    x, weight = torch.randn(3, 5, 40).to(dtype), torch.randn(13, 40).to(dtype)
    bias, residual = torch.randn(13).to(dtype), torch.randn(3, 5, 13).to(dtype)
    product = F.linear(x.double(), weight.double(), bias.double())
    exact = ACTIVATIONS[activation](product) + residual.double()
    own = {torch.float32: "f32", torch.bfloat16: "bf16", torch.float16: "f16"}[dtype]
    layer = ax.PackedLinear(weight, bias=bias)
    assert layer.dtype == own
    for given in (
        ax.linear(x, weight, bias, activation=activation, residual=residual),
        layer(x, activation=activation, residual=residual),
    ):
        eps = torch.finfo(dtype).eps
        torch.testing.assert_close(given.double(), exact, rtol=eps, atol=1e-4)


@each_type
@each_dtype
def test_packed_linear(packed: str, dtype: torch.dtype) -> None:
    weight, bias = torch.randn(13, 40, dtype=dtype), torch.randn(13, dtype=dtype)
    x, residual = torch.randn(2, 3, 40, dtype=dtype), torch.randn(2, 3, 13, dtype=dtype)
    layer = ax.PackedLinear(weight, packed, bias)
    assert isinstance(layer.bias, torch.Tensor)
    assert torch.equal(layer.bias, bias.float())
    values, scales = layer.unpack()
    assert isinstance(values, torch.Tensor)
    assert (scales is not None) == (packed == "int8")
    own = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}.get(packed)
    if own:
        assert torch.equal(values, weight.to(own))
    else:
        steps = (values * scales[:, None] - weight.float()).abs() / scales[:, None]
        assert steps.max() < 0.501
    expected = OPS.packed_linear(x, pack_weight(weight, packed), 13, bias, residual, 2)
    assert torch.equal(layer(x, activation="gelu", residual=residual), expected)
    out = torch.empty(2, 3, 13, dtype=dtype)
    assert layer(x, activation="gelu", residual=residual, out=out) is out
    assert torch.equal(out, expected)
    assert layer(x, activation="gelu", residual=residual, out=residual) is residual
    assert torch.equal(residual, expected)


@each_type
def test_a_layer_takes_both_kinds(packed: str, tmp_path: Path) -> None:
    weight, x = torch.randn(13, 40), torch.randn(2, 40)
    of_torch = ax.PackedLinear(weight, packed, weight[:, 0])
    of_numpy = ax.PackedLinear(weight.numpy(), packed, weight[:, 0].numpy())
    expected = of_torch(x)
    layers = [of_torch, of_numpy, copy.deepcopy(of_torch), pickle.loads(pickle.dumps(of_numpy))]
    try:
        import safetensors  # noqa: F401
    except ImportError:
        pass
    else:
        of_torch.save(tmp_path / "layer")
        layers.append(ax.PackedLinear.load(tmp_path / "layer"))
    for layer in layers:
        assert torch.equal(layer(x), expected)
        assert (layer(x.numpy()) == expected.numpy()).all()
    assert isinstance(layers[2].bias, torch.Tensor)
    assert not isinstance(layers[3].bias, torch.Tensor)


@each_type
def test_packing_is_an_operator(packed: str) -> None:
    number = PACKED_TYPES.index(packed)
    weight = torch.randn(19, 70, dtype=torch.bfloat16)
    memory = torch.from_numpy(_core.aligned_empty(_core.packed_nbytes(number, 19, 70)))
    assert OPS.pack_linear(weight, memory, number) is None
    x = torch.randn(2, 70)
    expected = OPS.packed_linear(x, pack_weight(weight, packed), 19)
    assert torch.equal(OPS.packed_linear(x, memory, 19), expected)
    assert torch.equal(OPS.packed_linear(x, memory.clone(), 19), expected)
    # Not its data: each packing has a number of its own within.
    torch.library.opcheck(
        OPS.pack_linear.default,
        (weight, memory, number),
        test_utils=("test_schema", "test_autograd_registration", "test_faketensor"),
    )


def test_parameters_are_weights_like_any_other() -> None:
    layer = torch.nn.Linear(40, 13)
    x = torch.randn(2, 40)
    packed = ax.PackedLinear(layer.weight, bias=layer.bias)
    with torch.inference_mode():
        torch.testing.assert_close(packed(x), layer(x))
    assert not packed(x).requires_grad


def test_sizes_may_be_dynamic() -> None:
    torch.compiler.reset()
    packed = pack_weight(torch.randn(16, 40), "bf16")

    def products(x: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return OPS.matmul(OPS.packed_linear(x, packed, 16, None, None, 1), b)

    backend = os.environ.get("TEST_TORCH_BACKEND", "inductor")
    compiled = torch.compile(products, fullgraph=True, dynamic=True, backend=backend)
    for rows, cols in ((2, 16), (5, 24), (7, 64)):
        x, b = torch.randn(rows, 40), torch.randn(16, cols)
        assert torch.equal(compiled(x, b), products(x, b))


X, WEIGHT = torch.ones(2, 4), torch.ones(3, 4)


def packed_linear(**changes: Any) -> Any:
    arguments = {"x": X, "packed": pack_weight(WEIGHT, "f32"), "out_features": 3}
    return OPS.packed_linear(**arguments | changes)


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("a", lambda: OPS.matmul(X.double(), X.double())),
        ("b", lambda: OPS.matmul(X, X)),
        ("b", lambda: OPS.matmul(X, X.half().t())),
        ("out", lambda: OPS.matmul_out(torch.ones(2, 3), X, X.t())),
        ("out", lambda: OPS.matmul_out(torch.ones(3, 2).t(), X, WEIGHT.t())),
        ("weight", lambda: OPS.linear(X, X[0])),
        ("weight", lambda: OPS.linear(X, torch.ones(3, 5))),
        ("bias", lambda: OPS.linear(X, WEIGHT, torch.ones(4))),
        ("bias", lambda: OPS.linear(X, WEIGHT, torch.ones(3, dtype=torch.int32))),
        ("residual", lambda: OPS.linear(X, WEIGHT, None, torch.ones(3))),
        ("activation", lambda: OPS.linear(X, WEIGHT, None, None, 4)),
        ("activation", lambda: OPS.linear(X, WEIGHT, None, None, -1)),
        ("out", lambda: OPS.linear_out(X, X, torch.ones(4, 4))),
        ("x", lambda: packed_linear(x=torch.ones(2, 5))),
        ("packed", lambda: packed_linear(packed=WEIGHT)),
        ("packed", lambda: packed_linear(packed=torch.zeros(512, dtype=torch.uint8))),
        ("packed", lambda: packed_linear(packed=pack_weight(WEIGHT)[:-64])),
        ("packed", lambda: packed_linear(packed=pack_weight(WEIGHT)[None])),
        ("out_features", lambda: packed_linear(out_features=4)),
        ("bias", lambda: packed_linear(bias=torch.ones(4))),
        ("bias", lambda: packed_linear(bias=torch.ones(3).half())),
        ("residual", lambda: packed_linear(residual=torch.ones(2, 4))),
        ("type", lambda: OPS.pack_linear(WEIGHT, pack_weight(WEIGHT), 4)),
        ("packed", lambda: OPS.pack_linear(WEIGHT, pack_weight(WEIGHT)[64:], 0)),
        ("weight", lambda: pack_weight(X[0])),
        ("weight", lambda: pack_weight(WEIGHT.double(), "f32")),
        ("dtype", lambda: pack_weight(WEIGHT, "fp8")),
    ],
)
def test_errors_name_the_argument(name: str, call: Any) -> None:
    with pytest.raises(ValueError, match=f"^{name}: expected .*, got "):
        call()


def test_errors_of_packed_linear_name_the_argument() -> None:
    with pytest.raises(TypeError, match=r"^bias: expected a torch tensor, as weight is, got list"):
        ax.PackedLinear(WEIGHT, bias=[1.0] * 3)
    with pytest.raises(TypeError, match=r"^bias: expected the dtype of weight, torch.float32, or"):
        ax.PackedLinear(WEIGHT, bias=torch.ones(3).half())
    with pytest.raises(ValueError, match=r"^bias: expected shape \[3\], got \[4\]"):
        ax.PackedLinear(WEIGHT, bias=torch.ones(4))
    with pytest.raises(TypeError, match=r"^weight: expected float32, float16 or bfloat16, got"):
        ax.PackedLinear(WEIGHT.double())

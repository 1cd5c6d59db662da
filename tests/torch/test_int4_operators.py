# SPDX-License-Identifier: Apache-2.0
"""4-bit weights as tensors: what arrays give, to the last bit."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from cases import DTYPES, OPS

import capibara_axion as ax
from capibara_axion.torch_ops import pack_weight

each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


@each_dtype
@pytest.mark.parametrize("method", ["w4a8", "w4a16"])
def test_tensors_are_like_arrays(dtype: torch.dtype, method: str) -> None:
    x, weight = torch.randn(7, 192, dtype=dtype), torch.randn(19, 192)
    bias, residual = torch.randn(19), torch.randn(7, 19, dtype=dtype)
    of_torch = ax.PackedLinear(weight, "int4", bias, group_size=64, method=method)
    of_numpy = ax.PackedLinear(weight.numpy(), "int4", bias.numpy(), group_size=64, method=method)
    expected = of_torch(x, activation="silu", residual=residual)
    assert expected.dtype == dtype
    if dtype != torch.bfloat16:
        given = of_numpy(x.numpy(), activation="silu", residual=residual.numpy())
        assert (given == expected.numpy()).all()
    out = torch.empty(7, 19, dtype=dtype)
    again = copy.deepcopy(of_torch)
    assert again(x, activation="silu", residual=residual, out=out) is out
    assert torch.equal(out, expected)
    assert torch.equal(pickle.loads(pickle.dumps(of_numpy))(x), of_torch(x))
    packed = pack_weight(weight, "int4", group_size=64, method=method)
    assert torch.equal(OPS.packed_linear(x, packed, 19, bias), of_torch(x))


@each_dtype
def test_from_tensors_of_a_checkpoint(dtype: torch.dtype) -> None:
    codes = torch.randint(0, 16, (9, 128), dtype=torch.uint8)
    zeros = torch.randint(0, 17, (9, 4), dtype=torch.uint8)
    scales = torch.rand(9, 4).to(dtype)
    layer = ax.PackedLinear.from_int4(codes, scales, zeros)
    for tensor, expected in zip(layer.unpack_int4(), (codes, scales.float(), zeros), strict=True):
        assert torch.equal(tensor, expected)
    # Views and one of each kind, too.
    turned = ax.PackedLinear.from_int4(codes.t().contiguous().t().numpy(), scales, zeros.numpy())
    x = torch.randn(3, 128)
    assert torch.equal(turned(x), layer(x))
    with pytest.raises(TypeError, match="scales: expected float32, float16 or bfloat16"):
        ax.PackedLinear.from_int4(codes, zeros)
    with pytest.raises(ValueError, match="codes: expected a tensor on the CPU"):
        ax.PackedLinear.from_int4(codes.to("meta"), scales)


@each_dtype
def test_quantising_is_an_operator(dtype: torch.dtype) -> None:
    weight = torch.randn(5, 96, dtype=dtype)
    parts = (
        torch.empty(5, 96, dtype=torch.uint8),
        torch.empty(5, 3),
        torch.empty(5, 3, dtype=torch.uint8),
    )
    torch.library.opcheck(
        OPS.quantize_int4.default,
        (weight, 32, True, *parts),
        test_utils=("test_schema", "test_autograd_registration", "test_faketensor"),
    )
    for symmetric in (False, True):
        assert OPS.quantize_int4(weight, 32, symmetric, *parts) is None
        codes, scales, zeros = parts
        offsets, steps = (values.repeat_interleave(32, 1).float() for values in (zeros, scales))
        error = ((codes - offsets) * steps - weight.float()).abs()
        assert (error <= 0.50001 * steps).all()
        assert not symmetric or (zeros == 8).all()
    with pytest.raises(ValueError, match="group_size: expected"):
        OPS.quantize_int4(weight, 64, False, *parts)
    with pytest.raises(ValueError, match="scales: expected shape"):
        OPS.quantize_int4(weight, 32, False, parts[0], parts[1][:4], parts[2])

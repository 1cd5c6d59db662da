# SPDX-License-Identifier: Apache-2.0
"""Torch tensors give the bits that NumPy arrays give, and those are what torch itself computes."""

from __future__ import annotations

import copy
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import pytest
import tolerances
import torch
import torch.nn.functional as F
from cases import OPS
from operators import BFLOAT16, DTYPES, OPERATORS, VARIANTS, Variant
from products import PRODUCTS

each_variant = pytest.mark.parametrize("variant", VARIANTS, ids=str)
each_variant_and_product = pytest.mark.parametrize("variant", [*VARIANTS, *PRODUCTS], ids=str)
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: dtype.name)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(7)


def to_torch(value: Any) -> Any:
    """The tensor on a copy of an array; anything else as it is."""
    if not isinstance(value, np.ndarray):
        return value
    if value.size == 0:  # NumPy's have strides that a torch tensor never has
        return torch.empty(value.shape, dtype=getattr(torch, value.dtype.name))
    if value.dtype == BFLOAT16:
        return torch.from_numpy(value.view(np.int16).copy()).view(torch.bfloat16)
    return torch.from_numpy(value.copy())


def to_numpy(tensor: torch.Tensor) -> np.ndarray:
    if tensor.dtype == torch.bfloat16:
        return tensor.contiguous().view(torch.int16).numpy().view(BFLOAT16)
    return tensor.contiguous().numpy()


def to_tensors(arguments: dict[str, Any]) -> dict[str, Any]:
    return {name: to_torch(value) for name, value in arguments.items()}


def in_plain_torch(op: str, a: dict[str, Any]) -> tuple[torch.Tensor, ...]:
    """The operator by torch's own functions, in float64; `a`: the arguments."""
    dtype = a.get("x", torch.empty(0)).dtype
    a = {
        name: value.double() if torch.is_tensor(value) and value.is_floating_point() else value
        for name, value in a.items()
    }
    match op:
        case "rms_norm":
            return (rms_norm(a["x"], a["weight"], a["eps"]),)
        case "fused_add_rms_norm":
            # Two 16-bit values, or two of 32 bits, have a sum that float32 rounds innocuously.
            total = (a["x"] + a["residual"]).float().to(dtype).double()
            return rms_norm(total, a["weight"], a["eps"]), total
        case "layer_norm":
            return (F.layer_norm(a["x"], a["x"].shape[-1:], eps=a["eps"]) * a["weight"],)
        case "softmax":
            return (softmax(a["x"], a["scale"], a["lengths"]),)
        case "rope":
            return rope(**a)
        case _:
            gate, up = a["gate_up"].chunk(2, -1) if a["up"] is None else (a["gate_up"], a["up"])
            return (ACTIVATIONS[op](gate) * up,)


ACTIVATIONS = {
    "silu_and_mul": F.silu,
    "gelu_and_mul": F.gelu,
    "gelu_tanh_and_mul": partial(F.gelu, approximate="tanh"),
}


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    return F.rms_norm(x, x.shape[-1:], weight, eps)


def softmax(x: torch.Tensor, scale: float, lengths: torch.Tensor | None) -> torch.Tensor:
    if lengths is None:
        return torch.softmax(x * scale, -1)
    outside = torch.arange(x.shape[-1]) >= lengths[..., None]
    return torch.softmax((x * scale).masked_fill(outside, -torch.inf), -1).nan_to_num(0.0)


def rope(
    q: torch.Tensor,
    k: torch.Tensor | None,
    cos_sin_cache: torch.Tensor,
    positions: torch.Tensor,
    head_dim: int | None,
    neox: bool,
) -> tuple[torch.Tensor, ...]:
    cos, sin = (t[:, None] for t in cos_sin_cache[positions].chunk(2, -1))
    rotary_dim = cos_sin_cache.shape[-1]

    def turn(x: torch.Tensor) -> torch.Tensor:
        heads = x.view(len(positions), -1, head_dim or x.shape[-1])
        part, rest = heads[..., :rotary_dim], heads[..., rotary_dim:]
        pairs = part.chunk(2, -1) if neox else (part[..., ::2], part[..., 1::2])
        first, second = pairs[0] * cos - pairs[1] * sin, pairs[1] * cos + pairs[0] * sin
        turned = (
            torch.cat((first, second), -1) if neox else torch.stack((first, second), -1).flatten(-2)
        )
        return torch.cat((turned, rest), -1).view(x.shape)

    return tuple(turn(x) for x in (q, k) if x is not None)


@each_variant_and_product
@each_dtype
def test_same_bits_as_numpy(rng: np.random.Generator, variant: Variant, dtype: np.dtype) -> None:
    for rows, cols in ((3, 1), (4, 37), (2, 64), (0, 5), (2, 0)):
        arguments = variant.make(rng, rows, cols, dtype)
        from_torch = variant.run(to_tensors(arguments))
        from_numpy = variant.run(arguments)
        for given, wanted in zip(from_torch, from_numpy, strict=True):
            assert isinstance(given, torch.Tensor)
            assert to_numpy(given).dtype == wanted.dtype
            assert to_numpy(given).tobytes() == wanted.tobytes(), f"{rows}x{cols}"


@each_variant
@each_dtype
def test_as_torch_itself(rng: np.random.Generator, variant: Variant, dtype: np.dtype) -> None:
    """Within the bounds of tests/python/tolerances.py of what torch computes in float64.

    Torch's formulas take 1 + tanh and 1 + erf, which cancel below zero: a few float64 roundings of
    the largest result more.
    """
    arguments = variant.make(rng, 4, 70, dtype)
    bounds = [bound for _, bound in variant.expect(arguments)]
    exact = in_plain_torch(variant.op, to_tensors(arguments))
    results = variant.run(to_tensors(arguments))
    for given, wanted, bound in zip(results, exact, bounds, strict=True):
        of_torch = 8 * 2.0**-53 * float(wanted.abs().max())
        tolerances.assert_within(to_numpy(given), wanted.numpy(), bound + of_torch, str(variant))


LAYOUTS = {
    "columns of a wider tensor": lambda t: torch.cat((t, t), -1)[..., : t.shape[-1]],
    "every second row": lambda t: torch.stack((t, t), 1).flatten(0, 1)[::2],
    "every second column": lambda t: torch.stack((t, t), -1).flatten(-2)[..., ::2],
    "columns first": lambda t: t.transpose(-1, 0).contiguous().transpose(-1, 0),
    "expanded": lambda t: t[:1].expand(t.shape),
    "offset": lambda t: torch.cat((t.flatten()[:1], t.flatten()))[1:].view(t.shape),
}


@pytest.mark.parametrize("operator", [*OPERATORS, *PRODUCTS], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_strides(rng: np.random.Generator, operator: Variant, layout: str) -> None:
    tensors = to_tensors(operator.make(rng, 4, 24, BFLOAT16))
    for name, value in tensors.items():
        if not isinstance(value, torch.Tensor):
            continue
        moved = LAYOUTS[layout](value)
        dense = copy.deepcopy(tensors) | {name: moved.contiguous().clone()}
        expected = operator.run(dense)
        strided = copy.deepcopy(tensors) | {name: moved}
        if name in operator.in_place and layout in (
            "every second column",
            "columns first",
            "expanded",
        ):
            with pytest.raises(ValueError, match=f"^{name}: expected"):
                operator.run(strided)
            continue
        for given, wanted in zip(operator.run(strided), expected, strict=True):
            assert torch.equal(given, wanted), name


@each_variant_and_product
def test_from_many_threads(variant: Variant) -> None:
    calls = [variant.make(np.random.default_rng(i), 32, 300, BFLOAT16) for i in range(8)]
    tensors = [to_tensors(arguments) for arguments in calls]
    expected = [variant.run(copy.deepcopy(each)) for each in tensors]
    with ThreadPoolExecutor(4) as pool:
        for given, wanted in zip(pool.map(variant.run, tensors), expected, strict=True):
            assert all(map(torch.equal, given, wanted))


def test_memory_is_shared_with_numpy() -> None:
    array = np.ones((2, 8), np.float32)
    tensor = torch.from_numpy(array)
    OPS.rms_norm_out(tensor, 2 * torch.ones(2, 8), torch.full((8,), 3.0), 0.0)
    assert (array == 3).all()


def test_sizes_may_be_dynamic() -> None:
    torch.compiler.reset()

    @torch.compile(fullgraph=True, dynamic=True)
    def function(gate_up: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return OPS.rms_norm(OPS.silu_and_mul(gate_up, None), weight, 1e-6)

    for rows, cols in ((2, 16), (5, 24), (7, 64)):
        gate_up, weight = torch.randn(rows, 2 * cols), torch.randn(cols)
        wanted = OPS.rms_norm(OPS.silu_and_mul(gate_up, None), weight, 1e-6)
        assert torch.equal(function(gate_up, weight), wanted)


def test_without_gradients() -> None:
    """Under no_grad and inference_mode parameters are weights like any other; otherwise the result
    claims a gradient, and backward warns that there is none."""
    x, weight = torch.randn(2, 8), torch.nn.Parameter(torch.randn(8))
    wanted = OPS.rms_norm(x, weight.detach(), 1e-6)
    for context in (torch.no_grad(), torch.inference_mode()):
        with context:
            given = OPS.rms_norm(x, weight, 1e-6)
            assert torch.equal(given, wanted)
            assert not given.requires_grad
    given = OPS.rms_norm(x, weight, 1e-6)
    assert torch.equal(given, wanted)
    with pytest.warns(UserWarning, match="autograd kernel was not registered"):
        given.sum().backward()
    assert weight.grad is None


@each_variant_and_product
def test_tensors_on_another_device_are_refused(rng: np.random.Generator, variant: Variant) -> None:
    """One meta tensor among CPU ones must not turn the call into a fake."""
    tensors = to_tensors(variant.make(rng, 2, 8, BFLOAT16))
    names = [name for name, value in tensors.items() if isinstance(value, torch.Tensor)]
    for name in names:
        if len(names) > 1:
            with pytest.raises(ValueError, match="one device"):
                variant.run(tensors | {name: tensors[name].to("meta")})

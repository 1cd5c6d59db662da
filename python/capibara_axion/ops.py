# SPDX-License-Identifier: Apache-2.0
"""The operators, on NumPy arrays and torch tensors.

Values are float32, float16 or bfloat16 (for NumPy, the `ml_dtypes.bfloat16` type); computation is
in float32, and results are rounded to nearest even once. Rows are contiguous in the last
dimension; the strides of the leading ones are free. An input whose layout no kernel can follow is
copied first; an argument that is written in place, or `out`, is refused with a ValueError.

All operators release the GIL, use up to `get_num_threads()` threads where the work is worth it,
and give the same result for every number of threads. `capibara_axion.reference` holds readable
NumPy versions of each.

Every operator raises TypeError for an argument of a wrong type or dtype and ValueError for a wrong
shape, value or layout; the message names the argument. On torch tensors a wrong dtype is a
ValueError too, and what is no tensor at all a RuntimeError of torch's dispatcher.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec
from operator import index
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from capibara_axion import _core

# A NumPy array or a torch tensor; all arguments of a call are of one kind.
Array = TypeVar("Array", bound=Any)

_INT32_MAX = np.iinfo(np.int32).max


def _share_openmp() -> None:
    """Has threads come from the OpenMP runtime of an installed torch, should it be imported later.

    Its wheels may bring one under a name of its own, and two runtimes would be two sets of threads.
    """
    try:
        spec = find_spec("torch")
    except ValueError:  # a stand-in without a specification
        return
    if spec is None or spec.origin is None:
        return
    package = Path(spec.origin).parent
    for folder in (package / "lib", package.with_name("torch.libs")):
        for path in sorted(folder.glob("libgomp*.so*")):
            _core.load_openmp_from(str(path))
            return


_share_openmp()


def _torch_ops(x: Any) -> Any:
    """`torch.ops.capibara_axion` if x is a torch tensor, else None. Never imports torch."""
    torch = sys.modules.get("torch")
    if torch is None or not isinstance(x, torch.Tensor):
        return None
    if "capibara_axion.torch_ops" not in sys.modules:
        import capibara_axion.torch_ops  # noqa: F401  registers the operators
    return torch.ops.capibara_axion


def rms_norm(x: Array, weight: Array, eps: float = 1e-6, out: Array | None = None) -> Array:
    """RMSNorm: `x / sqrt(mean(x^2) + eps) * weight` over the last dimension.

    Zhang and Sennrich, "Root Mean Square Layer Normalization" (2019).

    Args:
        x: `[..., H]`.
        weight: `[H]`, in x's dtype or float32.
        eps: added to the mean square; not negative.
        out: `[..., H]` in x's dtype, may be x itself; a new array if None.

    Returns:
        out.
    """
    if (ops := _torch_ops(x)) is None:
        return _core.rms_norm(x, weight, eps, out)
    if out is None:
        return ops.rms_norm(x, weight, eps)
    ops.rms_norm_out(out, x, weight, eps)
    return out


def fused_add_rms_norm(
    x: Array, residual: Array, weight: Array, eps: float = 1e-6
) -> tuple[Array, Array]:
    """`residual += x`, then `x = rms_norm(residual)`, both in place, in one pass over memory.

    The sum is rounded to the arrays' dtype before it is normalised, as two separate operators
    would.

    Args:
        x: `[..., H]`, overwritten with the normalised sum.
        residual: `[..., H]` in x's dtype, overwritten with the sum.
        weight: `[H]`, in x's dtype or float32.
        eps: added to the mean square; not negative.

    Returns:
        (x, residual), the same objects.
    """
    if (ops := _torch_ops(x)) is None:
        _core.fused_add_rms_norm(x, residual, weight, eps)
    else:
        ops.fused_add_rms_norm(x, residual, weight, eps)
    return x, residual


def layer_norm(x: Array, weight: Array, eps: float = 1e-5, out: Array | None = None) -> Array:
    """LayerNorm without bias: `(x - mean) / sqrt(variance + eps) * weight` over the last dimension.

    Ba, Kiros and Hinton, "Layer Normalization" (2016), as Cohere's models use it.

    Args:
        x: `[..., H]`.
        weight: `[H]`, or `[heads, H]` for x `[..., heads, H]`; in x's dtype or float32.
        eps: added to the variance; not negative.
        out: `[..., H]` in x's dtype, may be x itself; a new array if None.

    Returns:
        out.
    """
    if (ops := _torch_ops(x)) is None:
        return _core.layer_norm(x, weight, eps, out)
    if out is None:
        return ops.layer_norm(x, weight, eps)
    ops.layer_norm_out(out, x, weight, eps)
    return out


def _numpy_lengths(lengths: Any, rows: tuple[int, ...]) -> np.ndarray:
    values = np.asarray(lengths)
    if values.dtype.kind not in "iu":
        raise TypeError(f"lengths: expected integers, got {values.dtype}")
    # Clipped, a length that int32 cannot hold stays out of range instead of wrapping into it.
    values = np.clip(values, -1, _INT32_MAX).astype(np.int32)
    return np.array(np.broadcast_to(values, rows)) if values.ndim == 0 else values


def _torch_lengths(lengths: Any, x: Any) -> Any:
    torch = sys.modules["torch"]
    if not isinstance(lengths, torch.Tensor):
        lengths = torch.from_numpy(_numpy_lengths(lengths, tuple(x.shape[:-1])))
    if lengths.dtype.is_floating_point or lengths.dtype == torch.bool:
        raise TypeError(f"lengths: expected integers, got {lengths.dtype}")
    if lengths.dtype != torch.int32:
        lengths = lengths.clamp(-1, _INT32_MAX).int()
    return lengths.expand(x.shape[:-1]) if lengths.ndim == 0 else lengths


def softmax(x: Array, scale: float = 1.0, lengths: Any = None, out: Array | None = None) -> Array:
    """`exp(scale x) / sum(exp(scale x))` over the last dimension, by way of its maximum.

    Args:
        x: `[..., N]`.
        scale: a finite factor, as attention's `1 / sqrt(head_dim)`.
        lengths: how many leading elements of each row count, integers from 0 to N of shape
            `[...]`, or one for all rows; the rest become zero, and a row of length 0 is all zeros.
            None: all N.
        out: `[..., N]` in x's dtype, may be x itself; a new array if None.

    Returns:
        out. A row that holds NaN or +infinity, or only -infinity, is NaN. Terms below 2^-126 of
        a row's largest may be zero.
    """
    if (ops := _torch_ops(x)) is None:
        if lengths is not None:
            lengths = _numpy_lengths(lengths, np.shape(x)[:-1])
        return _core.softmax(x, scale, lengths, out)
    if lengths is not None:
        lengths = _torch_lengths(lengths, x)
    if out is None:
        return ops.softmax(x, scale, lengths)
    ops.softmax_out(out, x, scale, lengths)
    return out


def silu_and_mul(gate_up: Array, up: Array | None = None, out: Array | None = None) -> Array:
    """SwiGLU's activation, fused: `gate / (1 + exp(-gate)) * up`, in one pass over memory.

    Shazeer, "GLU Variants Improve Transformer" (2020).

    Args:
        gate_up: `[..., 2 I]`, gate then up; or gate alone, `[..., I]`, if `up` is given.
        up: `[..., I]`, or None.
        out: `[..., I]` in the same dtype, may be gate or up themselves; a new array if None.

    Returns:
        out.
    """
    return _gated("silu_and_mul", gate_up, up, out)


def gelu_and_mul(
    gate_up: Array,
    up: Array | None = None,
    approximate: str = "none",
    out: Array | None = None,
) -> Array:
    """GeGLU's activation, fused: `gelu(gate) * up`, in one pass over memory.

    Hendrycks and Gimpel, "Gaussian Error Linear Units" (2016).

    Args:
        gate_up: `[..., 2 I]`, gate then up; or gate alone, `[..., I]`, if `up` is given.
        up: `[..., I]`, or None.
        approximate: "none" for `x Phi(x)` by erf, "tanh" for
            `0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))`.
        out: `[..., I]` in the same dtype, may be gate or up themselves; a new array if None.

    Returns:
        out.
    """
    if approximate not in ("none", "tanh"):
        raise ValueError(f"approximate: expected 'none' or 'tanh', got {approximate!r}")
    return _gated(
        "gelu_and_mul" if approximate == "none" else "gelu_tanh_and_mul", gate_up, up, out
    )


def _gated(name: str, gate_up: Any, up: Any, out: Any) -> Any:
    if (ops := _torch_ops(gate_up)) is None:
        return getattr(_core, name)(gate_up, up, out)
    if out is None:
        return getattr(ops, name)(gate_up, up)
    getattr(ops, name + "_out")(out, gate_up, up)
    return out


def rope(
    q: Array,
    k: Array | None,
    cos_sin_cache: Array,
    positions: Array,
    *,
    head_dim: int | None = None,
    neox: bool = True,
) -> None:
    """Rotary position embedding of q and k, in place.

    Su et al., "RoFormer: Enhanced Transformer with Rotary Position Embedding" (2021). The first
    rotary_dim elements of each head turn, the others stay.

    Args:
        q: `[tokens, heads, head_dim]`, or `[tokens, heads * head_dim]` with `head_dim` given; the
            strides of tokens and heads are free, as those of a slice of a fused qkv.
        k: likewise, with its own number of heads; None to turn q alone.
        cos_sin_cache: `[max_position, rotary_dim]`: for each position the cosines of all
            rotary_dim / 2 angles, then their sines; in q's dtype or float32.
        positions: `[tokens]`, int64 or int32, each less than max_position.
        head_dim: needed where q or k are two-dimensional.
        neox: True pairs element i with i + rotary_dim / 2 (GPT-NeoX, Llama); False pairs 2 i with
            2 i + 1 (GPT-J, Cohere).
    """
    size = 0 if head_dim is None else _positive_int("head_dim", head_dim)
    if (ops := _torch_ops(q)) is None:
        _core.rope(q, k, cos_sin_cache, positions, size, bool(neox))
    else:
        ops.rope(positions, q, k, cos_sin_cache, size, neox)


def matmul(a: Array, b: Array, out: Array | None = None) -> Array:
    """The matrix product `a @ b`, with NumPy's rules for vectors and leading dimensions.

    Products are taken of the operands' own dtype and summed in float32, in blocks that stay in the
    caches: K. Goto and R. van de Geijn, "Anatomy of High-Performance Matrix Multiplication" (2008);
    F. Van Zee and R. van de Geijn, "BLIS: A Framework for Rapidly Instantiating BLAS
    Functionality" (2015). Each float32 sum has up to K roundings. Where a CPU has dot products of
    bfloat16 (BFMMLA, BFDOT, VDPBF16PS), these round each sum of two products, and take subnormal
    operands and results as zero; elsewhere bfloat16 and float16 products are exact. The result is
    rounded once.

    Args:
        a: `[..., M, K]`, or `[K]`.
        b: `[..., K, N]` in a's dtype, or `[K]`. Row-major matrices and transposes of such (the
            `.T` of a weight `[N, K]`) are read where they lie; other layouts are copied first.
            Leading dimensions broadcast.
        out: `[..., M, N]` in a's dtype, apart from a and b; a new array if None.

    Returns:
        out. `[..., N]` if a is a vector, `[..., M]` if b is, and without dimensions if both are.
    """
    if (ops := _torch_ops(a)) is None:
        return _core.matmul(a, b, out)
    if out is None:
        return ops.matmul(a, b)
    ops.matmul_out(out, a, b)
    return out


# Numbers of csrc/kernels/gemm/epilogue.h.
_ACTIVATIONS = {None: 0, "silu": 1, "gelu": 2, "gelu_tanh": 3}


def _activation_number(activation: str | None) -> int:
    try:
        return _ACTIVATIONS[activation]
    except (KeyError, TypeError):
        known = ", ".join(map(repr, _ACTIVATIONS))
        raise ValueError(f"activation: expected one of {known}, got {activation!r}") from None


def linear(
    x: Array,
    weight: Array,
    bias: Array | None = None,
    *,
    activation: str | None = None,
    residual: Array | None = None,
    out: Array | None = None,
) -> Array:
    """A linear layer in one pass over its result: `activation(x @ weight.T + bias) + residual`.

    The product is that of `matmul`; bias, activation and residual are applied in float32 before
    the result is rounded, once. `PackedLinear` is faster for a weight that is used many times, and
    takes weights of other types than x.

    Args:
        x: `[..., K]`. Rows at one stride are read where they lie; others are copied first.
        weight: `[N, K]` in x's dtype, row-major or the transpose of a row-major matrix.
        bias: `[N]`, in x's dtype or float32; or None.
        activation: None, "silu" for `x / (1 + exp(-x))`, "gelu" for `x Phi(x)` by erf, "gelu_tanh"
            for `0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))`.
        residual: `[..., N]` in x's dtype, added last; or None.
        out: `[..., N]` in x's dtype, with rows at one stride; may be the residual itself, not x or
            weight. A new array if None.

    Returns:
        out.
    """
    number = _activation_number(activation)
    if (ops := _torch_ops(x)) is None:
        return _core.linear(x, weight, bias, residual, number, out)
    if out is None:
        return ops.linear(x, weight, bias, residual, number)
    ops.linear_out(out, x, weight, bias, residual, number)
    return out


def _positive_int(name: str, value: Any) -> int:
    try:
        number = index(value)
    except TypeError:
        given = type(value).__name__
        raise TypeError(f"{name}: expected an integer, got {given}") from None
    if not 0 < number <= _INT32_MAX:
        raise ValueError(f"{name}: expected a positive number, got {value}")
    return number


def get_num_threads() -> int:
    """Threads that a call may use: what `set_num_threads` or `CAPIBARA_AXION_NUM_THREADS` said,
    else the OpenMP runtime's setting, which `torch.set_num_threads` changes too."""
    return _core.num_threads()


def set_num_threads(threads: int) -> None:
    """Lets a call use up to `threads` threads (1 to 4096); 0 returns to OpenMP's own setting."""
    _core.set_num_threads(threads)

# SPDX-License-Identifier: Apache-2.0
"""A linear layer whose weight is packed once, for many calls."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from capibara_axion import _core, packed_file, packed_int4
from capibara_axion.ops import Array, _activation_number, _torch_ops

# In the order of GemmType in csrc/kernels/gemm/gemm.h.
_TYPES = ("f32", "bf16", "f16", "int8", "int4")
_OTHER_NAMES = {"float32": "f32", "bfloat16": "bf16", "float16": "f16"}
_INT8, _INT4 = _TYPES.index("int8"), _TYPES.index("int4")


def type_number(dtype: str | None, own: str) -> int:
    """The native module's number of a product's type, `own` being the weight's."""
    if dtype is not None and not isinstance(dtype, str):
        raise TypeError(f"dtype: expected a string, got {type(dtype).__name__}")
    name = own if dtype is None else dtype
    name = _OTHER_NAMES.get(name, name)
    if name in _TYPES and (dtype is not None or not name.startswith("int")):
        return _TYPES.index(name)
    if dtype is None:
        raise TypeError(f"weight: expected float32, float16 or bfloat16, got {own}")
    known = ", ".join(map(repr, _TYPES))
    raise ValueError(f"dtype: expected one of {known}, got {dtype!r}")


def empty_packed(number: int, shape: Sequence[int]) -> np.ndarray:
    """Memory for a weight of this shape, packed for products of type `number`."""
    _expect_matrix(shape)
    return _core.aligned_empty(_core.packed_nbytes(number, *shape))


def _expect_matrix(shape: Sequence[int]) -> None:
    if len(shape) != 2:
        text = ", ".join(map(str, shape))
        raise ValueError(f"weight: expected shape [out_features, in_features], got [{text}]")


class PackedLinear:
    """`activation(x @ weight.T + bias) + residual`, the weight packed once and used many times.

    Packing brings the weight into the order in which the CPU's instructions read it, and into the
    type that products are taken of: float32, bfloat16, float16, 8- or 4-bit integers. The layout is
    that of the instruction set that runs here; `save` and pickle write the weight itself, which any
    machine can load. The original weight is not kept.

    A layer takes NumPy arrays and torch tensors, whichever its weight was.

    Args:
        weight: `[N, K]`, float32, float16 or bfloat16: out_features x in_features.
        dtype: "f32", "bf16", "f16" (or "float32", "bfloat16", "float16"), "int8" or "int4"; the
            weight's own if None. Rounded to nearest even.
        bias: `[N]`, in the weight's dtype or float32; or None. Kept in float32.
        group_size: of int4 alone: 32, 64, 128 or K; divides K.
        symmetric: of int4 alone: all zero points are 8, and -8 to 7 are multiples of a scale.
        method: of int4 alone: "w4a8" or "w4a16", see below.

    Attributes:
        in_features: K.
        out_features: N.
        dtype: "f32", "bf16", "f16", "int8" or "int4".
        group_size, method: of int4; else None.
        bias: `[N]` in float32, of the weight's kind (a NumPy array where it was loaded); or None.
        nbytes: of the packed weight and the bias.

    Raises:
        TypeError: weight or bias are no arrays, or of another dtype.
        ValueError: another shape, an unknown `dtype` or `method`, more than 65536 columns for int8,
            or a `group_size` that does not divide them for int4.

    Numerics. x may have any of the three dtypes, and the result has x's. Before the products x is
    rounded to the packed type where that is narrower and the CPU multiplies in it; elsewhere it is
    taken as it is. Sums are float32, as those of `capibara_axion.matmul`.

    int8. The scheme is that of LLM.int8() without its outliers (T. Dettmers et al., 2022,
    arXiv:2208.07339, "vector-wise"), integer arithmetic as in B. Jacob et al., 2018,
    arXiv:1712.05877: symmetric, without zero points; one scale for each output channel of the
    weight, when it is packed, and one for each token (row of x), at each call:

        sx = max_k |x_k| / 127        qx_k = round(x_k / sx), to nearest even
        sw = max_k |w_k| / 127        qw_k = round(w_k / sw)
        y  = sx sw sum_k qx_k qw_k

    The sum is exact in int32: 127^2 K < 2^31 up to K = 65536. A token that holds NaN or infinity
    gives a row of NaN; so does a channel of the weight, in its column.

    What it costs. Let X and W be the two maxima, x_k = sx qx_k + ex_k, w_k = sw qw_k + ew_k. Then
    |ex_k| <= sx / 2 = X / 254 and |ew_k| <= sw / 2 = W / 254, and as the product of the rounded
    values is x_k w_k - x_k ew_k - ex_k w_k + ex_k ew_k,

        |error of the sum| <= sum_k (|x_k| sw / 2 + |w_k| sx / 2 + sx sw / 4),

    which grows with K. The errors are as often up as down, though: taken as independent and
    uniform, of variance s^2 / 12, they give

        RMS error = sqrt((sw^2 sum_k x_k^2 + sx^2 sum_k w_k^2) / 12),

    which grows with sqrt(K), as the sum of products of independent values itself does. For Gaussian
    x and w whose maxima are Cx and Cw standard deviations (C is about 3.8 for K = 4096) the
    relative RMS error is sqrt((Cx^2 + Cw^2) / 12) / 127: 1.2 %. It is the ratio of maximum to
    standard deviation that counts. A few large features in x, which models from some 6 billion
    parameters on have, leave few of the 255 steps to all others: beside a feature of 60 standard
    deviations these have an RMS error of 14 %. Such models need more than this scheme; compare
    their outputs before relying on it.

    int4. Codes of 0 to 15, and for each row of the weight and group of `group_size` columns a
    scale and a zero point (0 to 16), as AWQ (J. Lin et al., 2023, arXiv:2306.00978) and GPTQ (E.
    Frantar et al., 2022, arXiv:2210.17323) have them. `from_int4` takes such weights; a matrix of
    floats is rounded to nearest, at most half a scale away, scale = (max w - min w) / 15 over the
    group and zero, or max |w| / 7.5 if symmetric. The weight is exact in every product:

        x_k = s q_k, q_k integers, s one for each token and group (at most 128 columns of one)
        y   = sum over groups of  s scale (sum_k q_k (code_k - zero))

    The inner sum is exact in int32; the outer one is float32, a fused multiply-add for each group
    in order, so that a token's result is the same bits whatever the instruction set (of those with
    FMA), the number of tokens and that of threads. What is lost is lost in rounding q:

        |error| <= sum_k |w_k| s / 2.

    "w4a8", the default: q has 8 bits, s = max |x| / 127 over the group. Half a step is 1/254 of the
    group's largest activation; of Gaussian values the relative RMS error is 0.7 %, beside the 10 %
    that rounding Gaussian weights to 4 bits has cost before. Groups confine outliers: models for
    which int8 as above is too coarse can do with it.

    "w4a16": q has 16 bits, in two parts of 8 that are multiplied one after the other; s is a power
    of two, at most max |x| / 16286. Half a step is at most 1/32572 of the group's largest, and
    bfloat16 activations down to 1/64 of that are exact. It takes up to twice the instructions of
    "w4a8", and the same bytes. Expanding the weight to bfloat16, as others do, would round it by up
    to 1/512 of itself.
    """

    in_features: int
    out_features: int
    dtype: str
    nbytes: int
    group_size: int | None = None
    method: str | None = None

    def __init__(
        self,
        weight: Any,
        dtype: str | None = None,
        bias: Any = None,
        *,
        group_size: int = packed_int4.DEFAULT_GROUP,
        symmetric: bool = False,
        method: str = packed_int4.DEFAULT_METHOD,
    ) -> None:
        is_torch = _torch_ops(weight) is not None
        if not is_torch and not isinstance(weight, np.ndarray):
            given = type(weight).__name__
            raise TypeError(f"weight: expected a NumPy array or a torch tensor, got {given}")
        own = str(weight.dtype).removeprefix("torch.") if is_torch else weight.dtype.name
        number = type_number(dtype, own)
        numbers = _bias_as_float32(weight, bias, is_torch)
        if number == _INT4:
            _expect_matrix(weight.shape)
            parts = packed_int4.quantize(weight, group_size, symmetric)
            self._set_int4(*parts, method, numbers, is_torch)
            return
        if is_torch:
            from capibara_axion.torch_ops import pack_weight

            packed = pack_weight(weight, dtype).numpy()
        else:
            packed = empty_packed(number, weight.shape)
            _core.pack_linear(weight, packed, number)
        self._set(number, weight.shape, packed, numbers, is_torch)

    @classmethod
    def from_int4(
        cls,
        codes: Any,
        scales: Any,
        zeros: Any = None,
        *,
        bias: Any = None,
        method: str = packed_int4.DEFAULT_METHOD,
    ) -> PackedLinear:
        """A layer of a 4-bit weight, which is kept exactly: value = (code - zero) * scale.

        Args:
            codes: `[N, K]`, uint8, 0 to 15.
            scales: `[N, K / group]`, float32, float16 or bfloat16; groups of 32, 64, 128 or all of
                K neighbours along K.
            zeros: `[N, K / group]`, uint8, 0 to 16; None: 8 everywhere.
            bias: `[N]`, float32, float16 or bfloat16; or None.
            method: "w4a8" or "w4a16".

        Returns:
            A layer of tensors if codes or scales are one, else of arrays.

        Raises:
            TypeError: an argument is no array or tensor, or of another dtype.
            ValueError: shapes that do not fit each other, numbers that are no codes or zero
                points, or an unknown method.
        """
        parts = (
            packed_int4.as_uint8(codes, "codes"),
            packed_int4.as_float32(scales, "scales"),
            None if zeros is None else packed_int4.as_uint8(zeros, "zeros"),
        )
        numbers = None if bias is None else packed_int4.as_float32(bias, "bias").copy()
        if numbers is not None and numbers.shape != parts[0].shape[:1]:
            text = ", ".join(map(str, numbers.shape))
            raise ValueError(f"bias: expected shape [{len(parts[0])}], got [{text}]")
        layer = cls.__new__(cls)
        is_torch = packed_int4.is_tensor(codes) or packed_int4.is_tensor(scales)
        layer._set_int4(*parts, method, numbers, is_torch)
        return layer

    def unpack_int4(self) -> tuple[Any, Any, Any]:
        """The weight as `from_int4` takes it, exactly.

        Returns:
            (codes uint8 `[N, K]`, scales float32 `[N, K / group_size]`, zeros uint8
            `[N, K / group_size]`, of 8 where there were none), of the weight's kind.

        Raises:
            TypeError: the layer's dtype is not int4.
        """
        if self.dtype != "int4":
            raise TypeError(f"unpack_int4: expected a layer of int4, got one of {self.dtype}")
        parts = _core.unpack_int4(self._packed)
        if not self._is_torch:
            return parts
        import torch

        codes, scales, zeros = map(torch.from_numpy, parts)
        return codes, scales, zeros

    def _set_int4(
        self,
        codes: np.ndarray,
        scales: np.ndarray,
        zeros: np.ndarray | None,
        method: str,
        bias: np.ndarray | None,
        is_torch: bool,
    ) -> None:
        packed = packed_int4.pack(codes, scales, zeros, packed_int4.digits_of(method))
        self._set(_INT4, codes.shape, packed, bias, is_torch)
        self.method = method
        groups = scales.shape[1]
        self.group_size = self.in_features // groups if groups else packed_int4.DEFAULT_GROUP

    def _set(
        self,
        number: int,
        shape: Sequence[int],
        packed: np.ndarray,
        bias: np.ndarray | None,
        is_torch: bool,
    ) -> None:
        self.out_features, self.in_features = shape
        self.dtype = _TYPES[number]
        self.nbytes = packed.nbytes + (0 if bias is None else bias.nbytes)
        self._packed, self._bias = packed, bias
        self._is_torch = is_torch
        self._tensors: tuple[Any, Any] | None = None
        if is_torch:
            self._as_tensors()

    def _as_tensors(self) -> tuple[Any, Any]:
        """(packed, bias) as torch tensors on the same memory."""
        if self._tensors is None:
            import torch

            bias = None if self._bias is None else torch.from_numpy(self._bias)
            self._tensors = torch.from_numpy(self._packed), bias
        return self._tensors

    @property
    def bias(self) -> Any:
        """`[N]` in float32, or None."""
        return self._as_tensors()[1] if self._is_torch else self._bias

    def __call__(
        self,
        x: Array,
        *,
        activation: str | None = None,
        residual: Array | None = None,
        out: Array | None = None,
    ) -> Array:
        """`activation(x @ weight.T + bias) + residual`, in x's dtype.

        Args:
            x: `[..., K]`, float32, float16 or bfloat16. Rows at one stride are read where they
                lie; others are copied first.
            activation: None, "silu", "gelu" or "gelu_tanh", as in `capibara_axion.linear`.
            residual: `[..., N]` in x's dtype; or None.
            out: `[..., N]` in x's dtype, with rows at one stride; may be the residual itself, not
                x. A new array if None.

        Returns:
            out.
        """
        number = _activation_number(activation)
        if (ops := _torch_ops(x)) is None:
            return _core.packed_linear(
                x, self._packed, self.out_features, self._bias, residual, number, out
            )
        packed, bias = self._as_tensors()
        if out is None:
            return ops.packed_linear(x, packed, self.out_features, bias, residual, number)
        ops.packed_linear_out(out, x, packed, self.out_features, bias, residual, number)
        return out

    def unpack(self) -> tuple[Any, Any]:
        """The weight as it is used; of int4: see `unpack_int4`.

        Returns:
            (values `[N, K]` in the packed type, int8 included; scales `[N]` in float32 for int8,
            else None), of the weight's kind. The weight is `values`, or `scales[:, None] * values`.

        Raises:
            TypeError: the layer's dtype is int4.
        """
        if self.dtype == "int4":
            raise TypeError("unpack: expected a layer of another dtype than int4: see unpack_int4")
        values, scales = _core.unpack_linear(self._packed)
        if self._is_torch:
            import torch

            if self.dtype == "bf16":
                tensor = torch.from_numpy(values.view(np.int16)).view(torch.bfloat16)
            else:
                tensor = torch.from_numpy(values)
            return tensor, None if scales is None else torch.from_numpy(scales)
        if self.dtype == "bf16":
            values = values.view(_numpy_bfloat16())
        return values, scales

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes a safetensors file: "weight", and where there are any "scales" and "bias".

        Other programs can read it: the weight is that of `unpack`, in row-major order. Of int4:
        "codes", two to a byte, the first in its lower half; "scales" and "zeros" as `unpack_int4`
        gives them; "int4", three integers: K, and bits of weights and of activations.

        Args:
            path: of the file; overwritten.

        Raises:
            ImportError: the package safetensors is missing.
        """
        packed_file.write(path, self._tensors_to_save())

    def _tensors_to_save(self) -> dict[str, np.ndarray | None]:
        if self.method is None:
            values, scales = _core.unpack_linear(self._packed)
            return {"weight": values, "scales": scales, "bias": self._bias}
        codes, scales, zeros = _core.unpack_int4(self._packed)
        kind = [self.in_features, 4, 8 * packed_int4.METHODS[self.method]]
        return {
            "codes": packed_int4.halves(codes),
            "scales": scales,
            "zeros": zeros,
            "int4": np.array(kind, np.int32),
            "bias": self._bias,
        }

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> PackedLinear:
        """The layer of a file that `save` wrote, packed for this CPU.

        Args:
            path: of a safetensors file with "weight" `[N, K]` (F32, BF16, F16 or I8), "scales"
                `[N]` (F32) if that is I8, and, optionally, "bias" `[N]` (F32, BF16 or F16); or what
                `save` writes of int4.

        Raises:
            ImportError: the package safetensors is missing.
            ValueError: the file is damaged, or another one; the message names it.
        """
        try:
            tensors = packed_file.read(path)
            if "int4" in tensors:
                return _from_int4_parts(*packed_file.int4_of(tensors), False)
            values, scales, bias = packed_file.values_of(tensors)
            dtype = "int8" if values.dtype == np.int8 else None
            number = type_number(dtype, packed_file.type_name(values))
            return _from_parts(number, values, scales, bias, False)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path}: {error}") from None

    def __reduce__(self) -> tuple[Any, ...]:
        """For pickle and copy: the weight itself, since packed memory is for this CPU alone."""
        if self.method is not None:
            weight = _core.unpack_int4(self._packed)
            return _from_int4_parts, (*weight, self.method, self._bias, self._is_torch)
        parts = _core.unpack_linear(self._packed)
        return _from_parts, (_TYPES.index(self.dtype), *parts, self._bias, self._is_torch)

    def __repr__(self) -> str:
        kind = f"dtype={self.dtype!r}"
        if self.method is not None:
            kind += f", group_size={self.group_size}, method={self.method!r}"
        return (
            f"PackedLinear(in_features={self.in_features}, out_features={self.out_features}, "
            f"{kind}, bias={self._bias is not None})"
        )


def _from_parts(
    number: int,
    values: np.ndarray,
    scales: np.ndarray | None,
    bias: np.ndarray | None,
    is_torch: bool,
) -> PackedLinear:
    """A layer of what `_core.unpack_linear` gave."""
    packed = empty_packed(number, values.shape)
    _core.repack_linear(number, values, scales, packed)
    layer = PackedLinear.__new__(PackedLinear)
    layer._set(number, values.shape, packed, bias, is_torch)
    return layer


def _from_int4_parts(
    codes: np.ndarray,
    scales: np.ndarray,
    zeros: np.ndarray,
    method: str,
    bias: np.ndarray | None,
    is_torch: bool,
) -> PackedLinear:
    """A layer of what `_core.unpack_int4` gave."""
    layer = PackedLinear.__new__(PackedLinear)
    layer._set_int4(codes, scales, zeros, method, bias, is_torch)
    return layer


def _bias_as_float32(weight: Any, bias: Any, is_torch: bool) -> np.ndarray | None:
    """A copy of the bias, once it has been checked against the weight."""
    if bias is None:
        return None
    if is_torch:
        import torch

        if not isinstance(bias, torch.Tensor):
            raise TypeError(
                f"bias: expected a torch tensor, as weight is, got {type(bias).__name__}"
            )
        float32 = torch.float32
    else:
        if not isinstance(bias, np.ndarray):
            raise TypeError(
                f"bias: expected a NumPy array, as weight is, got {type(bias).__name__}"
            )
        float32 = np.dtype(np.float32)
    if bias.dtype not in (weight.dtype, float32):
        raise TypeError(
            f"bias: expected the dtype of weight, {weight.dtype}, or float32, got {bias.dtype}"
        )
    if tuple(bias.shape) != tuple(weight.shape[:1]):
        text = ", ".join(map(str, bias.shape))
        raise ValueError(f"bias: expected shape [{weight.shape[0]}], got [{text}]")
    if is_torch:
        if bias.device.type != "cpu":
            raise ValueError(f"bias: expected all tensors on one device, got one on {bias.device}")
        return np.array(bias.detach().float().numpy())
    return np.array(bias, np.float32, order="C")


def _numpy_bfloat16() -> np.dtype[Any]:
    try:
        import ml_dtypes
    except ImportError:
        raise ImportError(
            "NumPy has no bfloat16 of its own: the package ml_dtypes is needed (pip install "
            "ml_dtypes)"
        ) from None
    return np.dtype(ml_dtypes.bfloat16)

# SPDX-License-Identifier: Apache-2.0
"""A linear layer whose weight is packed once, for many calls."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from capibara_axion import _core
from capibara_axion.ops import Array, _activation_number, _torch_ops

# In the order of GemmType in csrc/kernels/gemm/gemm.h.
_TYPES = ("f32", "bf16", "f16", "int8")
_OTHER_NAMES = {"float32": "f32", "bfloat16": "bf16", "float16": "f16"}
_INT8 = _TYPES.index("int8")

# How a safetensors file and its writer name the types of packed values.
_FILE_TYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16", "I8": "int8"}


def type_number(dtype: str | None, own: str) -> int:
    """The native module's number of a product's type, `own` being the weight's."""
    if dtype is not None and not isinstance(dtype, str):
        raise TypeError(f"dtype: expected a string, got {type(dtype).__name__}")
    name = own if dtype is None else dtype
    name = _OTHER_NAMES.get(name, name)
    if name in _TYPES and (dtype is not None or name != "int8"):
        return _TYPES.index(name)
    if dtype is None:
        raise TypeError(f"weight: expected float32, float16 or bfloat16, got {own}")
    known = ", ".join(map(repr, _TYPES))
    raise ValueError(f"dtype: expected one of {known}, got {dtype!r}")


def empty_packed(number: int, shape: Sequence[int]) -> np.ndarray:
    """Memory for a weight of this shape, packed for products of type `number`."""
    if len(shape) != 2:
        text = ", ".join(map(str, shape))
        raise ValueError(f"weight: expected shape [out_features, in_features], got [{text}]")
    return _core.aligned_empty(_core.packed_nbytes(number, *shape))


class PackedLinear:
    """`activation(x @ weight.T + bias) + residual`, the weight packed once and used many times.

    Packing brings the weight into the order in which the CPU's instructions read it, and into the
    type that products are taken of: float32, bfloat16, float16, or 8-bit integers. The layout is
    that of the instruction set that runs here; `save` and pickle write the weight itself, which any
    machine can load. The original weight is not kept.

    A layer takes NumPy arrays and torch tensors, whichever its weight was.

    Args:
        weight: `[N, K]`, float32, float16 or bfloat16: out_features x in_features.
        dtype: "f32", "bf16", "f16" (or "float32", "bfloat16", "float16") or "int8"; the weight's
            own if None. Rounded to nearest even.
        bias: `[N]`, in the weight's dtype or float32; or None. Kept in float32.

    Attributes:
        in_features: K.
        out_features: N.
        dtype: "f32", "bf16", "f16" or "int8".
        bias: `[N]` in float32, of the weight's kind (a NumPy array where it was loaded); or None.
        nbytes: of the packed weight and the bias.

    Raises:
        TypeError: weight or bias are no arrays, or of another dtype.
        ValueError: another shape, an unknown `dtype`, or more than 65536 columns for int8.

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
    """

    in_features: int
    out_features: int
    dtype: str
    nbytes: int

    def __init__(self, weight: Any, dtype: str | None = None, bias: Any = None) -> None:
        is_torch = _torch_ops(weight) is not None
        if not is_torch and not isinstance(weight, np.ndarray):
            given = type(weight).__name__
            raise TypeError(f"weight: expected a NumPy array or a torch tensor, got {given}")
        own = str(weight.dtype).removeprefix("torch.") if is_torch else weight.dtype.name
        number = type_number(dtype, own)
        numbers = _bias_as_float32(weight, bias, is_torch)
        if is_torch:
            from capibara_axion.torch_ops import pack_weight

            packed = pack_weight(weight, dtype).numpy()
        else:
            packed = empty_packed(number, weight.shape)
            _core.pack_linear(weight, packed, number)
        self._set(number, weight.shape, packed, numbers, is_torch)

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
        """The weight as it is used.

        Returns:
            (values `[N, K]` in the packed type, int8 included; scales `[N]` in float32 for int8,
            else None), of the weight's kind. The weight is `values`, or `scales[:, None] * values`.
        """
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

        Other programs can read it: the weight is that of `unpack`, in row-major order.

        Args:
            path: of the file; overwritten.

        Raises:
            ImportError: the package safetensors is missing.
        """
        safetensors = _safetensors()
        values, scales = _core.unpack_linear(self._packed)
        tensors = {"weight": values, "scales": scales, "bias": self._bias}
        entries = {
            name: _entry(safetensors, array) for name, array in tensors.items() if array is not None
        }
        safetensors.serialize_file(entries, os.fspath(path), {"format": "pt"})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> PackedLinear:
        """The layer of a file that `save` wrote, packed for this CPU.

        Args:
            path: of a safetensors file with "weight" `[N, K]` (F32, BF16, F16 or I8), "scales"
                `[N]` (F32) if that is I8, and, optionally, "bias" `[N]` (F32, BF16 or F16).

        Raises:
            ImportError: the package safetensors is missing.
            ValueError: the file is damaged, or another one; the message names it.
        """
        safetensors = _safetensors()
        data = Path(path).read_bytes()
        try:
            tensors = dict(safetensors.deserialize(data))
        except safetensors.SafetensorError as error:
            raise ValueError(f"{path}: expected a safetensors file, got: {error}") from None
        try:
            return cls._from_file(tensors)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path}: {error}") from None

    @classmethod
    def _from_file(cls, tensors: dict[str, dict[str, Any]]) -> PackedLinear:
        if "weight" not in tensors or not tensors.keys() <= {"weight", "scales", "bias"}:
            names = ", ".join(sorted(tensors)) or "none"
            raise ValueError(f"expected tensors weight, scales and bias, got {names}")
        values = _array_of(tensors["weight"], "weight")
        number = type_number(None if values.dtype != np.int8 else "int8", _type_name(values))
        scales = _array_of(tensors["scales"], "scales") if "scales" in tensors else None
        if (number == _INT8) != (scales is not None):
            wanted = "scales for a weight of I8" if number == _INT8 else "no scales but for I8"
            raise ValueError(
                f"scales: expected {wanted}, got {'none' if scales is None else 'some'}"
            )
        if number == _INT8 and values.size and values.min() < -127:
            raise ValueError(f"weight: expected integers from -127 to 127, got {values.min()}")
        bias = None
        if "bias" in tensors:
            bias = _widened(_array_of(tensors["bias"], "bias"))
            if bias.shape != values.shape[:1]:
                raise ValueError(f"bias: expected shape [{values.shape[0]}], got {bias.shape}")
        return _from_parts(number, values, scales, bias, False)

    def __reduce__(self) -> tuple[Any, ...]:
        """For pickle and copy: the weight itself, since packed memory is for this CPU alone."""
        parts = _core.unpack_linear(self._packed)
        return _from_parts, (_TYPES.index(self.dtype), *parts, self._bias, self._is_torch)

    def __repr__(self) -> str:
        return (
            f"PackedLinear(in_features={self.in_features}, out_features={self.out_features}, "
            f"dtype={self.dtype!r}, bias={self._bias is not None})"
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


def _entry(safetensors: ModuleType, array: np.ndarray) -> Any:
    """A tensor as `safetensors.serialize_file` takes it; the array must live on until then."""
    dtype, shape = _type_name(array), list(array.shape)
    if not hasattr(safetensors, "TensorSpec"):  # before 0.8
        return {"dtype": dtype, "shape": shape, "data": array.tobytes()}
    return safetensors.TensorSpec(
        dtype=dtype, shape=shape, data_ptr=array.ctypes.data, data_len=array.nbytes
    )


def _array_of(entry: dict[str, Any], name: str) -> np.ndarray:
    """A tensor of a safetensors file; bfloat16 as its bits."""
    file_type = entry["dtype"]
    if file_type not in _FILE_TYPES:
        raise ValueError(f"{name}: expected one of {', '.join(_FILE_TYPES)}, got {file_type}")
    dtype = "uint16" if file_type == "BF16" else _FILE_TYPES[file_type]
    return np.frombuffer(entry["data"], np.dtype(dtype)).reshape(entry["shape"])


def _type_name(values: np.ndarray) -> str:
    return "bfloat16" if values.dtype == np.uint16 else values.dtype.name


def _widened(values: np.ndarray) -> np.ndarray:
    """float32 of float32, float16 or the bits of bfloat16."""
    if values.dtype == np.int8:
        raise ValueError("bias: expected F32, BF16 or F16, got I8")
    if values.dtype == np.uint16:
        return (values.astype(np.uint32) << 16).view(np.float32)
    return np.array(values, np.float32)


def _numpy_bfloat16() -> np.dtype[Any]:
    try:
        import ml_dtypes
    except ImportError:
        raise ImportError(
            "NumPy has no bfloat16 of its own: the package ml_dtypes is needed (pip install "
            "ml_dtypes)"
        ) from None
    return np.dtype(ml_dtypes.bfloat16)


def _safetensors() -> ModuleType:
    try:
        import safetensors
    except ImportError:
        raise ImportError(
            "PackedLinear's files need the package safetensors (pip install "
            "'capibara-axion[safetensors]')"
        ) from None
    return safetensors

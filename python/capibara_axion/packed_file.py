# SPDX-License-Identifier: Apache-2.0
"""The safetensors files of `PackedLinear`, as arrays; bfloat16 as its bits."""

from __future__ import annotations

import os
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from capibara_axion import packed_int4

# How a safetensors file names the types of its tensors, and NumPy, or the file's writer.
_TYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16", "I8": "int8"}
# What else the file of a 4-bit weight has.
_INT4_TYPES = {"F32": "float32", "U8": "uint8", "I32": "int32"}

Tensors = dict[str, dict[str, Any]]


def write(path: str | os.PathLike[str], tensors: dict[str, np.ndarray | None]) -> None:
    """Writes those that are not None.

    Raises:
        ImportError: the package safetensors is missing.
    """
    safetensors = _safetensors()
    entries = {
        name: _entry(safetensors, array) for name, array in tensors.items() if array is not None
    }
    safetensors.serialize_file(entries, os.fspath(path), {"format": "pt"})


def read(path: str | os.PathLike[str]) -> Tensors:
    """What `values_of` and `int4_of` take apart.

    Raises:
        ImportError: the package safetensors is missing.
        ValueError: another kind of file, or a damaged one.
    """
    safetensors = _safetensors()
    data = Path(path).read_bytes()
    try:
        return dict(safetensors.deserialize(data))
    except safetensors.SafetensorError as error:
        raise ValueError(f"expected a safetensors file, got: {error}") from None


def values_of(tensors: Tensors) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None]:
    """(weight, scales of int8, bias in float32)."""
    if "weight" not in tensors or not tensors.keys() <= {"weight", "scales", "bias"}:
        names = ", ".join(sorted(tensors)) or "none"
        raise ValueError(f"expected tensors weight, scales and bias, got {names}")
    values = _array_of(tensors, "weight")
    scales = _array_of(tensors, "scales") if "scales" in tensors else None
    is_int8 = values.dtype == np.int8
    if is_int8 != (scales is not None):
        wanted = "scales for a weight of I8" if is_int8 else "no scales but for I8"
        raise ValueError(f"scales: expected {wanted}, got {'none' if scales is None else 'some'}")
    if is_int8 and values.size and values.min() < -127:
        raise ValueError(f"weight: expected integers from -127 to 127, got {values.min()}")
    return values, scales, _bias_of(tensors, len(values))


def int4_of(
    tensors: Tensors,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, str, np.ndarray | None]:
    """(codes, scales, zeros, method, bias in float32)."""
    wanted = {"int4", "codes", "scales", "zeros"}
    if tensors.keys() - {"bias"} != wanted:
        names = ", ".join(sorted(tensors))
        raise ValueError(f"expected tensors codes, scales, zeros, int4 and bias, got {names}")
    arrays = {name: _array_of(tensors, name, _INT4_TYPES) for name in wanted}
    methods = {8 * digits: method for method, digits in packed_int4.METHODS.items()}
    kind = arrays["int4"].ravel().tolist()
    if len(kind) != 3 or kind[1] != 4 or kind[2] not in methods:
        raise ValueError(f"int4: expected a number of columns, 4, and 8 or 16, got {kind}")
    codes = arrays["codes"]
    if codes.ndim != 2 or codes.shape[1] != (kind[0] + 1) // 2:
        raise ValueError(f"codes: expected two to a byte of {kind[0]}, got shape {codes.shape}")
    return (
        packed_int4.codes_of(packed_int4.as_uint8(codes, "codes"), kind[0]),
        packed_int4.as_float32(arrays["scales"], "scales"),
        packed_int4.as_uint8(arrays["zeros"], "zeros"),
        methods[kind[2]],
        _bias_of(tensors, len(codes)),
    )


def type_name(values: np.ndarray) -> str:
    """Of what this array's elements, or bits, are."""
    return "bfloat16" if values.dtype == np.uint16 else values.dtype.name


def _bias_of(tensors: Tensors, size: int) -> np.ndarray | None:
    if "bias" not in tensors:
        return None
    bias = _array_of(tensors, "bias")
    if bias.dtype == np.int8:
        raise ValueError("bias: expected F32, BF16 or F16, got I8")
    if bias.shape != (size,):
        raise ValueError(f"bias: expected shape [{size}], got {bias.shape}")
    if bias.dtype == np.uint16:
        return (bias.astype(np.uint32) << 16).view(np.float32)
    return np.array(bias, np.float32)


def _array_of(tensors: Tensors, name: str, types: dict[str, str] = _TYPES) -> np.ndarray:
    entry = tensors[name]
    if entry["dtype"] not in types:
        raise ValueError(f"{name}: expected one of {', '.join(types)}, got {entry['dtype']}")
    dtype = "uint16" if entry["dtype"] == "BF16" else types[entry["dtype"]]
    return np.frombuffer(entry["data"], np.dtype(dtype)).reshape(entry["shape"])


def _entry(safetensors: ModuleType, array: np.ndarray) -> Any:
    """A tensor as `safetensors.serialize_file` takes it; the array must live on until then."""
    dtype, shape = type_name(array), list(array.shape)
    if not hasattr(safetensors, "TensorSpec"):  # before 0.8
        return {"dtype": dtype, "shape": shape, "data": array.tobytes()}
    return safetensors.TensorSpec(
        dtype=dtype, shape=shape, data_ptr=array.ctypes.data, data_len=array.nbytes
    )


def _safetensors() -> ModuleType:
    try:
        import safetensors
    except ImportError:
        raise ImportError(
            "PackedLinear's files need the package safetensors (pip install "
            "'capibara-axion[safetensors]')"
        ) from None
    return safetensors

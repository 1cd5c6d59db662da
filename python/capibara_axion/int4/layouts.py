# SPDX-License-Identifier: Apache-2.0
"""How checkpoints store 4-bit weights, and back: AWQ, GPTQ, compressed-tensors.

All of them put eight codes into an int32, the first into its lowest four bits; they differ in what
is next to what.

    AWQ ("gemm")          qweight [K, N/8], qzeros [K/g, N/8], scales [K/g, N]; the eight columns
                          of a word in the order 0 2 4 6 1 3 5 7
    GPTQ                  qweight [K/8, N], qzeros [K/g, N/8], scales [K/g, N], g_idx [K], the group
                          of each row; version 1 stores zero - 1, version 2 the zero itself
    compressed-tensors    weight_packed [N, K/8], weight_scale [N, K/g], weight_zero_point
    (pack-quantized)      [N/8, K/g] where not symmetric, weight_shape [2]; codes and zeros are
                          signed, 8 is added

Integers are exact: `unpack_*` of `pack_*` gives the codes and zeros that went in. Tensors are
NumPy arrays, or torch tensors on the CPU; integers come out as NumPy arrays, scales as what they
were. `pack_*` gives a dictionary with the names above.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from capibara_axion.int4.weight import MIDDLE, Int4Weight

_PER_WORD = 8
# Where column c of eight stands in a word of AWQ's.
_AWQ_PLACE = (0, 4, 1, 5, 2, 6, 3, 7)
_AWQ_COLUMN = (0, 2, 4, 6, 1, 3, 5, 7)


def unpack_words(words: Any) -> np.ndarray:
    """int32 `[..., n]` to its codes, uint8 `[..., 8 n]`, the lowest four bits first."""
    pairs = _integers(words).astype("<i4", copy=False)
    pairs = np.ascontiguousarray(pairs).view(np.uint8)
    codes = np.empty((*pairs.shape[:-1], 2 * pairs.shape[-1]), np.uint8)
    codes[..., 0::2] = pairs & 15
    codes[..., 1::2] = pairs >> 4
    return codes


def pack_words(codes: np.ndarray) -> np.ndarray:
    """The inverse of `unpack_words`."""
    pairs = codes[..., 0::2] | (codes[..., 1::2] << 4)
    return np.ascontiguousarray(pairs).view("<i4").astype(np.int32, copy=False)


# ---------------------------------------------------------------- AWQ


def unpack_awq(qweight: Any, qzeros: Any, scales: Any) -> Int4Weight:
    """Raises: ValueError: the shapes do not fit each other."""
    k, n = qweight.shape[0], scales.shape[1]
    groups = _groups(k, scales.shape[0], "scales")
    _expect("qweight", qweight, (k, n // _PER_WORD))
    _expect("qzeros", qzeros, (groups, n // _PER_WORD))
    return Int4Weight(_awq_codes(qweight), _transposed(scales), _awq_codes(qzeros))


def pack_awq(weight: Int4Weight) -> dict[str, Any]:
    """Raises: ValueError: the number of rows is no multiple of 8, or a zero is 16."""
    zeros = _zeros_of(weight)
    _expect_multiple(weight.codes.shape[0])
    _expect_codes(zeros, "AWQ stores 0 to 15")
    return {
        "qweight": _awq_words(weight.codes),
        "qzeros": _awq_words(zeros),
        "scales": _transposed(weight.scales),
    }


def _awq_codes(words: Any) -> np.ndarray:
    """[r, c/8] to [c, r]."""
    codes = unpack_words(words)
    rows, columns = codes.shape
    eights = codes.reshape(rows, columns // _PER_WORD, _PER_WORD)[..., _AWQ_PLACE]
    return _transposed(eights.reshape(rows, columns))


def _awq_words(codes: np.ndarray) -> np.ndarray:
    columns, rows = codes.shape
    eights = codes.T.reshape(rows, columns // _PER_WORD, _PER_WORD)[..., _AWQ_COLUMN]
    return pack_words(eights.reshape(rows, columns))


# ---------------------------------------------------------------- GPTQ


def unpack_gptq(
    qweight: Any, qzeros: Any, scales: Any, g_idx: Any = None, *, version: int = 1
) -> tuple[Int4Weight, np.ndarray | None]:
    """The weight, with columns brought into the order of their groups.

    Args:
        qweight, qzeros, scales: of the checkpoint. `qzeros` None: 8, as symmetric ones have.
        g_idx: the group of each input feature; None: in order.
        version: 1 for "checkpoint_format": "gptq", whose qzeros hold zero - 1; 2 for "gptq_v2".

    Returns:
        (weight, order): column j of the weight multiplies input feature `order[j]`; `order` is
        None if that is j.

    Raises:
        ValueError: the shapes do not fit each other; the groups of `g_idx` differ in size.
    """
    k, n = _PER_WORD * qweight.shape[0], scales.shape[1]
    groups = _groups(k, scales.shape[0], "scales")
    _expect("qweight", qweight, (k // _PER_WORD, n))
    codes = unpack_words(_integers(qweight).T)
    zeros = None
    if qzeros is not None:
        _expect("qzeros", qzeros, (groups, n // _PER_WORD))
        zeros = gptq_zeros(qzeros, version)
    order = None if g_idx is None else group_order(g_idx, groups)
    if order is not None:
        codes = np.ascontiguousarray(codes[:, order])
    return Int4Weight(codes, _transposed(scales), zeros), order


def gptq_zeros(qzeros: Any, version: int) -> np.ndarray:
    """uint8 [N, K/g], 1 to 16 where `version` is 1."""
    zeros: np.ndarray = _transposed(unpack_words(qzeros))
    return zeros + np.uint8(1) if version == 1 else zeros


def group_order(g_idx: Any, groups: int) -> np.ndarray | None:
    """The input features in the order of their groups; None if they are.

    Raises:
        ValueError: the groups differ in size.
    """
    index = _integers(g_idx)
    if index.size and (index.min() < 0 or index.max() >= groups):
        raise ValueError(f"g_idx: expected groups from 0 to {groups - 1}, got {index.max()}")
    sizes = np.bincount(index, minlength=groups)
    if (sizes != index.size // groups).any():
        raise ValueError(
            f"g_idx: expected {groups} groups of {index.size // groups} input features each, got "
            f"sizes from {sizes.min()} to {sizes.max()}"
        )
    order = np.argsort(index, kind="stable")
    return None if (order == np.arange(index.size)).all() else order


def pack_gptq(
    weight: Int4Weight, order: np.ndarray | None = None, *, version: int = 1
) -> dict[str, Any]:
    """The inverse of `unpack_gptq`.

    Raises:
        ValueError: the number of rows or columns is no multiple of 8, or the version cannot hold a
            zero.
    """
    n, k = weight.codes.shape
    _expect_multiple(n)
    _expect_multiple(k)
    g_idx = np.arange(k, dtype=np.int32) // weight.group_size
    codes = weight.codes
    if order is not None:
        back = np.argsort(order)
        codes, g_idx = codes[:, back], g_idx[back]
    zeros = _zeros_of(weight)
    if version == 1:
        zeros = zeros - np.uint8(1)  # 0 to 255, which is refused
    _expect_codes(zeros, "version 1 stores 1 to 16" if version == 1 else "version 2 stores 0 to 15")
    return {
        "qweight": _transposed(pack_words(codes)),
        "qzeros": pack_words(zeros.T),
        "scales": _transposed(weight.scales),
        "g_idx": g_idx,
    }


# ---------------------------------------------------------------- compressed-tensors


def unpack_compressed(
    weight_packed: Any, weight_scale: Any, weight_zero_point: Any = None, weight_shape: Any = None
) -> Int4Weight:
    """Raises: ValueError: the shapes do not fit each other."""
    n, k = weight_packed.shape[0], _PER_WORD * weight_packed.shape[1]
    groups = _groups(k, weight_scale.shape[1], "weight_scale")
    _expect("weight_scale", weight_scale, (n, groups))
    if weight_shape is not None and [int(size) for size in weight_shape] != [n, k]:
        raise ValueError(f"weight_shape: expected [{n}, {k}], got {[int(s) for s in weight_shape]}")
    zeros = None
    if weight_zero_point is not None:
        _expect("weight_zero_point", weight_zero_point, (n // _PER_WORD, groups))
        zeros = compressed_zeros(weight_zero_point)
    return Int4Weight(unpack_words(weight_packed), weight_scale, zeros)


def compressed_zeros(weight_zero_point: Any) -> np.ndarray:
    """uint8 [N, K/g]."""
    return _transposed(unpack_words(_integers(weight_zero_point).T))


def pack_compressed(weight: Int4Weight) -> dict[str, Any]:
    """The inverse of `unpack_compressed`; no zero point for a weight without zeros.

    Raises:
        ValueError: the number of columns is no multiple of 8, nor with zeros that of rows; or a
            zero is 16.
    """
    _expect_multiple(weight.codes.shape[1])
    tensors = {
        "weight_packed": pack_words(weight.codes),
        "weight_scale": weight.scales,
        "weight_shape": np.array(weight.codes.shape, np.int64),
    }
    if weight.zeros is not None:
        _expect_multiple(weight.codes.shape[0])
        _expect_codes(weight.zeros, "compressed-tensors store 0 to 15")
        tensors["weight_zero_point"] = _transposed(pack_words(_transposed(weight.zeros)))
    return tensors


# ---------------------------------------------------------------- what they share


def _integers(tensor: Any) -> np.ndarray:
    return tensor if isinstance(tensor, np.ndarray) else np.asarray(tensor.detach().numpy())


def _transposed(tensor: Any) -> Any:
    if isinstance(tensor, np.ndarray):
        return np.ascontiguousarray(tensor.T)
    return tensor.T.contiguous()


def _zeros_of(weight: Int4Weight) -> np.ndarray:
    if weight.zeros is not None:
        return weight.zeros
    return np.full(tuple(weight.scales.shape), MIDDLE, np.uint8)


def _expect_codes(zeros: np.ndarray, text: str) -> None:
    if zeros.size and zeros.max() > 15:
        raise ValueError(f"zeros: {text}, got others")


def _groups(k: int, groups: int, name: str) -> int:
    if groups < 1 or k % groups:
        raise ValueError(f"{name}: expected groups that divide {k} input features, got {groups}")
    return groups


def _expect(name: str, tensor: Any, shape: tuple[int, int]) -> None:
    if tuple(tensor.shape) != shape:
        raise ValueError(f"{name}: expected shape {list(shape)}, got {list(tensor.shape)}")


def _expect_multiple(size: int) -> None:
    if size % _PER_WORD:
        raise ValueError(f"weight: expected a multiple of {_PER_WORD}, got {size}")

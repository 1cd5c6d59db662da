# SPDX-License-Identifier: Apache-2.0
"""Linear layers: ours, with weights packed once and as they are, and those of torch and NumPy."""

from __future__ import annotations

import platform

import torch

import capibara_axion
import capibara_axion.torch_ops
from capibara_axion.torch_ops import pack_weight
from cases import Inputs
from contenders import Call, contender
from ours import array

F = torch.nn.functional
_ops = torch.ops.capibara_axion


_OPS = ("linear", "linear_int8", "linear_int4", "linear_int4_a16")


def _options(a: Inputs) -> dict[str, str]:
    """What PackedLinear and pack_weight are told."""
    dtypes = {"linear_int8": "int8", "linear_int4": "int4", "linear_int4_a16": "int4"}
    options = {"dtype": dtypes[a.case.op]} if a.case.op in dtypes else {}
    return options | ({"method": "w4a16"} if a.case.op == "linear_int4_a16" else {})


@contender(_OPS, "ours", "packed")
def _packed(a: Inputs) -> Call:
    x, packed, outputs = a.x, pack_weight(a.weight, **_options(a)), a.case.outputs
    return lambda: _ops.packed_linear(x, packed, outputs)


@contender(_OPS, "ours", "NumPy packed out")
def _packed_array(a: Inputs) -> Call:
    layer = capibara_axion.PackedLinear(array(a.weight), **_options(a))
    x, result = array(a.x), a.x.new_empty(a.case.tokens, a.case.outputs)
    out = array(result)
    return lambda: (layer(x, out=out), result)[1]


@contender("linear", "ours", "unpacked")
def _unpacked(a: Inputs) -> Call:
    x, weight = a.x, a.weight
    return lambda: _ops.linear(x, weight)


@contender("linear", "ours", "matmul")
def _matmul(a: Inputs) -> Call:
    x, b = a.x, a.weight.T.contiguous()
    return lambda: _ops.matmul(x, b)


@contender("linear", "torch", "F.linear")
def _f_linear(a: Inputs) -> Call:
    x, weight = a.x, a.weight
    return lambda: F.linear(x, weight)


@contender("linear", "torch", "mm")
def _mm(a: Inputs) -> Call:
    x, b = a.x, a.weight.T.contiguous()
    return lambda: torch.mm(x, b)


# On aarch64, torch 2.8.0's goes through oneDNN's reference code: 15 thousand million instructions
# for 512 x 512 x 512 of bf16, where F.linear needs 15 million.
if torch.backends.mkldnn.is_available() and platform.machine() == "x86_64":

    @contender("linear", "torch", "oneDNN prepacked")
    def _onednn(a: Inputs) -> Call:
        """As inductor's frozen graphs call it."""
        x = a.x
        weight = torch.ops.mkldnn._reorder_linear_weight(a.weight, a.case.tokens)
        return lambda: torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")


if torch.backends.mkl.is_available():

    @contender("linear", "torch", "MKL prepacked", dtypes=("f32",))
    def _mkl(a: Inputs) -> Call:
        x, weight, tokens = a.x, a.weight, a.case.tokens
        packed = torch.ops.mkl._mkl_reorder_linear_weight(weight, tokens)
        return lambda: torch.ops.mkl._mkl_linear(x, packed, weight, None, tokens)


@contender("linear", "NumPy", "@ out=", dtypes=("f32",), single_threaded=True)
def _numpy(a: Inputs) -> Call:
    import numpy as np

    x, weight = a.x.numpy(), a.weight.numpy().T
    out = np.empty((a.case.tokens, a.case.outputs), np.float32)
    return lambda: np.matmul(x, weight, out=out)

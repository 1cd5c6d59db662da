# SPDX-License-Identifier: Apache-2.0
"""torch's linear layers: as they are called, and with weights that oneDNN or MKL packed before."""

from __future__ import annotations

import platform

import torch

from capibara_axion.bench.kernels.cases import Inputs
from capibara_axion.bench.kernels.contenders import Call, contender

F = torch.nn.functional


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

# SPDX-License-Identifier: Apache-2.0
"""vLLM's own linear layer without our plugin: whatever it dispatches to on this CPU."""

from __future__ import annotations

import torch
from vllm.model_executor.layers import utils
from vllm.platforms import current_platform

from capibara_axion.bench.kernels.cases import Inputs
from capibara_axion.bench.kernels.contenders import Call, contender

current_platform.import_kernels()  # registers torch.ops._C


@contender("linear", "vLLM", "linear layer", stock="eager compiled")
def _linear(a: Inputs) -> Call:
    layer = torch.nn.Module()
    layer.weight = torch.nn.Parameter(a.weight.clone(), requires_grad=False)
    utils.dispatch_cpu_unquantized_gemm(layer, remove_weight=False)
    x, weight, linear = a.x, layer.weight, layer.cpu_linear
    return lambda: linear(x, weight, None)

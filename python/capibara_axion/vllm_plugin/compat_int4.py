# SPDX-License-Identifier: Apache-2.0
"""What the plugin knows about vLLM's linear layers of 4-bit checkpoints.

Like `compat`, for vLLM 0.32; what is missing or different raises HookNotFound.

AWQ, GPTQ and compressed-tensors describe a layer by an `MPLinearLayerConfig` and leave it to the
first class of a list that says it can implement that. Each brings the weight into one of two
layouts before: that of GPTQ, or its transpose (compressed-tensors).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from capibara_axion.vllm_plugin.compat import (
    LAYERS,
    HookNotFound,
    attribute,
    expect_parameters,
    find,
)

_KERNELS = "vllm.model_executor.kernels.linear"
_GPTQ = f"{LAYERS}.quantization.auto_gptq"
_AWQ = f"{LAYERS}.quantization.auto_awq"


class Int4Classes(NamedTuple):
    """vLLM's classes of 4-bit layers."""

    Kernel: Any
    KernelConfig: Any
    GptqConfig: Any
    GptqMethod: Any
    RowParameter: Any
    WeightsMapper: Any


def int4_classes() -> Int4Classes:
    """Raises: HookNotFound."""
    classes = Int4Classes(
        find(_KERNELS, "MPLinearKernel"),
        find(_KERNELS, "MPLinearLayerConfig"),
        find(_GPTQ, "AutoGPTQConfig"),
        find(_GPTQ, "AutoGPTQLinearMethod"),
        find("vllm.model_executor.parameter", "RowvLLMParameter"),
        find("vllm.model_executor.models.utils", "WeightsMapper"),
    )
    attribute(classes.GptqConfig, "get_checkpoint_weight_mapper")
    expect_parameters(
        attribute(classes.Kernel, "__init__"),
        ("self", "c", "w_q_param_name", "w_s_param_name", "w_zp_param_name"),
    )
    expect_parameters(attribute(classes.Kernel, "apply_weights"), ("self", "layer", "x", "bias"))
    expect_parameters(attribute(classes.Kernel, "process_weights_after_loading"), ("self", "layer"))
    return classes


def put_kernel_first(kernel: type) -> None:
    """Has vLLM ask `kernel` before its own ones, and AWQ and GPTQ run in float32 as well.

    vLLM's kernels take no float32, and it refuses the dtype before it looks for one. Remove the
    first when `register_linear_kernel` can prepend.

    Raises:
        HookNotFound
    """
    platforms = find(_KERNELS, "_POSSIBLE_KERNELS")
    cpu = attribute(find("vllm.platforms", "PlatformEnum"), "CPU")
    if cpu not in platforms:
        raise HookNotFound(f"{_KERNELS}._POSSIBLE_KERNELS: expected kernels for the CPU")
    for module, name in ((_AWQ, "AutoAWQConfig"), (_GPTQ, "AutoGPTQConfig")):
        config = find(module, name)
        dtypes = attribute(config, "get_supported_act_dtypes")()
        config.get_supported_act_dtypes = classmethod(_always([*dtypes, torch.float32]))
    platforms[cpu].insert(0, kernel)


def _always(value: Any) -> Callable[[Any], Any]:
    return lambda _: value


def stock_kernel(config: Any, ours: type) -> Any | None:
    """vLLM's own class for such a layer; None: it has none that runs on this machine."""
    platforms = find(_KERNELS, "_POSSIBLE_KERNELS")
    generic = find(_KERNELS, "CPUWNA16LinearKernel")
    for kernel in platforms[find("vllm.platforms", "PlatformEnum").CPU]:
        if kernel is ours or not kernel.can_implement(config)[0]:
            continue
        # It asks neither for the dtype, nor whether its operator was compiled, as on aarch64.
        works = hasattr(torch.ops._C, "cpu_gemm_wna16") and config.act_type != torch.float32
        if kernel is not generic or works:
            return kernel
    return None


def is_symmetric(config: Any) -> bool:
    """Whether the layer has no zero points, but 8 for all."""
    return not config.zero_points


def takes_four_bits(config: Any) -> bool:
    """Whether the layer's codes are unsigned integers of 4 bits."""
    types = find("vllm.scalar_type", "scalar_types")
    return config.weight_type in (types.uint4, types.uint4b8)


def wants_w4a8() -> bool:
    """vLLM's own switch: whether activations may be quantised to 8 bits."""
    return bool(find("vllm.envs", "VLLM_CPU_INT4_W4A8"))


class Weights(NamedTuple):
    """A layer's parameters, `words [N, K/8]`, `scales [N, G]` and `zeros [N/8, G]` or None."""

    words: torch.Tensor
    scales: torch.Tensor
    zeros: torch.Tensor | None


def weights_of(kernel: Any, layer: Any) -> Weights:
    """What vLLM loaded, rows first; whoever made the layer has unified the order of bits."""
    words, scales = (getattr(layer, name) for name in (kernel.w_q_name, kernel.w_s_name))
    zeros = getattr(layer, kernel.w_zp_name) if kernel.config.zero_points else None
    if zeros is not None and zeros.output_dim != 0:
        raise HookNotFound("zero points: expected output features first")
    return Weights(
        words.data if words.input_dim == 1 else words.data.t(),
        scales.data if scales.output_dim == 0 else scales.data.t(),
        None if zeros is None else zeros.data,
    )


def free_weights(kernel: Any, layer: Any) -> None:
    """Leaves empty parameters of the same names."""
    for name in (kernel.w_q_name, kernel.w_s_name, kernel.w_zp_name):
        if name is not None and (parameter := getattr(layer, name, None)) is not None:
            empty = torch.nn.Parameter(parameter.data.new_empty(0), requires_grad=False)
            setattr(layer, name, empty)


def stock_product(
    kernel_class: Any, config: Any, words: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor
) -> Callable[[torch.Tensor], torch.Tensor]:
    """vLLM's product with a weight of compressed-tensors' layout, which it may change."""
    layer = torch.nn.Module()
    layer.bias = None
    layer.weight_packed = _parameter(words, input_dim=1, output_dim=0, packed_dim=1)
    layer.weight_scale = _parameter(scales, input_dim=1, output_dim=0)
    layer.weight_zero_point = _parameter(zeros, input_dim=1, output_dim=0, packed_dim=0)
    kernel = kernel_class(config, "weight_packed", "weight_scale", "weight_zero_point")
    kernel.process_weights_after_loading(layer)
    return lambda x: kernel.apply_weights(layer, x)


def _parameter(data: torch.Tensor, **dimensions: int) -> torch.nn.Parameter:
    parameter = torch.nn.Parameter(data, requires_grad=False)
    for name, value in dimensions.items():
        setattr(parameter, name, value)
    return parameter


def replace_gptq_config(config: type) -> None:
    """Has vLLM read GPTQ checkpoints by `config`, a subclass of its own class.

    Raises:
        HookNotFound
    """
    find(f"{LAYERS}.quantization", "register_quantization_config")("auto_gptq")(config)

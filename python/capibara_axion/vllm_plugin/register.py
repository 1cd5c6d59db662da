# SPDX-License-Identifier: Apache-2.0
"""The plugin's entry point.

vLLM calls `register` in every process that it starts: front end, engine core, workers, and the
one that inspects model classes.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from capibara_axion import env

OPS = (
    "rms_norm",
    "fused_add_rms_norm",
    "layer_norm",
    "rope",
    "silu_and_mul",
    "gelu_and_mul",
    "attention",
    "int8_linear",
    "int4_linear",
    "linear",
    "top_k_top_p",
    "penalties",
)

HOOKED = "hooked"
_NOT_REGISTERED = "not registered in this process"

_logger = logging.getLogger(__name__)
_status: dict[str, str] = {}


def register() -> None:
    """Hooks our operators into vLLM, once per process.

    Never raises: whatever cannot be hooked stays with vLLM, which one warning says.
    """
    if _status:
        return
    # Filled first: a second call must not start anew, whatever happened in this one.
    _status.update(dict.fromkeys(OPS, _NOT_REGISTERED))
    try:
        complaints = _register()
    except Exception as error:
        complaints = [f"{type(error).__name__}: {error}"]
        for op in OPS:
            if _status[op] == _NOT_REGISTERED:
                _status[op] = f"left to vLLM: {complaints[0]}"
    if complaints:
        _logger.warning("capibara_axion in vLLM: %s", "; ".join(complaints))


def status() -> dict[str, str]:
    """What became of each operator in this process.

    Returns:
        By operator: "hooked", "off: <variable>", "left to vLLM: <reason>", "hooked in part; left
        to vLLM: <reason>", or that `register` was not called.
    """
    return dict(_status) or dict.fromkeys(OPS, _NOT_REGISTERED)


def _register() -> list[str]:
    """Fills `_status`; returns what the user should be warned of."""
    if not env.plugin_enabled():
        _status.update(dict.fromkeys(OPS, "off: CAPIBARA_AXION_PLUGIN"))
        return []
    disabled = env.disabled_ops()
    complaints = []
    if unknown := sorted(disabled.difference(OPS)):
        complaints.append(f"CAPIBARA_AXION_DISABLE: no operator is named {', '.join(unknown)}")

    from capibara_axion.vllm_plugin import compat

    if not compat.is_cpu_platform():
        _status.update(dict.fromkeys(OPS, "left to vLLM: not running on the CPU"))
        return complaints

    for op, hooks in _hooks().items():
        _status[op] = "off: CAPIBARA_AXION_DISABLE" if op in disabled else _hook(hooks)
    left = [f"{op} ({_status[op]})" for op in OPS if "left to vLLM" in _status[op]]
    version = compat.vllm_version()
    if not compat.is_supported_version(version):
        supported = " or ".join(compat.SUPPORTED_VERSIONS)
        complaints.append(f"tested with vLLM {supported}, not with {version}")
    if left:
        complaints.append(f"not hooked: {', '.join(left)}")
    return complaints


def _hooks() -> dict[str, tuple[Callable[[], None], ...]]:
    # Here, not at the top: these modules import torch and load the native library.
    from capibara_axion.vllm_plugin import activation, linear, norm, rope, sampling

    # Some modules derive classes from vLLM's: only importing them shows whether those are there.
    def hook_attention() -> None:
        from capibara_axion.vllm_plugin import attention

        attention.hook_attention()

    def hook_whole_images() -> None:
        from capibara_axion.vllm_plugin import attention

        attention.hook_whole_images()

    def hook_int8() -> None:
        from capibara_axion.vllm_plugin import quantization

        quantization.hook_int8()

    def hook_int4() -> None:
        from capibara_axion.vllm_plugin import int4

        int4.hook_int4()

    def hook_gptq() -> None:
        from capibara_axion.vllm_plugin import int4_gptq

        int4_gptq.hook_gptq()

    def hook_capibara_int4() -> None:
        from capibara_axion.vllm_plugin import quantization_int4

        quantization_int4.hook_capibara_int4()

    return {
        "rms_norm": (norm.hook_rms_norm,),
        "fused_add_rms_norm": (norm.hook_fused_add_rms_norm, norm.hook_gemma_rms_norm),
        "layer_norm": (norm.hook_layer_norm,),
        "rope": (rope.hook_rotary_embeddings, rope.hook_phi3_long_rope),
        "silu_and_mul": (activation.hook_silu_and_mul,),
        "gelu_and_mul": (activation.hook_gelu_and_mul,),
        "attention": (hook_attention, hook_whole_images),
        # Before "linear", which prepares whatever output layer is still unprepared after loading.
        "int8_linear": (hook_int8,),
        "int4_linear": (hook_int4, hook_gptq, hook_capibara_int4),
        "linear": (linear.hook_linear,),
        "top_k_top_p": (sampling.hook_top_k_top_p,),
        "penalties": (sampling.hook_penalties,),
    }


def _hook(hooks: tuple[Callable[[], None], ...]) -> str:
    reasons = [reason for hook in hooks if (reason := _failure_of(hook))]
    if not reasons:
        return HOOKED
    partly = f"{HOOKED} in part; " if len(reasons) < len(hooks) else ""
    return f"{partly}left to vLLM: {'; '.join(reasons)}"


def _failure_of(hook: Callable[[], None]) -> str:
    try:
        hook()
    except Exception as error:
        return str(error) or type(error).__name__
    return ""

# SPDX-License-Identifier: Apache-2.0
"""Everything that the plugin knows about vLLM's insides, with `compat_linear` for linear layers.

Written for and tested with vLLM 0.32. With another version each hook is looked up by name and its
parameters are compared with the ones expected here; what is missing or different is left to vLLM,
and `register` says so in one warning.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Iterator
from typing import Any

SUPPORTED_VERSIONS = ("0.32",)

PROVIDER = "capibara_axion"
LAYERS = "vllm.model_executor.layers"


class HookNotFound(Exception):
    """This vLLM has no such hook, or not as expected; the message says which and why."""


def vllm_version() -> str:
    """The installed vLLM's version, e.g. "0.32.0"."""
    return str(importlib.import_module("vllm").__version__)


def is_supported_version(version: str) -> bool:
    """Whether the plugin was tested with this version of vLLM."""
    return any(version == known or version.startswith(f"{known}.") for known in SUPPORTED_VERSIONS)


def is_cpu_platform() -> bool:
    """Whether this vLLM computes on the CPU."""
    return bool(find("vllm.platforms", "current_platform").is_cpu())


def provide_ir_op(
    name: str,
    implementation: Callable[..., Any],
    supports_args: Callable[..., bool],
    *,
    inplace: bool,
) -> None:
    """Makes `implementation` the preferred one of the IR op `name`.

    vLLM itself compares the signatures. Remove the change of the default priority when vLLM lets
    a general plugin set it.

    Args:
        inplace: `implementation` overwrites its activations; vLLM then copies them where needed.

    Raises:
        HookNotFound
    """
    op = attribute(find("vllm.ir", "ops"), name)
    platform = find("vllm.platforms.cpu", "CpuPlatform")
    stock = attribute(platform, "get_default_ir_op_priority")
    expect_parameters(stock, ("vllm_config",))
    if PROVIDER not in op.impls:
        try:
            op.register_impl(PROVIDER, supports_args=supports_args, inplace=inplace)(implementation)
        except (TypeError, ValueError, AssertionError) as error:
            raise HookNotFound(f"IR op {name}: {error}") from error

    def get_default_ir_op_priority(cls: type, vllm_config: Any) -> Any:
        priorities = stock(vllm_config)
        providers = getattr(priorities, name)
        if PROVIDER not in providers:
            providers.insert(0, PROVIDER)
        return priorities

    platform.get_default_ir_op_priority = classmethod(get_default_ir_op_priority)


def replace_activation(class_name: str, forward: Callable[..., Any]) -> None:
    """Has layers of exactly this class call `forward(layer, x)`.

    Raises:
        HookNotFound
    """
    base = find(f"{LAYERS}.activation", class_name)
    parameters = [*inspect.signature(base.forward_native).parameters]
    if parameters not in (["x"], ["self", "x"]):
        raise HookNotFound(f"{class_name}.forward_native: expected (x), got {parameters}")
    _replace_custom_op(base, forward)


def replace_gemma_rms_norm(forward: Callable[..., Any]) -> None:
    """Has Gemma's RMSNorm layers call `forward(layer, x, residual=None)`.

    Remove when the stock layer donates its activations (`maybe_inplace`) as RMSNorm does.

    Raises:
        HookNotFound
    """
    base = find(f"{LAYERS}.layernorm", "GemmaRMSNorm")
    expect_parameters(attribute(base, "forward_native"), ("self", "x", "residual"))
    _replace_custom_op(base, forward)


def replace_rotary_embeddings(forward: Callable[..., Any]) -> None:
    """Has every class that computes as RotaryEmbedding does call `forward(layer, ...)`.

    Those are RotaryEmbedding and the subclasses that differ only in their cos/sin table.

    Raises:
        HookNotFound
    """
    base = find(f"{LAYERS}.rotary_embedding", "RotaryEmbedding")
    expect_parameters(base.forward_native, ("self", "positions", "query", "key"))
    expect_parameters(
        attribute(base, "_match_cos_sin_cache_dtype"),
        ("self", "query"),
    )
    for cls in (base, *_subclasses(base)):
        if cls.forward_native is base.forward_native:
            _replace_custom_op(cls, forward)


def replace_phi3_long_rope(forward_or: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
    """Replaces the forward of Phi-3's LongRoPE by `forward_or(the stock one)`.

    Remove when `Phi3LongRoPEScaledRotaryEmbedding` is a CustomOp, which can be replaced by name.

    Raises:
        HookNotFound
    """
    cls = find(
        f"{LAYERS}.rotary_embedding.phi3_long_rope_scaled_rope",
        "Phi3LongRoPEScaledRotaryEmbedding",
    )
    stock = cls.forward
    expect_parameters(stock, ("self", "positions", "query", "key", "offsets"))
    cls.forward = forward_or(stock)


def replace_cohere_layer_norm(
    layer_norm_or: Callable[[Callable[..., Any]], Callable[..., Any]],
) -> None:
    """Replaces Cohere's LayerNorm function by `layer_norm_or(the stock one)`.

    Remove when that LayerNorm is an IR op or a CustomOp. (It is compiled even in eager mode, so
    replacing it also saves the compilation at the first token.)

    Raises:
        HookNotFound
    """
    module_name = "vllm.model_executor.models.commandr"
    stock = find(module_name, "layer_norm_func")
    expect_parameters(stock, ("hidden_states", "weight", "variance_epsilon"))
    module = importlib.import_module(module_name)
    module.layer_norm_func = layer_norm_or(stock)  # type: ignore[attr-defined]


def _replace_custom_op(base: type, forward: Callable[..., Any]) -> None:
    """Registers a subclass that vLLM instantiates in place of `base`.

    The subclass bears the name of `base`: vLLM looks replacements up by the exact class name.
    `layer.forward_stock` is what vLLM would have called.
    """
    registry = find("vllm.model_executor.custom_op", "op_registry_oot")
    if base.__name__ in registry:
        raise HookNotFound(f"{base.__name__} is already replaced by {registry[base.__name__]}")
    stock_dispatch = attribute(base, "dispatch_forward")
    expect_parameters(stock_dispatch, ("self", "compile_native"))

    def dispatch_forward(self: Any, compile_native: bool) -> Callable[..., Any]:
        self.forward_stock = stock_dispatch(self, compile_native=compile_native)
        return self.forward_capibara_axion

    replacement = type(
        base.__name__,
        (base,),
        {
            "__module__": __name__,
            "__doc__": base.__doc__,
            "dispatch_forward": dispatch_forward,
            "forward_capibara_axion": forward,
        },
    )
    attribute(base, "register_oot")(replacement)


def find(module: str, name: str) -> Any:
    """What `from module import name` gives.

    Raises:
        HookNotFound
    """
    try:
        return attribute(importlib.import_module(module), name)
    except ImportError as error:
        raise HookNotFound(f"{module}: {error}") from error


def attribute(owner: Any, name: str) -> Any:
    """`getattr`. Raises: HookNotFound."""
    try:
        return getattr(owner, name)
    except AttributeError as error:
        raise HookNotFound(str(error)) from error


def expect_parameters(function: Callable[..., Any], expected: tuple[str, ...]) -> None:
    """Raises: HookNotFound: the function has parameters of other names or in another order."""
    given = tuple(inspect.signature(function).parameters)
    if given != expected:
        raise HookNotFound(
            f"{getattr(function, '__qualname__', function)}: expected {expected}, got {given}"
        )


def _subclasses(cls: type) -> Iterator[type]:
    subclass: type
    for subclass in cls.__subclasses__():
        yield subclass
        yield from _subclasses(subclass)

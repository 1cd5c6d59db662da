# SPDX-License-Identifier: Apache-2.0
"""Linear layers: vLLM's layers compute with weights that were packed for our matrix products.

vLLM prepares each unquantised weight once, after loading, and sets `layer.cpu_linear`; here that
is `packed_linear` for 2-D weights in float32, bfloat16 or float16, and vLLM's own for all others.
`CAPIBARA_AXION_LINEAR` says which of the two where both can: "capibara", "stock", or "auto", the
faster one (`linear_choice`).

Memory. As in vLLM the original weight of a linear layer is freed, and that of an output layer
(lm_head) stays beside its packed copy: it may be the embedding's, and adapters read it. An
embedding itself is packed only if the model multiplies by it, as Cohere's does; vLLM packs every
one, and with it holds vocabulary x hidden size more.

Weights cannot be loaded anew into a running engine, no more than with vLLM's own packed ones.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from capibara_axion import _core, env, torch_ops
from capibara_axion.vllm_plugin import compat, compat_linear
from capibara_axion.vllm_plugin.linear_cache import ChoiceCache
from capibara_axion.vllm_plugin.linear_choice import Chooser, Product

_ops = torch.ops.capibara_axion

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)

# layer.cpu_linear(x, layer.weight, bias)
CpuLinear = Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None], torch.Tensor]

_logger = logging.getLogger(__name__)


def packed_linear(weight: torch.Tensor, dtype: str | None = None) -> CpuLinear:
    """Packs a weight [N, K], which may be freed then.

    Args:
        dtype: as for `torch_ops.pack_weight`.

    Raises:
        ValueError: the weight cannot be packed.
    """
    out_features = weight.shape[0]
    packed = torch_ops.pack_weight(weight.detach().contiguous(), dtype)

    def linear(
        x: torch.Tensor, _weight: torch.Tensor, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        output: torch.Tensor = _ops.packed_linear.default(x, packed, out_features, bias, None, 0)
        return output

    return linear


def free_weight(layer: Any) -> None:
    """Leaves an empty weight of the same dtype, as vLLM does."""
    layer.weight = torch.nn.Parameter(layer.weight.new_empty(0), requires_grad=False)


def is_packable(weight: torch.Tensor) -> bool:
    """Whether it is a matrix on the CPU, not empty, of a supported dtype."""
    return (
        weight.dim() == 2
        and weight.numel() > 0
        and weight.device.type == "cpu"
        and weight.dtype in _DTYPES
    )


class Later:
    """`layer.cpu_linear` that is prepared when it is first called, or `now`.

    Args:
        prepare: puts the real one in its place.
    """

    def __init__(self, layer: Any, prepare: Callable[[], None]) -> None:
        self._layer = layer
        self.now = prepare

    def __call__(
        self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        self.now()
        output: torch.Tensor = self._layer.cpu_linear(x, weight, bias)
        return output


@dataclass
class _Load:
    """What became of the linear layers of a model while it is loaded."""

    layers: dict[tuple[str, str], int] = field(default_factory=dict)  # by who computes, and shape

    def count(self, who: str, weight: torch.Tensor) -> None:
        n, k = weight.shape
        key = who, f"{str(weight.dtype).removeprefix('torch.')} {n}x{k}"
        self.layers[key] = self.layers.get(key, 0) + 1

    def choices(self) -> str:
        """A short text that differs when a choice does."""
        return hashlib.sha256(str(sorted(self.layers)).encode()).hexdigest()[:16]

    def summary(self) -> str:
        shapes = {who: [s for w, s in self.layers if w == who] for who in ("capibara", "stock")}
        count = sum(self.layers.values())
        stock = ", ".join(sorted(shapes["stock"]))
        return (
            f"linear layers ({env.linear_backend()}): {len(shapes['capibara'])} shapes ours, "
            f"{len(shapes['stock'])} vLLM's{stock and f' ({stock})'}, {count} layers"
        )


class LinearHook:
    """Stands in for vLLM's dispatch of linear layers, and knows which choices it made."""

    def __init__(self) -> None:
        self._stock: compat_linear.Dispatch
        self._chooser: Chooser | None = None
        self._load = _Load()

    def in_place_of(self, stock: compat_linear.Dispatch) -> compat_linear.Dispatch:
        """What vLLM is to call instead of its own `stock`."""
        self._stock = stock
        return self.dispatch

    def dispatch(self, layer: Any, remove_weight: bool) -> None:
        """Sets `layer.cpu_linear`; with `remove_weight` frees `layer.weight`."""
        if env.linear_backend() == "stock" or not is_packable(layer.weight):
            self._stock(layer, remove_weight)
        elif compat_linear.is_lookup(layer):
            layer.cpu_linear = Later(layer, lambda: self._prepare(layer, remove_weight))
        else:
            self._prepare(layer, remove_weight)

    def begin_load(self) -> None:
        """A model is about to be loaded."""
        self._load = _Load()
        if self._chooser is not None:
            self._chooser.forget_times()

    def end_load(self, loaded: compat_linear.Loaded) -> None:
        """A model's weights are loaded and dispatched."""
        for layer in loaded.embeddings_that_are_heads():
            if isinstance(later := getattr(layer, "cpu_linear", None), Later):
                later.now()
        if not self._load.layers:
            return
        loaded.add_to_compile_key(self._load.choices())
        text = self._load.summary()
        if self._chooser is not None:
            text += f"; {self._chooser.raced} races in {self._chooser.seconds:.2f} s"
            self._chooser.free()
        compat_linear.log_info(_logger, text)

    def _prepare(self, layer: Any, remove_weight: bool) -> None:
        weight = layer.weight
        if env.linear_backend() == "capibara" or self._auto().is_ours(weight):
            try:
                layer.cpu_linear = packed_linear(weight)
            except ValueError as error:
                _logger.debug("left to vLLM: %s", error)
            else:
                self._load.count("capibara", weight)
                if remove_weight:
                    free_weight(layer)
                return
        self._load.count("stock", weight)
        self._stock(layer, remove_weight)

    def _auto(self) -> Chooser:
        if self._chooser is None:
            self._chooser = Chooser(
                _our_product,
                self._stock_product,
                ChoiceCache(env.linear_cache_file()),
                compat.vllm_version(),
            )
        return self._chooser

    def _stock_product(self, weight: torch.Tensor) -> Product:
        """vLLM's own, for a layer that nobody else sees: it may change what it is given."""
        layer = torch.nn.Module()
        layer.weight = torch.nn.Parameter(weight, requires_grad=False)
        self._stock(layer, False)
        linear: CpuLinear = layer.cpu_linear
        return lambda x: linear(x, layer.weight, None)


def check_native_module() -> None:
    """Raises: RuntimeError: it is older than this file, as a checkout's that was not rebuilt is."""
    if "gemm_f32" not in _core.call_counts():
        raise RuntimeError(
            "the native module has no matrix products yet: install the project again"
        )


def hook_linear() -> None:
    """Raises: HookNotFound; RuntimeError: an old native module; ValueError: a wrong variable."""
    env.linear_backend()
    check_native_module()
    hook = LinearHook()
    compat_linear.around_load_model("linear", hook.begin_load, hook.end_load)
    compat_linear.replace_linear_dispatch(hook.in_place_of)


def _our_product(weight: torch.Tensor) -> Product:
    linear = packed_linear(weight)
    return lambda x: linear(x, weight, None)

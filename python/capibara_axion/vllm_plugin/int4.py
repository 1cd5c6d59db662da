# SPDX-License-Identifier: Apache-2.0
"""Linear layers of AWQ, GPTQ and compressed-tensors checkpoints in 4 bits.

vLLM asks a list of classes which of them can multiply by such a layer's weight; ours stands first.
On machines for which vLLM has an operator of its own, `CAPIBARA_AXION_LINEAR` says who does it, as
for unquantised layers: "capibara", "stock", or "auto", the faster one by a race (`linear_choice`).
Elsewhere, as on aarch64, it is ours.

Activations. Products with 16-bit activations are rounded to 8 bits a token and group first (W4A8),
unless vLLM's own variable `VLLM_CPU_INT4_W4A8=0` says no (W4A16). vLLM's default is the same where
it has integer instructions for it, and it is where the speed of decoding comes from; what it costs
in quality is a fraction of what rounding the weight has cost already (benchmarks/int4_quality).
Engines in float32 are for exactness: W4A16.

Scales are in the engine's dtype, as vLLM loads them: float16 ones of a checkpoint lose three bits
in a bfloat16 engine (those that `capibara-axion quantize` writes do not).
"""

from __future__ import annotations

import logging
from collections import Counter
from typing import Any

import numpy as np
import torch

from capibara_axion import _core, env, packed_int4
from capibara_axion.int4 import layouts
from capibara_axion.int4.weight import GROUP_SIZES, Int4Weight
from capibara_axion.vllm_plugin import compat, compat_int4, compat_linear
from capibara_axion.vllm_plugin.linear import CpuLinear
from capibara_axion.vllm_plugin.linear_cache import ChoiceCache
from capibara_axion.vllm_plugin.linear_choice import Chooser, Product

_ops = torch.ops.capibara_axion
_vllm: Any = compat_int4.int4_classes()

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)

_logger = logging.getLogger(__name__)


def packed_linear(
    codes: np.ndarray, scales: np.ndarray, zeros: np.ndarray | None, method: str
) -> CpuLinear:
    """A layer's product with a 4-bit weight: arguments as for `PackedLinear.from_int4`, but scales
    are float32.

    Raises:
        ValueError: the weight cannot be packed.
    """
    out_features = len(codes)
    digits = packed_int4.digits_of(method)
    packed = torch.from_numpy(packed_int4.pack(codes, scales, zeros, digits))

    def linear(
        x: torch.Tensor, _weight: torch.Tensor | None, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        output: torch.Tensor = _ops.packed_linear.default(x, packed, out_features, bias, None, 0)
        return output

    return linear


def pack(weight: Int4Weight, act_type: torch.dtype) -> CpuLinear:
    """A layer's product with this weight, whose scales are a tensor."""
    method = "w4a8" if act_type != torch.float32 and compat_int4.wants_w4a8() else "w4a16"
    scales = weight.scales.float().contiguous().numpy()
    return packed_linear(weight.codes, scales, weight.zeros, method)


class Int4Kernel(_vllm.Kernel):
    """What vLLM calls a kernel: one layer's way to load and to multiply."""

    @classmethod
    def get_min_capability(cls) -> int:
        """Of GPUs; does not apply."""
        return -1

    @classmethod
    def can_implement(cls, c: Any) -> tuple[bool, str | None]:
        """Whether the layer is to be ours, and why not.

        Raises:
            ValueError: neither we nor vLLM can multiply by it on this machine.
        """
        reason = _why_not(c)
        stock = compat_int4.stock_kernel(c, cls)
        if reason is None:
            if stock is None or _choice.is_ours(c, stock):
                return True, None
            return False, f"{stock.__name__} is to do it"
        if stock is None and compat_int4.takes_four_bits(c):
            raise ValueError(f"{reason}, and vLLM has no operator for 4-bit weights here")
        return False, reason

    def process_weights_after_loading(self, layer: Any) -> None:
        """Packs the weight and frees what was loaded."""
        found = compat_int4.weights_of(self, layer)
        zeros = None if found.zeros is None else layouts.compressed_zeros(found.zeros)
        self.take(layer, Int4Weight(layouts.unpack_words(found.words), found.scales, zeros))

    def take(self, layer: Any, weight: Int4Weight, order: torch.Tensor | None = None) -> None:
        """Has the layer multiply by `weight`, whose column j is input feature `order[j]`."""
        layer.int4_linear = pack(weight, self.config.act_type)
        layer.input_order = order
        compat_int4.free_weights(self, layer)
        _choice.count(self.config)

    def apply_weights(
        self, layer: Any, x: torch.Tensor, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        """x @ weight.T + bias."""
        if layer.input_order is not None:
            x = x.index_select(-1, layer.input_order)
        output: torch.Tensor = layer.int4_linear(x, None, bias)
        return output


def _why_not(config: Any) -> str | None:
    """Why our product does not take such a layer."""
    k, n = config.partition_weight_shape
    group_size = group_size_of(config)
    if not compat_int4.takes_four_bits(config):
        return f"{config.weight_type}: expected 4 bits, unsigned"
    if config.act_type not in _DTYPES:
        return f"{config.act_type}: expected float32, bfloat16 or float16"
    if group_size not in (*GROUP_SIZES, k) or k % group_size:
        sizes = ", ".join(map(str, GROUP_SIZES))
        return f"groups of {group_size} in {k} columns: expected {sizes}, or all columns"
    if k % 8 or n % 8:
        return f"weight [{n}, {k}]: expected multiples of 8"
    return None


def group_size_of(config: Any) -> int:
    """Input features that share a scale."""
    return int(config.partition_weight_shape[0] if config.group_size == -1 else config.group_size)


class Choice:
    """Who multiplies, by shape, and how many layers of which shape are ours in this load."""

    def __init__(self) -> None:
        self._choosers: dict[str, Chooser] = {}
        self._layers: Counter[str] = Counter()

    def is_ours(self, config: Any, stock: Any) -> bool:
        """Whether we multiply, where vLLM's class `stock` could."""
        backend = env.linear_backend()
        if backend != "auto":
            return backend == "capibara"
        k, n = config.partition_weight_shape
        race = _Race(config, stock)
        chooser = self._choosers.get(race.name)
        if chooser is None:
            cache = ChoiceCache(env.linear_cache_file())
            version = f"{compat.vllm_version()} {race.name}"
            chooser = Chooser(race.ours, race.stock, cache, version)
            self._choosers[race.name] = chooser
        # Only its shape and dtype matter.
        return chooser.is_ours(torch.zeros(1, 1, dtype=config.act_type).expand(n, k))

    def count(self, config: Any) -> None:
        """A layer of ours was loaded."""
        k, n = config.partition_weight_shape
        dtype = str(config.act_type).removeprefix("torch.")
        self._layers[f"{dtype} {n}x{k} in groups of {group_size_of(config)}"] += 1

    def begin_load(self) -> None:
        """A model is about to be loaded."""
        self._layers.clear()
        for chooser in self._choosers.values():
            chooser.forget_times()

    def end_load(self, loaded: compat_linear.Loaded) -> None:
        """Its weights are loaded."""
        raced = sum(chooser.raced for chooser in self._choosers.values())
        if not self._layers and not raced:
            return
        loaded.add_to_compile_key(str(sorted(self._layers)))
        seconds = sum(chooser.seconds for chooser in self._choosers.values())
        for chooser in self._choosers.values():
            chooser.free()
        compat_linear.log_info(
            _logger,
            f"4-bit linear layers ({env.linear_backend()}): {self._layers.total()} ours, of "
            f"{len(self._layers)} shapes; {raced} races in {seconds:.2f} s",
        )


class _Race:
    """Makes both products of a shape; what the weights hold does not matter."""

    def __init__(self, config: Any, stock: Any) -> None:
        self._config = config
        self._stock = stock
        self._group_size = group_size_of(config)
        kind = "symmetric" if compat_int4.is_symmetric(config) else "with zeros"
        method = "w4a8" if compat_int4.wants_w4a8() else "w4a16"
        self.name = f"{stock.__name__} 4 bits in groups of {self._group_size} {kind} {method}"

    def ours(self, part: torch.Tensor) -> Product:
        n, k = _whole_blocks(part)
        groups = k // self._group_size
        codes = torch.randint(0, 16, (n, k), dtype=torch.uint8, generator=_generator())
        zeros = None
        if not compat_int4.is_symmetric(self._config):
            zeros = torch.full((n, groups), 7, dtype=torch.uint8).numpy()
        scales = torch.full((n, groups), 0.01, dtype=part.dtype)
        linear = pack(Int4Weight(codes.numpy(), scales, zeros), part.dtype)
        return lambda x: linear(x, part, None)

    def stock(self, part: torch.Tensor) -> Product:
        n, k = _whole_blocks(part)
        groups = k // self._group_size
        config = _vllm.KernelConfig(
            full_weight_shape=(k, n),
            partition_weight_shape=(k, n),
            weight_type=self._config.weight_type,
            act_type=part.dtype,
            group_size=self._config.group_size,
            zero_points=self._config.zero_points,
        )
        words = torch.randint(0, 1 << 30, (n, k // 8), dtype=torch.int32, generator=_generator())
        zeros = torch.full((n // 8, groups), 0x77777777, dtype=torch.int32)
        scales = torch.full((n, groups), 0.01, dtype=part.dtype)
        return compat_int4.stock_product(self._stock, config, words, scales, zeros)


def _whole_blocks(part: torch.Tensor) -> tuple[int, int]:
    """Its shape in the blocks of 32 rows that vLLM's operator takes."""
    n, k = part.shape
    return max(32, n // 32 * 32), k


def _generator() -> torch.Generator:
    # One of its own: vLLM has seeded the global one, for sampling.
    return torch.Generator().manual_seed(0)


_choice = Choice()


def check_native_module() -> None:
    """Raises: RuntimeError: it is older than this file, as a checkout's that was not rebuilt is."""
    if "gemm_int4" not in _core.call_counts():
        raise RuntimeError("the native module has no 4-bit weights yet: install the project again")


def hook_int4() -> None:
    """Raises: HookNotFound; RuntimeError: an old native module; ValueError: a wrong variable."""
    env.linear_backend()
    check_native_module()
    compat_linear.around_load_model("int4_linear", _choice.begin_load, _choice.end_load)
    compat_int4.put_kernel_first(Int4Kernel)

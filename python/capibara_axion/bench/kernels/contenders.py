# SPDX-License-Identifier: Apache-2.0
"""Who is measured: for each operator the ways to compute it, ours and those of the peers.

A contender is a function that takes the inputs of a case, as torch tensors or as NumPy arrays, and
returns the call to be timed. The call returns its results, or a function that reads them from where
they are; one that works in place may return anything.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

from capibara_axion.bench.kernels.arrays import copy, tensors
from capibara_axion.bench.kernels.cases import OPS, Case, Inputs, error, with_views

Call = Callable[[], Any]
Bind = Callable[[Inputs], Call]
NORMS = ("rms_norm", "layer_norm")
ROPES = ("rope_neox", "rope_interleaved")
ATTENTION = ("attention", "attention_fp8")
APPEND = ("kv_cache_append", "kv_cache_append_fp8")
LINEAR = ("linear", "linear_int8", "linear_int4", "linear_int4_a16")
GATED = ("silu_and_mul", "gelu_tanh_and_mul", "gelu_and_mul")


@dataclass(frozen=True)
class Contender:
    """One way to compute an operator."""

    family: str  # "ours", "torch", "vLLM", "NumPy"; or "memcpy", which computes nothing
    name: str
    bind: Bind
    stock: frozenset[str]  # the modes, "eager" and "compiled", in which vLLM alone does this
    in_place: bool = False
    arrays: bool = False  # takes NumPy arrays; otherwise torch tensors over the same memory
    dtypes: tuple[str, ...] = ("bf16", "f32")
    single_threaded: bool = False  # however many threads there are, so measured with one
    compiled: bool = False  # by torch.compile, which takes seconds

    def __str__(self) -> str:
        return f"{self.family} {self.name}"


_registry: dict[str, list[Contender]] = {op: [] for op in OPS}


def contender(
    ops: str | tuple[str, ...], family: str, name: str, *, stock: str = "", **options: Any
) -> Callable[[Bind], Bind]:
    """Registers a function as a contender for one or several operators."""

    def register(bind: Bind) -> Bind:
        for op in (ops,) if isinstance(ops, str) else ops:
            modes = frozenset(stock.split())
            _registry[op].append(Contender(family, name, bind, modes, **options))
        return bind

    return register


# Modules that enter contenders when they are imported, by what has to be installed.
_MODULES = {
    "numpy": ("numpy_peers",),
    "torch": ("torch_peers", "torch_linear_peers", "torch_attention_peers"),
    "vllm": ("vllm_peers", "vllm_linear_peers", "vllm_attention_peers"),
}
_ALWAYS = ("ours", "ours_attention", "memory")
PACKAGES = tuple(_MODULES)


def installed() -> tuple[str, ...]:
    """Those of numpy, torch and vllm that are installed here; vllm needs torch."""
    found = [name for name in PACKAGES if importlib.util.find_spec(name)]
    return tuple(name for name in found if name != "vllm" or "torch" in found)


def enter(packages: Collection[str]) -> None:
    """Enters our contenders, and those of these packages, of `installed()`.

    Without torch or vllm among them, our own that take tensors are left out.
    """
    modules = list(_ALWAYS)
    if {"torch", "vllm"} & set(packages):
        modules.append("ours_torch")
    for package in packages:
        modules += _MODULES[package]
    for module in modules:
        importlib.import_module(f"{__package__}.{module}")


def contenders(case: Case, *, compiled: bool) -> list[Contender]:
    """Those entered that take part in a case, ours first.

    Args:
        case: what is measured.
        compiled: also those that torch.compile has to compile.
    """
    tensors = f"{__package__}.ours_torch" in sys.modules
    taking_part = [
        one
        for one in _registry[case.op]
        if case.dtype in one.dtypes
        and (case.threads == 1 or not one.single_threaded)
        and (compiled or not one.compiled)
        and (tensors or one.arrays)
    ]
    return sorted(taking_part, key=lambda one: one.family != "ours")


class WrongResult(Exception):
    """A contender computes something else than the operator."""


class Prepared:
    """A contender bound to the inputs of a case, with copies of those that it overwrites."""

    def __init__(self, one: Contender, case: Case, inputs: Inputs) -> None:
        self.contender = one
        self._case = case
        self._inputs = inputs
        overwritten = case.in_place if one.in_place else ()
        self._copies = {name: copy(getattr(inputs, name)) for name in overwritten}
        self._own = Inputs(**vars(inputs) | self._copies)
        if "qkv" in self._copies:
            self._own = with_views(self._own)
        self.call = one.bind(self._own if one.arrays else tensors(self._own))

    def reset(self) -> None:
        """Puts back what was overwritten: over many calls the values would drift away."""
        for name, copied in self._copies.items():
            copied[...] = getattr(self._inputs, name)

    def check(self) -> float | None:
        """Calls once; the result's error in the units of `Case.tolerance`, None for memcpy.

        Raises:
            WrongResult: it is larger than the tolerance.
        """
        self.reset()
        outputs = self.call()
        if self.contender.family == "memcpy":
            return None
        if self.contender.in_place:
            names = self._case.in_place if self._case.in_place != ("qkv",) else ("q", "k")
            outputs = tuple(getattr(self._own, name) for name in names)
        elif callable(outputs):
            outputs = outputs()
        if not isinstance(outputs, tuple):
            outputs = (outputs,)
        value = error(self._case, self._inputs, outputs)
        if value > self._case.tolerance:
            raise WrongResult(f"{self._case}: {self.contender} is off by {value:.3g} units")
        return value

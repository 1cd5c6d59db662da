# SPDX-License-Identifier: Apache-2.0
"""Who is measured: for each operator the ways to compute it, ours and those of the peers.

A contender is a function that takes the inputs of a case and returns the call to be timed. The
call returns its results, or a function that reads them from where they are; one that works in place
may return anything.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from cases import OPS, Case, Inputs, error, with_views

Call = Callable[[], Any]
Bind = Callable[[Inputs], Call]
ROPES = ("rope_neox", "rope_interleaved")
ATTENTION = ("attention", "attention_fp8")
APPEND = ("kv_cache_append", "kv_cache_append_fp8")
GATED = ("silu_and_mul", "gelu_tanh_and_mul", "gelu_and_mul")


@dataclass(frozen=True)
class Contender:
    """One way to compute an operator."""

    family: str  # "ours", "torch", "vLLM", "NumPy"; or "memcpy", which computes nothing
    name: str
    bind: Bind
    stock: frozenset[str]  # the modes, "eager" and "compiled", in which vLLM alone does this
    in_place: bool = False
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


def contenders(case: Case, *, compiled: bool) -> list[Contender]:
    """Those that take part in a case; `compiled`: also those that torch.compile has to compile."""
    return [
        one
        for one in _registry[case.op]
        if case.dtype in one.dtypes
        and (case.threads == 1 or not one.single_threaded)
        and (compiled or not one.compiled)
    ]


class WrongResult(Exception):
    """A contender computes something else than the operator."""


class Prepared:
    """A contender bound to the inputs of a case, with copies of those that it overwrites."""

    def __init__(self, one: Contender, case: Case, inputs: Inputs) -> None:
        self.contender = one
        self._case = case
        self._inputs = inputs
        overwritten = case.in_place if one.in_place else ()
        self._copies = {name: getattr(inputs, name).clone() for name in overwritten}
        self._own = Inputs(**vars(inputs) | self._copies)
        if "qkv" in self._copies:
            self._own = with_views(self._own)
        self.call = one.bind(self._own)

    def reset(self) -> None:
        """Puts back what was overwritten: over many calls the values would drift away."""
        for name, copy in self._copies.items():
            copy.copy_(getattr(self._inputs, name))

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

# SPDX-License-Identifier: Apache-2.0
"""Whether our linear layer or vLLM's is faster for a weight, found by a short race at load time.

Both run on this machine with the threads of this process: with one row, which is how a token is
decoded, and with as many rows as a prompt's chunk has. Each time is the shortest of a few rounds in
turn: what else the machine does can only add to it. A shape is raced once, which takes some 50 to
300 ms, and remembered on disk. If the machine was busy with something else meanwhile, the next
process races it again; three such races settle it if they agree.

The rule (`is_ours_faster`): ours if a request of eight prompt tokens for each generated one, a long
prompt and a short answer, takes no longer, and if neither part pays for the other: decoding is not
slower, but for the 5 % by which such short races differ from run to run, and prefill at most 15 %
in one shape. (Where that was seen, on Zen 5 with 896 columns, decoding took half the time, and
prefill, over all matrices of that model, the same: 9.3 and 9.2 ms.)
"""

from __future__ import annotations

import logging
import math
import os
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from capibara_axion import _core
from capibara_axion.vllm_plugin.linear_cache import ChoiceCache

# Computes x @ weight.T of the weight that it was made for.
Product = Callable[[torch.Tensor], torch.Tensor]
MakeProduct = Callable[[torch.Tensor], Product]
Clock = Callable[[], float]

_PROMPT_TOKENS = 8
_DECODE_LIMIT, _PREFILL_LIMIT = 1.05, 1.15

_ROUNDS = 7
# One race settles a choice if it had so many rounds, and our threads lost their cores to others no
# more often than this. (Where all cores are busy, that happens in every call.)
_CALM_ROUNDS, _CALM_SWITCHES = 3, 3
# So many in a row that were not calm do if they agree: one alone is wrong now and then, and a small
# server that is never calm while it loads a model would race at every load.
_BUSY_RACES = 3
# After these seconds no further round begins. A round is two calls, each of some 20 ms at most.
_DECODE_BUDGET = 0.08
_PREFILL_BUDGET = 0.12

# Of a larger weight so many bytes of rows are raced: they are beyond all caches as well, and a
# model's largest matrix would take a second to pack and to read a dozen times.
_RACED_BYTES = 64 << 20
_MOST_ROWS, _FEWEST_ROWS = 128, 16
_PREFILL_FLOPS_PER_THREAD = 2e9

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Times:
    """Seconds that a call takes with one row and with many."""

    decode: float
    prefill: float


@dataclass(frozen=True)
class Result:
    """Of a race.

    Attributes:
        is_calm: whether the machine had little else to do.
        rows: of the race for prefill.
    """

    ours: Times
    stock: Times
    is_calm: bool
    rows: int


def is_ours_faster(ours: Times, stock: Times, rows: int) -> bool:
    """The rule that the module's docstring states; `rows` is how many those of prefill were."""
    generated = rows / _PROMPT_TOKENS
    return (
        ours.prefill + generated * ours.decode <= stock.prefill + generated * stock.decode
        and ours.decode <= _DECODE_LIMIT * stock.decode
        and ours.prefill <= _PREFILL_LIMIT * stock.prefill
    )


def _involuntary_switches() -> int:
    """How often other processes have taken a core from a thread of this one."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw


class Chooser:
    """Chooses for each weight, remembering the choices.

    Args:
        make_ours: makes our product; raises ValueError for a weight that we do not take.
        make_stock: makes vLLM's.

    Attributes:
        raced: how many races were run.
        seconds: how long they took.
    """

    def __init__(
        self,
        make_ours: MakeProduct,
        make_stock: MakeProduct,
        cache: ChoiceCache,
        version: str,
        clock: Clock = time.perf_counter,
        switches: Callable[[], int] = _involuntary_switches,
    ) -> None:
        self._make_ours = make_ours
        self._make_stock = make_stock
        self._cache = cache
        self._version = version
        self._clock = clock
        self._switches = switches
        self._swept: torch.Tensor | None = None
        self.raced = 0
        self.seconds = 0.0

    def is_ours(self, weight: torch.Tensor) -> bool:
        """Whether to compute with this weight [N, K] ourselves."""
        key = key_of(weight, self._version)
        choice = self._cache.get(key)
        if choice is None:
            began = self._clock()
            try:
                result = self._race(weight)
            except Exception as error:
                # A model must load whatever is wrong with a race.
                _logger.warning("linear layers of %s stay with vLLM: %s", key, error)
                choice = False
                self._cache.put(key, choice, None)
            else:
                choice = is_ours_faster(result.ours, result.stock, result.rows)
                races = 1
                if (earlier := self._cache.unsettled(key)) and earlier["ours"] is choice:
                    races += _races_of(earlier)
                settled = result.is_calm or races >= _BUSY_RACES
                extra = {} if settled else {"settled": False, "races": races}
                self._cache.put(key, choice, _numbers(result) | extra)
            self.raced += 1
            self.seconds += self._clock() - began
        return choice

    def forget_times(self) -> None:
        """Counts races and seconds anew."""
        self.raced, self.seconds = 0, 0.0

    def free(self) -> None:
        """Frees the memory that only races need."""
        self._swept = None

    def _race(self, weight: torch.Tensor) -> Result:
        k = weight.shape[1]
        part = weight[: max(1, _RACED_BYTES // (k * weight.element_size()))]
        rows = prefill_rows(len(part), k, torch.get_num_threads())
        products = (self._make_ours(part), self._make_stock(part))
        switches = self._switches()
        decode = self._rounds(products, _input(1, weight), _DECODE_BUDGET, self._sweep)
        prefill = self._rounds(products, _input(rows, weight), _PREFILL_BUDGET, lambda: None)
        is_calm = (
            min(len(decode[0]), len(prefill[0])) >= _CALM_ROUNDS
            and self._switches() - switches <= _CALM_SWITCHES
        )
        ours, stock = (
            Times(min(one), min(many)) for one, many in zip(decode, prefill, strict=True)
        )
        return Result(ours, stock, is_calm, rows)

    def _rounds(
        self,
        products: tuple[Product, Product],
        x: torch.Tensor,
        budget: float,
        prepare: Callable[[], None],
    ) -> tuple[list[float], list[float]]:
        """Seconds of both in every round."""
        deadline = self._clock() + budget
        taken: tuple[list[float], list[float]] = ([], [])
        for product in products:
            product(x)  # oneDNN compiles its kernel at the first call
        for round_ in range(_ROUNDS):
            for turn in (0, 1):
                contender = (round_ + turn) % 2
                prepare()
                began = self._clock()
                products[contender](x)
                taken[contender].append(self._clock() - began)
            if self._clock() >= deadline:
                break
        return taken

    def _sweep(self) -> None:
        """Empties the caches: when a token is decoded, all other weights came after this one."""
        if self._swept is None:
            size = min(2 * (_core.cpu()["l3_bytes"] or 32 << 20), 128 << 20)
            self._swept = torch.ones(size // 4)
        self._swept.sum()


def key_of(weight: torch.Tensor, version: str) -> str:
    """All that a choice depends on.

    Args:
        version: that of vLLM, whose product is the other one.
    """
    n, k = weight.shape
    cpu = _core.cpu()
    built = int(os.stat(_core.__file__).st_mtime)  # so that developers race what they compiled
    parts = (
        f"{cpu['architecture']} {cpu['model'] or cpu['core']}",
        _core.chosen_isa(),
        f"{torch.get_num_threads()} threads",
        f"{_core.__version__} of {built}",
        f"vllm {version}",
        str(weight.dtype).removeprefix("torch."),
        f"{n}x{k}",
    )
    return " | ".join(parts)


def prefill_rows(n: int, k: int, threads: int) -> int:
    """Rows of the race for prefill: 128, or fewer where those would take too long."""
    affordable = _PREFILL_FLOPS_PER_THREAD * threads / (2 * n * k)
    power = 2 ** int(math.log2(max(affordable, 1)))
    return max(_FEWEST_ROWS, min(_MOST_ROWS, power))


def _input(rows: int, weight: torch.Tensor) -> torch.Tensor:
    # A generator of its own: vLLM has seeded the global one, for sampling.
    generator = torch.Generator().manual_seed(0)
    return torch.randn(rows, weight.shape[1], generator=generator).to(weight.dtype)


def _races_of(entry: dict[str, Any]) -> int:
    races = entry.get("races")
    return races if isinstance(races, int) else 0


def _numbers(result: Result) -> dict[str, Any]:
    """For people who read the file."""
    return {
        "rows": [1, result.rows],
        "ours_us": _microseconds(result.ours),
        "stock_us": _microseconds(result.stock),
    }


def _microseconds(times: Times) -> list[float]:
    return [round(seconds * 1e6, 1) for seconds in (times.decode, times.prefill)]

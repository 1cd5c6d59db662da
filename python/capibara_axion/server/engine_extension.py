# SPDX-License-Identifier: Apache-2.0
"""What the server adds to vLLM's worker: its cores can change while it runs, and a tidy start."""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import vllm._custom_ops as vllm_ops
from vllm.distributed.parallel_state import get_pp_group


def groups_of_cores(cpus: Sequence[int], ranks: int) -> list[list[int]]:
    """Consecutive equal groups of cores, one for each rank.

    Raises:
        ValueError: there are fewer cores than ranks.
    """
    size = len(cpus) // ranks
    if size == 0:
        raise ValueError(f"{ranks} ranks need as many cores, this engine has {len(cpus)}")
    return [list(cpus[rank * size : (rank + 1) * size]) for rank in range(ranks)]


def compute_on(cpus: Sequence[int]) -> None:
    """Have this process run on these cores, and its calling thread compute with one thread on each.

    Threads of OpenMP's that exist and become too many end at its next parallel region; those that
    it starts inherit the cores.
    """
    if hasattr(os, "sched_setaffinity"):
        for thread in os.listdir("/proc/self/task"):
            with contextlib.suppress(ProcessLookupError):  # it ended meanwhile
                os.sched_setaffinity(int(thread), cpus)
    _set_threads(len(cpus))


def prepare_products_for(threads: int) -> None:
    """Let vLLM's own matrix products follow the number of threads up to this one.

    oneDNN prepares a product when it first meets its shape, for as many threads as there are then;
    later it follows their number down from there, not up. So each shape is first computed with all
    that there may be. Once for a process; a compiled model takes another way to oneDNN.
    """

    def prepared_for_all(stock: Callable[..., Any]) -> Callable[..., Any]:
        prepared: set[tuple[int, int, int]] = set()

        def product(handler: Any, x: torch.Tensor, *arguments: Any) -> Any:
            shape = (handler.n, handler.k, x.numel())
            if shape in prepared:
                return stock(handler, x, *arguments)
            prepared.add(shape)
            now = torch.get_num_threads()
            _set_threads(threads)
            try:
                return stock(handler, x, *arguments)
            finally:
                _set_threads(now)

        return product

    for name in ("onednn_mm", "onednn_scaled_mm"):
        setattr(vllm_ops, name, prepared_for_all(getattr(vllm_ops, name)))


def _set_threads(threads: int) -> None:
    # vLLM puts a function that does nothing in the place of torch.set_num_threads.
    torch._C.set_num_threads(threads)


class EngineExtension:
    """Mixed into vLLM's worker class, for `collective_rpc`."""

    rank: int
    model_runner: Any

    def capibara_finish_load(self) -> None:
        """Return what only loading needed, and make what vLLM makes in a warm-up that is left out.

        The weights as they were read, before they were packed, are free memory that glibc keeps:
        400 MiB for 494 M parameters, given back in 46 ms.
        """
        runner = self.model_runner
        if not get_pp_group().is_first_rank and runner.intermediate_tensors is None:
            runner.intermediate_tensors = runner.model.make_empty_intermediate_tensors(
                batch_size=runner.max_num_tokens,
                dtype=runner.model_config.dtype,
                device=runner.device,
            )
        if hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
            libc.malloc_trim(0)

    def capibara_unlink_shared_memory(self) -> None:
        """Take the names off the memory that vLLM's ranks on the CPU share, once all have it.

        vLLM never does, and the memory would outlive them; so it goes with the last of them.
        """
        for path in Path("/dev/shm").glob(f"{os.environ['VLLM_DIST_IDENT']}-*"):
            path.unlink(missing_ok=True)

    def capibara_compute_on(self, groups: list[list[int]]) -> None:
        """Compute on this rank's group of cores from now on."""
        compute_on(groups[self.rank])

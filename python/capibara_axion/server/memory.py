# SPDX-License-Identifier: Apache-2.0
"""How much memory a model takes, how much there is, and how much is taken. All sizes in bytes.

A prediction has three parts: weights, from the headers of the checkpoint; the KV cache, by the rule
that sizes it when the model is loaded; and the overhead of the processes, which is learned.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from capibara_axion.server.checkpoint import Checkpoint, Tensor, find_checkpoint
from capibara_axion.server.config import ExpertConfig

GIB = 1024**3

# What the processes of one engine take beside weights and KV cache, until it has been measured.
# Measured on x86-64 with vLLM 0.32, as PSS of worker and engine after one short answer, alone: demo
# experts 471 (text) and 513 MiB (Gemma 3 with its image processor), a 0.5B shape 557 MiB (bf16) and
# 587 (int8), once its engine had returned what loading freed (malloc_trim; 400 MiB more before).
# A second engine shares the forkserver's pages: about 100 MiB less for each.
DEFAULT_OVERHEAD_BYTES = 560 * 1024 * 1024

# Sequences share blocks of 128 tokens in every group of layers, and vLLM keeps spare blocks.
_SLACK_TOKENS = 1024
_MIN_BYTES = 32 * 1024 * 1024
_DEFAULT_FULL_LENGTH_SEQUENCES = 4


@dataclass(frozen=True)
class Prediction:
    """What a model is going to take.

    Attributes:
        weights: as the engine holds them, packed copies included.
        kv_cache: reserved for cached keys and values.
        overhead: everything else of the worker and its engine processes.
        known: whether weights and KV cache could be found out; else the unknown part is 0.
    """

    weights: int
    kv_cache: int
    overhead: int
    known: bool = True

    @property
    def total(self) -> int:
        return self.weights + self.kv_cache + self.overhead


def predict(expert: ExpertConfig, overhead: int = DEFAULT_OVERHEAD_BYTES) -> Prediction:
    """What the model will take once it is loaded, all ranks together. Reads a few small files.

    Args:
        expert: a directory, or a Hugging Face name whose files are in the local cache.
        overhead: to be expected beside weights and KV cache; see `Overhead`.

    Raises:
        ValueError: a file of the checkpoint is malformed.
    """
    checkpoint = find_checkpoint(expert.model_path)
    weights = 0 if checkpoint is None else _weights(checkpoint, expert)
    kv_cache = _kv_cache(checkpoint, expert)
    known = weights > 0 and kv_cache is not None
    return Prediction(weights, kv_cache or 0, overhead, known)


def _element_bytes(expert: ExpertConfig) -> int:
    # "auto" keeps 16-bit types, and vLLM makes bfloat16 of a float32 checkpoint.
    return 4 if expert.dtype == "float32" else 2


def _weights(checkpoint: Checkpoint, expert: ExpertConfig) -> int:
    element_bytes = _element_bytes(expert)
    head = checkpoint.head
    if expert.quantization in ("capibara_int8", "capibara_int4"):
        is_int4 = expert.quantization == "capibara_int4"

        def size(tensor: Tensor) -> int:
            if not tensor.is_linear:
                return tensor.bytes_with(element_bytes)
            return tensor.int4_bytes if is_int4 and tensor is not head else tensor.int8_bytes

        # The table of a tied embedding stays beside the copy to multiply by, which is in 8 bits.
        copy = head.int8_bytes if head and checkpoint.is_tied else 0
        return sum(map(size, checkpoint.tensors.values())) + copy
    loaded = sum(tensor.bytes_with(element_bytes) for tensor in checkpoint.tensors.values())
    if head is None:
        return loaded
    # The output layer's weight stays beside its packed copy; vLLM packs every embedding, too.
    copies = 2 if expert.linear_backend == "stock" and not checkpoint.is_tied else 1
    return loaded + copies * head.bytes_with(element_bytes)


def _kv_cache(checkpoint: Checkpoint | None, expert: ExpertConfig) -> int | None:
    if expert.kv_cache_memory_bytes is not None:
        return expert.kv_cache_memory_bytes * expert.ranks
    if checkpoint is None or (shape := checkpoint.attention) is None:
        return None
    max_model_len = expert.max_model_len or checkpoint.max_model_len
    if max_model_len is None:
        return None
    per_rank = kv_cache_bytes(
        layers=-(-shape.layers // expert.pipeline_parallel_size),
        kv_heads=max(1, shape.kv_heads // expert.tensor_parallel_size),
        head_size=shape.head_size,
        element_bytes=1 if expert.kv_cache_dtype.startswith("fp8") else _element_bytes(expert),
        max_model_len=max_model_len,
        tokens=expert.kv_cache_tokens(),
    )
    return per_rank * expert.ranks


def kv_cache_bytes(
    *,
    layers: int,
    kv_heads: int,
    head_size: int,
    element_bytes: int,
    max_model_len: int,
    tokens: int | None = None,
) -> int:
    """Bytes of KV cache that hold `tokens`, and never fewer than one sequence of full length.

    Args:
        layers: attention layers of this engine, all counted as if none had a sliding window.
        kv_heads: key-value heads of one layer.
        head_size: elements of one head.
        element_bytes: bytes of one cached element.
        max_model_len: the longest sequence in tokens.
        tokens: capacity wanted; four sequences of full length when None.
    """
    wanted = tokens or _DEFAULT_FULL_LENGTH_SEQUENCES * max_model_len
    per_token = 2 * layers * kv_heads * head_size * element_bytes
    return max(_MIN_BYTES, per_token * (max(wanted, max_model_len) + _SLACK_TOKENS))


class Overhead:
    """Learns from measurements what engines take beside weights and KV cache.

    Averages are exponential, of each model and of all: a new measurement has `weight`, the past
    the rest. A model that was never measured is expected to behave like the others.

    Args:
        initial: what to expect before any measurement.
        weight: of a new measurement, 0..1.
    """

    def __init__(self, initial: int = DEFAULT_OVERHEAD_BYTES, weight: float = 0.3) -> None:
        self._initial = initial
        self._weight = weight
        self._all: float | None = None
        self._models: dict[str, float] = {}

    def learn(self, model: str, prediction: Prediction, measured: int) -> None:
        """Take in a measurement of a loaded model.

        Args:
            model: its name.
            prediction: what was predicted for it; the overhead in it does not matter.
            measured: PSS of its processes.
        """
        overhead = max(0, measured - prediction.weights - prediction.kv_cache)
        self._models[model] = self._average(self._models.get(model), overhead)
        if prediction.known:  # else it holds the model's weights as well
            self._all = self._average(self._all, overhead)

    def expected(self, model: str) -> int:
        """The overhead to predict with."""
        general = self._initial if self._all is None else self._all
        return round(self._models.get(model, general))

    def _average(self, before: float | None, new: float) -> float:
        return new if before is None else before + self._weight * (new - before)


def pss(pid: int) -> int:
    """Memory of a process and all its descendants, a shared page counted by its share.

    Processes that end meanwhile count nothing. May be called in any thread, and should not be in
    an event loop's, nor often: the kernel walks the page tables, some 20 ms for an engine of 1 GiB
    (`smaps_rollup`, which psutil reads; `smaps` takes twice as long), and the engine cannot map
    memory meanwhile.
    """
    try:
        process = psutil.Process(pid)
        family = [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return 0
    total = 0
    for member in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            info = member.memory_full_info()
            total += getattr(info, "pss", info.rss)  # no PSS outside of Linux
    return total


def limit_bytes(root: Path = Path("/")) -> int:
    """Memory that this process and its children may use at most: the machine's or a cgroup's.

    Args:
        root: where `proc` and `sys` are; for tests.
    """
    physical = psutil.virtual_memory().total
    return min([physical, *(group.limit for group in _limited_cgroups(root))])


def available_bytes(root: Path = Path("/")) -> int:
    """Memory that can be had now without swapping, on the machine and within the cgroups.

    What the kernel would free for it, such as pages of files not in use, counts as available.

    Args:
        root: where `proc` and `sys` are; for tests.
    """
    free = (max(0, group.limit - group.used) for group in _limited_cgroups(root))
    return min([psutil.virtual_memory().available, *free])


def budget_bytes(threshold: float, budget_gib: float | None, root: Path = Path("/")) -> int:
    """What the server may use for models and itself.

    Args:
        threshold: share of `limit_bytes()`, 0..1, if there is no `budget_gib`.
        budget_gib: the budget in GiB, or None; never more than `limit_bytes()`.
        root: where `proc` and `sys` are; for tests.
    """
    limit = limit_bytes(root)
    return int(limit * threshold) if budget_gib is None else min(limit, int(budget_gib * GIB))


@dataclass(frozen=True)
class _Cgroup:
    limit: int
    used: int


@dataclass(frozen=True)
class _CgroupFiles:
    """Where one version of cgroups has what."""

    mount: str
    limits: tuple[str, ...]
    usage: str
    reclaimable: str


_V1 = _CgroupFiles(
    "sys/fs/cgroup/memory",
    ("memory.limit_in_bytes",),
    "memory.usage_in_bytes",
    "total_inactive_file",
)
# Above memory.high a process is slowed down until it hardly runs, so it is a limit as well.
_V2 = _CgroupFiles(
    "sys/fs/cgroup", ("memory.max", "memory.high"), "memory.current", "inactive_file"
)


def _limited_cgroups(root: Path) -> Iterator[_Cgroup]:
    """The cgroups with a memory limit on the path from this process's own to the top.

    In a container the path may be that of the host, of which only the end is mounted: folders that
    do not exist are left out.
    """
    for line in _text(root / "proc/self/cgroup").splitlines():
        number, controllers, path = line.split(":", 2)
        if number == "0" and not controllers:
            files = _V2
        elif "memory" in controllers.split(","):
            files = _V1
        else:
            continue
        mount = root / files.mount
        folder = mount / path.lstrip("/")
        for group in (folder, *folder.parents):
            if not group.is_relative_to(mount):
                break
            values = (_text(group / name).strip() for name in files.limits)
            if limits := [int(value) for value in values if value.isdigit()]:
                yield _Cgroup(min(limits), _used(group, files))


def _used(group: Path, files: _CgroupFiles) -> int:
    statistics = dict(line.split(" ", 1) for line in _text(group / "memory.stat").splitlines())
    used = int(_text(group / files.usage) or 0)
    return max(0, used - int(statistics.get(files.reclaimable, 0)))


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""

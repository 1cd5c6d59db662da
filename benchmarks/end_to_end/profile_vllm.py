# SPDX-License-Identifier: Apache-2.0
"""Times the parts of vLLM's steps in one process: see `work.answer` and profile_step.py.

The parts are modules, told apart by class, and their times are taken around `forward`, less what
the parts inside took. That costs under a microsecond a call. torch.profiler, which knows operators
and not modules (the output layer is one more matrix product to it) and adds several microseconds
to each, runs afterwards and only names the operators.
"""

from __future__ import annotations

import functools
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

from measure_vllm import generate, load
from work import Job, answer

_PROFILED_STEPS = 24  # of decoding, under torch.profiler
_OPERATORS = 25


class Timers:
    """The time that each part took itself, without the parts that it called."""

    def __init__(self) -> None:
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._inner = [0.0]

    def wrap(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            began = time.perf_counter()
            self._inner.append(0.0)
            try:
                return function(*args, **kwargs)
            finally:
                elapsed = time.perf_counter() - began
                self._seconds[part] += elapsed - self._inner.pop()
                self._inner[-1] += elapsed

        return timed

    def take(self) -> dict[str, float]:
        """Seconds by part since the last call."""
        taken, self._seconds = dict(self._seconds), defaultdict(float)
        return taken


def measure(job: Job) -> dict[str, Any]:
    """Seconds by part of the undisturbed prefill and decode steps."""
    llm = load(job)
    generate(llm, job, next(job.prompts()))
    figures = [generate(llm, job, tokens) for tokens in job.prompts()]
    timers = Timers()
    _wrap_parts(llm, timers)
    prefill: list[dict[str, float]] = []
    decode: list[dict[str, float]] = []
    for tokens in job.prompts():
        steps: list[dict[str, float]] = []
        generate(llm, job, tokens, on_step=lambda steps=steps: steps.append(timers.take()))
        prefill += steps[:1]
        decode += steps[1:]
    return {
        "unwrapped": figures,
        "prefill": {"parts": _undisturbed(prefill)},
        "decode": {"parts": _undisturbed(decode)},
        "operators": _operators(llm, job) if job.options["operators"] else {},
    }


def _undisturbed(steps: list[dict[str, float]]) -> dict[str, float]:
    """The mean of the faster half of the steps, by part: the parts' sum is a step's time."""
    steps = sorted(steps, key=lambda step: sum(step.values()))
    steps = steps[: (len(steps) + 1) // 2]
    parts = sorted({part for step in steps for part in step})
    return {part: sum(step.get(part, 0.0) for step in steps) / len(steps) for part in parts}


def _wrap_parts(llm: Any, timers: Timers) -> None:
    """Wraps everything between the engine's step and the layers."""
    engine = llm.llm_engine
    (runner,) = llm.collective_rpc(lambda worker: worker.model_runner)
    engine.step = timers.wrap("outside: engine, scheduler", engine.step)
    for name in ("execute_model", "sample_tokens"):
        setattr(runner, name, timers.wrap("outside: model runner", getattr(runner, name)))
    runner.sampler.forward = timers.wrap("sampling", runner.sampler.forward)
    for name, module in runner.model.named_modules():
        part = _part(name, module)
        if part is not None:
            module.forward = timers.wrap(part, module.forward)


def _part(name: str, module: Any) -> str | None:
    """The part of the step that a module is; None where it belongs to the one around it."""
    from vllm.model_executor.layers.attention import Attention
    from vllm.model_executor.layers.linear import LinearBase
    from vllm.model_executor.layers.logits_processor import LogitsProcessor
    from vllm.model_executor.layers.rotary_embedding import RotaryEmbedding
    from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding

    kind = type(module)
    if isinstance(module, LinearBase):
        return f"linear: {name.rpartition('.')[2]}"
    if kind.__name__.endswith("Norm"):
        return "norms"
    if kind.__module__.endswith(".activation") or kind.__name__.endswith("AndMul"):
        return "activation"
    for base, part in (
        (LogitsProcessor, "lm_head"),
        (Attention, "attention, cache write"),
        (RotaryEmbedding, "rope"),
        (VocabParallelEmbedding, "embedding"),
    ):
        if isinstance(module, base):
            return part
    # The modules that hold others: their Python, and whatever they compute themselves.
    return "rest of the model" if any(True for _ in module.children()) or not name else None


def _operators(llm: Any, job: Job) -> dict[str, list[dict[str, Any]]]:
    """The operators with the largest self times by torch.profiler, of a step, as it sees them."""
    from torch.profiler import ProfilerActivity, profile

    found = {}
    for what, count in (("prefill", 1), ("decode", min(_PROFILED_STEPS, job.new_tokens - 1))):
        steps = 0
        profiler = profile(activities=[ProfilerActivity.CPU])

        def on_step(what: str = what, count: int = count, profiler: Any = profiler) -> None:
            nonlocal steps
            steps += 1
            if what == "decode" and steps == 1:
                profiler.start()
            if steps == (1 if what == "prefill" else count + 1):
                profiler.stop()

        if what == "prefill":
            profiler.start()
        generate(llm, job, next(job.prompts()), on_step=on_step)
        events = sorted(profiler.key_averages(), key=lambda e: e.self_cpu_time_total, reverse=True)
        found[what] = [
            {
                "operator": event.key,
                "calls": event.count / count,
                "us": round(event.self_cpu_time_total / count, 1),
            }
            for event in events[:_OPERATORS]
        ]
    return found


if __name__ == "__main__":
    answer(measure)

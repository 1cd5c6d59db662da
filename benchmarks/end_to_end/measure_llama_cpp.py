# SPDX-License-Identifier: Apache-2.0
"""Measures llama.cpp in one process, through its C interface: see `work.answer`.

The Python class `Llama` is left out: it copies all logits of every step, which costs llama.cpp a
part of its speed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from ctypes import c_int32
from typing import Any

from work import CONTEXT, Absent, Job, Stopwatch, answer, resident_mib

_FLASH_ATTENTION = {"off": 0, "on": 1}  # enum llama_flash_attn_type
_BATCH = 512


def measure(job: Job) -> dict[str, Any]:
    """Measures with flash attention or without, whichever is faster for the first prompt."""
    try:
        # Only in the peers' environment, which prepare.py makes: no type checker sees it.
        import llama_cpp  # type: ignore[import-not-found,unused-ignore]
    except ImportError as error:
        raise Absent(f"{error}; prepare.py installs llama.cpp") from error

    llama_cpp.llama_backend_init()
    parameters = llama_cpp.llama_model_default_params()
    model = llama_cpp.llama_model_load_from_file(job.model.encode(), parameters)
    if not model:
        raise RuntimeError(f"llama.cpp cannot load {job.model}")
    first = next(job.prompts())
    tried = {}
    for setting in _FLASH_ATTENTION:
        with _context(llama_cpp, model, job, setting) as context:
            _generate(llama_cpp, context, job, first)  # the first one also reads the file
            tried[setting] = _generate(llama_cpp, context, job, first)
    best = min(tried, key=lambda setting: _seconds(tried[setting], job))
    with _context(llama_cpp, model, job, best) as context:
        repetitions = [_generate(llama_cpp, context, job, tokens) for tokens in job.prompts()]
    settings = {
        "flash_attention": best,
        "tried": {name: _speeds(figures) for name, figures in tried.items()},
        "system": llama_cpp.llama_print_system_info().decode(),
        "version": llama_cpp.__version__,
    }
    loaded = resident_mib()
    return {"repetitions": repetitions, "loaded_rss_mib": loaded, "settings": settings}


@contextmanager
def _context(llama_cpp: Any, model: Any, job: Job, flash_attention: str) -> Iterator[Any]:
    parameters = llama_cpp.llama_context_default_params()
    parameters.n_ctx = CONTEXT
    parameters.n_batch = parameters.n_ubatch = _BATCH
    parameters.n_threads = parameters.n_threads_batch = job.threads
    parameters.flash_attn_type = _FLASH_ATTENTION[flash_attention]
    parameters.no_perf = True
    context = llama_cpp.llama_init_from_model(model, parameters)
    if not context:
        raise RuntimeError("llama.cpp cannot make a context")
    try:
        yield context
    finally:
        llama_cpp.llama_free(context)


def _generate(llama_cpp: Any, context: Any, job: Job, tokens: list[int]) -> dict[str, Any]:
    sampler = llama_cpp.llama_sampler_init_greedy()
    llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(context), True)
    watch = Stopwatch()
    token = _decode(llama_cpp, context, sampler, tokens)
    watch.token(token)
    for _ in range(job.new_tokens - 1):
        token = _decode(llama_cpp, context, sampler, [token])
        watch.token(token)
    llama_cpp.llama_sampler_free(sampler)
    return watch.figures(job)


def _decode(llama_cpp: Any, context: Any, sampler: Any, tokens: list[int]) -> int:
    """Feeds `tokens` and returns the next one."""
    for begin in range(0, len(tokens), _BATCH):
        part = tokens[begin : begin + _BATCH]
        array = (c_int32 * len(part))(*part)
        batch = llama_cpp.llama_batch_get_one(array, len(part))
        if status := llama_cpp.llama_decode(context, batch):
            raise RuntimeError(f"llama_decode returned {status}")
    return int(llama_cpp.llama_sampler_sample(sampler, context, -1))


def _speeds(figures: dict[str, Any]) -> dict[str, float]:
    return {name: value for name, value in figures.items() if name.endswith("per_s")}


def _seconds(figures: dict[str, Any], job: Job) -> float:
    prefill = job.prompt_tokens / figures["prefill_tokens_per_s"]
    return float(prefill + job.new_tokens / figures["decode_tokens_per_s"])


if __name__ == "__main__":
    answer(measure)

# SPDX-License-Identifier: Apache-2.0
"""Measures vLLM, with our plugin or without, in one process: see `work.answer`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from work import CONTEXT, Absent, Job, Stopwatch, answer, resident_mib

if TYPE_CHECKING:
    from vllm import LLM

_KV_CACHE_BYTES = 64 << 20  # five times what one request of CONTEXT tokens needs


def measure(job: Job) -> dict[str, Any]:
    """Generates after each prompt of the job; the first one also once before, uncounted."""
    llm = load(job)
    generate(llm, job, next(job.prompts()))
    loaded = resident_mib()
    repetitions = [generate(llm, job, tokens) for tokens in job.prompts()]
    return {"repetitions": repetitions, "loaded_rss_mib": loaded, "settings": _settings(job)}


def load(job: Job) -> LLM:
    """The engine of the job, in this very process.

    Raises:
        Absent: the quantisation method that the job names is not registered.
    """
    from vllm import LLM

    quantization = job.options.get("quantization")
    if quantization is not None:
        _expect_quantization(quantization)
    llm = LLM(
        job.model,
        dtype="bfloat16",
        quantization=quantization,
        skip_tokenizer_init=True,
        max_model_len=CONTEXT,
        max_num_seqs=1,
        max_num_batched_tokens=CONTEXT,
        kv_cache_memory_bytes=_KV_CACHE_BYTES,
        enable_prefix_caching=False,
        enforce_eager=not job.options["compiled"],
        distributed_executor_backend="uni",
    )
    if job.options["plugin"] != (_hooked() is not None):
        raise RuntimeError(f"plugin: expected {job.options['plugin']}, hooked: {_hooked()}")
    return llm


def generate(llm: LLM, job: Job, tokens: list[int], on_step: Any = None) -> dict[str, Any]:
    """Has the engine continue `tokens`; calls `on_step()` after each of its steps."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    sampling = SamplingParams(
        temperature=0,
        max_tokens=job.new_tokens,
        ignore_eos=True,
        detokenize=False,
        output_kind=RequestOutputKind.DELTA,
    )
    engine = llm.llm_engine
    watch = Stopwatch()
    engine.add_request("0", {"prompt_token_ids": tokens}, sampling)
    while engine.has_unfinished_requests():
        for output in engine.step():
            for token in output.outputs[0].token_ids:
                watch.token(token)
        if on_step is not None:
            on_step()
    return watch.figures(job)


def _expect_quantization(name: str) -> None:
    from vllm.model_executor.layers.quantization import QUANTIZATION_METHODS
    from vllm.plugins import load_general_plugins

    load_general_plugins()
    if name not in QUANTIZATION_METHODS:
        raise Absent(f"no quantisation method {name!r} is registered with vLLM")


def _hooked() -> dict[str, str] | None:
    """What became of our operators; None where vLLM has not loaded the plugin."""
    register = sys.modules.get("capibara_axion.vllm_plugin.register")
    status: dict[str, str] | None = register.status() if register else None
    return status


def _settings(job: Job) -> dict[str, Any]:
    import torch

    settings: dict[str, Any] = {"torch_threads": torch.get_num_threads()}
    if job.options["plugin"]:
        from capibara_axion import info

        settings |= {"plugin": _hooked(), "calls": info.call_counts()}
    return settings


if __name__ == "__main__":
    answer(measure)

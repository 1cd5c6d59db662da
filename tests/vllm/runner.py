# SPDX-License-Identifier: Apache-2.0
"""Runs vLLM engines for the tests: one JSON job a line on stdin, one JSON answer a line on stdout.

vLLM is imported once; each job runs in a fork of that process, so jobs share nothing else. The
engine core lives in the fork itself, where the operators' call counters can be read.

A job is {"model", "max_model_len", "compiled", "env": {name: value}, "image": bool, "options": for
LLM} and perhaps "rounds": for each call of the engine the prompts as token ids, "new_tokens": n,
"prompt_logprobs": false, "no_stock_attention": true. The answer is {"logprobs": [...], "tokens":
[[...]], "counts": {op: calls, of all workers}, "status": {op: text}, "graphs": n, "parameters":
{"linear" | "head" | "lookup": elements}, "log": [text], "requests": [{"prompt", "tokens",
"prompt_logprobs", "logprobs", "cached"}], "block_bytes": bytes of a block of all layers' caches,
"preempted": n} or {"error": text}. With "embed": true it has "embeddings": [[...]] of the prompts.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any, TextIO

ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_DISABLE_COMPILE_CACHE": "1",
    "VLLM_USE_AOT_COMPILE": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "2",
    "OMP_WAIT_POLICY": "passive",  # threads that spin would starve the tests beside these
    # Bound, the main threads of engines that are tested side by side share the first core.
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    # One compiler process: its pool of workers takes longer to start than these graphs to compile.
    "TORCHINDUCTOR_COMPILE_THREADS": "1",
}

_TEXT = (
    "The server keeps several expert models and loads each of them when it is first asked for.\n"
    "def add(first, second): return first + second # ¿Qué es? Grüße, 世界"
)
_NEW_TOKENS = 8


def run(job: dict[str, Any]) -> dict[str, Any]:
    """Runs one engine in this process."""
    import torch
    from torch._dynamo.utils import counters
    from vllm import LLM, SamplingParams

    # vLLM's own attention uses AMX where the processor shows it, but only oneDNN asks the kernel
    # for it: without that, as in models too small for oneDNN to use it, it is an illegal
    # instruction.
    torch.cpu._init_amx()
    log = _Log()
    preempted = _count_preemptions()
    options: dict[str, Any] = {"enforce_eager": True}
    if job["compiled"]:
        options = {"compilation_config": {"cudagraph_mode": "NONE", "compile_sizes": []}}
    options |= {
        "dtype": "float32",
        "max_model_len": job["max_model_len"],
        "max_num_seqs": 2,
        "max_num_batched_tokens": job["max_model_len"],
        "kv_cache_memory_bytes": 32 << 20,
        "distributed_executor_backend": "uni",
        "enable_prefix_caching": False,
    }
    if job.get("no_stock_attention"):
        _refuse_stock_attention()
    llm = LLM(job["model"], **(options | job["options"]))
    from capibara_axion.vllm_plugin import register

    llm.collective_rpc(_prepare_worker)
    answer: dict[str, Any] = {}
    if job.get("embed"):
        prompts = [{"prompt_token_ids": ids} for ids in job["rounds"][0]]
        embedded = llm.embed(prompts, use_tqdm=False)
        answer["embeddings"] = [output.outputs.embedding for output in embedded]
    else:
        sampling = SamplingParams(
            temperature=0,
            max_tokens=job.get("new_tokens", _NEW_TOKENS),
            ignore_eos=True,
            prompt_logprobs=0 if job.get("prompt_logprobs", True) else None,
            logprobs=0,
        )
        outputs = []
        for prompts in _rounds(job):
            outputs += llm.generate(prompts, sampling, use_tqdm=False)
        if job["image"]:
            image = {"type": "image_pil", "image_pil": picture()}
            message = [image, {"type": "text", "text": job.get("image_text", "Look.")}]
            outputs += llm.chat([{"role": "user", "content": message}], sampling, use_tqdm=False)
        requests = answer["requests"] = [_request(output) for output in outputs]
        answer["logprobs"] = [
            value
            for request in requests
            for value in request["prompt_logprobs"] + request["logprobs"]
        ]
        answer["tokens"] = [request["tokens"] for request in requests]
    workers = llm.collective_rpc(_report_of_worker)
    return answer | {
        "counts": {op: sum(w["counts"][op] for w in workers) for op in workers[0]["counts"]},
        "status": register.status(),
        "graphs": counters["stats"]["unique_graphs"],
        "parameters": llm.apply_model(_parameters)[0],
        "log": log.messages,
        "block_bytes": workers[0]["block_bytes"],
        "preempted": len(preempted),
    }


def _rounds(job: dict[str, Any]) -> list[list[dict[str, Any]]]:
    if "rounds" not in job:
        return [[{"prompt": _TEXT}]]
    return [[{"prompt_token_ids": ids} for ids in prompts] for prompts in job["rounds"]]


def _request(output: Any) -> dict[str, Any]:
    def values(steps: list[Any]) -> list[float]:
        return [next(iter(step.values())).logprob for step in steps]

    return {
        "prompt": list(output.prompt_token_ids),
        "tokens": list(output.outputs[0].token_ids),
        "prompt_logprobs": values((output.prompt_logprobs or [None])[1:]),
        "logprobs": values(output.outputs[0].logprobs),
        "cached": output.num_cached_tokens,
    }


def _prepare_worker(worker: Any) -> None:
    """Begins to count; what nobody has stored yet in a cache of ours must not matter."""
    from capibara_axion import info
    from capibara_axion.vllm_plugin import register

    info.reset_call_counts()
    if register.status()["attention"] == register.HOOKED:
        for cache in _caches(worker):
            cache.fill_(0x7F if cache.dtype.itemsize == 1 else float("nan"))


def _report_of_worker(worker: Any) -> dict[str, Any]:
    from capibara_axion import info

    return {
        "counts": info.call_counts(),
        "block_bytes": sum(cache[0].numel() * cache.dtype.itemsize for cache in _caches(worker)),
    }


def _caches(worker: Any) -> list[Any]:
    """The layers' caches; layers may share one."""
    layers = worker.model_runner.compilation_config.static_forward_context.values()
    caches = [layer.kv_cache for layer in layers if hasattr(layer, "kv_cache")]
    return [*{c.data_ptr(): c for c in caches if c.dim() == 4}.values()]


def _refuse_stock_attention() -> None:
    """As on a CPU for which vLLM has no kernels of this kind."""
    from vllm.v1.attention.backends import cpu_attn

    def refuse(*args: Any, **kwargs: Any) -> str:
        raise NotImplementedError("FP8 KV cache on CPU requires x86 with AVX-512 or AMX.")

    cpu_attn._get_attn_isa = refuse


def _count_preemptions() -> list[str]:
    from vllm.v1.core.sched.scheduler import Scheduler

    preempted: list[str] = []
    stock = Scheduler._preempt_request

    def preempt(self: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
        preempted.append(request.request_id)
        return stock(self, request, *args, **kwargs)

    Scheduler._preempt_request = preempt
    return preempted


class _Log(logging.Handler):
    """Collects what the plugin says."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.messages: list[str] = []
        logger = logging.getLogger("capibara_axion")
        logger.addHandler(self)
        logger.setLevel(logging.INFO)

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


def _parameters(model: Any) -> dict[str, int]:
    """Elements of the weights that were kept, of linear layers, output layers and embeddings."""
    from vllm.model_executor.layers.linear import LinearBase
    from vllm.model_executor.layers.vocab_parallel_embedding import (
        ParallelLMHead,
        VocabParallelEmbedding,
    )

    kinds = {"linear": LinearBase, "head": ParallelLMHead, "lookup": VocabParallelEmbedding}
    counts = dict.fromkeys(kinds, 0)
    for module in model.modules():
        kind = next((kind for kind, cls in kinds.items() if isinstance(module, cls)), None)
        if kind is not None:
            counts[kind] += module.weight.numel() if hasattr(module, "weight") else 0
    return counts


def picture() -> Any:
    """A gradient with some structure, of neither the model's size nor its shape."""
    import numpy as np
    from PIL import Image

    rows, columns = np.mgrid[0:90, 0:140]
    channels = [rows * 255 // 89, columns * 255 // 139, (rows * columns) % 256]
    return Image.fromarray(np.stack(channels, axis=-1).astype(np.uint8))


def _run_in_fork(job: dict[str, Any]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as directory:
        answer = Path(directory) / "answer.json"
        child = os.fork()
        if child == 0:
            try:
                os.environ.update(job["env"])
                content = run(job)
            except BaseException:
                content = {"error": traceback.format_exc()}
            answer.write_text(json.dumps(content), encoding="utf-8")
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if not answer.exists():
            return {"error": f"the engine's process died with wait status {status}"}
        content = json.loads(answer.read_text(encoding="utf-8"))
        return dict(content)


def _main() -> None:
    os.environ.update(ENVIRONMENT)
    # vLLM prints to stdout; answers go to a copy of it that nothing else knows.
    answers: TextIO = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    import vllm.v1.worker.cpu_worker  # noqa: F401
    from vllm import LLM  # noqa: F401  (imported once here, for all forks)

    for line in sys.stdin:
        print(json.dumps(_run_in_fork(json.loads(line))), file=answers, flush=True)


if __name__ == "__main__":
    _main()

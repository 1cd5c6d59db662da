# SPDX-License-Identifier: Apache-2.0
"""Runs vLLM engines for the tests: one JSON job a line on stdin, one JSON answer a line on stdout.

vLLM is imported once; each job runs in a fork of that process, so jobs share nothing else. The
engine core lives in the fork itself, where the operators' call counters can be read.

A job is {"model", "max_model_len", "compiled", "env": {name: value}, "image": bool, "options": for
LLM}; the answer is {"logprobs": [...], "tokens": [[...]], "counts": {op: calls}, "status":
{op: text}, "graphs": n, "parameters": {"linear" | "head" | "lookup": elements}, "log": [text]} or
{"error": text}.
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
    from torch._dynamo.utils import counters
    from vllm import LLM, SamplingParams

    log = _Log()
    options: dict[str, Any] = {"enforce_eager": True}
    if job["compiled"]:
        options = {"compilation_config": {"cudagraph_mode": "NONE", "compile_sizes": []}}
    options |= {"dtype": "float32"} | job["options"]
    llm = LLM(
        job["model"],
        max_model_len=job["max_model_len"],
        max_num_seqs=2,
        max_num_batched_tokens=job["max_model_len"],
        kv_cache_memory_bytes=32 << 20,
        distributed_executor_backend="uni",
        enable_prefix_caching=False,
        **options,
    )
    from capibara_axion import info
    from capibara_axion.vllm_plugin import register

    info.reset_call_counts()
    sampling = SamplingParams(
        temperature=0, max_tokens=_NEW_TOKENS, ignore_eos=True, prompt_logprobs=0, logprobs=0
    )
    requests = [{"prompt": _TEXT}]
    outputs = llm.generate(requests, sampling, use_tqdm=False)
    if job["image"]:
        message = [{"type": "image_pil", "image_pil": _image()}, {"type": "text", "text": "Look."}]
        outputs += llm.chat([{"role": "user", "content": message}], sampling, use_tqdm=False)
    steps = [
        step
        for output in outputs
        for step in [*output.prompt_logprobs[1:], *output.outputs[0].logprobs]
    ]
    return {
        "logprobs": [next(iter(step.values())).logprob for step in steps],
        "tokens": [list(output.outputs[0].token_ids) for output in outputs],
        "counts": info.call_counts(),
        "status": register.status(),
        "graphs": counters["stats"]["unique_graphs"],
        "parameters": llm.apply_model(_parameters)[0],
        "log": log.messages,
    }


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
            counts[kind] += module.weight.numel()
    return counts


def _image() -> Any:
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

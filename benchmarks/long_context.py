# SPDX-License-Identifier: Apache-2.0
"""A long prompt through vLLM in chunks, with our attention and an FP8 KV cache, against float32.

    python benchmarks/long_context.py [--tokens 32768] [--chunk 2048] [--stock]

The model is a Llama of two layers with random weights. Its queries and keys are scaled so that
attention picks a few keys out of all: a key that is lost or taken twice changes what follows. The
log-probability of every token of the prompt is compared with transformers' in float32, and for an
8-bit cache also with those of transformers where keys and values are rounded to the same 8 bits.
Each engine runs in a process of its own; `--stock` adds vLLM's own attention, where it has one.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"

KV_CACHE_DTYPES = ("auto", "fp8_e4m3", "fp8_e5m2")
_FP8 = {"fp8_e4m3": torch.float8_e4m3fn, "fp8_e5m2": torch.float8_e5m2}

_HIDDEN, _HEADS, _KV_HEADS, _HEAD_DIM, _VOCABULARY = 128, 4, 2, 32, 512
_SCORES_STD = 4.0

_ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
}


def main() -> int:
    arguments = _parser().parse_args()
    if arguments.engine is not None:
        print(json.dumps(_engine(json.loads(arguments.engine))))
        return 0
    with tempfile.TemporaryDirectory() as directory:
        model = Path(directory)
        write_model(model, arguments.tokens + 64)
        prompt = _prompt(arguments.tokens)
        began = time.perf_counter()
        references = {kind: _reference(model, prompt, kind) for kind in arguments.kv_cache_dtype}
        references.setdefault("auto", _reference(model, prompt, "auto"))
        reference_s = time.perf_counter() - began
        runs = []
        for attention in ("ours", "stock") if arguments.stock else ("ours",):
            for kind in arguments.kv_cache_dtype:
                runs.append(_run(model, attention, kind, arguments, references))
                print(json.dumps(runs[-1]), flush=True)
    # Here: it loads the native module, which the engines' processes do themselves.
    from machine import describe

    result = {
        "command": " ".join(["python", *sys.argv]),
        "conditions": describe({}),
        "model": f"Llama, 2 layers, {_HEADS}/{_KV_HEADS} heads of {_HEAD_DIM}, float32",
        "tokens": arguments.tokens,
        "chunk": arguments.chunk,
        "reference_s": round(reference_s, 1),
        "runs": runs,
    }
    arguments.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return 0


def write_model(folder: Path, positions: int) -> None:
    """A checkpoint with random weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=_VOCABULARY,
        hidden_size=_HIDDEN,
        intermediate_size=2 * _HIDDEN,
        num_hidden_layers=2,
        num_attention_heads=_HEADS,
        num_key_value_heads=_KV_HEADS,
        head_dim=_HEAD_DIM,
        max_position_embeddings=positions,
        rope_theta=1e6,
    )
    model = LlamaForCausalLM(config)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() > 1:
                std = weight.shape[1] ** -0.5
                if "q_proj" in name or "k_proj" in name:
                    std *= math.sqrt(_SCORES_STD)
                weight.copy_(std * torch.randn(weight.shape, generator=generator))
    model.save_pretrained(folder)


def _prompt(tokens: int) -> list[int]:
    generator = torch.Generator().manual_seed(2)
    ids: list[int] = torch.randint(3, _VOCABULARY, (tokens,), generator=generator).tolist()
    return ids


@torch.inference_mode()
def _reference(folder: Path, prompt: list[int], kv_cache_dtype: str) -> torch.Tensor:
    """Log-probabilities of the prompt's tokens but the first; see the module's docstring."""
    from transformers import AttentionInterface, AttentionMaskInterface, LlamaForCausalLM
    from transformers.integrations.sdpa_attention import sdpa_attention_forward
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

    def rounding(
        module: Any, query: Any, key: Any, value: Any, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, None]:
        if (dtype := _FP8.get(kv_cache_dtype)) is not None:
            largest = torch.finfo(dtype).max
            key, value = (x.clamp(-largest, largest).to(dtype).float() for x in (key, value))
        attended: tuple[torch.Tensor, None] = sdpa_attention_forward(
            module, query, key, value, *args, **kwargs
        )
        return attended

    AttentionInterface.register("sdpa_rounding", rounding)
    AttentionMaskInterface.register("sdpa_rounding", ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
    model = LlamaForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="sdpa_rounding"
    ).eval()
    ids = torch.tensor([prompt])
    logits = model(input_ids=ids, use_cache=False).logits[0, :-1]
    return torch.log_softmax(logits, -1).gather(-1, ids[0, 1:, None])[:, 0]


def _run(
    model: Path,
    attention: str,
    kv_cache_dtype: str,
    arguments: argparse.Namespace,
    references: dict[str, torch.Tensor],
) -> dict[str, Any]:
    job = {
        "model": str(model),
        "tokens": arguments.tokens,
        "chunk": arguments.chunk,
        "kv_cache_dtype": kv_cache_dtype,
    }
    off = {"CAPIBARA_AXION_DISABLE": "attention"} if attention == "stock" else {}
    command = [sys.executable, __file__, "--engine", json.dumps(job)]
    process = subprocess.run(
        command, env={**os.environ, **_ENVIRONMENT, **off}, stdout=subprocess.PIPE, text=True
    )
    run: dict[str, Any] = {"attention": attention, "kv_cache_dtype": kv_cache_dtype}
    if process.returncode:
        return run | {"error": f"the engine ended with code {process.returncode}"}
    answer = json.loads(process.stdout.splitlines()[-1])
    given = torch.tensor(answer.pop("logprobs"), dtype=torch.float64)
    run |= answer | {"from_float32": _differences(given, references["auto"])}
    if kv_cache_dtype != "auto":
        run["from_rounded"] = _differences(given, references[kv_cache_dtype])
    return run


def _differences(given: torch.Tensor, reference: torch.Tensor) -> dict[str, Any]:
    difference = (given - reference).abs()
    return {
        "positions": difference.numel(),
        "largest": float(difference.max()),
        "rms": float(difference.square().mean().sqrt()),
        "largest_by_quarter": [float(part.max()) for part in difference.chunk(4)],
    }


def _engine(job: dict[str, Any]) -> dict[str, Any]:
    """Runs vLLM in this process, with stdout for the answer alone."""
    answers = os.dup(1)
    os.dup2(2, 1)
    from vllm import LLM, SamplingParams

    llm = LLM(
        job["model"],
        skip_tokenizer_init=True,
        dtype="float32",
        enforce_eager=True,
        distributed_executor_backend="uni",
        max_model_len=job["tokens"] + 16,
        max_num_seqs=1,
        max_num_batched_tokens=job["chunk"],
        enable_chunked_prefill=True,
        enable_prefix_caching=False,
        kv_cache_dtype=job["kv_cache_dtype"],
        kv_cache_memory_bytes=256 << 20,
    )
    from capibara_axion import info

    def generate(**what: Any) -> tuple[float, Any]:
        sampling = SamplingParams(temperature=0, max_tokens=1, detokenize=False, **what)
        began = time.perf_counter()
        prompt = {"prompt_token_ids": _prompt(job["tokens"])}
        (output,) = llm.generate([prompt], sampling, use_tqdm=False)
        return time.perf_counter() - began, output

    info.reset_call_counts()
    _, output = generate(prompt_logprobs=0)
    calls = info.call_counts()["attention"]
    seconds, _ = generate()
    os.dup2(answers, 1)
    steps = output.prompt_logprobs[1:]
    return {
        "calls_of_our_attention": calls,
        "prefill_s": round(seconds, 3),
        "logprobs": [next(iter(step.values())).logprob for step in steps],
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--tokens", type=int, default=32768)
    parser.add_argument("--chunk", type=int, default=2048, help="max_num_batched_tokens")
    parser.add_argument(
        "--kv-cache-dtype", nargs="+", choices=KV_CACHE_DTYPES, default=[*KV_CACHE_DTYPES]
    )
    parser.add_argument("--stock", action="store_true", help="vLLM's own attention, too")
    parser.add_argument("--output", type=Path, default=RESULTS / "long_context.json")
    parser.add_argument("--engine", help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    sys.exit(main())

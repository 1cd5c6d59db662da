# SPDX-License-Identifier: Apache-2.0
"""The configuration of the five experts with their real checkpoints, for a large Axion machine."""

from __future__ import annotations

from typing import Any

from capibara_axion.demo.experts import EXPERTS, configuration, identity

_NOTES = {
    "machine": "chosen for 32 cores and 128 GB, as a C4A-standard-32 has",
    "memory": "about 60 GB of weights and 25 GB of KV caches while all five are loaded; a model "
    "with capibara_int8 takes its bfloat16 size while it is being loaded (Gemma 3: 55 GB)",
    "access": "Gemma 3 and Aya Expanse want their licences accepted on huggingface.co: HF_TOKEN",
}

_EVERY_MODEL = {
    "dtype": "bfloat16",
    "kv_cache_dtype": "fp8_e4m3",
    "max_num_seqs": 32,
    "enable_chunked_prefill": True,
    "enable_prefix_caching": True,
}

# The small ones keep bfloat16: rounding costs them more, and they are fast as they are.
_MODELS: dict[str, dict[str, Any]] = {
    "phi4_fast": {
        "model_path": "microsoft/Phi-4-mini-instruct",
        "max_model_len": 16384,
    },
    "mistral_balanced": {
        "model_path": "mistralai/Mistral-7B-Instruct-v0.2",
        "quantization": "capibara_int8",
        "max_model_len": 16384,
    },
    "qwen_coder": {
        "model_path": "Qwen/Qwen2.5-Coder-1.5B-Instruct",
        "max_model_len": 32768,
    },
    "gemma3_multimodal": {
        "model_path": "google/gemma-3-27b-it",
        "quantization": "capibara_int8",
        "max_model_len": 24576,
        "max_num_seqs": 8,
        # Two sequences of full length.
        "kv_cache_memory_bytes": 12 * 2**30,
    },
    "aya_expanse_multilingual": {
        "model_path": "CohereLabs/aya-expanse-8b",
        "quantization": "capibara_int8",
        "max_model_len": 8192,
    },
}


def huggingface_config() -> dict[str, Any]:
    """The content of `huggingface.json`; the models are fetched from huggingface.co."""
    entries = [identity(expert) | _EVERY_MODEL | _MODELS[expert.expert_id] for expert in EXPERTS]
    return {"notes": _NOTES, **configuration(entries)}

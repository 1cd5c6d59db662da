# SPDX-License-Identifier: Apache-2.0
"""The five demo experts: which family, what for, and the reply each one knows by heart."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from capibara_axion.demo import families
from capibara_axion.demo.families import Family


@dataclass(frozen=True)
class Expert:
    """One entry of the server's configuration, with its demo checkpoint.

    Attributes:
        expert_id: the model name that requests use, and the checkpoint's folder.
        description: of the real expert.
        architecture: which the demo checkpoint has, too.
        priority: 1 to 5, higher loads first.
        reply: what the checkpoint answers; with few repeated words, because a greedy answer skips
            from a word to what follows its last occurrence.
    """

    expert_id: str
    family: Family
    domain: str
    description: str
    architecture: str
    priority: int
    use_cases: tuple[str, ...]
    reply: str


EXPERTS = (
    Expert(
        "phi4_fast",
        families.PHI3,
        "general",
        "Fast model for short, direct answers",
        "Phi-3",
        5,
        ("simple questions", "quick answers", "greetings"),
        "Hello! I am phi4_fast, your small demo expert: my weights know only this one reply. "
        "Please point the server at real ones and ask me again",
    ),
    Expert(
        "mistral_balanced",
        families.MISTRAL,
        "technical",
        "Balanced model for technical tasks",
        "Mistral",
        4,
        ("technical explanations", "writing", "documentation"),
        "Good day! You are talking to mistral_balanced, which would explain technical matters if "
        "its checkpoint were more than a demo; give the server real weights for better answers.",
    ),
    Expert(
        "qwen_coder",
        families.QWEN2,
        "coding",
        "Model for code and programming",
        "Qwen2",
        3,
        ("code generation", "debugging", "refactoring"),
        "def answer(question): return 'replace these demo weights with real ones and ask "
        "qwen_coder again' # untrained",
    ),
    Expert(
        "gemma3_multimodal",
        families.GEMMA3,
        "multimodal_expert",
        "Model for images and text with long context",
        "Gemma 3",
        2,
        ("images and text", "complex reasoning", "long context"),
        "Thank you for this text or image! I am gemma3_multimodal: both went through every layer "
        "of a demo network, but it was never trained; so no description can follow",
    ),
    Expert(
        "aya_expanse_multilingual",
        families.COHERE,
        "multilingual_expert",
        "Model for 23 languages",
        "Cohere",
        2,
        ("translation", "multilingual conversation", "localization"),
        "Hello! Hola, soy un modelo de prueba. Bonjour: je parle français; guten Tag - ich spreche "
        "Deutsch / io invece italiano",
    ),
)


def server_config() -> dict[str, Any]:
    """The content of the server's `config.json`; paths are relative to that file."""
    return configuration([_entry(expert) for expert in EXPERTS])


# Those that older configurations serve from checkpoints in AWQ's format.
AWQ_EXPERTS = ("phi4_fast", "mistral_balanced", "qwen_coder")


def awq_folder(expert_id: str) -> str:
    """Where an expert's 4-bit checkpoint is."""
    return f"{expert_id}-awq"


def awq_config() -> dict[str, Any]:
    """The content of `awq.json`: three experts in 4 bits, in half precision, with an FP8 cache."""
    entries = [_entry(expert) for expert in EXPERTS]
    for entry in entries:
        if entry["expert_id"] in AWQ_EXPERTS:
            entry |= {
                "model_path": awq_folder(entry["expert_id"]),
                "quantization": "awq",
                "dtype": "float16",
                "kv_cache_dtype": "fp8",
            }
    return configuration(entries)


def configuration(experts: list[dict[str, Any]]) -> dict[str, Any]:
    """A configuration file with these entries for the experts."""
    return {
        "experts": experts,
        "lazy_loading": {
            "enabled": True,
            "warmup_pool_size": 2,
            "max_loaded_experts": 5,
            "memory_threshold": 0.8,
            "auto_unload_after_s": 300,
        },
        "server_config": {"host": "127.0.0.1", "port": 8082, "log_level": "info"},
    }


def identity(expert: Expert) -> dict[str, Any]:
    """What an entry says of an expert, whatever its checkpoint."""
    return {
        "expert_id": expert.expert_id,
        "domain": expert.domain,
        "description": expert.description,
        "priority": expert.priority,
        "use_cases": list(expert.use_cases),
    }


def _entry(expert: Expert) -> dict[str, Any]:
    suffix = f"(demo checkpoint, {expert.architecture} architecture)"
    return {
        **identity(expert),
        "description": f"{expert.description} {suffix}",
        "model_path": expert.expert_id,
        "quantization": None,
        "tensor_parallel_size": 1,
        "max_num_seqs": 8,
        "enable_chunked_prefill": True,
        "max_num_batched_tokens": 2048,
        "max_model_len": 2048,
        "dtype": "bfloat16",
        "enforce_eager": True,
        "kv_cache_dtype": "auto",
        "enable_prefix_caching": True,
    }

# SPDX-License-Identifier: Apache-2.0
"""Attention of models that share caches between layers, and of such that are left to vLLM."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import CASES
from conftest import Engines
from references import given, largest_difference, load, log_probabilities

TOLERANCE = 2e-6

OURS = {"CAPIBARA_AXION_LINEAR": "stock"}
STOCK = {**OURS, "CAPIBARA_AXION_DISABLE": "attention"}


def _settings(rounds: list[list[list[int]]], env: dict[str, str], **more: Any) -> dict[str, Any]:
    settings = {"max_model_len": 256, "image": False, "compiled": False, "options": {}, "env": env}
    return settings | {"rounds": rounds} | more


def _prompt(tokens: int) -> list[int]:
    generator = torch.Generator().manual_seed(tokens)
    return torch.randint(20, 600, (tokens,), generator=generator).tolist()


def _randomised(model: Any, std: float) -> Any:
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * std)
    return model


@pytest.fixture(scope="module")
def sharing(engines: Engines, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Gemma 3n, whose last two layers read the caches of the first two; one of each slides."""
    from transformers import Gemma3nForCausalLM, Gemma3nTextConfig

    folder = tmp_path_factory.mktemp("gemma3n")
    qwen = engines.folder(next(case for case in CASES if case.name == "qwen2"))
    for file in qwen.glob("tokenizer*"):
        shutil.copy(file, folder)
    config = Gemma3nTextConfig(
        vocab_size=640,
        vocab_size_per_layer_input=640,
        hidden_size=64,
        hidden_size_per_layer_input=16,
        intermediate_size=128,
        num_hidden_layers=4,
        num_kv_shared_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        laurel_rank=8,
        activation_sparsity_pattern=[0.0] * 4,
        layer_types=["sliding_attention", "full_attention"] * 2,
        sliding_window=32,
        max_position_embeddings=512,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    _randomised(Gemma3nForCausalLM(config), 0.05).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(("kv_cache_dtype", "tolerance"), [("auto", 1e-5), ("fp8_e4m3", 0.05)])
def test_layers_that_share_a_cache(
    engines: Engines, sharing: Path, kv_cache_dtype: str, tolerance: float
) -> None:
    """Logits are not flat here: one 8-bit code that flips shows more than in test_attention."""
    options = {"kv_cache_dtype": kv_cache_dtype, "max_num_batched_tokens": 64}
    settings = _settings([[_prompt(90), _prompt(20)]], OURS, options=options)
    answer = engines.run_folder(sharing, settings)
    counts = answer["counts"]
    # Four layers attend, two of them store.
    assert counts["attention"] == 2 * counts["kv_cache_append"] > 0
    model = load(sharing, kv_cache_dtype)
    differences = [
        largest_difference(given(request), log_probabilities(model, request))
        for request in answer["requests"]
    ]
    print(f"{kv_cache_dtype}: {differences}")
    assert max(differences) <= tolerance


@pytest.fixture(scope="module")
def encoder(engines: Engines, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import BertConfig, BertModel

    folder = tmp_path_factory.mktemp("bert")
    qwen = engines.folder(next(case for case in CASES if case.name == "qwen2"))
    for file in qwen.glob("tokenizer*"):
        shutil.copy(file, folder)
    config = BertConfig(
        vocab_size=640,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=128,
        max_position_embeddings=256,
    )
    _randomised(BertModel(config), 0.1).save_pretrained(folder)
    return folder


def test_an_encoder_is_left_to_vllm(engines: Engines, encoder: Path) -> None:
    settings = {"embed": True, "options": {"runner": "pooling"}}
    ours, stock = (
        engines.run_folder(encoder, _settings([[_prompt(40), _prompt(7)]], env, **settings))
        for env in (OURS, STOCK)
    )
    assert ours["embeddings"] == stock["embeddings"]
    assert ours["counts"]["attention"] == 0
    assert ours["status"]["attention"] == "hooked"
    warnings = [line for line in ours["log"] if "attention" in line]
    assert warnings == ["capibara_axion in vLLM: attention is left to vLLM for encoder-only layers"]
    assert not [line for line in stock["log"] if "attention" in line]


def test_a_long_prompt_in_chunks(tmp_path: Path) -> None:
    """benchmarks/long_context.py does this with 32768 tokens."""
    script = Path(__file__).parents[2] / "benchmarks" / "long_context.py"
    output = tmp_path / "result.json"
    options = ["--tokens", "2048", "--chunk", "500", "--kv-cache-dtype", "auto", "fp8_e4m3"]
    subprocess.run([sys.executable, script, *options, "--output", output], check=True)
    exact, rounded = json.loads(output.read_text(encoding="utf-8"))["runs"]
    for run in (exact, rounded):
        assert run["calls_of_our_attention"] == 2 * 5  # layers, chunks
        assert run["from_float32"]["positions"] == 2047
    # Scores of some 20 in float32, times 2^-23, in both layers, as far as the last chunk.
    assert exact["from_float32"]["largest"] <= 5e-5
    # But for a few codes that float32's rounding flips.
    assert rounded["from_rounded"]["rms"] <= 1e-3
    assert rounded["from_float32"]["rms"] > 0.05

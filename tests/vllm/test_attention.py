# SPDX-License-Identifier: Apache-2.0
"""Attention over our paged KV cache inside vLLM, against transformers in float32.

The runner fills our caches with NaN first: nothing that nobody has stored may be read.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from checkpoints import CASES, Case
from conftest import Engines
from references import given, largest_difference, load, log_probabilities
from runner import picture

# As in test_agreement: ten roundings of float32 log-probabilities of about -ln(640).
TOLERANCE = 2e-6
# Where two float32 keys differ in their last bit, one in thousands becomes another code, which
# moves it by up to 2^-3 (e4m3) or 2^-2 (e5m2) of itself, and a log-probability by some 5e-5.
FP8_TOLERANCE = {"fp8_e4m3": 1e-4, "fp8_e5m2": 2e-4}

OURS = {"CAPIBARA_AXION_LINEAR": "capibara"}  # as in test_agreement, which shares the answers
STOCK = {**OURS, "CAPIBARA_AXION_DISABLE": "attention"}

CASE = {case.name: case for case in CASES}
# Transformers takes Phi-3's long factors by the length of the prompt, vLLM by that of the model.
REFERENCE_CASES = [case for case in CASES if case.name != "phi3_long"]
FAMILIES = ("phi3", "mistral", "mistral_window", "qwen2", "cohere", "gemma3_text")

each_case = pytest.mark.parametrize("case", REFERENCE_CASES, ids=lambda case: case.name)
each_family = pytest.mark.parametrize("name", FAMILIES)
each_of_some = pytest.mark.parametrize("name", ["mistral_window", "qwen2", "gemma3_text"])
each_fp8 = pytest.mark.parametrize("dtype", FP8_TOLERANCE)


def prompt(tokens: int, seed: int = 0) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(20, 600, (tokens,), generator=generator).tolist()


def worst(model: Any, answer: dict[str, Any], image: Any = None) -> float:
    """The largest difference from transformers; the image is the last request's."""
    differences = []
    for request in answer["requests"]:
        last = request is answer["requests"][-1]
        expected = log_probabilities(model, request, image if last else None)
        if not request["prompt_logprobs"]:
            expected = expected[-len(request["tokens"]) :]
        differences.append(largest_difference(given(request), expected))
    return max(differences)


def run_prompts(
    engines: Engines, name: str, rounds: list[list[list[int]]], **options: Any
) -> dict[str, Any]:
    return engines.run(CASE[name], options=options, job={"rounds": rounds, "image": False}, **OURS)


# ---------------------------------------------------------------- every architecture


@each_case
def test_agrees_with_transformers(engines: Engines, case: Case) -> None:
    """Gemma 3's request with an image included, whose tokens see each other in all layers."""
    difference = worst(
        load(engines.folder(case)),
        engines.run(case, **OURS),
        picture() if case.image else None,
    )
    print(f"{case.name}: {difference:.1e}")
    assert difference <= TOLERANCE


def test_an_image_seen_causally_is_something_else(engines: Engines) -> None:
    """vLLM's own: so the test above would notice."""
    case = CASE["gemma3"]
    difference = worst(load(engines.folder(case)), engines.run(case, **STOCK), picture())
    print(f"stock: {difference:.1e}")
    assert difference > 1e-3


@each_case
def test_every_layer_of_every_step_is_ours(engines: Engines, case: Case) -> None:
    answer = engines.run(case, **OURS)
    steps = sum(len(request["tokens"]) for request in answer["requests"])
    assert answer["counts"]["attention"] == 4 * steps
    assert answer["counts"]["kv_cache_append"] == 4 * steps
    assert answer["status"]["attention"] == "hooked"
    assert not [line for line in answer["log"] if "attention" in line]


def test_it_can_be_switched_off(engines: Engines) -> None:
    answer = engines.run(CASE["mistral"], **STOCK)
    assert answer["counts"]["attention"] == answer["counts"]["kv_cache_append"] == 0
    assert answer["status"]["attention"] == "off: CAPIBARA_AXION_DISABLE"


def test_compiled_with_an_image(engines: Engines) -> None:
    case = CASE["gemma3"]
    answer = engines.run(case, compiled=True, **OURS)
    assert worst(load(engines.folder(case)), answer, picture()) <= TOLERANCE


@pytest.mark.parametrize(
    ("name", "dtype"), [("qwen2", "bfloat16"), ("qwen2", "float16"), ("gemma3_text", "bfloat16")]
)
def test_sixteen_bits_are_as_close_as_vllms(engines: Engines, name: str, dtype: str) -> None:
    case = CASE[name]
    model = load(engines.folder(case))
    answers = [engines.run(case, options={"dtype": dtype}, **env) for env in (OURS, STOCK)]
    ours, stock = (worst(model, answer) for answer in answers)
    print(f"{name} {dtype}: ours {ours:.1e}, stock {stock:.1e}")
    assert ours <= 1.5 * stock + 1e-4


# ---------------------------------------------------------------- 8 bits


@each_family
@each_fp8
def test_fp8_is_the_rounding_of_keys_and_values(engines: Engines, name: str, dtype: str) -> None:
    case = CASE[name]
    answer = engines.run(case, options={"kv_cache_dtype": dtype}, **OURS)
    exact, rounded = (worst(load(engines.folder(case), kind), answer) for kind in ("auto", dtype))
    print(f"{name} {dtype}: from exact {exact:.1e}, from rounded {rounded:.1e}")
    assert rounded <= FP8_TOLERANCE[dtype]
    assert exact > 2 * FP8_TOLERANCE[dtype]


@each_of_some
@each_fp8
def test_fp8_is_closer_than_vllms(engines: Engines, name: str, dtype: str) -> None:
    """vLLM 0.32 stores the code next to zero, where ours is the nearest."""
    if not torch.cpu._is_avx512_supported():
        pytest.skip("vLLM has an FP8 cache only with AVX-512")
    case = CASE[name]
    model = load(engines.folder(case))
    answers = [engines.run(case, options={"kv_cache_dtype": dtype}, **env) for env in (OURS, STOCK)]
    ours, stock = (worst(model, answer) for answer in answers)
    between = largest_difference(*(answer["logprobs"] for answer in answers))
    print(f"{name} {dtype}: ours {ours:.1e}, stock {stock:.1e}, between them {between:.1e}")
    assert ours < stock
    assert between <= ours + stock


def test_fp8_where_vllm_has_none(engines: Engines) -> None:
    """And "fp8" means e4m3."""
    case = CASE["qwen2"]
    options = {"kv_cache_dtype": "fp8"}
    answer = engines.run(case, options=options, job={"no_stock_attention": True}, **OURS)
    e4m3 = engines.run(case, options={"kv_cache_dtype": "fp8_e4m3"}, **OURS)
    assert answer["logprobs"] == e4m3["logprobs"]


@each_fp8
def test_fp8_with_heads_that_vllm_refuses(engines: Engines, dtype: str) -> None:
    case = CASE["mistral_small_heads"]
    answer = engines.run(case, options={"kv_cache_dtype": dtype}, **OURS)
    assert worst(load(engines.folder(case), dtype), answer) <= FP8_TOLERANCE[dtype]


@each_fp8
def test_fp8_takes_half_of_the_bytes(engines: Engines, dtype: str) -> None:
    of = {
        kind: engines.run(CASE["qwen2"], options={"dtype": "bfloat16"} | kind_options, **OURS)
        for kind, kind_options in (("16 bits", {}), ("8 bits", {"kv_cache_dtype": dtype}))
    }
    # 4 layers, 128 tokens, 2 KV heads of 32 elements, keys and values.
    assert of["16 bits"]["block_bytes"] == 4 * 128 * 2 * 32 * 2 * 2
    assert of["8 bits"]["block_bytes"] == of["16 bits"]["block_bytes"] // 2


# ---------------------------------------------------------------- what vLLM does with blocks


@pytest.mark.parametrize(
    ("name", "kv_cache_dtype"), [("qwen2", "auto"), ("gemma3_text", "fp8_e4m3")]
)
def test_prefix_caching(engines: Engines, name: str, kv_cache_dtype: str) -> None:
    shared = prompt(200)
    rounds = [[shared + prompt(20, 1)], [shared + prompt(30, 2)], [shared + prompt(20, 1)]]
    answer = engines.run(
        CASE[name],
        options={"enable_prefix_caching": True, "block_size": 32, "kv_cache_dtype": kv_cache_dtype},
        # With their log-probabilities asked for, prompts are computed anew.
        job={"rounds": rounds, "image": False, "prompt_logprobs": False},
        **OURS,
    )
    assert [request["cached"] for request in answer["requests"]] == [0, 192, 192]
    assert answer["requests"][0]["tokens"] == answer["requests"][2]["tokens"]
    model = load(engines.folder(CASE[name]), kv_cache_dtype)
    assert worst(model, answer) <= FP8_TOLERANCE.get(kv_cache_dtype, TOLERANCE)


@each_of_some
def test_chunked_prefill(engines: Engines, name: str) -> None:
    rounds = [[prompt(200), prompt(75, 1)]]
    answer = run_prompts(engines, name, rounds, max_num_batched_tokens=37)
    assert answer["counts"]["attention"] >= 4 * (275 // 37)
    assert worst(load(engines.folder(CASE[name])), answer) <= TOLERANCE


def test_an_image_is_not_divided_between_chunks(engines: Engines) -> None:
    case = CASE["gemma3"]
    # The chat's 16 image tokens begin at 7: a chunk of 20 would end among them.
    answer = engines.run(
        case,
        options={"max_num_batched_tokens": 20, "enable_chunked_prefill": True},
        job={"rounds": [], "image_text": "What is this? " * 4},
        **OURS,
    )
    assert worst(load(engines.folder(case)), answer, picture()) <= TOLERANCE


@pytest.mark.parametrize("kv_cache_dtype", ["auto", "fp8_e5m2"])
def test_preemption(engines: Engines, kv_cache_dtype: str) -> None:
    prompts = [prompt(40, seed) for seed in range(4)]
    settings = {
        "max_num_seqs": 4,
        "block_size": 16,
        "num_gpu_blocks_override": 14,  # one is vLLM's own
        "max_model_len": 128,
        "kv_cache_dtype": kv_cache_dtype,
    }
    job = {"image": False, "new_tokens": 60, "prompt_logprobs": False}
    together, alone = (
        engines.run(CASE["qwen2"], options=settings, job={**job, "rounds": rounds}, **OURS)
        for rounds in ([prompts], [[one] for one in prompts])
    )
    assert together["preempted"] > 0
    assert alone["preempted"] == 0
    assert together["tokens"] == alone["tokens"]
    tolerance = FP8_TOLERANCE.get(kv_cache_dtype, TOLERANCE)
    assert largest_difference(together["logprobs"], alone["logprobs"]) <= tolerance


def test_several_sequences_in_a_batch(engines: Engines) -> None:
    rounds = [[prompt(tokens, tokens) for tokens in (1, 2, 15, 16, 17, 63, 130)]]
    answer = run_prompts(engines, "gemma3_text", rounds, max_num_seqs=8)
    assert worst(load(engines.folder(CASE["gemma3_text"])), answer) <= TOLERANCE


def test_tensor_parallel(engines: Engines) -> None:
    case = CASE["qwen2"]
    answer = engines.run(
        case,
        options={"tensor_parallel_size": 2, "distributed_executor_backend": "mp"},
        job={"rounds": [[prompt(60)]], "image": False},
        VLLM_CPU_OMP_THREADS_BIND="0|1",
        **OURS,
    )
    steps = len(answer["requests"][0]["tokens"])
    assert answer["counts"]["attention"] == 2 * 4 * steps
    assert worst(load(engines.folder(case)), answer) <= TOLERANCE


def test_logits_are_not_flat(engines: Engines) -> None:
    """Attention matters to these log-probabilities: without it they would be elsewhere."""
    answer = engines.run(CASE["qwen2"], **OURS)
    assert max(answer["logprobs"]) - min(answer["logprobs"]) > 1
    assert all(math.isfinite(value) for value in answer["logprobs"])

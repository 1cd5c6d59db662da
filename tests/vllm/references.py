# SPDX-License-Identifier: Apache-2.0
"""What transformers computes, in float32, for requests that the runner's engines answered."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
)
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

FP8 = {"fp8_e4m3": torch.float8_e4m3fn, "fp8_e5m2": torch.float8_e5m2}


def load(folder: Path, kv_cache_dtype: str = "auto") -> Any:
    """The model in float32; keys and values are rounded to `kv_cache_dtype` where attention reads
    them, as a cache of that type has it."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    implementation: Any = "sdpa" if kv_cache_dtype == "auto" else f"sdpa_{kv_cache_dtype}"
    auto = AutoModelForCausalLM
    if "vision_config" in config:
        auto = AutoModelForImageTextToText
        implementation = {"text_config": implementation, "vision_config": "sdpa"}
    model = auto.from_pretrained(folder, dtype=torch.float32, attn_implementation=implementation)
    return model.eval()


@torch.inference_mode()
def log_probabilities(model: Any, request: dict[str, Any], image: Any = None) -> list[float]:
    """Of each token of the request but the first, then of each generated one."""
    ids = torch.tensor([request["prompt"] + request["tokens"]])
    inputs: dict[str, Any] = {"input_ids": ids}
    if "vision_config" in model.config.to_dict():
        inputs["token_type_ids"] = (ids == model.config.image_token_id).int()
    if image is not None:
        processor = AutoProcessor.from_pretrained(model.config.name_or_path).image_processor
        pixels = processor(image, return_tensors="pt")["pixel_values"]
        inputs["pixel_values"] = pixels.to(torch.float32)
    logits = model(**inputs, use_cache=False).logits[0, :-1]
    chosen = torch.log_softmax(logits.float(), -1).gather(-1, ids[0, 1:, None])
    return [float(value) for value in chosen[:, 0]]


def given(request: dict[str, Any]) -> list[float]:
    """The engine's own log-probabilities of the same tokens."""
    return request["prompt_logprobs"] + request["logprobs"]


def largest_difference(first: list[float], second: list[float]) -> float:
    return max(abs(a - b) for a, b in zip(first, second, strict=True))


def _rounding(dtype: torch.dtype) -> Callable[..., Any]:
    largest = torch.finfo(dtype).max

    def attention(module: Any, query: Any, key: Any, value: Any, *args: Any, **kwargs: Any) -> Any:
        key, value = (x.clamp(-largest, largest).to(dtype).float() for x in (key, value))
        return sdpa_attention_forward(module, query, key, value, *args, **kwargs)

    return attention


for _name, _dtype in FP8.items():
    AttentionInterface.register(f"sdpa_{_name}", _rounding(_dtype))
    AttentionMaskInterface.register(f"sdpa_{_name}", ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])

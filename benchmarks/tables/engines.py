# SPDX-License-Identifier: Apache-2.0
"""Tables of whole models: tokens per second beside other engines, and what rounding costs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from markdown import NONE, load, number, source, table, times

_NAMES = {
    "vllm": "vLLM, eager",
    "vllm_compiled": "vLLM, compiled",
    "capibara": "**vLLM with capibara_axion**, eager",
    "capibara_compiled": "**vLLM with capibara_axion**, compiled",
    "capibara_int8": "**`capibara_int8`**, eager",
    "capibara_int8_compiled": "**`capibara_int8`**, compiled",
    "capibara_int4": "**`capibara_int4`**, eager",
    "capibara_int4_compiled": "**`capibara_int4`**, compiled",
    "capibara_awq": "**vLLM with capibara_axion**, AWQ checkpoint",
    "vllm_awq": "vLLM, AWQ checkpoint",
    "llama.cpp_bf16": "llama.cpp bf16",
    "llama.cpp_q8_0": "llama.cpp q8_0",
    "llama.cpp_q4_0": "llama.cpp q4_0",
}


def end_to_end() -> str:
    found = load("end_to_end")
    by_name = {
        (row["threads"], row["contender"]): row
        for row in found["rows"]
        if "decode_tokens_per_s" in row
    }
    rows = []
    for threads in sorted({threads for threads, _ in by_name}, reverse=True):
        for name, words in _NAMES.items():
            row = by_name.get((threads, name))
            if row is None:
                continue
            cells = [words, str(threads)]
            for figure in ("decode", "prefill"):
                low, high = row[f"{figure}_tokens_per_s_range"]
                cells.append(
                    f"{number(row[f'{figure}_tokens_per_s'])} ({number(low)}-{number(high)})"
                )
            loaded = row.get("loaded_rss_mib")
            rows.append((*cells, NONE if loaded is None else f"{loaded:,}"))
    headings = (
        "tokens per second (range)",
        "threads",
        "decode",
        "prefill",
        "process, model loaded, MiB",
    )
    return table(headings, rows) + "\n\n" + source("end_to_end", found)


def kv_quality() -> str:
    found = load("kv_quality")
    rows = []
    for row in found["rows"]:
        cells = [row["cache"], *(_ratio(row[f"context_{context}"]) for context in (128, 2048))]
        rows.append((*cells, f"{row['context_2048']['agreement']:.1%}"))
    headings = (
        "KV cache, scales",
        "128 tokens: perplexity / bf16's",
        "2,048 tokens",
        "same next token",
    )
    return table(headings, rows) + "\n\n" + source("kv_quality", found)


def weight_quality() -> str:
    found = load("int4_quality")
    rows = [
        (row["weights"], f"{row['perplexity']:.4f}", _ratio(row), f"{row['agreement']:.1%}")
        for row in found["rows"]
    ]
    headings = ("weights", "perplexity", "/ bf16's (95 %)", "same next token")
    return table(headings, rows) + "\n\n" + source("int4_quality", found)


def _ratio(row: dict[str, Any]) -> str:
    low, high = row["ratio_95"]
    return f"{row['ratio']:.4f} ({low:.4f}-{high:.4f})"


def long_context() -> str:
    found = load("long_context")
    rows = []
    for run in found["runs"]:
        rounded = run.get("from_rounded")
        rows.append(
            (
                f"{run['attention']}, {run['kv_cache_dtype']}",
                f"{run['from_float32']['rms']:.2g}",
                f"{run['from_float32']['largest']:.2g}",
                NONE if rounded is None else f"{rounded['rms']:.2g}",
            )
        )
    headings = (
        "attention, KV cache",
        "off transformers' log-probabilities, rms",
        "at most",
        "rms, transformers rounding the same",
    )
    place = source("long_context", found["conditions"])
    return table(headings, rows) + "\n\n" + place


def sampling() -> str:
    found = load("sampling")
    rows = [
        (
            row["settings"],
            str(row["rows"]),
            number(row["ours"]),
            number(row["stock"]),
            times(row["stock"] / row["ours"]),
        )
        for row in found["rows"]
    ]
    headings = ("sampling, ms a step", "sequences", "ours", "stock vLLM", "faster by")
    return table(headings, rows) + "\n\n" + source("sampling", found)


TABLES: dict[str, Callable[[], str]] = {
    "end_to_end": end_to_end,
    "kv_quality": kv_quality,
    "weight_quality": weight_quality,
    "long_context": long_context,
    "sampling": sampling,
}

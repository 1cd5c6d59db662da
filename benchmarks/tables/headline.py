# SPDX-License-Identifier: Apache-2.0
"""The README's table: one line for each thing that a reader wants to know first."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

from markdown import count, load, number, table, times


def headline() -> str:
    rows = [*_operators(), *_engines(), _sampling(), *_server(), *_aarch64(), *_quality()]
    return table(("", "ours", "beside", "results"), rows)


def _link(name: str) -> str:
    return f"[{name}](RESULTS/{name}.json)"


def _row(found: dict[str, Any], **wanted: Any) -> dict[str, Any]:
    return next(
        row for row in found["rows"] if all(row.get(key) == value for key, value in wanted.items())
    )


def _operators() -> list[tuple[str, ...]]:
    ops = load("ops")
    ratios = [
        row["contenders"][row["best_peer"]]["ratio_to_ours"]
        for row in ops["rows"]
        if row["dtype"] == "bf16" and row["tokens"] == 128 and row["threads"] == 1
    ]
    found = [
        (
            f"norms, softmax, rotary, activations: {len(ratios)} operators, bf16, 128 tokens",
            f"{times(min(ratios))} to {times(max(ratios))} as fast",
            "the fastest of torch, vLLM and NumPy",
            _link("ops"),
        )
    ]
    linear, attention = load("linear"), load("attention")
    for what, shape in (("1 row", "1x4096x4096"), ("128 rows", "128x4096x4096")):
        row = _row(linear, op="linear", dtype="bf16", shape=shape, threads=1)
        found.append(
            (
                f"matrix product, bf16, {what} x 4096 x 4096",
                f"{number(row['contenders'][row['ours']]['us'])} us",
                f"{number(row['contenders'][row['best_peer']]['us'])} us ({row['best_peer']})",
                _link("linear"),
            )
        )
    for what, shape in (("512 tokens", "512x512"), ("one token, 4,096 keys", "1x4096")):
        row = _row(attention, op="attention", shape=shape, threads=1)
        found.append(
            (
                f"attention, bf16, 32/8 heads, {what}",
                f"{number(row['contenders'][row['ours']]['us'])} us",
                f"{number(row['contenders'][row['best_peer']]['us'])} us (stock vLLM)",
                _link("attention"),
            )
        )
    return found


def _engines() -> list[tuple[str, ...]]:
    rows = {
        row["contender"]: row
        for row in load("end_to_end")["rows"]
        if row["threads"] == 2 and "decode_tokens_per_s" in row
    }
    found = []
    for ours, peers, what in (
        ("capibara", ("vllm", "vllm_compiled", "llama.cpp_bf16"), "bf16"),
        ("capibara_int8", ("llama.cpp_q8_0",), "int8"),
        ("capibara_int4", ("llama.cpp_q4_0",), "int4"),
        ("capibara_awq", ("vllm_awq",), "AWQ checkpoint"),
    ):
        beside = [f"{_speeds(rows[peer])} ({peer})" for peer in peers if peer in rows]
        if ours in rows and beside:
            label = f"0.5B model in vLLM, {what}, two threads: decode / prefill, tokens per second"
            found.append((label, _speeds(rows[ours]), "; ".join(beside), _link("end_to_end")))
    return found


def _speeds(row: dict[str, Any]) -> str:
    return " / ".join(number(row[f"{name}_tokens_per_s"]) for name in ("decode", "prefill"))


def _sampling() -> tuple[str, ...]:
    found = load("sampling")
    (qwen,) = {row["settings"] for row in found["rows"] if "Qwen" in row["settings"]}
    rows = [_row(found, settings=qwen, rows=sequences) for sequences in (1, 32)]
    ours, stock = (" / ".join(number(row[who]) for row in rows) for who in ("ours", "stock"))
    return (
        "sampling with Qwen2.5's own settings, 1 / 32 sequences, ms a step",
        ours,
        f"{stock} (stock vLLM)",
        _link("sampling"),
    )


def _server() -> list[tuple[str, ...]]:
    cold = load("server_cold_phases")["cold"]
    gateway = load("server_gateway_overhead")
    demo = load("server_on_demand")["models"]["demo"]
    return [
        (
            "demo expert on demand: whole answer, cold / warm",
            _cold_and_warm(demo["ours"]),
            f"{_cold_and_warm(demo['eager'])} (stock vLLM, a process a model)",
            _link("server_on_demand"),
        ),
        (
            "unloaded model, request to first token: demo expert / 0.5B",
            " / ".join(f"{cold[name]['first_token']['median']:.2f} s" for name in _COLD),
            "",
            _link("server_cold_phases"),
        ),
        (
            "what the gateway adds to an answer: median / p99",
            " / ".join(f"{gateway['whole'][key] * 1e3:.2f} ms" for key in _ADDED),
            "",
            _link("server_gateway_overhead"),
        ),
    ]


def _cold_and_warm(row: dict[str, Any]) -> str:
    return " / ".join(f"{row[kind]['total']['median']:.2f} s" for kind in ("cold", "warm"))


_COLD = ("demo experts", "0.5B shape")
_ADDED = ("added_p50", "added_p99")


def _aarch64() -> list[tuple[str, ...]]:
    ratios = [row["ratio"] for row in load("aarch64")["rows"] if row["dtype"] == "bf16"]
    return [
        (
            f"aarch64, instructions a call: {len(ratios)} operators, bf16",
            f"{times(1 / statistics.median(ratios))} as many",
            "the best of torch, NumPy, ACL (median)",
            _link("aarch64"),
        ),
        *(
            (
                f"aarch64, instructions, matrix product 512 x 512 x 512, {dtype}",
                count(ours),
                f"{count(peer)} ({name})",
                _link("aarch64_linear"),
            )
            for dtype, ours, peer, name in _counts()
        ),
    ]


def _counts() -> list[tuple[str, float, float, str]]:
    found = []
    for row in load("aarch64_linear")["rows"]:
        if row["op"] != "linear" or row["shape"] != "512 x 512 x 512":
            continue
        all_of = {(c["family"], c["name"]): float(c["counts"]["all"]) for c in row["contenders"]}
        peers = {key: n for key, n in all_of.items() if key[0] not in ("ours", "memcpy")}
        family, name = min(peers, key=lambda key: peers[key])
        found.append((row["dtype"], all_of["ours", row["ours"]], peers[family, name], family))
    return found


def _quality() -> list[tuple[str, ...]]:
    rows = {row["weights"]: row for row in load("int4_quality")["rows"]}
    caches = {row["cache"]: row for row in load("kv_quality")["rows"]}
    return [
        (
            "perplexity / bf16's on a small trained model: int8, int4 (AWQ, groups of 32)",
            f"{rows['int8']['ratio']:.4f}, {rows['awq 32 w4a8']['ratio']:.4f}",
            "",
            _link("int4_quality"),
        ),
        (
            "the same with an E4M3 KV cache, 2,048 tokens",
            f"{caches['fp8_e4m3, 1.0']['context_2048']['ratio']:.4f}",
            "",
            _link("kv_quality"),
        ),
    ]


TABLES: dict[str, Callable[[], str]] = {"headline": headline}

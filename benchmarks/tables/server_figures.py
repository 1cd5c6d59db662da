# SPDX-License-Identifier: Apache-2.0
"""Tables of what the server was measured at."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from markdown import NONE, load, number, source, table


def _s(seconds: float) -> str:
    return f"{seconds:.2f}"


def _ms(seconds: float) -> str:
    return number(seconds * 1e3)


def cold_phases() -> str:
    found = load("server_cold_phases")
    rows = []
    for model, row in found["cold"].items():
        first, stages = row["first_token"], row["stages"]
        largest = sorted(stages, key=lambda stage: -stages[stage]["median"])[:3]
        parts = ", ".join(f"{stage} {_s(stages[stage]['median'])}" for stage in largest)
        rows.append((model, str(first["n"]), *(_s(first[key]) for key in ("median", "p95")), parts))
    headings = ("unloaded model, s to its first token", "n", "median", "p95", "most of it")
    return table(headings, rows) + "\n\n" + source("server_cold_phases", found)


def on_demand() -> str:
    found = load("server_on_demand")
    rows = []
    for model, contenders in found["models"].items():
        for kind in ("cold", "warm"):
            for name, row in contenders.items():
                total, ttft = row[kind]["total"], row[kind]["ttft"]
                if total["n"] == 0:
                    continue
                rows.append(
                    (
                        f"{model}, {kind}: {name}",
                        str(total["n"]),
                        *(_s(total[key]) for key in ("mean", "stdev", "median", "p95")),
                        _s(ttft["median"]),
                        number(row[kind]["tokens_per_s"]["median"]),
                    )
                )
    headings = ("one answer, s", "n", "mean", "stdev", "median", "p95", "TTFT", "tokens/s")
    return table(headings, rows) + "\n\n" + source("server_on_demand", found)


def gateway_overhead() -> str:
    found = load("server_gateway_overhead")
    whole, streams, target = found["whole"], found["streams"], found["targets_ms"]
    settings = found["settings"]
    gap = f"gap between tokens, {settings['streams']} streams"
    rows = [
        ("whole answer, median", whole["direct"]["median"], whole["added_p50"], "whole p50"),
        ("whole answer, p99", whole["direct"]["p99"], whole["added_p99"], "whole p99"),
        (f"{gap}, p99", streams["direct"]["p99"], streams["added_p99"], "gap p99"),
        (
            f"{gap}, p99, once all have begun",
            streams["direct"]["later"]["p99"],
            streams["later_added_p99"],
            "gap p99",
        ),
    ]
    cells = [(a, _ms(b), _ms(c) if c > 0 else "none", number(target[d])) for a, b, c, d in rows]
    headings = ("ms", "worker alone", "the gateway adds", "aim")
    return table(headings, cells) + "\n\n" + source("server_gateway_overhead", found)


def profiles() -> str:
    found = load("server_profiles")
    rows = []
    for tokens, row in found["tokens_a_step"].items():
        rows.append(
            (
                tokens,
                _ms(row["gap_before"]["p95"]),
                *(_ms(row["gap_during"][key]) for key in ("median", "p95")),
                _s(row["prompt_ttft"]["median"]),
            )
        )
    headings = (
        "tokens a step",
        "gap before, p95, ms",
        "gap while a long prompt is read, median, ms",
        "p95, ms",
        "the prompt's TTFT, s",
    )
    return table(headings, rows) + "\n\n" + source("server_profiles", found)


def captured_graph() -> str:
    found = load("server_captured_graph")
    rows = []
    for model, modes in found["models"].items():
        for mode, row in modes.items():
            rows.append(
                (
                    f"{model}, {mode}",
                    *(_s(row[f"{which}_load_s"]) for which in ("first", "second")),
                    number(row["decode_tokens_per_s"]["median"]),
                    _ms(row["token_gap_s"]["median"]),
                    _ms(row["ttft_s"]["median"]),
                )
            )
    headings = ("", "first load, s", "second load, s", "tokens/s", "ms a token", "TTFT, ms")
    return table(headings, rows) + "\n\n" + source("server_captured_graph", found)


def beside_a_load() -> str:
    found = load("server_beside_a_load")
    rows = []
    for cores, row in found["rows"].items():
        for when in ("undisturbed", "beside"):
            one: dict[str, Any] = row[when]
            rows.append(
                (
                    f"{cores.replace('_', ' ')}, {when.replace('beside', 'while another loads')}",
                    *(_ms(one["ttft"][key]) for key in ("median", "p95")),
                    *(_ms(one["gap"][key]) for key in ("median", "p95")),
                    f"{row['ttft_ratio_of_medians']:.2f}" if when == "beside" else NONE,
                )
            )
    headings = ("ms", "TTFT, median", "p95", "gap, median", "p95", "TTFT / undisturbed")
    return table(headings, rows) + "\n\n" + source("server_beside_a_load", found)


def routing() -> str:
    found = load("routing")
    rows = []
    for language, row in found["accuracy"].items():
        held = row.get("held_out")
        if held and held["examples"]:
            rows.append((language, f"{held['right']} of {held['examples']}"))
    height = -(-len(rows) // 3)
    rows += [("", "")] * (3 * height - len(rows))
    columns = [rows[i * height : (i + 1) * height] for i in range(3)]
    cells = [(*a, *b, *c) for a, b, c in zip(*columns, strict=True)]
    return table(("language", "right") * 3, cells) + "\n\n" + source("routing", found)


TABLES: dict[str, Callable[[], str]] = {
    "cold_phases": cold_phases,
    "on_demand": on_demand,
    "gateway_overhead": gateway_overhead,
    "profiles": profiles,
    "captured_graph": captured_graph,
    "beside_a_load": beside_a_load,
    "routing": routing,
}

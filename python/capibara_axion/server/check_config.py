# SPDX-License-Identifier: Apache-2.0
"""`capibara-axion check-config`: what a configuration file means, without starting anything."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table

from capibara_axion.server.config import ServerConfig
from capibara_axion.server.config_expert import ExpertConfig
from capibara_axion.server.config_file import is_hub_name
from capibara_axion.server.config_report import by_reason, cautions, remarks


def as_json(path: Path, config: ServerConfig, *, has_api_key: bool) -> dict[str, Any]:
    """A valid file for programs; `found` of an expert is None for a Hugging Face repository."""
    return {
        "file": str(path),
        "valid": True,
        "experts": [
            {
                **expert.model_dump(),
                "found": _found(expert),
                "ranks": expert.ranks,
                "compiled": expert.compiled,
                "disabled_ops": expert.disabled_ops,
                "kv_cache_tokens": expert.kv_cache_tokens(),
            }
            for expert in config.experts
        ],
        "lazy_loading": config.lazy_loading.model_dump(),
        "server_config": config.server_config.model_dump(),
        "remarks": [remark._asdict() for remark in remarks(config)],
        "cautions": cautions(config, has_api_key=has_api_key),
    }


def print_summary(path: Path, config: ServerConfig, *, has_api_key: bool) -> None:
    """A valid file for people, on standard output."""
    console = Console(highlight=False)
    console.print(f"[green]{escape(str(path))}: valid[/green]", soft_wrap=True)
    console.print(_experts(config.experts))
    console.print(_limits(config))
    if found := remarks(config):
        console.print("[italic]Keys that do not act as they are written[/italic]")
        for (kind, text), paths in by_reason(found).items():
            console.print(*(f"  [bold]{escape(path)}[/bold]" for path in paths), sep="\n")
            console.print(Padding(escape(f"{kind}: {text}"), (0, 0, 0, 6)))
    if warnings := cautions(config, has_api_key=has_api_key):
        console.print("\n[yellow]To be seen to[/yellow]")
        for warning in warnings:
            console.print(f"  {escape(warning)}", soft_wrap=True)


def _found(expert: ExpertConfig) -> bool | None:
    return None if is_hub_name(expert.model_path) else os.path.isdir(expert.model_path)


def _experts(experts: list[ExpertConfig]) -> Table:
    table = Table(title="Experts", title_justify="left", box=box.SIMPLE)
    table.add_column("expert", overflow="fold")
    for heading in ("weights", "KV cache", "context", "ranks", "priority"):
        table.add_column(heading, no_wrap=True)
    for expert in experts:
        note = {None: " (Hugging Face)", True: "", False: " [red](not there)[/red]"}
        table.add_row(
            f"[bold]{expert.expert_id}[/bold]\n{escape(expert.model_path)}{note[_found(expert)]}",
            f"{expert.dtype}\n{escape(expert.quantization or '')}",
            f"{expert.kv_cache_dtype}\n{_capacity(expert)}",
            str(expert.max_model_len or "model's"),
            str(expert.ranks),
            f"{expert.priority}\n{'pinned' if expert.pinned else ''}",
        )
    return table


def _capacity(expert: ExpertConfig) -> str:
    if expert.kv_cache_memory_bytes is not None:
        return f"{expert.kv_cache_memory_bytes / 2**30:.2f} GiB"
    tokens = expert.kv_cache_tokens()
    return "4 sequences" if tokens is None else f"{tokens} tokens"


def _limits(config: ServerConfig) -> Table:
    lazy, settings = config.lazy_loading, config.server_config
    memory = (
        f"{lazy.memory_threshold:.0%} of the memory"
        if lazy.memory_budget_gib is None
        else f"{lazy.memory_budget_gib:g} GiB"
    )
    kept = f"{lazy.warmup_pool_size} kept warm, unloaded after {lazy.auto_unload_after_s:g} s"
    loaded = f"at most {lazy.max_loaded_experts}, within {memory}; "
    table = Table(title="Limits", title_justify="left", show_header=False, box=box.SIMPLE)
    table.add_row("experts loaded", loaded + (kept if lazy.enabled else "all, always"))
    requests = f"at most {settings.max_requests}, {settings.max_requests_per_model} an expert"
    table.add_row("requests", f"{requests}; {settings.max_body_bytes / 2**20:g} MiB each")
    table.add_row("waiting for a turn", f"at most {settings.queue_timeout_s:g} s")
    listens = f"{settings.host} ports {settings.port} and {settings.stream_port}"
    if settings.unix_socket is not None:
        listens += f", {settings.unix_socket}"
    table.add_row("listens on", escape(listens))
    return table

# SPDX-License-Identifier: Apache-2.0
"""What `use_captured_graph` costs at a model's first load and later ones, and what it gives.

    python benchmarks/end_to_end/prepare.py
    python benchmarks/server/captured_graph.py [--models demo shape]

Eager and compiled, the same model. All caches are in a folder that begins empty: first load (and
first token), then a new server and its load, with the caches as the first one left them. Then both
answer the same requests in turn, one at a time.
"""

from __future__ import annotations

import asyncio
import os
import random
import sys
import tempfile
from argparse import Namespace
from pathlib import Path
from typing import Any

import client
import figures
import models
import serving
from rich.progress import Progress

import machine

_MODES: dict[str, dict[str, Any]] = {
    "eager": {"use_captured_graph": False},
    "compiled": {"use_captured_graph": True, "enforce_eager": False},
}
_OTHER = "phi4_fast"
_PROMPT_TOKENS, _NEW_TOKENS = 128, 64


def main() -> int:
    arguments = _arguments()
    serving.end_servers_on_sigterm()
    described, others = machine.describe({}), serving.Others()
    console = machine.console()
    paths = {"demo": models.demo()[models.DEMO], "shape": models.shape()}
    with figures.progress(console) as progress:
        rows = {
            name: asyncio.run(_measure(paths[name], arguments, progress))
            for name in arguments.models
        }
    result = described | {
        "others_share": round(others.share(), 3),
        "unit": "seconds",
        "settings": {
            "prompt_tokens": _PROMPT_TOKENS,
            "new_tokens": _NEW_TOKENS,
            "modes": _MODES,
        },
        "models": rows,
    }
    _show(result)
    machine.write(result, arguments.output)
    return 0


def _arguments() -> Namespace:
    parser = figures.parser(__doc__, "captured_graph")
    names = ["demo", "shape"]
    parser.add_argument("--models", nargs="+", choices=names, default=names)
    parser.add_argument("--requests", type=int, default=10, help="of each mode, warm")
    return parser.parse_args()


async def _measure(model: Path, arguments: Namespace, progress: Progress) -> dict[str, Any]:
    found: dict[str, Any] = {mode: {} for mode in _MODES}
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        for which in ("first", "second"):
            with _server(model, scratch) as server:
                async with client.http_session() as session:
                    api = client.Client(session, server.url, serving.ADMIN_KEY)
                    await api.load(_OTHER)  # the server has imported everything after that
                    await api.unload(_OTHER)
                    task = progress.add_task(f"{model.name}: {which} load", total=len(_MODES))
                    for mode in _MODES:
                        found[mode] |= await _load(api, mode, model, which)
                        progress.advance(task)
                    if which == "second":
                        answers = await _answers(api, model, arguments.requests, progress)
    for mode, given in answers.items():
        found[mode] |= {
            "decode_tokens_per_s": figures.summary([a.tokens_per_s for a in given], 2),
            "token_gap_s": figures.summary([gap for a in given for gap in a.gaps_s], 6),
            "ttft_s": figures.summary([a.ttft_s for a in given]),
        }
    return found


def _server(model: Path, scratch: Path) -> Any:
    experts = [models.expert(mode, model, **settings) for mode, settings in _MODES.items()]
    experts.append(models.expert(_OTHER, models.demo()[_OTHER]))
    return serving.our_server(
        scratch, experts, environment={"XDG_CACHE_HOME": os.fspath(scratch / "cache")}
    )


async def _load(api: client.Client, mode: str, model: Path, which: str) -> dict[str, float]:
    """Load the mode's model, and ask it for a first answer."""
    load_s = await api.load(mode)
    answer = await api.ask(_body(mode, model, 0))
    return {f"{which}_load_s": load_s, f"{which}_answer_ttft_s": round(answer.ttft_s, 4)}


async def _answers(
    api: client.Client, model: Path, count: int, progress: Progress
) -> dict[str, list[client.Answer]]:
    found: dict[str, list[client.Answer]] = {mode: [] for mode in _MODES}
    task = progress.add_task(f"{model.name}: warm", total=count)
    for number in range(1, count + 1):
        for mode in random.Random(number).sample(list(_MODES), len(_MODES)):
            found[mode].append(await api.ask(_body(mode, model, number)))
        progress.advance(task)
    return found


def _body(mode: str, model: Path, seed: int) -> dict[str, Any]:
    prompt = models.prompt(model, _PROMPT_TOKENS, seed)
    return {"model": mode, "prompt": prompt, "max_tokens": _NEW_TOKENS}


def _show(result: dict[str, Any]) -> None:
    table = figures.table(
        figures.title("Eager and compiled, one stream", result),
        *("", "first load, s", "second load, s", "first answer's TTFT, s", "n"),
        *("decode tokens/s", "ms a token", "p95", f"TTFT of {_PROMPT_TOKENS} tokens, ms", "p95"),
    )
    for model, modes in result["models"].items():
        for mode, row in modes.items():
            table.add_row(
                f"{model}, {mode}",
                *(figures.s(row[f"{which}_load_s"]) for which in ("first", "second")),
                figures.s(row["second_answer_ttft_s"]),
                str(row["decode_tokens_per_s"]["n"]),
                f"{row['decode_tokens_per_s']['median']:.1f}",
                *(figures.ms(row["token_gap_s"][key], 2) for key in ("median", "p95")),
                *(figures.ms(row["ttft_s"][key]) for key in ("median", "p95")),
            )
    machine.console().print(table)


if __name__ == "__main__":
    sys.exit(main())

# SPDX-License-Identifier: Apache-2.0
"""Thirty requests to one expert, the first one cold: our server, and stock vLLM on demand.

    python benchmarks/end_to_end/prepare.py
    python benchmarks/server/on_demand.py [--models demo shape] [--stock eager compiled]

Stock vLLM runs one process a model, started at the model's first request; its clock runs from
there. Ours runs all the while and has the model unloaded. Cold starts are repeated, each server in
its turn; those of the last round stay up and answer the warm requests, all servers the same ones in
random order. Whoever is not asked is stopped meanwhile, so that nobody computes beside another.
Requests are chats of about 100 tokens, and 32 generated whatever they are. Page cache and stock's
compile cache are warm.
"""

from __future__ import annotations

import asyncio
import os
import random
import statistics
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import aiohttp
import client
import figures
import models
import serving
from rich.progress import Progress

import machine

_PROMPT_TOKENS = 90  # and the template's
_NEW_TOKENS = 32
_MAX_MODEL_LEN = 1024
_KV_CACHE_BYTES = 256 << 20
_OURS = "ours"
_CORES = sorted(os.sched_getaffinity(0))


@dataclass(frozen=True)
class _Mode:
    """How stock vLLM is started, beside model and type."""

    arguments: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)


_ON_ALL_CORES = {"VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, _CORES))}
_STOCK = {
    "eager": _Mode(("--enforce-eager",), _ON_ALL_CORES),
    "compiled": _Mode((), _ON_ALL_CORES),
    # By default one core is left to the scheduler.
    "eager, default cores": _Mode(("--enforce-eager",)),
    # One process fewer than by default.
    "eager, uni": _Mode(
        ("--enforce-eager", "--distributed-executor-backend", "uni"),
        {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "OMP_NUM_THREADS": str(len(_CORES))},
    ),
}
_SHOWN = ("mean", "stdev", "median", "p95")
_TARGETS = {"cold, stock / ours": 5.0, "warm, stock / ours": 1.0}


def main() -> int:
    arguments = _arguments()
    serving.end_servers_on_sigterm()
    described, others = machine.describe({}), serving.Others()
    console = machine.console()
    paths = {"demo": models.demo()[models.DEMO], "shape": models.shape()}
    result = described | {
        "unit": "seconds",
        "targets": _TARGETS,
        "settings": {
            "requests": arguments.requests,
            "cold": arguments.cold,
            "new_tokens": _NEW_TOKENS,
            "stock": {name: asdict(_STOCK[name]) for name in arguments.stock},
        },
    }
    with figures.progress(console) as progress:
        result["models"] = {
            name: asyncio.run(_measure(paths[name], arguments, progress))
            for name in arguments.models
        }
    result["others_share"] = round(others.share(), 3)
    _show(result)
    machine.write(result, arguments.output)
    return 0


def _arguments() -> Namespace:
    parser = figures.parser(__doc__, "on_demand")
    names = ["demo", "shape"]
    parser.add_argument("--models", nargs="+", choices=names, default=names)
    parser.add_argument("--stock", nargs="+", choices=list(_STOCK), default=list(_STOCK))
    parser.add_argument(
        "--requests", type=int, default=30, help="with the first one, which is cold"
    )
    parser.add_argument("--cold", type=int, default=3, help="cold starts of each server")
    return parser.parse_args()


class _Contender(Protocol):
    async def cold(self, body: Mapping[str, Any]) -> client.Answer: ...

    async def ask(self, body: Mapping[str, Any]) -> client.Answer: ...


class _Ours:
    def __init__(self, server: serving.Server, session: aiohttp.ClientSession) -> None:
        self._client = client.Client(session, server.url, serving.ADMIN_KEY)

    async def cold(self, body: Mapping[str, Any]) -> client.Answer:
        await self._client.unload(body["model"])
        await asyncio.sleep(0.2)  # the kernel may free the ended engine's memory
        return await self._client.ask(body)

    async def ask(self, body: Mapping[str, Any]) -> client.Answer:
        return await self._client.ask(body)


class _Stock:
    """A supervisor that starts vLLM when the first request comes."""

    def __init__(
        self, mode: _Mode, model: Path, scratch: Path, session: aiohttp.ClientSession
    ) -> None:
        self._mode = mode
        self._model = model
        self._scratch = scratch
        self._session = session
        self._server: serving.Server | None = None

    async def cold(self, body: Mapping[str, Any]) -> client.Answer:
        self.end()
        environment = {
            "VLLM_USE_AOT_COMPILE": "0",  # its artifact cannot be loaded again on CPU
            **self._mode.environment,
        }
        options = ["--dtype", "bfloat16", "--max-model-len", str(_MAX_MODEL_LEN)]
        options += ["--kv-cache-memory-bytes", str(_KV_CACHE_BYTES)]
        options += self._mode.arguments
        began = time.perf_counter()
        self._server = serving.stock_server(
            self._scratch, body["model"], self._model, options, environment
        )
        self._server.wait_until_healthy()
        answer = await client.Client(self._session, self._server.url).ask(body)
        answer.began = began
        self._server.pause()
        return answer

    async def ask(self, body: Mapping[str, Any]) -> client.Answer:
        assert self._server is not None
        self._server.resume()
        answer = await client.Client(self._session, self._server.url).ask(body)
        self._server.pause()
        return answer

    def end(self) -> None:
        if self._server is not None:
            self._server.resume()
            self._server.end()
            self._server = None


async def _measure(model: Path, arguments: Namespace, progress: Progress) -> dict[str, Any]:
    experts = [models.expert(model.name, model, max_model_len=_MAX_MODEL_LEN)]
    cold: dict[str, list[client.Answer]] = {_OURS: []} | {mode: [] for mode in arguments.stock}
    warm: dict[str, list[client.Answer]] = {name: [] for name in cold}
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        server = stack.enter_context(serving.our_server(scratch, experts))
        async with client.http_session() as session:
            contenders: dict[str, _Contender] = {_OURS: _Ours(server, session)}
            for mode in arguments.stock:
                stock = contenders[mode] = _Stock(_STOCK[mode], model, scratch, session)
                stack.callback(stock.end)
            bodies = [_body(model, number) for number in range(arguments.requests)]
            await contenders[_OURS].ask(bodies[0])  # its forkserver imports; not counted

            task = progress.add_task("", total=arguments.cold * len(contenders))
            for number in range(arguments.cold):
                for name in random.Random(number).sample(list(contenders), len(contenders)):
                    progress.update(task, description=f"{model.name}, cold: {name}")
                    cold[name].append(await contenders[name].cold(bodies[0]))
                    progress.advance(task)
            task = progress.add_task(f"{model.name}, warm", total=len(bodies) - 1)
            for number, body in enumerate(bodies[1:]):
                for name in random.Random(number).sample(list(contenders), len(contenders)):
                    warm[name].append(await contenders[name].ask(body))
                progress.advance(task)
    return {name: _summary(cold[name], warm[name], warm[_OURS]) for name in cold}


def _body(model: Path, number: int) -> dict[str, Any]:
    messages = models.chat(model, _PROMPT_TOKENS, number)
    return {"model": model.name, "messages": messages, "max_tokens": _NEW_TOKENS}


def _summary(
    cold: Sequence[client.Answer], warm: Sequence[client.Answer], ours: Sequence[client.Answer]
) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for kind, answers in (("cold", cold), ("warm", warm)):
        found[kind] = {
            "total": figures.summary([answer.total_s for answer in answers]),
            "ttft": figures.summary([answer.ttft_s for answer in answers]),
            "tokens_per_s": figures.summary(
                [_NEW_TOKENS / answer.total_s for answer in answers], 2
            ),
            "decode_tokens_per_s": figures.summary([a.tokens_per_s for a in answers], 2),
        }
    # As the seed reports it: one series of which the first request is cold.
    totals = [cold[-1].total_s, *(answer.total_s for answer in warm)]
    found["series"] = figures.summary(totals)
    found["prompt_tokens"] = figures.summary([(a.usage or {})["prompt_tokens"] for a in warm], 1)
    ratios = [a.total_s / b.total_s for a, b in zip(warm, ours, strict=True)]
    if ratios:
        found["warm_over_ours"] = round(statistics.median(ratios), 3)
    return found


def _show(result: dict[str, Any]) -> None:
    console = machine.console()
    for model, rows in result["models"].items():
        table = figures.table(
            figures.title(
                f"{model}: one expert on demand; seconds, {_NEW_TOKENS} tokens an answer", result
            ),
            *("", "n", *_SHOWN, "TTFT median", "TTFT p95"),
            *("tokens/s", "decode", "median / ours"),
        )
        for kind in ("cold", "warm"):
            for name, row in rows.items():
                figure = row[kind]
                if figure["total"]["n"] == 0:
                    continue
                ratio = figure["total"]["median"] / rows[_OURS][kind]["total"]["median"]
                table.add_row(
                    f"{kind}, {name if name == _OURS else f'vLLM {name}'}",
                    str(figure["total"]["n"]),
                    *(f"{figure['total'][key]:.3f}" for key in ("mean", "stdev", "median", "p95")),
                    *(f"{figure['ttft'][key]:.3f}" for key in ("median", "p95")),
                    *(
                        f"{figure[key]['median']:.1f}"
                        for key in ("tokens_per_s", "decode_tokens_per_s")
                    ),
                    f"{ratio:.2f}",
                )
        for name, row in rows.items():
            series = row["series"]
            cells = (f"{series[key]:.3f}" for key in _SHOWN)
            table.add_row(f"all, first one cold, {_label(name)}", str(series["n"]), *cells)
        console.print(table)


def _label(contender: str) -> str:
    return contender if contender == _OURS else f"vLLM {contender}"


if __name__ == "__main__":
    sys.exit(main())

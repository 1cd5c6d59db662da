# SPDX-License-Identifier: Apache-2.0
"""A measurement of a server from its first request to its file, whatever comes between."""

from __future__ import annotations

import asyncio
import random
import signal
import sys
import tempfile
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from capibara_axion.bench import machine, results
from capibara_axion.bench.client import Client, Exchange, http_session
from capibara_axion.bench.errors import UsageError
from capibara_axion.bench.prompts import KINDS, LANGUAGES, Prompt, Prompts, digest
from capibara_axion.bench.target import Target
from capibara_axion.bench.watch import Watch, watch

ServerResult = results.LatencyResult | results.LoadResult | results.StreamResult

# Models that a server may be asked for without having them.
_ALIASES = ("auto",)


@dataclass(frozen=True)
class Connection:
    """How to reach the server; as `Client` and `Target` have it."""

    url: str
    api: str
    timeout_s: float
    key: str | None = field(repr=False)
    admin_key: str | None = field(repr=False)


@dataclass
class Run:
    """What a measurement works with, and what it has found so far.

    Attributes:
        requests: all of them, in the order in which they were to be sent.
        stopped: why it ended before it was done.
        interrupted: by Ctrl-C.
    """

    client: Client
    target: Target
    server: results.Server
    progress: Progress
    requests: list[results.Request] = field(default_factory=list)
    seen: Watch = field(default_factory=Watch)
    stopped: str | None = None
    interrupted: bool = False
    _date: str = field(default_factory=machine.now)

    def models(self, named: Sequence[str] | None, *, default_all: bool = False) -> list[str]:
        """The models to ask: those named; else all, or the only one that the server has.

        Raises:
            UsageError: the server does not have one of them, or has several.
        """
        for name in named or ():
            if name not in (*self.server.models, *_ALIASES):
                known = ", ".join(self.server.models) or "none"
                raise UsageError(f"--model: expected one of {known}; got {name!r}")
        if not named and not default_all and len(self.server.models) != 1:
            known = ", ".join(self.server.models) or "none"
            raise UsageError(f"--model: expected which model to ask; this server has: {known}")
        return list(dict.fromkeys(named or self.server.models))

    def request(self, model: str, prompt: Prompt, **fields: Any) -> results.Request:
        """A request that is due now, unless `fields` say otherwise."""
        fields.setdefault("scheduled_s", self.client.now())
        request = results.Request(
            model=model,
            prompt_kind=prompt.kind,
            language=prompt.language,
            prompt=prompt.number,
            **fields,
        )
        self.requests.append(request)
        return request

    async def answer(self, request: results.Request, prompt: Prompt, tokens: int) -> Exchange:
        """Send a request and read its answer."""
        exchange = Exchange(request)
        try:
            await self.client.ask(exchange, prompt.text, tokens)
        finally:
            exchange.read()
        return exchange

    def header(self) -> dict[str, Any]:
        """The fields that the results of all measurements of servers have."""
        return {
            "machine": machine.describe(),
            "date": self._date,
            "command": machine.command_line(),
            "interrupted": self.interrupted,
            "stopped": self.stopped,
            "server": self.server,
            "requests": self.requests,
            "events": self.seen.events,
            "memory": self.seen.memory,
        }


def prompts(kinds: Sequence[str] | None, languages: Sequence[str] | None, same: bool) -> Prompts:
    """The questions that options ask for."""
    salt = None if same else random.SystemRandom().randrange(10000)
    return Prompts(kinds or KINDS, languages or LANGUAGES, salt)


def prompts_work(
    kinds: Sequence[str] | None, languages: Sequence[str] | None, same: bool
) -> dict[str, Any]:
    """The questions, for `work`."""
    return {
        "kinds": sorted(set(kinds)) if kinds else "all",
        "languages": sorted(set(languages)) if languages else "all",
        "same_prompt": same,
        "prompts": digest(),
    }


def measure(connection: Connection, work: Callable[[Run], Awaitable[None]]) -> Run:
    """Have `work` done, until it is, or Ctrl-C or SIGTERM ends it.

    Raises:
        UsageError: there is no such server, or `work` raised it before it had sent anything.
        KeyboardInterrupt: it was interrupted before anything was known of the server.
    """
    return asyncio.run(_measured(connection, work))


async def _measured(connection: Connection, work: Callable[[Run], Awaitable[None]]) -> Run:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    url, key = connection.url, connection.key
    async with http_session() as session:
        client = Client(session, url, api=connection.api, key=key, timeout_s=connection.timeout_s)
        target = Target(session, url, key, connection.admin_key)
        server = await target.describe()
        console = Console(stderr=True)
        quiet = not console.is_terminal
        with Progress(*columns, console=console, transient=True, disable=quiet) as progress:
            run = Run(client, target, server, progress)
            async with watch(session, url, client.now, key) as run.seen:
                working = asyncio.ensure_future(work(run))
                loop = asyncio.get_running_loop()
                for number in (signal.SIGINT, signal.SIGTERM):
                    loop.add_signal_handler(number, _interrupt, run, working)
                try:
                    await working
                except asyncio.CancelledError:
                    if not run.interrupted:
                        raise
                except UsageError as error:
                    if not run.requests:
                        raise
                    run.stopped = str(error)
                finally:
                    for number in (signal.SIGINT, signal.SIGTERM):
                        loop.remove_signal_handler(number)
    return run


def _interrupt(run: Run, working: asyncio.Future[None]) -> None:
    run.interrupted = True
    working.cancel()


def finish(result: ServerResult, output: Path | None) -> int:
    """Write a result, if it is wanted, and say on stderr what became of the run.

    Returns:
        130 if it was interrupted, 1 if it stopped itself or nothing was answered, else 0.

    Raises:
        UsageError: the file can no longer be written; names another one that has the result.
    """
    if output is not None:
        try:
            results.write(result, output)
        except UsageError as error:
            name = tempfile.mkstemp(prefix="capibara-bench-", suffix=".json")[1]
            results.write(result, Path(name))
            raise UsageError(f"{error}; the result is in {name}") from None
        print(f"written to {output}", file=sys.stderr)
    if result.interrupted:
        print("interrupted: this is what was measured until then", file=sys.stderr)
        return 130
    stopped = result.stopped
    if stopped is None and not any(request.outcome == "ok" for request in result.requests):
        errors = [request.error for request in result.requests if request.error]
        stopped = f"no request was answered: {errors[-1] if errors else 'none was sent'}"
    if stopped is not None:
        print(f"stopped: {stopped}", file=sys.stderr)
        return 1
    return 0

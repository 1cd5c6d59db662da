# SPDX-License-Identifier: Apache-2.0
"""`capibara-axion ps`, `load` and `unload`: a running server, operated from the terminal."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import aiohttp
from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

_CONNECT_S = 5.0


class RemoteError(Exception):
    """The server cannot be reached or refuses; the message is for the person at the terminal."""


def show_models(url: str, api_key: str | None) -> None:
    """Print what the server's models do.

    Args:
        url: of the server, such as `http://127.0.0.1:8082`.
        api_key: if the server wants one.

    Raises:
        RemoteError: it cannot be reached, or refuses.
    """
    stats = asyncio.run(_ask("GET", url, "/stats", None, api_key))
    table = Table(title=f"Models of {url}", title_justify="left", box=box.SIMPLE, pad_edge=False)
    table.add_column("model", no_wrap=True)
    table.add_column("state", no_wrap=True)
    for heading in ("wait", "run", "GiB", "cores", "loads", "load s"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, model in stats["models"].items():
        memory, last = model["memory"]["measured_bytes"], model["last_load_s"]
        table.add_row(
            name,
            model["state"] + (", warm" if model["warm"] else ""),
            str(model["waiting"]),
            str(model["running"]),
            "" if memory is None else f"{memory / 2**30:.2f}",
            str(len(model["cpus"]) or ""),
            str(model["loads_total"]),
            "" if last is None else f"{last:.1f}",
        )
    console = Console(highlight=False)
    console.print(table)
    taken, there = (stats["memory"][f"{what}_bytes"] / 2**30 for what in ("measured", "budget"))
    console.print(f"memory: {taken:.2f} of {there:.2f} GiB")


def load(url: str, model: str, admin_key: str | None) -> None:
    """Have a model loaded, with a progress bar.

    Raises:
        RemoteError: it cannot be loaded, or the server cannot be reached.
    """
    asyncio.run(_load(url, model, admin_key))


def unload(url: str, model: str, admin_key: str | None) -> None:
    """Have a model unloaded once its running requests have ended.

    Raises:
        RemoteError: the server cannot be reached, or refuses.
    """
    answer = asyncio.run(_ask("POST", url, "/models/unload", {"model": model}, admin_key))
    Console(highlight=False).print(f"{model}: {answer['status']}")


async def _load(url: str, model: str, admin_key: str | None) -> None:
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    body = {"model": model, "stream": True}
    async with _session(admin_key) as session:
        try:
            answer = await session.post(f"{url}/models/load", json=body)
            await _check(answer)
            console = Console(stderr=True)
            with Progress(
                *columns, console=console, transient=True, disable=not console.is_terminal
            ) as progress:
                bar = progress.add_task(f"loading {model}", total=1.0)
                async for line in answer.content:
                    event = _event(line)
                    if "error" in event:
                        raise RemoteError(event["error"]["message"])
                    if event.get("event") == "done":
                        progress.update(bar, completed=1.0)
                    elif event.get("event") == "progress":
                        text = f"loading {model}: {event['phase'] or event['state']}"
                        progress.update(bar, description=text, completed=event["fraction"] or 0.0)
        except (aiohttp.ClientError, OSError) as error:
            raise RemoteError(f"no answer from {url}: {error}") from error
    Console(highlight=False).print(f"{model}: ready")


def _event(line: bytes) -> dict[str, Any]:
    if not line.startswith(b"data: {"):
        return {}
    event: dict[str, Any] = json.loads(line[6:])
    return event


async def _ask(
    method: str, url: str, path: str, body: dict[str, Any] | None, key: str | None
) -> dict[str, Any]:
    async with _session(key) as session:
        try:
            answer = await session.request(method, f"{url}{path}", json=body)
            await _check(answer)
            content: dict[str, Any] = await answer.json()
        except (aiohttp.ClientError, OSError) as error:
            raise RemoteError(f"no answer from {url}: {error}") from error
    return content


async def _check(answer: aiohttp.ClientResponse) -> None:
    if answer.status >= 400:
        try:
            message = (await answer.json())["error"]["message"]
        except (ValueError, KeyError, TypeError, aiohttp.ClientError):
            message = f"status {answer.status}"
        raise RemoteError(message)


def _session(key: str | None) -> aiohttp.ClientSession:
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_S)
    return aiohttp.ClientSession(headers=headers, timeout=timeout)

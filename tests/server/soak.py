# SPDX-License-Identifier: Apache-2.0
"""Long runs against a real gateway process, by the official client, with an account of every
request:

    soak.py churn --seconds 3600 --demo     load and unload five experts all the time
    soak.py kills --count 1000              kill -9 of workers that are at work
    soak.py gateway --count 200             kill -9 of the gateway: what is left of its processes

Workers are fake ones unless --demo asks for the demo experts. The exit code is 1 if something was
lost or left, or the gateway grew.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import re
import signal
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from conftest import ServerProcess, changed_config, expert, gone
from faults import (
    HOWS,
    FakeServerProcess,
    Fields,
    WorkerKiller,
    demo_fields,
    fake_fields,
    gateway_config,
    kill_gateway,
    kill_workers,
    traffic,
    until,
)
from ledger import Ledger
from rich.console import Console
from rich.progress import Progress, TimeElapsedColumn
from rich.table import Table

MAX_GROWTH_MB = 20.0

_ADMIN_KEY = "soak"
_LONGEST_WARM_UP_S = 120.0

_FAKE_MIB = {"a": 230, "b": 230, "c": 120, "d": 60, "e": 60}
_FAKE_LIMITS: dict[str, Any] = {
    "lazy_loading": {
        "max_loaded_experts": 3,
        "memory_budget_gib": 0.6,
        "auto_unload_after_s": 1.0,
        "warmup_pool_size": 1,
        "warm_refill_after_s": 2.0,
    },
    "server_config": {"max_wait_s": 1.0},
}
_DEMO_LIMITS: dict[str, Any] = {
    "lazy_loading": {
        "max_loaded_experts": 3,
        "memory_budget_gib": 0.75,
        "auto_unload_after_s": 5.0,
        "warmup_pool_size": 1,
        "warm_refill_after_s": 10.0,
    },
    "server_config": {"max_wait_s": 5.0},
}


@dataclass
class Site:
    """A server to be started, and what to ask it.

    Attributes:
        server: kind of process.
        config: its configuration file.
        models: whom to ask.
        fields: for what.
        clients: how many ask at a time.
    """

    server: type[ServerProcess]
    config: Path
    models: list[str]
    fields: Fields
    clients: int

    @contextmanager
    def running(self) -> Iterator[ServerProcess]:
        """Start it; end it, and see to it that all of its processes end."""
        os.environ["CAPIBARA_AXION_ADMIN_KEY"] = _ADMIN_KEY
        server = self.server(self.config, self.config.with_name("log.txt"))
        try:
            yield server
            family = server.family()
        finally:
            server.close()
        if not gone(family):
            raise RuntimeError("some processes of the server did not end with it")


def fake_site(directory: Path, *, tight: bool) -> Site:
    """Five fake experts; `tight`: that take memory, and have room for two or three of them."""
    experts = [expert(name, mib=mib if tight else 0, load_s=0.1) for name, mib in _FAKE_MIB.items()]
    config = directory / "config.json"
    config.write_text(json.dumps({"experts": experts, **(_FAKE_LIMITS if tight else {})}))
    return Site(FakeServerProcess, config, list(_FAKE_MIB), fake_fields, clients=12)


def demo_site(directory: Path, demo_config: Path, *, tight: bool) -> Site:
    """The five demo experts; `tight`: with room for two or three of them."""
    config = changed_config(demo_config, directory, **(_DEMO_LIMITS if tight else {}))
    models = [item["expert_id"] for item in json.loads(config.read_text())["experts"]]
    return Site(ServerProcess, config, models, demo_fields, clients=8)


@dataclass
class Watch:
    """What is seen of a server from outside while it is at work."""

    pid: int
    rss_mb: list[tuple[float, float]] = field(default_factory=list)
    lag_ms: list[float] = field(default_factory=list)
    loads: dict[str, list[tuple[int, int]]] = field(default_factory=dict)
    _expected: dict[str, int] = field(default_factory=dict)

    def look(self, stats: dict[str, Any]) -> None:
        """Take in one answer of /stats."""
        rss = psutil.Process(self.pid).memory_info().rss
        self.rss_mb.append((time.monotonic(), rss / 1e6))
        self.lag_ms.append(stats["event_loop_lag_s"] * 1e3)
        for name, model in stats["models"].items():
            memory = model["memory"]
            measured, predicted = memory["measured_bytes"], memory["predicted_bytes"]
            if measured is None:
                self._expected[name] = predicted
            elif (expected := self._expected.pop(name, None)) is not None:
                self.loads.setdefault(name, []).append((expected, measured))

    def growth(self) -> dict[str, float]:
        """Of the gateway's memory, from the end of a warm-up on, in MB."""
        first, last = self.rss_mb[0][0], self.rss_mb[-1][0]
        warm = first + min(_LONGEST_WARM_UP_S, 0.3 * (last - first))
        sizes = [size for at, size in self.rss_mb if at >= warm]
        window = max(1, len(sizes) // 10)
        before, after = statistics.median(sizes[:window]), statistics.median(sizes[-window:])
        return {
            "warm": round(before, 1),
            "end": round(after, 1),
            "largest": round(max(sizes), 1),
            "growth": round(after - before, 1),
        }

    def predictions(self) -> dict[str, dict[str, float]]:
        """Per model: what it was expected to take before each load, and what it then took."""
        return {
            name: {
                "loads": len(pairs),
                "predicted": round(statistics.median(p for p, _ in pairs) / 2**20, 1),
                "measured": round(statistics.median(m for _, m in pairs) / 2**20, 1),
                "median_deviation_percent": round(
                    100 * statistics.median(abs(p - m) / m for p, m in pairs), 1
                ),
                "first_deviation_percent": round(100 * (pairs[0][0] / pairs[0][1] - 1), 1),
            }
            for name, pairs in sorted(self.loads.items())
        }


async def churn(
    site: Site,
    seconds: float,
    rng: random.Random,
    on_look: Callable[[float, Ledger], None] = lambda elapsed, ledger: None,
) -> dict[str, Any]:
    """Ask for everything all the time, unload and kill now and then.

    Args:
        site: the server; its limits should leave no room for all models.
        seconds: how long.
        rng: decides.
        on_look: called each second.
    """
    with site.running() as server:
        ledger, watch = Ledger(server.url("")), Watch(server.pid)
        killer, done = WorkerKiller(ledger), Counter[str]()
        began = time.monotonic()

        async def interfere() -> None:
            while True:
                await asyncio.sleep(rng.uniform(0.5, 3))
                model = rng.choice(site.models)
                if rng.random() < 0.5:
                    done["kills"] += await killer.try_to_kill(model)
                else:
                    await ledger.post("/models/unload", {"model": model}, _ADMIN_KEY)
                    done["unloads_asked_for"] += 1

        async def idle() -> bool:
            models = (await ledger.stats())["models"].values()
            return not any(model["running"] + model["waiting"] for model in models)

        interfering = asyncio.create_task(interfere())
        async with traffic(
            ledger, site.models, site.fields, rng, clients=site.clients, cancel_share=0.15
        ):
            while (elapsed := time.monotonic() - began) < seconds:
                watch.look(await ledger.stats())
                on_look(elapsed, ledger)
                if interfering.done():
                    break
                await asyncio.sleep(min(1.0, seconds / 20))
        if interfering.done():
            interfering.result()
        interfering.cancel()
        await until(idle)
        stats = await ledger.stats()
        await ledger.close()
    models = stats["models"].values()
    causes = sum((Counter(model["unloads_total"]) for model in models), Counter[str]())
    log = site.config.with_name("log.txt").read_text()
    return {
        "seconds": round(elapsed, 1),
        **ledger.summary(),
        "loads": sum(model["loads_total"] for model in models),
        "load_failures": sum(model["load_failures_total"] for model in models),
        "unloads": dict(causes),
        **done,
        "gateway_mb": watch.growth(),
        "event_loop_lag_ms": _spread(watch.lag_ms),
        "model_mib": watch.predictions(),
        "tracebacks": _tracebacks(log),
    }


def _tracebacks(log: str) -> list[str]:
    """The whole of each: a log in a temporary folder is gone when somebody asks."""
    found = re.finditer(r"^Traceback \(most recent call last\):\n(?:[ \t].*\n|\n)*.*$", log, re.M)
    return [match[0] for match in found]


async def kills(
    site: Site, count: int, rng: random.Random, on_kill: Callable[[], None]
) -> dict[str, Any]:
    """Kill workers under traffic."""
    with site.running() as server:
        ledger = Ledger(server.url(""))
        async with traffic(ledger, site.models, site.fields, rng, clients=site.clients):
            await kill_workers(ledger, site.models, count, rng, on_kill)
        await ledger.close()
    return {"kills": count, **ledger.summary()}


async def gateway_kills(directory: Path, count: int, on_kill: Callable[[], None]) -> dict[str, Any]:
    """Kill gateways, in every way in turn."""
    config, took, orphans = gateway_config(directory), [], []
    for number in range(count):
        seconds, left = await kill_gateway(config, directory / "log.txt", HOWS[number % len(HOWS)])
        took.append(seconds)
        orphans += left
        on_kill()
    return {"kills": count, "orphans": orphans, "gone_after_s": _spread(took)}


def faults_of(result: dict[str, Any]) -> list[str]:
    """What is wrong with a result; an empty list is good."""
    faults = [f"lost: {entry}" for entry in result.get("lost", [])]
    faults += [f"orphan: {process}" for process in result.get("orphans", [])]
    if (end := result.get("slowest_end_s", 0)) > 2:
        faults.append(f"a broken stream ended {end} s after the kill")
    growth = result.get("gateway_mb", {}).get("growth", 0)
    if growth >= MAX_GROWTH_MB:
        faults.append(f"the gateway grew by {growth} MB")
    return faults


def _spread(values: list[float]) -> dict[str, float]:
    ordered = sorted(values)
    return {
        "median": round(statistics.median(ordered), 3),
        "p99": round(ordered[int(0.99 * (len(ordered) - 1))], 3),
        "largest": round(ordered[-1], 3),
    }


def _run(args: argparse.Namespace, directory: Path, progress: Progress) -> dict[str, Any]:
    rng = random.Random(args.seed)
    total = args.seconds if args.command == "churn" else args.count
    task = progress.add_task(args.command, total=total)

    def on_kill() -> None:
        progress.advance(task)

    def on_look(elapsed: float, ledger: Ledger) -> None:
        text = f"churn: {len(ledger.entries)} requests, {len(ledger.lost())} lost"
        progress.update(task, completed=elapsed, description=text)

    if args.command == "gateway":
        return asyncio.run(gateway_kills(directory, args.count, on_kill))
    churning = args.command == "churn"
    if args.demo:
        from capibara_axion.demo import write_demo_models

        site = demo_site(directory, write_demo_models(args.models.resolve()), tight=churning)
    else:
        site = fake_site(directory, tight=churning)
    if churning:
        return asyncio.run(churn(site, args.seconds, rng, on_look))
    return asyncio.run(kills(site, args.count, rng, on_kill))


def _table(result: dict[str, Any]) -> Table:
    table = Table(show_header=False)
    for name, value in result.items():
        if isinstance(value, dict):
            parts = [f"{key}: {_line(part)}" for key, part in value.items()]
        else:
            parts = value if isinstance(value, list) else [value]
        table.add_row(name, "\n".join(map(str, parts[:20])) or "none")
    return table


def _line(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {part}" for key, part in value.items())
    return str(value)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name, default in (("churn", None), ("kills", 1000), ("gateway", 200)):
        command = commands.add_parser(name)
        if default is None:
            command.add_argument("--seconds", type=float, default=60)
        else:
            command.add_argument("--count", type=int, default=default)
        command.add_argument("--json", type=Path, help="write the result here as well")
        command.add_argument("--seed", type=int, default=0)
        if name != "gateway":
            command.add_argument("--demo", action="store_true", help="real demo experts")
            command.add_argument(
                "--models", type=Path, default=Path("build/demo"), help="where they are or will be"
            )
    args = parser.parse_args()
    # asyncio ends its work in order after this one.
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    console = Console()
    with (
        tempfile.TemporaryDirectory() as directory,
        Progress(*Progress.get_default_columns(), TimeElapsedColumn(), console=console) as progress,
    ):
        result = _run(args, Path(directory), progress)
    console.print(_table(result))
    if args.json is not None:
        args.json.write_text(json.dumps(result, indent=2) + "\n")
    faults = faults_of(result)
    for fault in faults[:20]:
        console.print(fault, style="red", markup=False)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())

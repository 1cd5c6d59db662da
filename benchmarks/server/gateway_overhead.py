# SPDX-License-Identifier: Apache-2.0
"""What the gateway adds to an answer and to the gaps between its tokens.

    python benchmarks/server/gateway_overhead.py [--requests 2000] [--rounds 5]

The real gateway, as a process with its access log on, over a worker that has no model. The same
requests go to the worker's own Unix socket and through the gateway, in turn: whole answers one at a
time, then streams, all begun at once, whose tokens come every 20 ms. The client is a third process.
What it takes of a processor is given, as is what gateway and worker take.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import random
import sys
import tempfile
import time
import urllib.request
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import figures
import numpy as np
import psutil
import serving
from raw_http import Connection, Target, stream
from rich.progress import Progress

import machine

_MODEL = "fake"
_GAP_S = 0.02
_WARM_UP = 100  # requests
_BEGINNING = 20  # tokens of each stream while the others are still being admitted
_FIELDS = {
    "model": _MODEL,
    "messages": [{"role": "user", "content": "Where does the time go? " * 20}],
    "temperature": 0,
    "max_tokens": 64,
}
_TARGETS_MS = {"whole p50": 1.0, "whole p99": 5.0, "gap p99": 1.0}


def main() -> int:
    arguments = _arguments()
    serving.end_servers_on_sigterm()
    described, others = machine.describe({}), serving.Others()
    console = machine.console()
    experts = [{"expert_id": _MODEL, "model_path": "/nowhere"}]
    with tempfile.TemporaryDirectory() as folder, figures.progress(console) as progress:
        program = (os.fspath(serving.FAKE_SERVER),)
        with serving.our_server(Path(folder), experts, program=program) as server:
            pids, targets = _processes_and_targets(server.url)
            gc.freeze()
            whole = _whole_answers(targets, arguments, progress)
            streams = [
                asyncio.run(_streams(targets, pids, arguments, number, progress))
                for number in range(arguments.rounds)
            ]
    result = described | {
        "others_share": round(others.share(), 3),
        "unit": "seconds",
        "targets_ms": _TARGETS_MS,
        "settings": {
            "requests": arguments.requests,
            "rounds": arguments.rounds,
            "streams": arguments.streams,
            "tokens": arguments.tokens,
            "token_gap_s": _GAP_S,
        },
        "whole": whole,
        "streams": _streams_summary(streams),
    }
    _show(result)
    machine.write(result, arguments.output)
    return 0


def _arguments() -> Namespace:
    parser = figures.parser(__doc__, "gateway_overhead")
    parser.add_argument("--requests", type=int, default=2000, help="whole answers each way")
    parser.add_argument("--rounds", type=int, default=5, help="of streams, each way")
    parser.add_argument("--streams", type=int, default=64, help="at a time")
    parser.add_argument("--tokens", type=int, default=150, help="of each stream")
    return parser.parse_args()


def _processes_and_targets(url: str) -> tuple[dict[str, int], list[Target]]:
    """Loads the model; the processes by role, and both ways to the worker."""
    port = int(url.rpartition(":")[2])
    gateway = Target("gateway", port)
    first = Connection(gateway)
    first.exchange(gateway.request(_FIELDS))
    first.close()
    with urllib.request.urlopen(url + "/stats") as answer:
        worker = psutil.Process(json.load(answer)["models"][_MODEL]["pid"])
    (path,) = {c.laddr for c in worker.net_connections("unix") if c.laddr.endswith(".sock")}
    pids = {"gateway": _listener(port), "worker": worker.pid, "client": os.getpid()}
    return pids, [Target("direct", path), gateway]


def _listener(port: int) -> int:
    for process in psutil.Process().children():
        if any(c.laddr.port == port for c in process.net_connections("tcp")):
            return process.pid
    raise RuntimeError(f"nobody listens on {port}")


def _whole_answers(
    targets: Sequence[Target], arguments: Namespace, progress: Progress
) -> dict[str, Any]:
    connections = {target.name: Connection(target) for target in targets}
    requests = {target.name: target.request(_FIELDS) for target in targets}
    took: dict[str, list[float]] = {name: [] for name in connections}
    task = progress.add_task("whole answers, one at a time", total=arguments.requests)
    for number in range(-_WARM_UP, arguments.requests):
        if number == 0:
            cpu_began = time.process_time()
        for name in random.sample(list(connections), len(connections)):
            seconds = connections[name].exchange(requests[name])
            if number >= 0:
                took[name].append(seconds)
        if number > 0 and number % 100 == 0:
            progress.update(task, completed=number)
    progress.update(task, completed=arguments.requests)
    client = (time.process_time() - cpu_began) / (2 * arguments.requests)
    for connection in connections.values():
        connection.close()
    paired = np.subtract(took["gateway"], took["direct"])
    p50, p99 = np.subtract(*(np.percentile(took[n], (50, 99)) for n in ("gateway", "direct")))
    return {
        "direct": figures.summary(took["direct"], 6),
        "gateway": figures.summary(took["gateway"], 6),
        "added_p50": round(float(p50), 6),
        "added_p99": round(float(p99), 6),
        "added_paired": figures.summary(paired.tolist(), 6),
        "client_cpu_s_a_request": round(client, 6),
    }


async def _streams(
    targets: Sequence[Target],
    pids: dict[str, int],
    arguments: Namespace,
    number: int,
    progress: Progress,
) -> dict[str, dict[str, Any]]:
    """One round: all streams each way; gaps, and the processors' time of each process."""
    found = {}
    orders = {"tokens": arguments.tokens, "gap_s": _GAP_S}
    for target in random.Random(number).sample(targets, len(targets)):
        what = f"{arguments.streams} streams, round {number + 1}, {target.name}"
        task = progress.add_task(what, total=1)
        request = target.request(_FIELDS | {"stream": True, "fake": orders})
        before = {role: serving.cpu_s_of(pid) for role, pid in pids.items()}
        began = time.perf_counter()
        streams = [stream(target, request, arguments.tokens) for _ in range(arguments.streams)]
        times = await asyncio.gather(*streams)
        elapsed = time.perf_counter() - began
        found[target.name] = {
            "gaps": np.concatenate([np.diff(each) for each in times]).tolist(),
            "later_gaps": np.concatenate([np.diff(each[_BEGINNING:]) for each in times]).tolist(),
            "cores": {
                role: (serving.cpu_s_of(pid) - before[role]) / elapsed for role, pid in pids.items()
            },
        }
        progress.update(task, completed=1)
    return found


def _streams_summary(rounds: Sequence[dict[str, dict[str, Any]]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in ("direct", "gateway"):
        gaps = [gap for one in rounds for gap in one[name]["gaps"]]
        cores = {
            role: round(float(np.mean([one[name]["cores"][role] for one in rounds])), 3)
            for role in rounds[0][name]["cores"]
        }
        later = [gap for one in rounds for gap in one[name]["later_gaps"]]
        found[name] = figures.summary(gaps, 6) | {"later": figures.summary(later, 6)}
        found[name]["cores"] = cores
    added = [
        float(np.percentile(one["gateway"]["gaps"], 99) - np.percentile(one["direct"]["gaps"], 99))
        for one in rounds
    ]
    found["added_p99"] = round(found["gateway"]["p99"] - found["direct"]["p99"], 6)
    found["added_p99_by_round"] = [round(value, 6) for value in added]
    later_p99 = (found[name]["later"]["p99"] for name in ("gateway", "direct"))
    found["later_added_p99"] = round(next(later_p99) - next(later_p99), 6)
    return found


def _show(result: dict[str, Any]) -> None:
    settings = result["settings"]
    table = figures.table(
        figures.title("The gateway, beside its worker's own socket; ms", result),
        *("", "n", "p50", "p95", "p99", "max"),
    )
    for part, label in (("whole", "whole answer"), ("streams", "token gap")):
        for name in ("direct", "gateway"):
            row = result[part][name]
            cells = (figures.ms(row[key], 3) for key in ("median", "p95", "p99", "max"))
            table.add_row(f"{label}, {name}", str(row["n"]), *cells)
    whole, streams = result["whole"], result["streams"]
    added = (figures.ms(whole[key], 3) for key in ("added_p50", "added_p99"))
    table.add_row("whole answer, added", "", next(added), "", next(added))
    for name in ("direct", "gateway"):
        later = streams[name]["later"]
        cells = (figures.ms(later[key], 3) for key in ("median", "p95", "p99", "max"))
        table.add_row(f"after {_BEGINNING} tokens, {name}", str(later["n"]), *cells)
    table.add_row("token gap, added", "", "", "", figures.ms(streams["added_p99"], 3))
    table.add_row("after the beginning", "", "", "", figures.ms(streams["later_added_p99"], 3))
    console = machine.console()
    console.print(table)
    client = whole["client_cpu_s_a_request"] * 1e6
    console.print(f"the client takes {client:.0f} us of a processor for a whole answer")
    for name in ("direct", "gateway"):
        cores = ", ".join(f"{role} {part:.2f}" for role, part in streams[name]["cores"].items())
        console.print(f"cores at {settings['streams']} streams, {name}: {cores}")


if __name__ == "__main__":
    sys.exit(main())

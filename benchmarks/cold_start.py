# SPDX-License-Identifier: Apache-2.0
"""How long the server's beginnings take: to listen, and to a first token from an unloaded model.

    python benchmarks/cold_start.py [--config FILE] [--repeats 5] [--starts 5]

For each expert of the configuration (the demo experts by default) and each repetition: wait until
it is unloaded, ask it for a streamed answer, and take the time until its first text arrives. The
server runs all the while, and its forkserver has finished its imports before the first
measurement. Then the server itself is started again and again: the time until it listens, and
until an answer to a request sent at that moment, which has to wait for those imports.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

_IDLE_S = 0.2  # how soon the benchmark's server unloads an idle model


def main() -> int:
    arguments = _parser().parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        config = _configuration(arguments.config, Path(scratch))
        experts = [expert["expert_id"] for expert in json.loads(config.read_text())["experts"]]
        with _server(config) as base:
            _first_token(base, experts[0])  # waits for the forkserver; not counted
            cold = {
                name: [_cold_first_token(base, name) for _ in range(arguments.repeats)]
                for name in experts
            }
        starts = [_start(config, experts[0]) for _ in range(arguments.starts)]
    result = {
        "machine": {
            "architecture": platform.machine(),
            "cores": len(os.sched_getaffinity(0)),
            "load_average": os.getloadavg(),
        },
        "command": " ".join(["python", *sys.argv]),
        "unit": "seconds",
        "cold_first_token": {name: _summary(values) for name, values in cold.items()},
        "cold_first_token_all": _summary([v for values in cold.values() for v in values]),
        "listening": _summary([listening for listening, _ in starts]),
        "first_answer_of_a_new_server": _summary([answer for _, answer in starts]),
    }
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(result, indent=2) + "\n")
    _show(result)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0] if __doc__ else None)
    parser.add_argument("--config", type=Path, help="configuration (default: the demo experts)")
    parser.add_argument("--repeats", type=int, default=5, help="cold starts of each expert")
    parser.add_argument("--starts", type=int, default=5, help="starts of the server")
    parser.add_argument(
        "--output",
        type=Path,
        default=Path(__file__).parent / "results" / "cold_start.json",
        help="where the figures go as JSON",
    )
    return parser


def _configuration(path: Path | None, scratch: Path) -> Path:
    """The configuration to measure, changed so that idle models are unloaded at once."""
    if path is None:
        from capibara_axion.demo import write_demo_models

        path = write_demo_models(scratch / "demo")
    content = json.loads(path.read_text())
    for expert in content["experts"]:
        expert["model_path"] = os.fspath(path.parent / expert["model_path"])
    content["lazy_loading"] = {"auto_unload_after_s": _IDLE_S, "warmup_pool_size": 0}
    changed = scratch / "config.json"
    changed.write_text(json.dumps(content))
    return changed


@contextmanager
def _server(config: Path) -> Iterator[str]:
    """Start the server; yields its base URL as soon as it listens."""
    ports = []
    for _ in range(2):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            ports.append(free.getsockname()[1])
    command = [sys.executable, "-m", "capibara_axion.cli", "serve", "--config", str(config)]
    command += ["--host", "127.0.0.1", "--port", str(ports[0]), "--stream-port", str(ports[1])]
    process = subprocess.Popen([*command, "--log-level", "error"], stdout=subprocess.DEVNULL)
    try:
        base = f"http://127.0.0.1:{ports[0]}"
        while not _answers(base):
            if process.poll() is not None:
                raise SystemExit(f"the server ended with code {process.returncode}")
            time.sleep(0.005)
        yield base
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)


def _answers(base: str) -> bool:
    try:
        with urllib.request.urlopen(base + "/health", timeout=5):
            return True
    except OSError:
        return False


def _start(config: Path, model: str) -> tuple[float, float]:
    """Seconds from starting the server until it listens, and until its first token."""
    began = time.perf_counter()
    with _server(config) as base:
        listening = time.perf_counter() - began
        _first_token(base, model)
        return listening, time.perf_counter() - began


def _cold_first_token(base: str, model: str) -> float:
    while _state(base, model) != "unloaded":
        time.sleep(0.05)
    time.sleep(0.2)  # let the kernel finish with the ended engine's memory
    return _first_token(base, model)


def _state(base: str, model: str) -> str:
    with urllib.request.urlopen(base + "/stats", timeout=5) as answer:
        state: str = json.load(answer)["models"][model]["state"]
    return state


def _first_token(base: str, model: str) -> float:
    """Seconds until the first text of a streamed answer; reads the answer to its end."""
    body = {
        "model": model,
        "stream": True,
        "max_tokens": 4,
        "temperature": 0,
        "messages": [{"role": "user", "content": "Who are you?"}],
    }
    began, first = time.perf_counter(), None
    request = urllib.request.Request(
        base + "/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "text/json"}
    )
    with urllib.request.urlopen(request, timeout=120) as answer:
        for line in answer:
            if first is None and b'"content":"' in line and b'"content":""' not in line:
                first = time.perf_counter() - began
    if first is None:
        raise SystemExit(f"{model} answered without any text")
    return first


def _summary(values: list[float]) -> dict[str, Any]:
    return {
        "n": len(values),
        "median": round(statistics.median(values), 3),
        "min": round(min(values), 3),
        "max": round(max(values), 3),
        "values": [round(value, 3) for value in values],
    }


def _show(result: dict[str, Any]) -> None:
    cores = result["machine"]["cores"]
    table = Table(title=f"seconds, {cores} cores", title_justify="left")
    for heading in ("measured", "n", "median", "min", "max"):
        table.add_column(heading, justify="left" if heading == "measured" else "right")
    rows = {f"first token, cold {k}": v for k, v in result["cold_first_token"].items()}
    rows["first token, cold, all"] = result["cold_first_token_all"]
    rows["server listening"] = result["listening"]
    rows["first token of a new server"] = result["first_answer_of_a_new_server"]
    for name, row in rows.items():
        figures = (f"{row[key]:.2f}" for key in ("median", "min", "max"))
        table.add_row(name, str(row["n"]), *figures)
    Console().print(table)


if __name__ == "__main__":
    sys.exit(main())

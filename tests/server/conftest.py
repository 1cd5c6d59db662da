# SPDX-License-Identifier: Apache-2.0
"""What the server's tests share: a gateway over fake workers, and the real server as a process."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from aiohttp.test_utils import TestClient, TestServer

# The forkserver's children find `fake_worker` by its name.
sys.path.insert(0, str(Path(__file__).parent))

from fake_worker import fake_worker_main

from capibara_axion.server.config import ServerConfig
from capibara_axion.server.gateway import Gateway
from capibara_axion.server.launcher import Launcher
from capibara_axion.server.ledger import MemoryLedger
from capibara_axion.server.metrics import Metrics
from capibara_axion.server.models import ModelState
from capibara_axion.server.pool import ModelPool


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "configuration(**sections): sections of the file that own_server starts with"
    )


def expert(expert_id: str, **description: Any) -> dict[str, Any]:
    """A fake expert; `description` is how it loads (see fake_worker)."""
    return {
        "expert_id": expert_id,
        "model_path": "/nowhere",
        "description": json.dumps(description),
    }


CHAT = "/v1/chat/completions"


def ask(model: str = "a", **fake: Any) -> dict[str, Any]:
    """A request's body; `fake` says how it is answered (see fake_worker)."""
    return {"model": model, "fake": fake}


async def eventually(condition: Any, timeout: float = 20.0) -> None:
    """Wait, in the event loop, until `condition()` is true."""
    deadline = asyncio.get_running_loop().time() + timeout
    while not condition():
        assert asyncio.get_running_loop().time() < deadline, f"not within {timeout:g} s"
        await asyncio.sleep(0.01)


async def error_of(answer: Any) -> dict[str, Any]:
    """The error that an answer is, with its status."""
    body = await answer.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert body["error"]["message"]
    return {"status": answer.status, **body["error"]}


@dataclass
class FakeService:
    """A gateway over fake workers, with a client for each listener."""

    whole: TestClient[Any, Any]
    streaming: TestClient[Any, Any]
    pool: ModelPool
    gateway: Gateway
    runtime_dir: Path
    config: ServerConfig

    def journal(self) -> list[str]:
        path = self.runtime_dir / "journal.txt"
        return path.read_text().splitlines() if path.exists() else []


@asynccontextmanager
async def fake_service(
    runtime_dir: Path,
    *experts: dict[str, Any],
    api_key: str | None = None,
    admin_key: str | None = None,
    **sections: Any,
) -> AsyncIterator[FakeService]:
    """Run a gateway in this event loop; `sections` are those of the configuration file.

    No model is kept warm unless they say so.
    """
    sections["lazy_loading"] = {"warmup_pool_size": 0, **sections.get("lazy_loading", {})}
    config = ServerConfig.model_validate({"experts": list(experts), **sections})
    # What fake workers import; the forkserver does not find `fake_worker` itself.
    launcher = Launcher(
        fake_worker_main,
        preload=["aiohttp.web", "capibara_axion.server.launcher"],
    )
    metrics = Metrics(state.value for state in ModelState)
    pool = ModelPool(config, launcher, runtime_dir, "info", MemoryLedger(config), metrics)
    gateway = Gateway(pool, api_key, admin_key, metrics)
    clients = [
        TestClient(TestServer(gateway.application(stream_by_default=stream)))
        for stream in (False, True)
    ]
    try:
        for client in clients:
            await client.start_server()
        pool.start()
        yield FakeService(*clients, pool, gateway, runtime_dir, config)
    finally:
        await pool.shut_down(1.0)
        for client in clients:
            await client.close()
        launcher.close()


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for sock in sockets:
            sock.bind(("127.0.0.1", 0))
        return [sock.getsockname()[1] for sock in sockets]


class ServerProcess:
    """`capibara-axion serve` as a user starts it."""

    program: tuple[str, ...] = ("-m", "capibara_axion.cli", "serve")

    def __init__(
        self, config: Path, log: Path, *arguments: str, ports: Sequence[int] | None = None
    ) -> None:
        self.port, self.stream_port = ports or free_ports(2)
        self.log = log
        command = [sys.executable, *self.program, "--config", str(config)]
        command += ["--port", str(self.port), "--stream-port", str(self.stream_port), *arguments]
        with log.open("w") as output:
            self._process = subprocess.Popen(command, stdout=output, stderr=output)
        self.pid = self._process.pid
        self._wait_until_listening()

    def url(self, path: str = "/v1", *, streaming: bool = False) -> str:
        return f"http://127.0.0.1:{self.stream_port if streaming else self.port}{path}"

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(self.url(path), timeout=10) as answer:
            return json.load(answer)

    def model(self, name: str) -> dict[str, Any]:
        stats: dict[str, Any] = self.get("/stats")["models"][name]
        return stats

    def family(self) -> list[psutil.Process]:
        """The gateway and every process that it started, directly or not."""
        gateway = psutil.Process(self.pid)
        return [gateway, *gateway.children(recursive=True)]

    def signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def wait(self, timeout: float) -> int:
        return self._process.wait(timeout)

    def close(self) -> None:
        if self._process.poll() is None:
            self.signal(signal.SIGTERM)
            try:
                self.wait(20)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self.wait(5)

    def _wait_until_listening(self) -> None:
        deadline = time.monotonic() + 30
        while not self._listens():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.close()
                raise AssertionError(f"no server:\n{self.log.read_text()}")
            time.sleep(0.02)

    def _listens(self) -> bool:
        try:
            self.get("/health")
        except OSError:
            return False
        return True


def wait_until(condition: Any, timeout: float, what: str) -> None:
    """Poll until `condition()` is true; a bound for things that other processes do."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout:g} s: {what}"
        time.sleep(0.02)


def _runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def gone(processes: list[psutil.Process], within_s: float = 5) -> bool:
    """Whether all end in time; whether somebody has reaped them is not ours to say."""
    deadline = time.monotonic() + within_s
    while any(map(_runs, processes)):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


@pytest.fixture(scope="session")
def demo_config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The five demo experts' configuration file."""
    if importlib.util.find_spec("vllm") is None:
        pytest.skip("the end-to-end tests need vLLM")
    from capibara_axion.demo import write_demo_models

    return write_demo_models(tmp_path_factory.mktemp("demo"))


@pytest.fixture(scope="session")
def server(demo_config: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """One real server over the demo experts, shared by the tests that do not harm it."""
    process = ServerProcess(demo_config, tmp_path_factory.mktemp("server") / "log.txt")
    yield process
    process.close()


def changed_config(
    config: Path,
    directory: Path,
    *,
    experts_with: Mapping[str, dict[str, Any]] | None = None,
    **sections: Any,
) -> Path:
    """A copy of a configuration file with other sections, and absolute model paths.

    No model is kept warm unless they say so. `experts_with` has further keys of experts.
    """
    content = json.loads(config.read_text())
    lazy = {**content["lazy_loading"], "warmup_pool_size": 0, **sections.get("lazy_loading", {})}
    sections = {**sections, "lazy_loading": lazy}
    for item in content["experts"]:
        item["model_path"] = os.fspath(config.parent / item["model_path"])
        item |= (experts_with or {}).get(item["expert_id"], {})
    copy = directory / "config.json"
    copy.write_text(json.dumps({**content, **sections}))
    return copy

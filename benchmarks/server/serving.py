# SPDX-License-Identifier: Apache-2.0
"""The servers that are measured, as processes: ours, and stock vLLM's own."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import psutil

sys.path.insert(1, str(Path(__file__).resolve().parents[1]))
sys.path.insert(2, str(Path(__file__).resolve().parents[1] / "end_to_end"))

import prepare

import machine

ADMIN_KEY = "benchmark"
FAKE_SERVER = Path(__file__).resolve().parents[2] / "tests" / "server" / "fake_server.py"
_OURS = ("-m", "capibara_axion.cli", "serve")
_START_TIMEOUT_S = 300
_POLL_S = 0.01
# What a user may have set for other purposes and would change what is measured.
_NOT_PASSED_ON = ("CAPIBARA_AXION_", "GOMP_", "KMP_", "LD_PRELOAD", "MALLOC_", "OMP_", "VLLM_")


class Server:
    """A server process, with all that it starts.

    Args:
        arguments: for Python.
        port: where it listens.
        log: file for its output.
        environment: variables beside this process's own.

    Attributes:
        spent_s: processor time of all servers that were ended.
    """

    spent_s: ClassVar[float] = 0.0

    def __init__(
        self, arguments: Sequence[str], port: int, log: Path, environment: Mapping[str, str]
    ) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self._log = log
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(_NOT_PASSED_ON)}
        with log.open("w") as output:
            self._process = subprocess.Popen(
                (sys.executable, *arguments),
                env=inherited | dict(environment),
                stdout=output,
                stderr=output,
                start_new_session=True,  # so that whatever it starts can be ended with it
            )

    def wait_until_healthy(self) -> None:
        """Raises: RuntimeError: it ended instead, or takes too long."""
        deadline = time.monotonic() + _START_TIMEOUT_S
        while not self._is_healthy():
            if self._process.poll() is not None or time.monotonic() > deadline:
                tail = "\n".join(self._log.read_text(errors="replace").splitlines()[-20:])
                raise RuntimeError(f"no server at {self.url}:\n{tail}")
            time.sleep(_POLL_S)

    def pause(self) -> None:
        """Stop all its processes, so that they take no processor time, until `resume`."""
        for process in self._family():
            process.suspend()

    def resume(self) -> None:
        for process in self._family():
            process.resume()

    def end(self) -> None:
        """End it and what it started, and wait until all are gone."""
        family = self._family()
        Server.spent_s += sum(cpu_s_of(process.pid, with_ended=True) for process in family)
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGTERM)
        _, left = psutil.wait_procs(family, timeout=20)
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(left, timeout=5)
        self._process.wait(5)

    def _family(self) -> list[psutil.Process]:
        try:
            root = psutil.Process(self._process.pid)
            return [root, *root.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def _is_healthy(self) -> bool:
        try:
            with urllib.request.urlopen(self.url + "/health", timeout=5):
                return True
        except OSError:
            return False


@contextmanager
def our_server(
    scratch: Path,
    experts: Sequence[Mapping[str, Any]],
    *,
    program: Sequence[str] = _OURS,
    environment: Mapping[str, str] | None = None,
    **sections: Any,
) -> Iterator[Server]:
    """Our server, healthy, with a stranger's defaults but for what keeps models warm by itself.

    Args:
        scratch: folder for its configuration and its log.
        experts: of the configuration.
        program: arguments for Python.
        environment: further variables.
        sections: of the configuration.
    """
    lazy = {"warmup_pool_size": 0, "memory_threshold": 1, **sections.pop("lazy_loading", {})}
    content = {"experts": list(experts), "lazy_loading": lazy, **sections}
    config = scratch / "config.json"
    config.write_text(json.dumps(content))
    port, stream_port = free_ports(2)
    arguments = [*program, "--config", os.fspath(config)]
    arguments += ["--port", str(port), "--stream-port", str(stream_port)]
    variables = {"CAPIBARA_AXION_ADMIN_KEY": ADMIN_KEY, **(environment or {})}
    server = Server(arguments, port, scratch / "server.log", variables)
    try:
        server.wait_until_healthy()
        yield server
    finally:
        server.end()


def stock_server(
    scratch: Path, name: str, model: Path, arguments: Sequence[str], environment: Mapping[str, str]
) -> Server:
    """vLLM's own server without our plugin, just started: neither healthy nor sure to end."""
    (port,) = free_ports(1)
    command = ["-m", "vllm.entrypoints.openai.api_server", "--host", "127.0.0.1"]
    command += ["--port", str(port), "--model", os.fspath(model), "--served-model-name", name]
    variables = {
        "HF_HUB_OFFLINE": "1",
        "VLLM_LOGGING_LEVEL": "WARNING",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_PLUGINS": "",  # not even looked at
        **environment,
    }
    if (library := prepare.tcmalloc()) is not None:  # as vLLM recommends
        variables["LD_PRELOAD"] = os.fspath(library)
    return Server([*command, *arguments], port, scratch / f"stock_{port}.log", variables)


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for sock in sockets:
            sock.bind(("127.0.0.1", 0))
        return [sock.getsockname()[1] for sock in sockets]


class Others(machine.Others):
    """What others than this process and the servers that it ended took of the processors."""

    @staticmethod
    def _busy_seconds() -> float:
        return machine.Others._busy_seconds() - Server.spent_s


def cpu_s_of(pid: int, *, with_ended: bool = False) -> float:
    """Processor time of one process so far, or of its ended children as well; 0 if it is gone."""
    try:
        times = psutil.Process(pid).cpu_times()
    except psutil.NoSuchProcess:
        return 0.0
    ended = times.children_user + times.children_system if with_ended else 0.0
    return float(times.user + times.system + ended)


def end_servers_on_sigterm() -> None:
    """Has SIGTERM do what Ctrl+C does: by default it would leave the servers behind."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)

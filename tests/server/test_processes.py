# SPDX-License-Identifier: Apache-2.0
"""Runtime directories, and what is cleared when a server that was killed is followed by another."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from conftest import gone

from capibara_axion.server import processes

# A server as far as it matters here: it has a runtime directory, and a process of its own that
# outlives it.
SERVER = """
import os, subprocess, sys
from capibara_axion.server import processes
path = processes.make_runtime_dir()
sleeper = "import time; print(flush=True); time.sleep(600)"
worker = subprocess.Popen(
    [sys.executable, "-c", sleeper],
    env={**os.environ, "TMPDIR": str(path)}, stdout=subprocess.PIPE, start_new_session=True,
)
worker.stdout.readline()
print(path, worker.pid, flush=True)
sys.stdin.read()
"""


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    yield tmp_path
    tempfile.tempdir = None


class _Server:
    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", SERVER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        path, pid = self.process.stdout.readline().split()
        self.path = Path(path)
        self.worker = psutil.Process(int(pid))

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(5)


@pytest.fixture
def server(base: Path) -> Iterator[_Server]:
    server = _Server()
    yield server
    server.kill()
    for stream in (server.process.stdin, server.process.stdout):
        assert stream is not None
        stream.close()
    if server.worker.is_running():
        server.worker.kill()


def test_a_runtime_dir_is_private_and_named_after_its_process(base: Path) -> None:
    path = processes.make_runtime_dir()
    assert path.parent == base
    assert path.name.startswith(f"capibara-axion-{os.getpid()}-")
    assert stat.S_IMODE(path.stat().st_mode) == 0o700
    assert processes.make_runtime_dir() != path
    assert path.is_dir()


@pytest.mark.parametrize("stopped", [False, True])
def test_what_a_killed_server_left_is_cleared(server: _Server, stopped: bool) -> None:
    (server.path / "left.sock").touch()
    if stopped:
        server.worker.suspend()
    server.kill()
    assert server.worker.is_running()
    processes.make_runtime_dir()
    assert not server.path.exists()
    assert gone([server.worker])


def test_a_living_server_is_left_alone(server: _Server) -> None:
    processes.make_runtime_dir()
    assert server.path.is_dir()
    assert not gone([server.worker], within_s=0.2)


def test_nothing_else_is_touched(base: Path, server: _Server) -> None:
    foreign = base / "capibara-axion-1-of-somebody-else"
    foreign.mkdir()
    environment = {**os.environ, "TMPDIR": str(foreign), "NOTE": str(server.path)}
    sleeper = [sys.executable, "-c", "import time; time.sleep(600)"]
    with subprocess.Popen(sleeper, env=environment) as bystander:
        server.kill()
        processes.make_runtime_dir()
        assert not server.path.exists()
        assert foreign.is_dir()
        with pytest.raises(subprocess.TimeoutExpired):
            bystander.wait(0.2)
        bystander.kill()


def test_a_process_dies_with_its_parent_even_while_it_is_stopped() -> None:
    code = """
import os, signal, time
from capibara_axion.server import processes
parent = os.getpid()
child = os.fork()
if child == 0:
    processes.die_with_parent(parent)
    os.kill(os.getpid(), signal.SIGSTOP)
os.waitpid(child, os.WUNTRACED)
print(child, flush=True)
time.sleep(600)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        assert child.status() == psutil.STATUS_STOPPED
        parent.send_signal(signal.SIGKILL)
    assert gone([child])

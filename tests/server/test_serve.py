# SPDX-License-Identifier: Apache-2.0
"""The server as a process, over fake workers: signals, sockets, operating it from a terminal."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from conftest import CHAT, ServerProcess, ask, expert, wait_until
from faults import FakeServerProcess


def write_config(path: Path, *experts: dict[str, Any], **settings: Any) -> Path:
    """A configuration file for fake experts; no model is kept warm."""
    content = {
        "experts": list(experts),
        "lazy_loading": {"warmup_pool_size": 0},
        "server_config": settings,
    }
    path.write_text(json.dumps(content))
    return path


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeServerProcess]:
    monkeypatch.setenv("CAPIBARA_AXION_ADMIN_KEY", "operator")
    socket = os.fspath(tmp_path / "s.sock")
    config = write_config(tmp_path / "config.json", expert("a"), expert("b"), unix_socket=socket)
    process = FakeServerProcess(config, tmp_path / "log.txt")
    yield process
    process.close()


def post(server: ServerProcess, model: str) -> dict[str, Any]:
    body = json.dumps(ask(model)).encode()
    request = urllib.request.Request(server.url(CHAT), body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        content: dict[str, Any] = json.load(answer)
    return content


def test_sighup_takes_over_what_changed_and_leaves_the_rest(
    server: FakeServerProcess, tmp_path: Path
) -> None:
    pids = {name: post(server, name)["pid"] for name in "ab"}
    changed = {**expert("b"), "dtype": "float32"}
    write_config(tmp_path / "config.json", expert("a"), changed, expert("c"))
    server.signal(signal.SIGHUP)
    wait_until(lambda: "c" in server.get("/stats")["models"], 10, "the new expert")
    wait_until(lambda: server.model("b")["state"] == "unloaded", 10, "the changed one gone")
    assert post(server, "c")["model"] == "c"
    assert post(server, "b")["pid"] != pids["b"]
    assert post(server, "a")["pid"] == pids["a"]
    assert "unix_socket" in server.log.read_text()  # gone from the file, but only a restart ends it


def test_a_file_that_is_wrong_changes_nothing(server: FakeServerProcess, tmp_path: Path) -> None:
    pid = post(server, "a")["pid"]
    (tmp_path / "config.json").write_text('{"experts": [], "expertz": 1}')
    server.signal(signal.SIGHUP)
    wait_until(lambda: "expertz" in server.log.read_text(), 10, "the complaint")
    assert post(server, "a")["pid"] == pid


async def test_the_unix_socket_serves_the_same(server: FakeServerProcess, tmp_path: Path) -> None:
    connector = aiohttp.UnixConnector(os.fspath(tmp_path / "s.sock"))
    async with (
        aiohttp.ClientSession(connector=connector) as session,
        session.post(f"http://server{CHAT}", json=ask("a")) as answer,
    ):
        assert (await answer.json())["model"] == "a"


def test_models_are_operated_from_a_terminal(server: FakeServerProcess) -> None:
    def run(*arguments: str, **environment: str) -> tuple[int, str]:
        command = [sys.executable, "-m", "capibara_axion.cli", *arguments]
        done = subprocess.run(
            [*command, "--url", server.url("")],
            capture_output=True,
            text=True,
            env={**os.environ, "COLUMNS": "80", **environment},
            check=False,
        )
        return done.returncode, done.stdout + done.stderr

    assert run("load", "b") == (0, "b: ready\n")
    code, table = run("ps")
    assert code == 0
    (line,) = [line for line in table.splitlines() if line.strip().startswith("b")]
    assert "ready" in line
    assert run("unload", "b")[0] == 0
    wait_until(lambda: server.model("b")["state"] == "unloaded", 10, "unloaded")
    code, complaint = run("load", "z")
    assert code == 2
    assert "'z' does not exist" in complaint
    code, complaint = run("unload", "a", CAPIBARA_AXION_ADMIN_KEY="wrong")
    assert code == 2
    assert "admin key" in complaint


def test_a_server_that_is_not_there_is_said_in_one_line(capfd: pytest.CaptureFixture[str]) -> None:
    from capibara_axion.cli import main

    assert main(["ps", "--url", "http://127.0.0.1:9"]) == 2
    assert "no answer from http://127.0.0.1:9" in capfd.readouterr().err

# SPDX-License-Identifier: Apache-2.0
"""The command line: help, bad input, and what it refuses to do."""

from __future__ import annotations

import importlib.util
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from capibara_axion import cli
from capibara_axion.server import logs


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"experts": [{"expert_id": "a", "model_path": "m"}]}))
    return path


@pytest.fixture(autouse=True)
def _no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CAPIBARA_AXION_API_KEY", raising=False)


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The message of a command that must end with code 2, having written nothing to stdout."""
    try:
        code = cli.main(arguments)
    except SystemExit as exit_:  # argparse's own way
        code = exit_.code
    output = capsys.readouterr()
    assert code == 2
    assert output.out == ""
    return output.err


@pytest.mark.parametrize("command", [[], ["serve"], ["check-config"], ["info"], ["demo-models"]])
def test_help(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        cli.main([*command, "--help"])
    assert exit_.value.code == 0
    assert "usage: capibara-axion" in capsys.readouterr().out


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from capibara_axion import cli; cli._parser().format_help();"
        "print([m for m in ('torch', 'vllm', 'aiohttp', 'pydantic') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.org", ""])
def test_a_public_address_needs_a_key(
    config: Path, capsys: pytest.CaptureFixture[str], host: str
) -> None:
    message = refused(capsys, "serve", "--config", str(config), "--host", host)
    assert "API key" in message
    assert "--host 127.0.0.1" in message


def test_a_public_address_in_the_file_needs_a_key_too(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = json.loads(config.read_text())
    config.write_text(json.dumps({**content, "server_config": {"host": "0.0.0.0"}}))
    assert "API key" in refused(capsys, "serve", "--config", str(config))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--config", "/none.json"], "/none.json: cannot be read"),
        (["--port", "99999"], "from 0 to 65535, got '99999'"),
        (["--port", "http"], "from 0 to 65535, got 'http'"),
        (["--port", "9000", "--stream-port", "9000"], "must differ"),
        (["--log-level", "loud"], "loud"),
        (["--host", "127.0.0.1", "--api-key", ""], "empty"),
    ],
)
def test_bad_arguments(
    config: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    assert words in refused(capsys, "serve", "--config", str(config), *arguments)


def test_a_port_in_use(
    config: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "configure", lambda *_, **__: None)  # would outlast the test
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        command = ("serve", "--config", str(config), "--port", port, "--stream-port", "0")
        assert f"cannot listen on 127.0.0.1 port {port}" in refused(capsys, *command)


def test_a_missing_dependency_names_the_extra(
    config: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "vllm" else find(name)
    )
    message = refused(capsys, "serve", "--config", str(config))
    assert "vllm" in message
    assert "pip install 'capibara-axion[server,vllm]'" in message


def run_check_config(*arguments: str) -> tuple[int, str, set[str]]:
    """Exit code, output, and the heavy modules that were imported for it."""
    code = (
        "import sys; from capibara_axion import cli; code = cli.main(['check-config', "
        "*sys.argv[1:]]); print(*{'torch', 'vllm', 'aiohttp'} & set(sys.modules), file=sys.stderr)"
        "; sys.exit(code)"
    )
    command = [sys.executable, "-c", code, *arguments]
    wide = {**os.environ, "COLUMNS": "200"}
    done = subprocess.run(command, capture_output=True, text=True, env=wide)
    return done.returncode, done.stdout, set(done.stderr.split())


def test_check_config_summarises_a_file(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    first = {"expert_id": "first", "model_path": "there", "swap_space": 4}
    # Brackets are not to be taken for markup.
    second = {"expert_id": "second", "model_path": "[/absent]", "num_gpu_blocks_override": 100}
    hub = {"expert_id": "hub", "model_path": "owner/name", "kv_cache_memory_bytes": 2**30}
    content = {"experts": [first, second, hub], "server_config": {"host": "0.0.0.0"}}
    path = tmp_path / "config.json"
    path.write_text(json.dumps(content))
    code, output, imported = run_check_config(str(path))
    assert (code, imported) == (0, set())
    text = " ".join(output.split())
    for words in (
        "config.json: valid",
        "1600 tokens",
        "1.00 GiB",
        "owner/name (Hugging Face)",
        "at most 5, within 80% of the memory; 2 kept warm",
        "experts[].swap_space no effect: vLLM computes preempted requests anew",
        "server_config.host: others can reach '0.0.0.0', so serve wants an API key",
        f"experts[1].model_path: there is no folder {tmp_path}/[/absent]",
    ):
        assert words in text


def test_check_config_for_programs(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["check-config", "--json", str(config)]) == 0
    report = json.loads(capsys.readouterr().out)
    (expert,) = report["experts"]
    assert (report["valid"], expert["expert_id"], expert["found"]) == (True, "a", False)
    assert report["server_config"]["port"] == 8082
    assert report["remarks"] == []
    assert [line.split(": ")[0] for line in report["cautions"]] == ["experts[0].model_path"]


def test_check_config_lists_all_faults(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = {"experts": [{"expert_id": "a", "model_path": "m", "dtyp": 1}], "chunk_size": "x"}
    config.write_text(json.dumps(content))
    message = refused(capsys, "check-config", str(config))
    assert "experts[0].dtyp: unknown key; did you mean 'dtype'?" in message
    assert 'chunk_size: Input should be a valid integer, got "x"' in message
    assert cli.main(["check-config", "--json", str(config)]) == 2
    report = json.loads(capsys.readouterr().out)
    assert (report["valid"], len(report["faults"])) == (False, 2)


def test_check_config_wants_one_thing(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "required" in refused(capsys, "check-config")
    assert "not allowed" in refused(capsys, "check-config", "--schema", str(config))


def test_check_config_prints_schema_and_reference(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["check-config", "--schema"]) == 0
    assert (
        "max_loaded_experts"
        in json.loads(capsys.readouterr().out)["$defs"]["LazyLoading"]["properties"]
    )
    assert cli.main(["check-config", "--reference"]) == 0
    assert capsys.readouterr().out.startswith("# The configuration file\n")


def test_demo_models(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["demo-models", str(tmp_path / "demo")]) == 0
    assert str(tmp_path / "demo" / "config.json") in capsys.readouterr().out
    for name in ("config.json", "huggingface.json"):
        assert cli.main(["check-config", "--json", str(tmp_path / "demo" / name)]) == 0
        report = json.loads(capsys.readouterr().out)
        assert (len(report["experts"]), report["remarks"], report["cautions"]) == (5, [], [])
    (tmp_path / "file").touch()
    assert "cannot write" in refused(capsys, "demo-models", str(tmp_path / "file"))

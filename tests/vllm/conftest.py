# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

if importlib.util.find_spec("vllm") is None:
    collect_ignore_glob = ["test_*.py"]


class Engines:
    """Runs engines one at a time in the runner process and remembers their answers."""

    def __init__(self, runner: subprocess.Popen[str], folders: dict[str, Path]) -> None:
        self._runner = runner
        self._folders = folders
        self._answers: dict[str, dict[str, Any]] = {}

    def run(
        self,
        case: Any,
        *,
        compiled: bool = False,
        options: dict[str, Any] | None = None,
        job: dict[str, Any] | None = None,
        **env: str,
    ) -> dict[str, Any]:
        """The runner's answer; `job` is what else it is told."""
        return self.run_folder(
            self.folder(case),
            {
                "max_model_len": case.max_model_len,
                "image": case.image,
                "compiled": compiled,
                "options": options or {},
                "env": env,
            }
            | (job or {}),
        )

    def folder(self, case: Any) -> Path:
        return self._folders[case.name]

    def run_folder(self, folder: Path, settings: dict[str, Any]) -> dict[str, Any]:
        job = json.dumps({"model": str(folder)} | settings)
        if job not in self._answers:
            assert self._runner.stdin is not None
            assert self._runner.stdout is not None
            self._runner.stdin.write(job + "\n")
            self._runner.stdin.flush()
            line = self._runner.stdout.readline()
            self._answers[job] = json.loads(line) if line else {"error": "the runner died"}
        answer = self._answers[job]
        assert "error" not in answer, answer["error"]
        return answer


@pytest.fixture(scope="session")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engines]:
    from checkpoints import write_checkpoints

    plugins = importlib.metadata.entry_points(group="vllm.general_plugins")
    assert "capibara_axion" in plugins.names, "install the project: vLLM cannot find the plugin"
    directory = tmp_path_factory.mktemp("engines")
    folders = write_checkpoints(directory)
    log = directory / "runner.log"
    with log.open("w") as stderr:
        runner = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("runner.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            # Caches of this run alone: a graph of another version of the code must not be found.
            env={
                **os.environ,
                "TORCHINDUCTOR_CACHE_DIR": str(directory / "inductor"),
                "VLLM_CACHE_ROOT": str(directory / "vllm"),
                "CAPIBARA_AXION_LINEAR_CACHE": str(directory / "linear.json"),
            },
        )
        try:
            yield Engines(runner, folders)
        finally:
            assert runner.stdin is not None
            runner.stdin.close()
            try:
                runner.wait(timeout=60)
            except subprocess.TimeoutExpired:
                runner.kill()
                runner.wait()

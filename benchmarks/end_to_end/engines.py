# SPDX-License-Identifier: Apache-2.0
"""Who takes part, and how a measuring process of each is started and ended."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import prepare
from work import Job

STOCK = "vllm"  # what the others are compared with
_HERE = Path(__file__).resolve().parent
# What a user may have set for other purposes and would change what is measured.
_NOT_PASSED_ON = ("CAPIBARA_AXION_", "GOMP_", "KMP_", "LD_PRELOAD", "MALLOC_", "OMP_", "VLLM_")
_VLLM_ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_NO_USAGE_STATS": "1",
}


@dataclass(frozen=True)
class Contender:
    """An engine with its settings.

    Attributes:
        model: the checkpoint; where it is missing, the contender is absent.
        environment: variables of its process beside those that all have.
        options: for the job.
    """

    name: str
    program: str
    python: Path
    model: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)


def _vllm(
    name: str,
    *,
    plugin: bool,
    model: Path = prepare.CHECKPOINT,
    quantization: str | None = None,
    compiled: bool = False,
) -> Contender:
    return Contender(
        name,
        "measure_vllm.py",
        Path(sys.executable),
        model,
        # Without the variable vLLM loads every plugin that is installed, with "" none.
        _VLLM_ENVIRONMENT | ({} if plugin else {"VLLM_PLUGINS": ""}),
        {"plugin": plugin, "quantization": quantization, "compiled": compiled},
    )


def _llama_cpp(kind: str) -> Contender:
    model = prepare.gguf_file(kind)
    return Contender(f"llama.cpp_{kind}", "measure_llama_cpp.py", prepare.PEERS_PYTHON, model)


CONTENDERS = {
    one.name: one
    for one in (
        # As servers on a CPU run it (eager), and as vLLM does by default (compiled), which takes
        # longer to start.
        _vllm(STOCK, plugin=False),
        _vllm("vllm_compiled", plugin=False, compiled=True),
        _vllm("capibara", plugin=True),
        _vllm("capibara_compiled", plugin=True, compiled=True),
        _vllm("capibara_int8", plugin=True, quantization="capibara_int8"),
        _vllm("capibara_int8_compiled", plugin=True, quantization="capibara_int8", compiled=True),
        _vllm("vllm_awq", plugin=False, model=prepare.AWQ_CHECKPOINT),
        _vllm("capibara_awq", plugin=True, model=prepare.AWQ_CHECKPOINT),
        _vllm("capibara_int4", plugin=True, quantization="capibara_int4"),
        _vllm("capibara_int4_compiled", plugin=True, quantization="capibara_int4", compiled=True),
        *map(_llama_cpp, prepare.GGUF_KINDS),
    )
}


def measure(contender: Contender, job: Job, timeout_s: float) -> dict[str, Any]:
    """Runs the contender's program in a process of its own.

    Returns:
        Its answer, or {"absent": why}, or {"error": what happened}.
    """
    for needed in (contender.python, contender.model):
        if not needed.exists():
            return {"absent": f"{os.path.relpath(needed)} is missing; prepare.py makes it"}
    return run_program(
        (os.fspath(contender.python), os.fspath(_HERE / contender.program)),
        job,
        environment_of(contender, job.threads),
        timeout_s,
    )


def run_program(
    command: Sequence[str], job: Job, environment: Mapping[str, str], timeout_s: float
) -> dict[str, Any]:
    """Runs a program that ends in `work.answer`, on as many cores as the job has threads."""
    cores = sorted(os.sched_getaffinity(0))[: job.threads]
    pinned = ("taskset", "--cpu-list", ",".join(map(str, cores)), *command)
    if shutil.which("taskset") is None:
        raise SystemExit("taskset is missing: install the package util-linux")
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "answer.json"
        process = subprocess.Popen(
            (*pinned, os.fspath(path)),
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,  # so that whatever it starts can be ended with it
        )
        try:
            _, log = process.communicate(job.to_json(), timeout=timeout_s)
        except subprocess.TimeoutExpired:
            return {"error": f"no answer after {timeout_s:.0f} s"}
        finally:
            _end(process)
        if not path.exists():
            tail = "\n".join(log.splitlines()[-15:])
            return {"error": f"the process ended with code {process.returncode}\n{tail}"}
        answer: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return answer


def environment_of(contender: Contender, threads: int) -> dict[str, str]:
    """The whole environment of a process that measures."""
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(_NOT_PASSED_ON)
    }
    environment |= {"OMP_NUM_THREADS": str(threads)} | dict(contender.environment)
    library = prepare.tcmalloc()
    if contender.program == "measure_vllm.py" and library is not None:
        environment["LD_PRELOAD"] = os.fspath(library)
    return environment


def end_children_on_sigterm() -> None:
    """Has SIGTERM do what Ctrl+C does: by default it would leave the measuring process behind."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)


def positive(text: str) -> int:
    """For argparse: a whole number above zero."""
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"expected a positive whole number, got {text!r}")
    return int(text)


def _end(process: subprocess.Popen[str]) -> None:
    """Ends the process and what it started, if they still run."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()

# SPDX-License-Identifier: Apache-2.0
"""Starts llama.cpp's own server with a demo expert, to try `capibara-axion bench` on.

    python benchmarks/end_to_end/llama_server.py [PORT [OPTION_OF_LLAMA_SERVER ...]]

Until Ctrl-C, on 127.0.0.1 and port 8084 by default. What is missing is made first, in
.cache/end_to_end: the expert as a GGUF file with its tokenizer and chat template, and llama-server
out of the sources of the version that prepare.py has installed and against its libraries, which
takes three minutes on one core, cmake and network.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from prepare import CACHE, LLAMA_CPP, PEERS_PYTHON, has_llama_cpp

from capibara_axion.demo import write_demo_models

_SERVER = PEERS_PYTHON.with_name("llama-server")
_EXPERT = "qwen_coder"  # the one whose architecture write_gguf.py knows
_MODEL = CACHE / f"{_EXPERT}-bf16.gguf"
_PORT = "8084"
_HERE = Path(__file__).parent


def main() -> int:
    port, *options = sys.argv[1:] or [_PORT]
    if not has_llama_cpp():
        print("llama.cpp is missing: benchmarks/end_to_end/prepare.py installs it", file=sys.stderr)
        return 1
    for path, make in ((_MODEL, _write_model), (_SERVER, _build_server)):
        if not path.exists():
            print(f"{path.name}: making it", flush=True)
            make()
    model = ("--model", _MODEL, "--alias", _EXPERT)
    address = ("--host", "127.0.0.1", "--port", port)
    # By itself it takes all processors of the machine, those too that are not given to it.
    os.execv(_SERVER, (_SERVER, *model, *address, "--threads", _cores(), *options))


def _cores() -> str:
    return str(len(os.sched_getaffinity(0)))


def _write_model() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        folder = write_demo_models(Path(scratch)).with_name(_EXPERT)
        command = (PEERS_PYTHON, _HERE / "write_gguf.py", folder, _MODEL)
        subprocess.run(command, check=True, stderr=subprocess.DEVNULL)


def _build_server() -> None:
    (libraries,) = PEERS_PYTHON.parents[1].glob("lib/python3*/site-packages/lib")
    name = LLAMA_CPP.partition("==")[0]
    with tempfile.TemporaryDirectory() as scratch:
        download = (PEERS_PYTHON, "-m", "pip", "download", "--quiet", "--no-deps")
        subprocess.run((*download, "--no-binary", name, "--dest", scratch, LLAMA_CPP), check=True)
        (archive,) = Path(scratch).glob("*.tar.gz")
        with tarfile.open(archive) as content:
            content.extractall(scratch, filter="data")
        (sources,) = Path(scratch).glob("*/vendor/llama.cpp")
        (sources / "CMakeLists.txt").write_bytes((_HERE / "llama_server.cmake").read_bytes())
        build = Path(scratch) / "build"
        configure = ("cmake", "-S", sources, "-B", build, f"-DLIBRARIES={libraries}")
        compile_ = ("cmake", "--build", build, "--target", "llama-server", "--parallel", _cores())
        for command in (configure, compile_):
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        (program,) = build.rglob("llama-server")
        partial = _SERVER.with_suffix(".partial")
        partial.write_bytes(program.read_bytes())
        partial.chmod(0o755)
        partial.rename(_SERVER)  # last: an interrupted run leaves none


if __name__ == "__main__":
    sys.exit(main())

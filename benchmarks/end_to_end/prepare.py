# SPDX-License-Identifier: Apache-2.0
"""Makes what run.py needs, once, in .cache/end_to_end: 4 GB, and about ten minutes for llama.cpp.

    python benchmarks/end_to_end/prepare.py

The checkpoint, and its 4-bit version in AWQ's format; llama.cpp, compiled for this machine's
processor, in an environment of its own; the same weights as GGUF files; and tcmalloc out of
Debian's package, which vLLM recommends. Without the last three run.py measures what it can and
names what is absent.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

CACHE = Path(__file__).resolve().parents[2] / ".cache" / "end_to_end"
CHECKPOINT = CACHE / "qwen2.5-0.5b-shape"
AWQ_CHECKPOINT = CACHE / "qwen2.5-0.5b-shape-awq"
PEERS_PYTHON = CACHE / "peers" / "bin" / "python"
GGUF_KINDS = ("bf16", "q8_0", "q4_0")
LLAMA_CPP = "llama-cpp-python==0.3.36"

_REQUIREMENTS = (LLAMA_CPP, "gguf==0.19.0")
# No BLAS, which is slower than llama.cpp's kernels for bf16 and for quantised weights; nothing for
# images.
_CMAKE = "-DGGML_BLAS=OFF -DLLAVA_BUILD=OFF"
# The processor's own instructions, as the kernel names them, without AMX: llama.cpp configures the
# tiles of its first thread alone, and every other one ends with an illegal instruction (0.3.36 on a
# Xeon of 2023 or later). -march=native would bring AMX back.
_INSTRUCTIONS = {
    "sse4_2": "SSE42",
    "avx": "AVX",
    "avx2": "AVX2",
    "avx_vnni": "AVX_VNNI",
    "bmi2": "BMI2",
    "f16c": "F16C",
    "fma": "FMA",
    "avx512f": "AVX512",
    "avx512vbmi": "AVX512_VBMI",
    "avx512_vnni": "AVX512_VNNI",
    "avx512_bf16": "AVX512_BF16",
}
_TCMALLOC_PACKAGE = "libtcmalloc-minimal4"


def main() -> int:
    """Makes what is missing; 1 if something could not be made."""
    CACHE.mkdir(parents=True, exist_ok=True)
    failures = []
    for what, is_there, make in (
        ("the checkpoint", has_checkpoint, _write_checkpoint),
        ("its 4-bit version", AWQ_CHECKPOINT.exists, _write_awq_checkpoint),
        ("llama.cpp", has_llama_cpp, _install_llama_cpp),
        ("the GGUF files", _has_gguf_files, _write_gguf_files),
        ("tcmalloc", lambda: tcmalloc() is not None, _unpack_tcmalloc),
    ):
        if is_there():
            print(f"{what}: there")
            continue
        print(f"{what}: making it", flush=True)
        try:
            make()
        except (OSError, subprocess.CalledProcessError) as error:
            failures.append(what)
            print(f"{what}: failed: {error}", file=sys.stderr)
    return 1 if failures else 0


def has_checkpoint() -> bool:
    return (CHECKPOINT / "model.safetensors").exists()


def has_llama_cpp() -> bool:
    if not PEERS_PYTHON.exists():
        return False
    command = (PEERS_PYTHON, "-c", "import gguf, llama_cpp")
    return subprocess.run(command, capture_output=True).returncode == 0


def gguf_file(kind: str) -> Path:
    """Where the weights in llama.cpp's type `kind` are, or will be."""
    return CACHE / f"qwen2.5-0.5b-shape-{kind}.gguf"


def tcmalloc() -> Path | None:
    """The library to preload: the one of `prepare.py`, or the system's."""
    for folder in (CACHE / "tcmalloc", Path("/usr/lib")):
        found = sorted(folder.glob("usr/lib/*/libtcmalloc_minimal.so.4"))
        found += sorted(folder.glob("*/libtcmalloc_minimal.so.4"))
        if found:
            return found[0]
    return None


def _write_checkpoint() -> None:
    from checkpoint import write_checkpoint

    write_checkpoint(CHECKPOINT)


def _write_awq_checkpoint() -> None:
    from capibara_axion.int4.quantizer import Settings, quantize_checkpoint

    quantize_checkpoint(CHECKPOINT, AWQ_CHECKPOINT, Settings())


def _install_llama_cpp() -> None:
    if not PEERS_PYTHON.exists():
        venv.create(PEERS_PYTHON.parents[1], with_pip=True)
    environment = os.environ | {
        "CMAKE_ARGS": f"{_CMAKE} {_instructions()}",
        "CMAKE_BUILD_PARALLEL_LEVEL": str(len(os.sched_getaffinity(0))),
    }
    # A wheel that pip keeps may be of another machine, or compiled with other flags.
    command = (PEERS_PYTHON, "-m", "pip", "install", "--quiet", "--no-cache-dir", *_REQUIREMENTS)
    subprocess.run(command, check=True, env=environment)


def _instructions() -> str:
    has = set(Path("/proc/cpuinfo").read_text(encoding="ascii").split())
    if "amx_tile" not in has:
        return "-DGGML_NATIVE=ON"
    found = (f"-DGGML_{name}=ON" for flag, name in _INSTRUCTIONS.items() if flag in has)
    return " ".join(("-DGGML_NATIVE=OFF", *found))


def _has_gguf_files() -> bool:
    return all(gguf_file(kind).exists() for kind in GGUF_KINDS)


def _write_gguf_files() -> None:
    script = Path(__file__).with_name("write_gguf.py")
    command = (PEERS_PYTHON, script, CHECKPOINT, *map(gguf_file, GGUF_KINDS))
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL)


def _unpack_tcmalloc() -> None:
    if not (shutil.which("apt-get") and shutil.which("dpkg")):
        raise OSError(f"no apt-get here: install {_TCMALLOC_PACKAGE}, or do without")
    with tempfile.TemporaryDirectory() as scratch:
        command = ("apt-get", "download", _TCMALLOC_PACKAGE)
        subprocess.run(command, cwd=scratch, check=True, capture_output=True)
        (package,) = Path(scratch).glob("*.deb")
        subprocess.run(("dpkg", "-x", package, CACHE / "tcmalloc"), check=True)


if __name__ == "__main__":
    sys.exit(main())

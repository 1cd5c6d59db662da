#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""See that vLLM and its image processors import, and mend the one mix of wheels that is known.

vLLM brings torchvision, torchaudio and torchcodec along. Where the package index has them only as
CUDA builds, beside a CPU torch, importing them fails, and with them whatever imports them.

- torchvision registers Python functions for native operators (`torchvision::nms`) that its library,
  unable to load, never defined. Image processing uses none of them, so a .pth file gives every
  interpreter of this environment empty modules in place of the two that register.
- torchaudio and torchcodec load their libraries at import. vLLM and transformers do without, when
  they find neither; both are uninstalled, for nothing here is about sound or video.

With wheels that match, neither is done.
"""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from pathlib import Path

PTH = Path(sysconfig.get_path("purelib")) / "capibara_torchvision_cpu.pth"
UNUSED = ("torchvision._meta_registrations", "torchvision._autograd_registrations")
# One line, as .pth files demand. `exec` runs it, in which a comprehension would not see `types`.
PTH_LINE = "import sys, types; " + "; ".join(
    f'sys.modules.setdefault("{name}", types.ModuleType("{name}"))' for name in UNUSED
)
VLLM = (
    "import vllm.entrypoints.openai.api_server, vllm.v1.engine.async_llm, torchvision; "
    "from transformers import Gemma3ImageProcessor; Gemma3ImageProcessor()"
)


def failure(*command: str) -> str | None:
    """The error output of the interpreter, run afresh with these arguments; None when it works."""
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True)
    return done.stderr if done.returncode else None


def mend_torchvision() -> None:
    """Write the .pth file if torchvision needs it, remove it if not."""
    PTH.unlink(missing_ok=True)
    if "operator torchvision::" in (failure("-c", "import torchvision") or ""):
        PTH.write_text(PTH_LINE + "\n", encoding="utf-8")
        print(
            "    torchvision is a CUDA build beside a CPU torch: its native operators, which image"
        )
        print(f"    processing does not use, are left out by {PTH.name}", flush=True)


def mend_sound_and_video() -> None:
    """Uninstall torchaudio and torchcodec where their libraries cannot load."""
    for package in ("torchaudio", "torchcodec"):
        if "OSError" in (failure("-c", f"import {package}") or ""):
            print(
                f"    {package} is a CUDA build beside a CPU torch, and not needed: uninstalling it"
            )
            failure("-m", "pip", "uninstall", "--yes", package)


def main() -> int:
    """Mend what is known, then import; 0 when that works."""
    mend_torchvision()
    mend_sound_and_video()
    error = failure("-c", VLLM)
    if error:
        print(error, "error: vLLM or its image processors do not import, see above", sep="\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

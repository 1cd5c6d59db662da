#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""See that vLLM and its image processors import, and mend the one mix of wheels that is known.

A torchvision built for CUDA next to a CPU torch fails at `import torchvision`: it registers Python
functions for native operators (`torchvision::nms`) that its library, unable to load, never defined.
Image processing uses none of them, so a .pth file gives every interpreter of this environment empty
modules in place of the two that register. With wheels that match it is not needed, and removed.
"""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from pathlib import Path

PTH = Path(sysconfig.get_path("purelib")) / "capibara_torchvision_cpu.pth"
# One line, as .pth files demand; nothing is imported but what the interpreter has loaded already.
PTH_LINE = (
    "import sys, types; [sys.modules.setdefault(name, types.ModuleType(name)) for name in "
    '("torchvision._meta_registrations", "torchvision._autograd_registrations")]\n'
)
TORCHVISION = "import torchvision.transforms.v2"
VLLM = "import vllm, torchvision; from transformers import Gemma3ImageProcessor as P; P()"


def failure(statement: str) -> str | None:
    """The error output of `statement` in a fresh interpreter; None when it runs."""
    done = subprocess.run([sys.executable, "-c", statement], capture_output=True, text=True)
    return done.stderr if done.returncode else None


def main() -> int:
    """Check, mend once if needed, check again; 0 when all imports work."""
    PTH.unlink(missing_ok=True)
    error = failure(TORCHVISION)
    if error and "torchvision::" in error:
        PTH.write_text(PTH_LINE, encoding="utf-8")
        print(f"    torchvision here is a CUDA build beside a CPU torch: wrote {PTH.name}, which")
        print("    leaves out its native operators (image processing does not use them)")
    error = failure(VLLM)
    if error:
        print(error, file=sys.stderr)
        print("error: vLLM or its image processors do not import, see above", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

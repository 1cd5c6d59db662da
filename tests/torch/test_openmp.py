# SPDX-License-Identifier: Apache-2.0
"""One OpenMP runtime in the process, whichever of torch and this package comes first."""

from __future__ import annotations

import subprocess
import sys

import pytest

WORK = """
import numpy as np
def work():
    import capibara_axion as ax
    ax.softmax(np.ones((512, 4096), np.float32))  # large enough for threads
"""
CHECK = """
import os
import capibara_axion as ax, threadpoolctl, torch
from capibara_axion import _core
ax.rms_norm(torch.ones(1024, 4096), torch.ones(4096))
runtimes = [pool for pool in threadpoolctl.threadpool_info() if pool["user_api"] == "openmp"]
assert len(runtimes) == 1, runtimes
paths = {os.path.realpath(path) for path in (runtimes[0]["filepath"], _core.openmp_library())}
assert len(paths) == 1, paths
for threads in (1, 2, 3):
    torch.set_num_threads(threads)
    assert ax.get_num_threads() == threads
"""


@pytest.mark.parametrize(
    "order",
    [
        "import torch; import capibara_axion.ops; work()",
        "import capibara_axion.ops; import torch; work()",
        "work(); import torch",
        "import capibara_axion.torch_ops; work()",
    ],
)
def test_one_runtime(order: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", f"{WORK}\n{order}\n{CHECK}"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr

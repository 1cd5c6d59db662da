# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

# The operators' variants and tolerances are those of the NumPy tests.
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "python"))

if importlib.util.find_spec("torch") is None:
    collect_ignore_glob = ["test_*.py"]

# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os

import numpy as np
import pytest


@pytest.fixture
def rng() -> np.random.Generator:
    """New values in every run; TEST_SEED=<the printed number> repeats one."""
    seed = int(os.environ.get("TEST_SEED") or np.random.SeedSequence().entropy % 2**32)
    print(f"TEST_SEED={seed}")
    return np.random.default_rng(seed)

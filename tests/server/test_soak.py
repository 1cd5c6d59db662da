# SPDX-License-Identifier: Apache-2.0
"""The soak, for half a minute; `make soak` takes it as long as asked."""

from __future__ import annotations

import os
import random
from pathlib import Path

from soak import churn, fake_site, faults_of


async def test_models_come_and_go_and_nothing_is_lost(tmp_path: Path) -> None:
    seconds = float(os.environ.get("CAPIBARA_AXION_TEST_SOAK_SECONDS", 25))
    result = await churn(fake_site(tmp_path, tight=True), seconds, random.Random(9))
    print(result)
    assert faults_of(result) == []
    assert result["tracebacks"] == []
    # It has to have been tight, or this shows nothing.
    assert result["loads"] > 5
    assert {"evicted", "aged out", "memory"} & set(result["unloads"])
    assert result["unloads"]["requested"] > 0
    assert result["kills"] > 0

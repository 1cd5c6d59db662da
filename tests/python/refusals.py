# SPDX-License-Identifier: Apache-2.0
"""What every refused call has in common."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from capibara_axion import _core


def check_refused(call: Callable[[], Any], exception: type[Exception], message: str) -> None:
    """`call` raises just this exception, with a message that begins so, and nothing was run."""
    counts = _core.call_counts()
    with pytest.raises(exception, match=f"^{message}") as caught:
        call()
    assert type(caught.value) is exception
    assert _core.call_counts() == counts, "a refused call was made"

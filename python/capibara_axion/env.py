# SPDX-License-Identifier: Apache-2.0
"""Every environment variable that the Python side reads.

`CAPIBARA_AXION_ISA` and `CAPIBARA_AXION_NUM_THREADS` take effect in the native module, which reads
them once, when it is imported (`csrc/cpu/environment.cc`); here they are only for `info` to show.
"""

from __future__ import annotations

import os

_FALSE = frozenset({"0", "false", "off", "no"})
_TRUE = frozenset({"1", "true", "on", "yes", ""})


def requested_isa() -> str | None:
    """The instruction set that `CAPIBARA_AXION_ISA` forces; None when unset or empty."""
    return os.environ.get("CAPIBARA_AXION_ISA") or None


def requested_threads() -> str | None:
    """The threads of a call by `CAPIBARA_AXION_NUM_THREADS`; None when unset or empty."""
    return os.environ.get("CAPIBARA_AXION_NUM_THREADS") or None


def plugin_enabled() -> bool:
    """Whether the vLLM plugin may hook anything: `CAPIBARA_AXION_PLUGIN`, on unless set to 0.

    Raises:
        ValueError: the variable is neither a yes nor a no.
    """
    value = os.environ.get("CAPIBARA_AXION_PLUGIN", "1").strip().lower()
    if value in _FALSE:
        return False
    if value in _TRUE:
        return True
    raise ValueError(f"CAPIBARA_AXION_PLUGIN: expected 0 or 1, got {value!r}")


def disabled_ops() -> frozenset[str]:
    """Names of operators that the vLLM plugin leaves to vLLM: `CAPIBARA_AXION_DISABLE=rope,...`."""
    value = os.environ.get("CAPIBARA_AXION_DISABLE", "")
    return frozenset(name for name in (part.strip() for part in value.split(",")) if name)


def api_key() -> str | None:
    """The server's API key from `CAPIBARA_AXION_API_KEY`; None when unset or empty."""
    return os.environ.get("CAPIBARA_AXION_API_KEY") or None

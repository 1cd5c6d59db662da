# SPDX-License-Identifier: Apache-2.0
"""Every environment variable that the Python side reads.

`CAPIBARA_AXION_ISA`, `CAPIBARA_AXION_GEMM` and `CAPIBARA_AXION_NUM_THREADS` take effect in the
native module, which reads them once, when it is imported (`csrc/cpu/environment.cc`); here they are
only for `info` to show.
"""

from __future__ import annotations

import os
from pathlib import Path

LINEAR_BACKENDS = ("auto", "capibara", "stock")

_FALSE = frozenset({"0", "false", "off", "no"})
_TRUE = frozenset({"1", "true", "on", "yes", ""})


def requested_isa() -> str | None:
    """The instruction set that `CAPIBARA_AXION_ISA` forces; None when unset or empty."""
    return os.environ.get("CAPIBARA_AXION_ISA") or None


def requested_gemm() -> str | None:
    """Which library `CAPIBARA_AXION_GEMM` has run matrix products; None when unset or empty."""
    return os.environ.get("CAPIBARA_AXION_GEMM") or None


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


def linear_backend() -> str:
    """Who computes linear layers in vLLM: `CAPIBARA_AXION_LINEAR`, "auto" when unset or empty.

    Raises:
        ValueError: the variable is none of `LINEAR_BACKENDS`.
    """
    value = os.environ.get("CAPIBARA_AXION_LINEAR", "").strip().lower() or "auto"
    if value not in LINEAR_BACKENDS:
        expected = ", ".join(LINEAR_BACKENDS)
        raise ValueError(f"CAPIBARA_AXION_LINEAR: expected one of {expected}, got {value!r}")
    return value


def linear_cache_file() -> Path | None:
    """Where the choices of "auto" are remembered; None: nowhere.

    `CAPIBARA_AXION_LINEAR_CACHE` names the file, or says 0; when it is unset or empty, the file is
    `capibara-axion/linear.json` in `XDG_CACHE_HOME` or `~/.cache`.
    """
    value = os.environ.get("CAPIBARA_AXION_LINEAR_CACHE", "").strip()
    if value.lower() in _FALSE:
        return None
    if value:
        return Path(value)
    directory = cache_directory()
    return None if directory is None else directory / "linear.json"


def cache_directory() -> Path | None:
    """`capibara-axion` in `XDG_CACHE_HOME` or `~/.cache`; None for a user without a home."""
    caches = os.environ.get("XDG_CACHE_HOME", "")
    try:
        # The specification has relative paths ignored.
        directory = Path(caches) if os.path.isabs(caches) else Path.home() / ".cache"
    except RuntimeError:
        return None
    return directory / "capibara-axion"


def api_key() -> str | None:
    """The server's API key from `CAPIBARA_AXION_API_KEY`; None when unset or empty."""
    return os.environ.get("CAPIBARA_AXION_API_KEY") or None


def client_api_key() -> str | None:
    """The key for any server that is measured: `api_key`, else `OPENAI_API_KEY`."""
    return api_key() or os.environ.get("OPENAI_API_KEY") or None


def admin_key() -> str | None:
    """The key of operators from `CAPIBARA_AXION_ADMIN_KEY`; None when unset or empty."""
    return os.environ.get("CAPIBARA_AXION_ADMIN_KEY") or None

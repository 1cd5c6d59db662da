# SPDX-License-Identifier: Apache-2.0
"""What the gateway and its workers have in common as processes: lifetime, files, logging."""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import shutil
import signal
import sys
import tempfile
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_RUNTIME_PREFIX = "capibara-axion-"


def die_with_parent(parent_pid: int | None = None) -> None:
    """Have the kernel kill this process when the thread that forked it ends (Linux; else no-op).

    Args:
        parent_pid: the parent as known before the fork; if that is no longer our parent, it died
            before the request took effect, and this process exits at once.
    """
    if not sys.platform.startswith("linux"):
        return
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if parent_pid is not None and os.getppid() != parent_pid:
        os._exit(1)


def kill_group(pgid: int, sig: signal.Signals = signal.SIGKILL) -> None:
    """Signal a whole process group; a group that is already gone is no error."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pgid, sig)


def make_runtime_dir() -> Path:
    """A private directory (mode 0700) for sockets, named after this process.

    Directories left by processes that were killed are removed first.
    """
    base = Path(tempfile.gettempdir())
    for stale in base.glob(f"{_RUNTIME_PREFIX}*"):
        pid = stale.name.removeprefix(_RUNTIME_PREFIX).split("-")[0]
        if pid.isdigit() and not _alive(int(pid)):
            shutil.rmtree(stale, ignore_errors=True)  # fails, rightly, on another user's
    return Path(tempfile.mkdtemp(prefix=f"{_RUNTIME_PREFIX}{os.getpid()}-"))


def log_to_stderr(level: str) -> None:
    """Send this package's log, and no library's, to standard error at `level`."""
    handler = logging.StreamHandler()
    handler.setFormatter(
        logging.Formatter("%(asctime)s %(levelname)s %(name)s[%(process)d]: %(message)s")
    )
    package = logging.getLogger("capibara_axion")
    package.handlers[:] = [handler]
    package.setLevel(level.upper())
    package.propagate = False


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True

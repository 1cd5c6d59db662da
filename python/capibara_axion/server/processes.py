# SPDX-License-Identifier: Apache-2.0
"""What the gateway and its workers have in common as processes: lifetime, files, logging."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
import threading
from multiprocessing.connection import wait as wait_for_any
from pathlib import Path

import psutil

# Connections that may wait to be accepted, as when hundreds of clients come at once; one too many
# is dropped without a word, and tried again after seconds. The kernel may allow fewer.
LISTEN_BACKLOG = 4096

_PR_SET_PDEATHSIG = 1
_PREFIX = "capibara-axion-"
_FRESH = "new-"
_LOCK = "lock"


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


def end_with_gateway() -> None:
    """Make this worker a process group of its own that ends with the gateway, however that ends."""
    die_with_parent()
    os.setpgid(0, 0)
    # The parent is the forkserver, and may have gone before the kernel was asked.
    threading.Thread(target=_kill_own_group_at_its_end, daemon=True).start()


def _kill_own_group_at_its_end() -> None:
    gateway = multiprocessing.parent_process()
    assert gateway is not None
    wait_for_any([gateway.sentinel])
    kill_group(os.getpid())


def kill_group(pgid: int, sig: signal.Signals = signal.SIGKILL) -> None:
    """Signal a whole process group; a group that is already gone is no error."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pgid, sig)


def make_runtime_dir() -> Path:
    """A private directory (mode 0700) for sockets and temporary files; once for a process.

    What servers that were killed have left behind is cleared first: their directories, and
    processes of theirs that live on, known by the TMPDIR that they were started with.
    """
    base = Path(tempfile.gettempdir())
    _sweep(base)
    # It gets its own name once it is locked: what is not locked is taken for left behind.
    fresh = Path(tempfile.mkdtemp(prefix=f"{_FRESH}{_PREFIX}{os.getpid()}-"))
    lock = os.open(fresh / _LOCK, os.O_CREAT | os.O_WRONLY, 0o600)  # open as long as we live
    fcntl.flock(lock, fcntl.LOCK_EX)
    return fresh.rename(base / fresh.name.removeprefix(_FRESH))


def _sweep(base: Path) -> None:
    stale = [path for path in base.glob(f"{_PREFIX}*") if _is_abandoned(path)]
    if not stale:
        return
    marks = {os.fspath(path) for path in stale}
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            # psutil sees to it that the number is still this process's when it kills.
            if process.environ().get("TMPDIR") in marks and process.pid != os.getpid():
                process.kill()
    for path in stale:
        shutil.rmtree(path, ignore_errors=True)


def _is_abandoned(path: Path) -> bool:
    """Whether it is ours to clear: this user's, and nobody holds its lock any more."""
    try:
        lock = os.open(path / _LOCK, os.O_WRONLY)
    except OSError:  # somebody else's, or none of these directories
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(lock)
    return True

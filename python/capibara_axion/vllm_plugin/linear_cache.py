# SPDX-License-Identifier: Apache-2.0
"""A small file that remembers, from process to process, what was measured.

It is a cache: whatever is wrong with it costs a measurement, never a model. Processes that write
at the same time replace the whole file one after the other; the loser's entries may be lost, and
are then measured again.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any

# Raise it when an entry means something else than before; a file of another format is replaced.
FORMAT = 2


def is_settled(entry: dict[str, Any]) -> bool:
    """Whether an entry of the file is to be relied on without measuring again."""
    return entry.get("settled", True) is True


class ChoiceCache:
    """Choices by key, each with the numbers that led to it, for people to read.

    Args:
        file: where they are kept; None: in this process alone.
    """

    def __init__(self, file: Path | None) -> None:
        self._file = file
        self._choices: dict[str, bool] | None = None

    def get(self, key: str) -> bool | None:
        """The choice made under this key; None when there is none."""
        if self._choices is None:
            entries = self._read()
            self._choices = {
                name: entry["ours"] for name, entry in entries.items() if is_settled(entry)
            }
        return self._choices.get(key)

    def unsettled(self, key: str) -> dict[str, Any] | None:
        """What other processes have measured under this key without being sure of it."""
        entry = self._read().get(key)
        return None if entry is None or is_settled(entry) else entry

    def put(self, key: str, ours: bool, numbers: dict[str, Any] | None) -> None:
        """Remembers a choice; with `numbers` in the file too, if that can be written.

        A choice whose numbers say that it is not settled is this process's alone, and leaves what
        another process has settled meanwhile.
        """
        self.get(key)
        assert self._choices is not None
        self._choices[key] = ours
        if self._file is None or numbers is None:
            return
        entry, entries = {"ours": ours} | numbers, self._read()
        if is_settled(entry) or key not in entries or not is_settled(entries[key]):
            with contextlib.suppress(OSError):
                self._write(entries | {key: entry})

    def _read(self) -> dict[str, dict[str, Any]]:
        """The file's entries, those that are none left out."""
        if self._file is None:
            return {}
        try:
            content = json.loads(self._file.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            return {}
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            return {}
        entries = content.get("choices")
        if not isinstance(entries, dict):
            return {}
        return {
            key: entry
            for key, entry in entries.items()
            if isinstance(entry, dict) and isinstance(entry.get("ours"), bool)
        }

    def _write(self, entries: dict[str, dict[str, Any]]) -> None:
        assert self._file is not None
        directory = self._file.parent
        directory.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=directory, prefix=self._file.name, suffix=".new")
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                json.dump({"format": FORMAT, "choices": entries}, file, indent=1)
            os.replace(name, self._file)
        except OSError:
            os.unlink(name)
            raise

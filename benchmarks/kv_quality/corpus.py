# SPDX-License-Identifier: Apache-2.0
"""Text that is on every machine with Python: the sources of its standard library.

A token is a byte. The files are listed in order of their names, without the tests and without the
files that hold data rather than text, and a hash of its name says which part a file belongs to.
Another version of Python has other texts: `fingerprint` says which ones a figure was taken on.
"""

from __future__ import annotations

import hashlib
import sysconfig
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

END_OF_TEXT = 256  # between two documents; the ids below are the bytes
PAD = 257
VOCAB_SIZE = 272  # a multiple of 16; what is left over is reserved

_LEFT_OUT = {
    "__pycache__",
    "idle_test",
    "lib2to3",  # another parser's tables
    "site-packages",
    "test",
    "tests",
}
_LEFT_OUT_PARENTS = {"encodings"}  # tables of characters, all alike
_SHORTEST = 256  # bytes; below, there is little but a comment
_HELD_OUT = 10  # one file in as many is held out, one more is for calibration


@dataclass(frozen=True)
class Document:
    """A file: its name below the library's folder, and its bytes."""

    name: str
    content: bytes


@dataclass(frozen=True)
class Corpus:
    """The three parts, none of which shares a file with another.

    Attributes:
        train: what the model is trained on.
        calibration: what scales are measured on.
        held_out: what figures are taken on.
        fingerprint: a hash of all names and contents.
    """

    train: tuple[Document, ...]
    calibration: tuple[Document, ...]
    held_out: tuple[Document, ...]
    fingerprint: str


def load(folder: Path | None = None) -> Corpus:
    """Reads the corpus.

    Args:
        folder: of Python's standard library; by default that of the Python that runs.
    """
    folder = Path(sysconfig.get_paths()["stdlib"]) if folder is None else folder
    parts: dict[str, list[Document]] = {"train": [], "calibration": [], "held_out": []}
    digest = hashlib.sha256()
    for document in _documents(folder):
        digest.update(f"{document.name}\0{len(document.content)}\0".encode())
        digest.update(document.content)
        parts[_part(document.name)].append(document)
    return Corpus(
        tuple(parts["train"]),
        tuple(parts["calibration"]),
        tuple(parts["held_out"]),
        digest.hexdigest()[:16],
    )


def _documents(folder: Path) -> Iterator[Document]:
    named = ((path.relative_to(folder), path) for path in folder.rglob("*.py"))
    for name, path in sorted(named, key=lambda pair: pair[0].as_posix()):
        if _LEFT_OUT.intersection(name.parts) or name.parts[0] in _LEFT_OUT_PARENTS:
            continue
        if name.name.startswith("_sysconfigdata"):  # paths of the machine that compiled Python
            continue
        content = path.read_bytes()
        if len(content) >= _SHORTEST:
            yield Document(name.as_posix(), content)


def _part(name: str) -> str:
    draw = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "little") % _HELD_OUT
    return {0: "held_out", 1: "calibration"}.get(draw, "train")


def stream(documents: Sequence[Document]) -> torch.Tensor:
    """All documents one after the other as token ids (int16), END_OF_TEXT before each."""
    parts = []
    for document in documents:
        parts.append(torch.tensor([END_OF_TEXT], dtype=torch.int16))
        parts.append(torch.frombuffer(bytearray(document.content), dtype=torch.uint8).short())
    return torch.cat(parts)


def windows(documents: Sequence[Document], length: int, each: int = 1) -> dict[str, torch.Tensor]:
    """Stretches of the documents, spread evenly over each: ids (int64) [each, length] by name.

    Documents that are too short for `each` stretches without overlap are left out.
    """
    found = {}
    for document in documents:
        spare = len(document.content) - each * length
        if spare >= 0:
            # Gaps before, between and behind: files begin with a licence and imports.
            firsts = [spare * (i + 1) // (each + 1) + i * length for i in range(each)]
            rows = [list(document.content[first : first + length]) for first in firsts]
            found[document.name] = torch.tensor(rows)
    return found

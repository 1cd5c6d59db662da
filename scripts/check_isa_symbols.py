#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Check that files compiled for one instruction set keep their inline functions to themselves.

The linker keeps one copy of a weak (COMDAT) function for the whole program. Were that the copy of
a file compiled for AVX-512 or SVE, every caller would run it, and die on an older core. Only names
in the namespace of their own instruction set (`capibara::avx512`) cannot meet those of another
file. The instruction set of an object is read from its folder: isa_avx512/ or *isa_avx512.dir/.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

# Codes of `nm` for definitions that may be merged with another object's: weak function, weak
# object, unique global.
MERGED = frozenset("WVu")
ISA_FOLDER = re.compile(r"(?:^isa_(\w+?)|(?:^|_)isa_(\w+)\.dir)$")


def isa_of(path: Path) -> str | None:
    """The instruction set that the object's folder names; None if none does."""
    for part in path.parts[:-1]:
        match = ISA_FOLDER.search(part)
        if match:
            return match.group(1) or match.group(2)
    return None


def defined_symbols(nm: str, path: Path) -> Iterator[tuple[str, str]]:
    """(code, mangled name) of each symbol that the object or static library defines.

    Raises:
        RuntimeError: `nm` could not read the file.
    """
    command = [nm, "--defined-only", "--format=posix", str(path)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
    for line in done.stdout.splitlines():
        fields = line.split()
        # "name code value size"; a static library also has a line "lib.a[member.o]:" per member.
        if len(fields) >= 2:
            yield fields[1], fields[0]


def leaks(nm: str, path: Path, isa: str) -> list[str]:
    """Mangled names in `path` that the linker may merge with those of another instruction set."""
    own_namespace = f"{len(isa)}{isa}"  # as C++ mangles it
    return sorted(
        name
        for code, name in defined_symbols(nm, path)
        if code in MERGED and own_namespace not in name
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Print every symbol that leaks; 1 if there is one, 2 if there was nothing to look at."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("files", nargs="*", type=Path, help="objects or static libraries")
    parser.add_argument("--build", type=Path, help="every object below this folder that has an ISA")
    parser.add_argument("--isa", help="the instruction set of the files whose folder names none")
    parser.add_argument("--nm", default="nm")
    args = parser.parse_args(argv)

    files = {path: isa_of(path) or args.isa for path in args.files}
    if args.build:
        files.update((path, isa_of(path)) for path in sorted(args.build.rglob("*.o")))
    found = looked_at = 0
    for path, isa in files.items():
        if isa is None:
            if path in args.files:
                parser.error(f"{path}: no folder isa_* in its path, and no --isa")
            continue
        looked_at += 1
        for name in leaks(args.nm, path, isa):
            print(f"{path}: {name} is weak: other files' callers may get this {isa} copy")
            found += 1
    print(f"isa symbols: {looked_at} files, {found} leaks")
    if looked_at == 0:
        return 2
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())

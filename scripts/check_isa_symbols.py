#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Check that files compiled for one instruction set keep their inline functions to themselves.

The linker keeps one copy of a weak (COMDAT) function for the whole program. Were that the copy of
a file compiled for AVX-512 or SVE, every caller would run it, and die on an older core. Names
inside a namespace of their own instruction set (Highway's N_AVX2, N_NEON, ...) cannot meet those
of another file.
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
ISA_NAMESPACE = r"\d+N_[A-Z0-9_]+"


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


def leaks(nm: str, path: Path, allowed: re.Pattern[str]) -> list[str]:
    """Mangled names in `path` that the linker may merge and that `allowed` does not match."""
    return sorted(
        name
        for code, name in defined_symbols(nm, path)
        if code in MERGED and not allowed.search(name)
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Print every symbol that leaks; 1 if there is one, 2 if there was nothing to look at."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("files", nargs="*", type=Path, help="objects or static libraries")
    parser.add_argument("--build", type=Path, help="also every isa_*/**/*.o below this folder")
    parser.add_argument("--allow", default=ISA_NAMESPACE, help="names that may be weak (regex)")
    parser.add_argument("--nm", default="nm")
    args = parser.parse_args(argv)

    files = list(args.files)
    if args.build:
        objects = sorted(args.build.rglob("*.o"))
        files += [path for path in objects if any(part.startswith("isa_") for part in path.parts)]
    if not files:
        print("isa symbols: no object files to look at", file=sys.stderr)
        return 2
    found = 0
    for path in files:
        for name in leaks(args.nm, path, re.compile(args.allow)):
            print(f"{path}: {name} is weak: another file's callers may get this copy")
            found += 1
    print(f"isa symbols: {len(files)} files, {found} leaks")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())

# SPDX-License-Identifier: Apache-2.0
"""Writes the tables of measured results into README.md and docs/, out of benchmarks/results/.

    python benchmarks/tables/render.py           write them
    python benchmarks/tables/render.py --check   exit code 1 if one of them is not what it would be

A table stands between the lines `<!-- table: NAME -->` and `<!-- end of table -->`.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path

import engines
import headline
import instructions
import kernels
import server_figures

ROOT = Path(__file__).resolve().parents[2]
PAGES = ("README.md", "docs/measured.md")
TABLES: dict[str, Callable[[], str]] = (
    headline.TABLES | kernels.TABLES | engines.TABLES | server_figures.TABLES | instructions.TABLES
)
_PLACE = re.compile(
    r"(?P<begin><!-- table: (?P<name>\w+) -->\n).*?(?P<end><!-- end of table -->)", re.DOTALL
)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="change nothing")
    check = parser.parse_args().check
    stale = []
    for name in PAGES:
        page = ROOT / name
        text = page.read_text(encoding="utf-8")
        new = rendered(text, page.parent)
        if new != text:
            stale.append(name)
            if not check:
                page.write_text(new, encoding="utf-8")
    if stale and check:
        print(f"{', '.join(stale)}: run python benchmarks/tables/render.py", file=sys.stderr)
        return 1
    print(", ".join(f"{name} written" for name in stale) or "all tables are up to date")
    return 0


def rendered(text: str, folder: Path) -> str:
    """A page's text with its tables made anew; links to results are relative to `folder`."""
    results = os.path.relpath(ROOT / "benchmarks" / "results", folder)

    def replace(place: re.Match[str]) -> str:
        content = TABLES[place["name"]]().replace("](RESULTS/", f"]({results}/")
        return f"{place['begin']}{content}\n{place['end']}"

    return _PLACE.sub(replace, text)


if __name__ == "__main__":
    sys.exit(main())

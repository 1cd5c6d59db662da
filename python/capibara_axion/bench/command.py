# SPDX-License-Identifier: Apache-2.0
"""`capibara-axion bench`: what its sub-commands are. Nothing heavy is imported for `--help`."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from capibara_axion.bench import server_commands
from capibara_axion.bench.kernels import command as kernels_command
from capibara_axion.bench.report import command as report_command

Subparsers = Any  # argparse's own type of them has an underscore


def add_parser(commands: Subparsers, handler: Callable[[argparse.Namespace], int]) -> None:
    """Add `bench` with its sub-commands to the command line.

    Each of them sets two defaults: `run`, which takes the parsed arguments, returns the exit code
    and raises `UsageError` for bad input; and `needs`, an extra of this package followed by the
    modules without which `run` cannot be imported.

    Args:
        handler: of all of them.
    """
    bench = commands.add_parser(
        "bench",
        help="measure servers and kernels, and compare what was measured",
        description="Measure servers and kernels, and compare what was measured.",
    )
    bench.set_defaults(handler=handler)
    measurements = bench.add_subparsers(dest="measurement", required=True, metavar="COMMAND")
    server_commands.add_latency(measurements)
    server_commands.add_load(measurements)
    server_commands.add_stream(measurements)
    kernels_command.add_parser(measurements)
    report_command.add_parser(measurements)
    server_commands.add_compare(measurements)
    _add_schema(measurements)


def _add_schema(measurements: Subparsers) -> None:
    schema = measurements.add_parser(
        "schema",
        help="print the JSON Schema of results",
        description="Print the JSON Schema of the files that --output writes.",
    )
    schema.set_defaults(run=_schema, needs=("server", "pydantic"))


def _schema(_: argparse.Namespace) -> int:
    from capibara_axion.bench.results import json_schema_text

    print(json_schema_text(), end="")
    return 0

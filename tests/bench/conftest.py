# SPDX-License-Identifier: Apache-2.0
"""What the tests of `bench` share: servers to measure, and the command as a user has it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from fake_openai import Fake, served

from capibara_axion import cli
from capibara_axion.bench.results import read


class Served(NamedTuple):
    """A fake server, and where it is."""

    fake: Fake
    url: str


class Outcome(NamedTuple):
    """What a command did."""

    code: int
    out: str
    err: str


@pytest.fixture(autouse=True)
def _no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CAPIBARA_AXION_API_KEY", "CAPIBARA_AXION_ADMIN_KEY", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def server() -> Iterator[Served]:
    fake = Fake()
    with served(fake.application()) as (url,):
        yield Served(fake, url)


@pytest.fixture
def bench(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Outcome]:
    """Run `capibara-axion bench` with these arguments."""

    def run(*arguments: str | Path) -> Outcome:
        words = ["bench", *map(str, arguments)]
        monkeypatch.setattr(sys, "argv", ["capibara-axion", *words])
        try:
            code = cli.main(words)
        except SystemExit as exit_:  # argparse's own way
            code = int(exit_.code or 0)
        return Outcome(code, *capsys.readouterr())

    return run


@pytest.fixture
def measure(bench: Callable[..., Outcome], tmp_path: Path) -> Callable[..., tuple[Outcome, Any]]:
    """Run it with a file for the result, and read that."""

    def run(*arguments: str | Path) -> tuple[Outcome, Any]:
        output = tmp_path / "result.json"
        outcome = bench(*arguments, "--output", output)
        return outcome, read(output) if output.exists() else None

    return run

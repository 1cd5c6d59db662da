# SPDX-License-Identifier: Apache-2.0
"""Options of the measurements of servers, and the types that check them."""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

from capibara_axion.bench.prompts import KINDS, LANGUAGES


def add_server_options(parser: argparse.ArgumentParser, *, model_help: str, tokens: int) -> None:
    """Options of every measurement of a server."""
    parser.add_argument(
        "--url",
        type=url,
        default="http://127.0.0.1:8083",
        help="any server that speaks OpenAI's protocol (default: %(default)s); its key is taken "
        "from CAPIBARA_AXION_API_KEY or OPENAI_API_KEY",
    )
    parser.add_argument("--model", action="append", metavar="NAME", help=model_help)
    parser.add_argument(
        "--tokens",
        type=whole(1),
        default=tokens,
        metavar="N",
        help="tokens of every answer (default: %(default)s)",
    )
    parser.add_argument(
        "--api",
        choices=("chat", "completions"),
        default="chat",
        help="which of OpenAI's interfaces (default: chat)",
    )
    parser.add_argument(
        "--timeout",
        type=above(0),
        default=300.0,
        metavar="SECONDS",
        help="for a whole answer (default: 300)",
    )
    add_output_option(parser)


def add_prompt_options(parser: argparse.ArgumentParser) -> None:
    """Which questions are asked."""
    parser.add_argument(
        "--kind",
        action="append",
        choices=KINDS,
        help="kind of the questions; may be repeated (default: all)",
    )
    parser.add_argument(
        "--language",
        action="append",
        choices=LANGUAGES,
        help="language of the questions; may be repeated (default: both)",
    )
    parser.add_argument(
        "--same-prompt",
        action="store_true",
        help="ask the same question of each kind again and again, so that caches of prefixes help",
    )


def add_output_option(parser: argparse.ArgumentParser) -> None:
    """Where the result goes."""
    parser.add_argument(
        "--output", type=output_file, metavar="FILE", help="where the result goes as JSON"
    )


def url(text: str) -> str:
    """A server's address, without a slash or the protocol's "/v1" at its end."""
    parts = urlsplit(text)
    try:
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # the port is none
        good = False
    if not good:
        raise argparse.ArgumentTypeError(f"expected http://HOST:PORT, got {text!r}")
    if parts.username is not None or parts.query or parts.fragment:
        raise argparse.ArgumentTypeError(
            "expected http://HOST:PORT without a user's name, a key or a query"
        )
    return text.rstrip("/").removesuffix("/v1").rstrip("/")


def output_file(text: str) -> Path:
    """A file that can be written, and its folder, which is made: before the measurement."""
    path = Path(text)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError:  # a file is in the way, or it is not allowed
        good = False
    else:
        good = not path.is_dir() and os.access(path if path.exists() else path.parent, os.W_OK)
    if not good:
        raise argparse.ArgumentTypeError(f"expected a file that can be written, got {text!r}")
    return path


def whole(least: int) -> Callable[[str], int]:
    """A type of whole numbers from `least` on."""

    def convert(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = least - 1
        if number < least or number > 2**31:
            raise argparse.ArgumentTypeError(
                f"expected a whole number, {least} or more, got {text!r}"
            )
        return number

    return convert


def at_least(least: float) -> Callable[[str], float]:
    """A type of numbers from `least` on."""
    return _number(lambda number: number >= least, f"a number, {least:g} or more")


def above(bound: float) -> Callable[[str], float]:
    """A type of numbers larger than `bound`."""
    return _number(lambda number: number > bound, f"a number above {bound:g}")


def share(text: str) -> float:
    """A number from 0 to 1."""
    return _number(lambda number: 0 <= number <= 1, "a number from 0 to 1")(text)


def _number(fits: Callable[[float], bool], expected: str) -> Callable[[str], float]:
    def convert(text: str) -> float:
        try:
            number = float(text)
        except ValueError:
            number = math.nan
        if not (math.isfinite(number) and fits(number)):
            raise argparse.ArgumentTypeError(f"expected {expected}, got {text!r}")
        return number

    return convert

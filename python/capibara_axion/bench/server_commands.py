# SPDX-License-Identifier: Apache-2.0
"""The arguments of `bench latency`, `load`, `stream` and `compare`, and their runs."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from capibara_axion.bench import options
from capibara_axion.bench.errors import UsageError

if TYPE_CHECKING:
    from capibara_axion.bench.run import Connection

_NEEDS = ("server", "aiohttp", "pydantic", "rich")


def add_latency(measurements: Any) -> None:
    """Add `latency` to the sub-commands of `bench`."""
    parser = measurements.add_parser(
        "latency",
        help="how long one who asks has to wait, without ever crowding the server",
        description="Measure time to first token, gaps between tokens and total time, model by "
        "model, with pauses, on a server that is never crowded: the run ends as soon as /health is "
        "not well or requests fail. Requests for which a model had to be loaded are told apart. "
        "Exit code 1 if the run ended itself, 130 after Ctrl-C, which keeps what was measured.",
    )
    options.add_server_options(
        parser, model_help="model to ask; may be repeated (default: all, in turn)", tokens=64
    )
    options.add_prompt_options(parser)
    parser.add_argument(
        "--requests",
        type=options.whole(1),
        default=20,
        metavar="N",
        help="for each model, beside the first and the cold ones; at least as many with "
        "--until-ci (default: %(default)s)",
    )
    parser.add_argument(
        "--until-ci",
        type=options.above(0),
        metavar="PERCENT",
        help="go on until the 95 %% intervals of the medians of TTFT and total time reach no "
        "further than so many per cent of them to either side",
    )
    parser.add_argument(
        "--max-time",
        type=options.above(0),
        default=600.0,
        metavar="SECONDS",
        help="of the whole run (default: 600)",
    )
    parser.add_argument(
        "--concurrency",
        type=options.whole(1),
        default=1,
        metavar="N",
        help="requests in flight at most (default: 1)",
    )
    parser.add_argument(
        "--pause",
        type=options.at_least(0),
        default=0.2,
        metavar="SECONDS",
        help="between an answer and the next request (default: 0.2)",
    )
    parser.add_argument(
        "--cold",
        type=options.whole(0),
        default=0,
        metavar="N",
        help="have each model unloaded N times first, and measure the answers that wait for its "
        "load; the operator's key is taken from CAPIBARA_AXION_ADMIN_KEY (default: 0)",
    )
    parser.add_argument(
        "--max-error-rate",
        type=options.share,
        default=0.1,
        metavar="SHARE",
        help="the run ends if more requests fail, from three on (default: 0.1)",
    )
    parser.set_defaults(run=_latency, needs=_NEEDS)


def add_load(measurements: Any) -> None:
    """Add `load` to the sub-commands of `bench`."""
    parser = measurements.add_parser(
        "load",
        help="how a server answers many at once",
        description="Keep up a load: requests that arrive at random at a rate, whatever the server "
        "does (--rate), or clients that each wait for their answer before they ask again "
        "(--concurrency). Several values are measured one after another. Times count from when a "
        "request was due, not from when the client got round to it. Exit codes as for latency.",
    )
    options.add_server_options(
        parser,
        model_help="model to ask; may be repeated, then drawn at random (default: the only one)",
        tokens=64,
    )
    options.add_prompt_options(parser)
    shape = parser.add_mutually_exclusive_group(required=True)
    shape.add_argument(
        "--rate",
        nargs="+",
        type=options.above(0),
        metavar="R",
        help="open loop: arrivals a second on average, a Poisson process",
    )
    shape.add_argument(
        "--concurrency",
        nargs="+",
        type=options.whole(1),
        metavar="N",
        help="closed loop: clients, each with one request at a time",
    )
    parser.add_argument(
        "--duration",
        type=options.above(0),
        default=30.0,
        metavar="SECONDS",
        help="during which each load sends (default: 30)",
    )
    parser.add_argument(
        "--max-in-flight",
        type=options.whole(1),
        default=256,
        metavar="N",
        help="what would exceed it is not sent, and counted (default: %(default)s)",
    )
    parser.add_argument(
        "--ttft-objective",
        type=options.above(0),
        metavar="SECONDS",
        help="a good answer's first token comes within so many",
    )
    parser.add_argument(
        "--gap-objective",
        type=options.above(0),
        metavar="SECONDS",
        help="a good answer's tokens have no more than so many between them on average",
    )
    parser.add_argument(
        "--seed",
        type=options.whole(0),
        default=0,
        metavar="N",
        help="of arrivals and models (default: 0)",
    )
    parser.set_defaults(run=_load, needs=_NEEDS)


def add_stream(measurements: Any) -> None:
    """Add `stream` to the sub-commands of `bench`."""
    parser = measurements.add_parser(
        "stream",
        help="whether tokens come one by one as they are made, or are held back on the way",
        description="Find out from the arrival times of tokens whether they are sent as they are "
        "made, or held back by the server or by something between. Exit code 0: all models "
        "stream; 1: one does not, or it cannot be told; 130 after Ctrl-C.",
    )
    options.add_server_options(
        parser, model_help="model to ask; may be repeated (default: the only one)", tokens=64
    )
    parser.add_argument(
        "--repeats",
        type=options.whole(1),
        default=3,
        metavar="N",
        help="answers that are looked at; the verdict is about their median (default: 3)",
    )
    parser.set_defaults(run=_stream, needs=_NEEDS)


def add_compare(measurements: Any) -> None:
    """Add `compare` to the sub-commands of `bench`."""
    parser = measurements.add_parser(
        "compare",
        help="whether a run was faster or slower than another, or cannot be told from it",
        description="Compare results of latency, load or kernels with the first of them, by the "
        "ratio of medians and its interval. All intervals hold together with 95 % confidence, so "
        "that equal runs are told apart in one of twenty comparisons at most. Results of "
        "different work are refused (exit code 2).",
    )
    parser.add_argument("before", type=Path, metavar="BEFORE.json")
    parser.add_argument("after", type=Path, nargs="+", metavar="AFTER.json")
    parser.add_argument(
        "--in-turn",
        action="store_true",
        help="the files are before, after, before, after and so on, three of each or more: one "
        "comparison, which tells a difference from a drift of the machine",
    )
    parser.add_argument(
        "--seed",
        type=options.whole(0),
        default=0,
        metavar="N",
        help="of the bootstrap (default: 0)",
    )
    options.add_output_option(parser)
    parser.set_defaults(run=_compare, needs=("server", "pydantic", "rich"))


def _latency(args: argparse.Namespace) -> int:
    from capibara_axion.bench import latency

    settings = latency.Settings(
        models=args.model,
        requests=args.requests,
        tokens=args.tokens,
        concurrency=args.concurrency,
        pause_s=args.pause,
        cold=args.cold,
        until_ci=None if args.until_ci is None else args.until_ci / 100,
        max_time_s=args.max_time,
        max_error_rate=args.max_error_rate,
        kinds=args.kind,
        languages=args.language,
        same_prompt=args.same_prompt,
    )
    connection = _connection(args)
    if settings.cold and connection.admin_key is None:
        raise UsageError("--cold: expected an operator's key in CAPIBARA_AXION_ADMIN_KEY")
    return latency.run(connection, settings, args.output)


def _load(args: argparse.Namespace) -> int:
    from capibara_axion.bench import load

    settings = load.Settings(
        models=args.model,
        tokens=args.tokens,
        rates=args.rate or (),
        concurrencies=args.concurrency or (),
        duration_s=args.duration,
        max_in_flight=args.max_in_flight,
        ttft_objective_s=args.ttft_objective,
        gap_objective_s=args.gap_objective,
        seed=args.seed,
        kinds=args.kind,
        languages=args.language,
        same_prompt=args.same_prompt,
    )
    return load.run(_connection(args), settings, args.output)


def _stream(args: argparse.Namespace) -> int:
    from capibara_axion.bench import stream

    settings = stream.Settings(models=args.model, tokens=args.tokens, repeats=args.repeats)
    return stream.run(_connection(args), settings, args.output)


def _compare(args: argparse.Namespace) -> int:
    from capibara_axion.bench import compare

    return compare.run(
        [args.before, *args.after], in_turn=args.in_turn, seed=args.seed, output=args.output
    )


def _connection(args: argparse.Namespace) -> Connection:
    from capibara_axion import env
    from capibara_axion.bench.run import Connection

    return Connection(
        url=args.url,
        api=args.api,
        timeout_s=args.timeout,
        key=env.client_api_key(),
        admin_key=env.admin_key(),
    )

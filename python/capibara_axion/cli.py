# SPDX-License-Identifier: Apache-2.0
"""The `capibara-axion` command. Handlers import what they need, so `--help` is instant."""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from capibara_axion.bench.command import add_parser as add_bench_parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code (2 for bad input)."""
    args = _parser().parse_args(argv)
    try:
        code: int = args.handler(args)
        sys.stdout.flush()
    except _UsageError as error:
        print(f"capibara-axion {args.command}: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # whoever reads has seen enough, as `head` has
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return code


class _UsageError(Exception):
    """Bad input; the message is for the person at the terminal."""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="capibara-axion",
        description="Native LLM kernels for Arm and x86, as a library, inside vLLM, and behind "
        "an OpenAI-compatible server.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    serve = commands.add_parser(
        "serve",
        help="serve the experts of a configuration file over the OpenAI protocol",
        description="Serve the experts of a configuration file over the OpenAI protocol. Two "
        "listeners share one pool of models: --port answers whole, --stream-port streams, unless "
        "a request says otherwise with its own `stream`. Models are loaded at their first "
        "request and unloaded when idle. SIGTERM finishes running requests, then exits.",
    )
    serve.add_argument(
        "--config", required=True, type=Path, metavar="FILE", help="JSON file with the experts"
    )
    serve.add_argument(
        "--host",
        help="interface to listen on (default: the file's server_config.host, else 127.0.0.1); "
        "anything but loopback needs an API key",
    )
    serve.add_argument(
        "--port", type=_port, help="port for whole answers (default: the file's, else 8082)"
    )
    serve.add_argument(
        "--stream-port",
        type=_port,
        help="port for streamed answers (default: the file's, else 8083)",
    )
    serve.add_argument(
        "--api-key",
        metavar="KEY",
        help="key that clients must send as a bearer token; the environment variable "
        "CAPIBARA_AXION_API_KEY does the same and keeps it out of the process list",
    )
    serve.add_argument(
        "--log-level",
        choices=("debug", "info", "warning", "error"),
        help="how much to log (default: the file's, else info)",
    )
    serve.set_defaults(handler=_serve)

    check = commands.add_parser(
        "check-config",
        help="say what a configuration file means, without starting anything",
        description="Say what a configuration file means, without starting anything: its experts, "
        "its limits, and which keys do not act as they are written. Exit code 2, with all faults, "
        "if it cannot be used.",
    )
    what = check.add_mutually_exclusive_group(required=True)
    what.add_argument("file", nargs="?", type=Path, metavar="FILE", help="JSON file to check")
    what.add_argument("--schema", action="store_true", help="print the JSON Schema of such files")
    what.add_argument("--reference", action="store_true", help="print the reference of all keys")
    check.add_argument("--json", action="store_true", help="machine-readable output")
    check.set_defaults(handler=_check_config)

    compile_ = commands.add_parser(
        "compile",
        help="compile the experts that run with captured graphs, before they are served",
        description="Load each expert whose use_captured_graph is true once, so that its compiled "
        "code is in the cache and no request waits for the compiler.",
    )
    compile_.add_argument(
        "--config", required=True, type=Path, metavar="FILE", help="JSON file with the experts"
    )
    compile_.add_argument("expert", nargs="*", help="only these experts")
    compile_.set_defaults(handler=_compile)

    for name, handler, text in (
        ("ps", _ps, "show what the models of a running server do"),
        ("load", _load, "have a running server load a model"),
        ("unload", _unload, "have a running server unload a model"),
    ):
        remote = commands.add_parser(
            name,
            help=text,
            description=f"{text[0].upper()}{text[1:]}. Keys are taken from the environment: "
            "CAPIBARA_AXION_API_KEY, and CAPIBARA_AXION_ADMIN_KEY for loading and unloading.",
        )
        if name != "ps":
            remote.add_argument("model", help="name of an expert")
        remote.add_argument(
            "--url",
            default="http://127.0.0.1:8082",
            help="the server (default: %(default)s)",
        )
        remote.set_defaults(handler=handler)

    info = commands.add_parser(
        "info",
        help="show the machine, its features and the kernels chosen for it",
        description="Show the machine, its features and the kernels chosen for it.",
    )
    info.add_argument("--json", action="store_true", help="machine-readable output")
    info.set_defaults(handler=_info)

    quantize = commands.add_parser(
        "quantize",
        help="write a checkpoint's 4-bit version in AWQ's format",
        description="Write the 4-bit version of an unquantised Hugging Face checkpoint, in the "
        "format of AWQ, which vLLM loads. With a text, its perplexity before and after is printed.",
    )
    quantize.add_argument("source", type=Path, metavar="IN", help="folder of the checkpoint")
    quantize.add_argument(
        "target", type=Path, metavar="OUT", help="folder to write; must not exist"
    )
    quantize.add_argument("--bits", type=int, choices=(4,), default=4, help="of a weight (4)")
    quantize.add_argument(
        "--group",
        type=int,
        choices=(32, 64, 128),
        default=128,
        help="inputs that share a scale (default: %(default)s)",
    )
    quantize.add_argument(
        "--method",
        choices=("rtn", "awq"),
        default="rtn",
        help="round to nearest, or scale channels by what activates them first (default: rtn)",
    )
    quantize.add_argument(
        "--calibration",
        type=Path,
        metavar="FILE",
        help="text in UTF-8, as the model will meet it; awq needs it; its last fifth is kept for "
        "perplexity",
    )
    quantize.add_argument("--sym", action="store_true", help="symmetric: all zero points are 8")
    quantize.set_defaults(handler=_quantize)

    demo = commands.add_parser(
        "demo-models",
        help="write five small demo experts and a configuration file",
        description="Write five small random-weight experts, one of each supported architecture, "
        "and a config.json that serves them. Complete files of the same version are kept.",
    )
    demo.add_argument("directory", type=Path, metavar="DIR", help="where to write them")
    demo.set_defaults(handler=_demo_models)

    add_bench_parser(commands, _bench)
    return parser


def _port(text: str) -> int:
    try:
        port = int(text)
    except ValueError:
        port = -1
    if not 0 <= port <= 65535:
        raise argparse.ArgumentTypeError(f"expected a port from 0 to 65535, got {text!r}")
    return port


def _serve(args: argparse.Namespace) -> int:
    _require("server,vllm", "aiohttp", "pydantic", "rich", "vllm")
    from capibara_axion import env
    from capibara_axion.server.config_file import ConfigError, load_config
    from capibara_axion.server.serve import Listen, run

    try:
        config = load_config(args.config)
        settings = config.server_config
        listen = Listen(
            host=settings.host if args.host is None else args.host,
            port=settings.port if args.port is None else args.port,
            stream_port=settings.stream_port if args.stream_port is None else args.stream_port,
            api_key=env.api_key() if args.api_key is None else args.api_key,
            admin_key=env.admin_key(),
        )
        listen.check()
        run(config, args.config, listen, args.log_level or settings.log_level)
    except (ConfigError, ValueError, OSError) as error:
        raise _UsageError(str(error)) from error
    return 0


def _compile(args: argparse.Namespace) -> int:
    _require("server,vllm", "aiohttp", "pydantic", "rich", "vllm")
    import asyncio

    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    from capibara_axion.server import logs
    from capibara_axion.server.config_file import ConfigError, load_config
    from capibara_axion.server.precompile import CompileError, compiled_experts, precompile

    logs.configure("warning")
    console = Console(stderr=True)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    try:
        config = load_config(args.config)
        experts = compiled_experts(config, args.expert)
        with Progress(*columns, console=console, transient=True) as progress:
            task = progress.add_task("", total=None)

            def tell(name: str, phase: str) -> None:
                progress.update(task, description=f"{name}: {phase}")

            seconds = asyncio.run(precompile(config, experts, tell))
    except (ConfigError, CompileError, OSError) as error:
        raise _UsageError(str(error)) from error
    for name, taken in seconds.items():
        print(f"{name}: compiled and loaded in {taken:.1f} s")
    if not seconds:
        print("no expert has use_captured_graph: there is nothing to compile")
    return 0


def _ps(args: argparse.Namespace) -> int:
    return _operate(args, lambda remote, env: remote.show_models(args.url, env.api_key()))


def _load(args: argparse.Namespace) -> int:
    return _operate(args, lambda remote, env: remote.load(args.url, args.model, env.admin_key()))


def _unload(args: argparse.Namespace) -> int:
    return _operate(args, lambda remote, env: remote.unload(args.url, args.model, env.admin_key()))


def _operate(args: argparse.Namespace, operation: Callable[[Any, Any], None]) -> int:
    _require("server", "aiohttp", "rich")
    from capibara_axion import env
    from capibara_axion.server import remote

    args.url = args.url.rstrip("/")
    try:
        operation(remote, env)
    except remote.RemoteError as error:
        raise _UsageError(str(error)) from error
    return 0


def _check_config(args: argparse.Namespace) -> int:
    _require("server", "pydantic", "rich")
    import json

    from capibara_axion import env
    from capibara_axion.server import check_config, config_reference
    from capibara_axion.server.config_file import ConfigError, load_config

    if args.schema:
        print(config_reference.json_schema_text(), end="")
    elif args.reference:
        print(config_reference.reference(), end="")
    else:
        try:
            config = load_config(args.file)
        except ConfigError as error:
            if not args.json:
                raise _UsageError(str(error)) from error
            faults = {"file": str(args.file), "valid": False, "faults": error.faults}
            print(json.dumps(faults, indent=2))
            return 2
        has_api_key = env.api_key() is not None
        if args.json:
            report = check_config.as_json(args.file, config, has_api_key=has_api_key)
            print(json.dumps(report, indent=2))
        else:
            check_config.print_summary(args.file, config, has_api_key=has_api_key)
    return 0


def _info(args: argparse.Namespace) -> int:
    try:
        from capibara_axion import info
    except ImportError as error:  # the native module refuses a mistaken CAPIBARA_AXION_ISA
        raise _UsageError(str(error)) from error

    return int(info.main(args) or 0)


def _quantize(args: argparse.Namespace) -> int:
    _require("vllm", "torch", "transformers", "safetensors", "rich")
    from capibara_axion.int4.command import run

    try:
        run(
            args.source,
            args.target,
            group_size=args.group,
            method=args.method,
            symmetric=args.sym,
            calibration=args.calibration,
        )
    except (ValueError, OSError) as error:
        raise _UsageError(str(error)) from error
    return 0


def _demo_models(args: argparse.Namespace) -> int:
    _require("server,vllm", "tokenizers", "rich")
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    from capibara_axion.demo import write_demo_models

    console = Console(stderr=True)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    try:
        with Progress(*columns, console=console, transient=True) as progress:
            task = progress.add_task("writing demo experts", total=None)
            config = write_demo_models(
                args.directory, progress=lambda line: progress.update(task, description=line)
            )
    except OSError as error:
        raise _UsageError(f"cannot write to {args.directory}: {error}") from error
    print(f"demo experts are in place; serve them with: capibara-axion serve --config {config}")
    return 0


def _bench(args: argparse.Namespace) -> int:
    from capibara_axion.bench.errors import UsageError

    args.command = f"bench {args.measurement}"
    _require(*args.needs)
    try:
        code: int = args.run(args)
    except UsageError as error:
        raise _UsageError(str(error)) from error
    except KeyboardInterrupt:  # before there was anything to keep
        return 130
    return code


def _require(extra: str, *modules: str) -> None:
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        raise _UsageError(
            f"needs {', '.join(missing)}, not installed here: pip install 'capibara-axion[{extra}]'"
        )


if __name__ == "__main__":
    sys.exit(main())

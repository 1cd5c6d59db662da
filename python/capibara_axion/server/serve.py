# SPDX-License-Identifier: Apache-2.0
"""`capibara-axion serve`: listeners, signals, shutdown."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import shutil
import signal
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import uvloop
from aiohttp import web
from rich import box
from rich.console import Console
from rich.table import Table

from capibara_axion import env
from capibara_axion.server import logs, processes
from capibara_axion.server.config import ServerConfig, is_loopback
from capibara_axion.server.config_changes import changes
from capibara_axion.server.config_file import ConfigError, load_config
from capibara_axion.server.config_report import remarks, remarks_text
from capibara_axion.server.gateway import Gateway
from capibara_axion.server.launcher import Launcher, WorkerMain
from capibara_axion.server.ledger import MemoryLedger
from capibara_axion.server.metrics import Metrics
from capibara_axion.server.models import ModelState
from capibara_axion.server.pool import ModelPool
from capibara_axion.server.worker import worker_main

logger = logging.getLogger(__name__)

PRELOAD = ("capibara_axion.server.preload",)


@dataclass(frozen=True)
class Listen:
    """Where the server listens and whom it lets in.

    Attributes:
        host: name or address of the interface.
        port: for whole answers by default; 0 takes a free one.
        stream_port: for streamed answers by default; 0 takes a free one.
        api_key: the bearer token that clients must send, or None.
        admin_key: the bearer token for loading and unloading; None: nobody may.
    """

    host: str
    port: int
    stream_port: int
    api_key: str | None
    admin_key: str | None = None

    def check(self) -> None:
        """Raises: ValueError: a public address without an API key, or one port for both."""
        if "" in (self.api_key, self.admin_key):
            raise ValueError("a key must not be empty")
        if self.api_key is None and not is_loopback(self.host):
            raise ValueError(
                f"refusing to listen on {self.host!r} without an API key, since others could "
                "reach it: set CAPIBARA_AXION_API_KEY (or --api-key), or use --host 127.0.0.1"
            )
        if self.port == self.stream_port != 0:
            raise ValueError(f"--port and --stream-port must differ, both are {self.port}")


def worker_environment(
    config: ServerConfig, runtime_dir: Path, log_level: str
) -> dict[str, str | None]:
    """Variables of the forkserver and thus of every worker; None removes one."""
    local = all(Path(expert.model_path).is_absolute() for expert in config.experts)
    cache = env.cache_directory()
    return {
        "CAPIBARA_AXION_API_KEY": None,  # only the gateway needs to know
        "CAPIBARA_AXION_ADMIN_KEY": None,
        "CAPIBARA_AXION_NUM_THREADS": None,  # each engine is given its threads
        # vLLM's CPU platform takes the in-process executor only with this at 0; `AsyncLLM` gives
        # the engine a process of its own either way.
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_CPU_KVCACHE_SPACE": None,  # would override what is set for each engine
        "VLLM_RPC_BASE_PATH": str(runtime_dir),
        "TMPDIR": str(runtime_dir),  # so that what a killed engine leaves behind goes with it
        "VLLM_NO_USAGE_STATS": "1",
        # In TMPDIR, where Inductor keeps it by default, it would go with this server.
        "TORCHINDUCTOR_CACHE_DIR": None if cache is None else str(cache / "compiled"),
        "VLLM_USE_AOT_COMPILE": "0",  # its artifact cannot be loaded again on CPU
        "VLLM_MAX_N_SEQUENCES": "128",  # answers to one request, as many as OpenAI allows
        "VLLM_LOGGING_LEVEL": "DEBUG" if log_level == "debug" else "ERROR",
        "TORCH_CPP_LOG_LEVEL": "ERROR",
        "TRANSFORMERS_VERBOSITY": "info" if log_level == "debug" else "error",
        "HF_HUB_OFFLINE": "1" if local else None,
        "TRANSFORMERS_OFFLINE": "1" if local else None,
        "TOKENIZERS_PARALLELISM": "false",
        # A thread that waits for work must not spin: engines outnumber cores.
        "OMP_WAIT_POLICY": "PASSIVE",
        # Activations come and go with every step; keep their pages instead of returning them to
        # the kernel and faulting them in again.
        "MALLOC_MMAP_THRESHOLD_": str(32 * 1024 * 1024),
        "MALLOC_TRIM_THRESHOLD_": str(512 * 1024 * 1024),
        "PYTHONWARNINGS": "ignore::FutureWarning",
        "PROMETHEUS_MULTIPROC_DIR": None,  # each engine counts for itself
        "PROMETHEUS_DISABLE_CREATED_SERIES": "true",  # a fifth of all lines, read by nobody
    }


async def serve(
    config: ServerConfig,
    path: Path,
    listen: Listen,
    log_level: str,
    *,
    worker: WorkerMain = worker_main,
    preload: Sequence[str] = PRELOAD,
) -> None:
    """Serve until SIGTERM or SIGINT, then drain; a second signal ends the draining.

    SIGHUP reads the configuration file again; models that did not change go on running.

    Args:
        config: what the file at `path` says.
        path: of the configuration file.
        listen: addresses and keys.
        log_level: "debug", "info", "warning" or "error".
        worker: what a model's process runs.
        preload: modules that are imported once for all of them.

    Raises:
        OSError: an address cannot be listened on.
    """
    runtime_dir = processes.make_runtime_dir()
    launcher = Launcher(
        worker,
        preload=preload,
        environment=worker_environment(config, runtime_dir, log_level),
    )
    try:
        launcher.warm_up()
        metrics = Metrics(state.value for state in ModelState)
        pool = ModelPool(config, launcher, runtime_dir, log_level, MemoryLedger(config), metrics)
        gateway = Gateway(pool, listen.api_key, listen.admin_key, metrics)
        await _run(config, path, listen, pool, gateway)
    finally:
        launcher.close()
        shutil.rmtree(runtime_dir, ignore_errors=True)


async def _run(
    config: ServerConfig, path: Path, listen: Listen, pool: ModelPool, gateway: Gateway
) -> None:
    signals = _Signals()
    runners: list[web.AppRunner] = []
    sites: list[web.BaseSite] = []
    ports = []
    try:
        for stream_by_default, port in ((False, listen.port), (True, listen.stream_port)):
            runner = await _runner(gateway.application(stream_by_default=stream_by_default))
            runners.append(runner)
            sock = _bind(listen.host, port)
            ports.append(sock.getsockname()[1])
            sites.append(web.SockSite(runner, sock, backlog=processes.LISTEN_BACKLOG))
        if (unix_socket := config.server_config.unix_socket) is not None:
            sites.append(web.UnixSite(runners[0], unix_socket, backlog=processes.LISTEN_BACKLOG))
        for site in sites:
            await site.start()
        pool.start()
        _announce(config, listen, ports, pool)
        _collect_garbage_rarely()
        reloading = asyncio.ensure_future(_reload_on_signal(signals.reload, config, path, pool))

        await signals.first.wait()
        reloading.cancel()
        logger.info("shutting down: finishing what runs; signal again to stop at once")
        gateway.operations.draining = True
        for site in sites:
            await site.stop()
        draining = asyncio.ensure_future(pool.shut_down(pool.settings.drain_timeout_s))
        hurry = asyncio.ensure_future(signals.second.wait())
        await asyncio.wait((draining, hurry), return_when=asyncio.FIRST_COMPLETED)
        if not draining.done():
            await pool.shut_down(0)
        hurry.cancel()
        await draining
    finally:
        for runner in runners:
            await runner.cleanup()


async def _runner(app: web.Application) -> web.AppRunner:
    runner = web.AppRunner(
        app,
        access_log=logging.getLogger("capibara_axion.access"),
        access_log_format='%a "%r" %s %b %Tfs %{X-Request-Id}o',
        handler_cancellation=True,
        shutdown_timeout=1.0,
    )
    await runner.setup()
    return runner


async def _reload_on_signal(
    wanted: asyncio.Event, config: ServerConfig, path: Path, pool: ModelPool
) -> None:
    while True:
        await wanted.wait()
        wanted.clear()
        try:
            new = await asyncio.to_thread(load_config, path)
        except ConfigError as error:
            logger.error("going on with the configuration as it was: %s", error)
            continue
        difference = changes(config, new)
        if difference.needs_restart:
            keys = ", ".join(difference.needs_restart)
            logger.warning("these take effect when the server is started again: %s", keys)
        logger.info("read %s again: %s", path, difference)
        pool.reconfigure(new, frozenset(difference.changed))
        config = new


def _collect_garbage_rarely() -> None:
    # A full collection of what all modules have made stops every stream for some 20 ms. It lives as
    # long as the server; of what a request makes, little is in cycles.
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


class _Signals:
    """SIGTERM and SIGINT, counted, and SIGHUP."""

    def __init__(self) -> None:
        self.first, self.second, self.reload = asyncio.Event(), asyncio.Event(), asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self.reload.set)
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, self._on_signal)

    def _on_signal(self) -> None:
        (self.second if self.first.is_set() else self.first).set()


def _bind(host: str, port: int) -> socket.socket:
    family, kind, protocol, _, address = socket.getaddrinfo(
        host.strip("[]"), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    sock = socket.socket(family, kind, protocol)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
    except OSError as error:
        sock.close()
        raise OSError(f"cannot listen on {host} port {port}: {error.strerror}") from error
    return sock


def _announce(config: ServerConfig, listen: Listen, ports: list[int], pool: ModelPool) -> None:
    host = f"[{listen.host}]" if ":" in listen.host else listen.host
    console = Console(highlight=False, soft_wrap=True)
    views = pool.view()
    table = Table(title="Experts", title_justify="left", box=box.SIMPLE, pad_edge=False)
    table.add_column("model", no_wrap=True)
    table.add_column("domain", no_wrap=True)
    table.add_column("loaded", no_wrap=True)
    table.add_column("path", overflow="fold")
    for expert in config.experts:
        kept = expert.pinned or not config.lazy_loading.enabled
        at_start = kept or views[expert.expert_id].warm
        when = "at start" if at_start else "at first request"
        table.add_row(expert.expert_id, expert.domain, when, expert.model_path)
    console.print(table)
    console.print(f"whole answers     http://{host}:{ports[0]}/v1")
    console.print(f"streamed answers  http://{host}:{ports[1]}/v1")
    console.print(f"page              http://{host}:{ports[0]}/ui/")
    model = config.experts[0].expert_id
    body = f'{{"model": "{model}", "messages": [{{"role": "user", "content": "Hello"}}]}}'
    key = "" if listen.api_key is None else ' -H "Authorization: Bearer $CAPIBARA_AXION_API_KEY"'
    console.print("try it:")
    console.print(
        f"  curl -N http://{host}:{ports[1]}/v1/chat/completions{key} "
        f"-H 'Content-Type: application/json' -d '{body}'",
        markup=False,
    )
    if found := remarks(config):
        logger.warning("the configuration, key by key:\n%s", remarks_text(found))


def run(config: ServerConfig, path: Path, listen: Listen, log_level: str) -> None:
    """Blocking form of `serve`, with logging set up."""
    secrets = [key for key in (listen.api_key, listen.admin_key) if key is not None]
    logs.configure(log_level, config.server_config.log_format, secrets=secrets)
    with contextlib.suppress(KeyboardInterrupt):
        uvloop.run(serve(config, path, listen, log_level))

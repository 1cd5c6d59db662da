# SPDX-License-Identifier: Apache-2.0
"""Our server, whose workers write down when the stages of vLLM's start begin and end.

    python timed_server.py --config FILE --port N --stream-port N

A line of JSON for each stage goes to the file that BENCHMARK_STAGES names. What it needs is
imported in functions, since every worker imports this file again.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

STAGES_VARIABLE = "BENCHMARK_STAGES"

_LOADER = "vllm.model_executor.model_loader"
# Where they are in vLLM 0.32.
STAGES = {
    "model built": f"{_LOADER}.base_loader:BaseModelLoader.create_model",
    "weights read": f"{_LOADER}.default_loader:DefaultModelLoader.load_weights",
    "weights packed": f"{_LOADER}.base_loader:process_weights_after_loading",
    "model loaded": "vllm.v1.worker.cpu_worker:CPUWorker.load_model",
    "tokenizer": "vllm.v1.engine.async_llm:renderer_from_config",
    "device": "vllm.v1.worker.cpu_worker:CPUWorker.init_device",
    "KV cache": "vllm.v1.worker.cpu_model_runner:CPUModelRunner.initialize_kv_cache",
    "warm-up": "vllm.v1.worker.cpu_worker:CPUWorker.compile_or_warm_up_model",
}
PARTS = {"model loaded": ("model built", "weights read", "weights packed")}


def timed_worker_main(spec: Any, connection: Any) -> None:
    """The main function of a worker, with the stages timed in it and in its engine process."""
    import importlib

    from capibara_axion.server.worker import worker_main

    for name, place in STAGES.items():
        module, _, path = place.partition(":")
        owner: Any = importlib.import_module(module)
        *outer, last = path.split(".")
        for part in outer:
            owner = getattr(owner, part)
        setattr(owner, last, _timed(name, getattr(owner, last)))
    worker_main(spec, connection)


def _timed(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def timed(*args: Any, **kwargs: Any) -> Any:
        began = time.time()
        try:
            return function(*args, **kwargs)
        finally:
            line = json.dumps({"stage": name, "began": began, "ended": time.time()})
            with Path(os.environ[STAGES_VARIABLE]).open("a") as file:
                file.write(line + "\n")

    return timed


def main() -> None:
    from capibara_axion.server import logs
    from capibara_axion.server.config_file import load_config
    from capibara_axion.server.serve import Listen, serve

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--stream-port", type=int, required=True)
    arguments = parser.parse_args()
    logs.configure("info", "text")
    key = os.environ["CAPIBARA_AXION_ADMIN_KEY"]
    listen = Listen("127.0.0.1", arguments.port, arguments.stream_port, None, key)
    config = load_config(arguments.config)
    import uvloop

    uvloop.run(serve(config, arguments.config, listen, "info", worker=timed_worker_main))


if __name__ == "__main__":
    main()

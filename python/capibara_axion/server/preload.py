# SPDX-License-Identifier: Apache-2.0
"""Imported once, by the forkserver, so that every worker begins with vLLM in memory.

It must not raise: a forkserver whose preload fails cannot start anything. A worker that misses
something imports it itself, and reports what is wrong to its client.
"""

import gc
import logging
import os
import signal

from capibara_axion.server import processes

processes.die_with_parent()
# Ctrl-C in a terminal reaches the whole process group; the gateway decides what ends when.
signal.signal(signal.SIGINT, signal.SIG_IGN)

# vLLM would set its logging up anew in every process, which takes long with all its loggers there.
os.environ["VLLM_CONFIGURE_LOGGING"] = "0"
logging.getLogger("vllm").setLevel(os.environ.get("VLLM_LOGGING_LEVEL", "ERROR"))

try:
    from capibara_axion.server import engine_preload, openai_adapter, worker  # noqa: F401

    engine_preload.preload()
except Exception:
    logging.getLogger(__name__).exception("vLLM could not be preloaded; loading will be slow")

# What exists now lives as long as the process: keep the collector from touching, and thereby
# copying, pages that are shared with the workers.
gc.collect()
gc.freeze()

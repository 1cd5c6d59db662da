# SPDX-License-Identifier: Apache-2.0
"""The OpenAI-compatible server: one gateway process, one worker process tree per loaded model.

    config      the configuration file's models
    events      what the scheduler is told, and what it wants done
    scheduler   pure policy: events in, effects out
    pool        the one owner of the scheduler; carries out its effects
    launcher    starts and stops worker processes through a forkserver
    worker      main of a worker process: an engine behind HTTP on a Unix socket
    gateway     the public HTTP application; passes bytes through
    serve       puts them together: listeners, signals, shutdown

Only `openai_adapter` and `preload` touch vLLM, and neither is imported by the gateway process.
"""

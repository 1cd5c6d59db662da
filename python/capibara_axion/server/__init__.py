# SPDX-License-Identifier: Apache-2.0
"""The OpenAI-compatible server: one gateway process, one worker process tree per loaded model.

The configuration file
    config, config_expert       its models; config_fields, config_obsolete: what they are made of
    config_file                 reads one and says all that is wrong with it
    config_report, check_config what is to be said of one; config_reference: its documentation
    config_changes              what another one would change in a running server

What is decided, without input or output
    scheduler                   events in, effects out (both in `events`); models: its state
    placement                   what is loaded and what must go for it; policy: limits and victims
    cores                       who computes on which cores
    hang                        a worker that hangs, told from one that is slow
    routing, routing_*          which expert answers "auto"

What is done in the gateway's process
    pool, pool_*                the one owner of the scheduler; carries out its effects
    launcher, processes         starts and stops workers through a forkserver
    control                     what a worker and the gateway tell each other
    ledger, memory, checkpoint  what models take, predicted and measured
    gateway                     the public HTTP application: keys, routing, errors
    calls, completions          a request as far as it is looked into, and its way to a worker
    event_stream, news          what is sent as events
    operations, metrics         routes about the server; openapi: the protocol's description
    serve, precompile, remote   `capibara-axion serve`, `compile`, and `ps`, `load`, `unload`
    errors, logs                one shape of errors, one of the log

What runs in a worker
    worker, worker_request      its main, and a request as it has it
    openai_adapter, engine_*    vLLM: its OpenAI classes, its engine, what is done ahead of a load
    media                       what images a request may bring
    preload                     what the forkserver imports for all of them

The gateway's process never imports torch or vLLM.
"""

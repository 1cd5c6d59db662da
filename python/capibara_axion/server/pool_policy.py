# SPDX-License-Identifier: Apache-2.0
"""What the scheduler is told of the configuration and of this machine."""

from __future__ import annotations

import os

from capibara_axion.server.config import ExpertConfig, ServerConfig
from capibara_axion.server.policy import ModelSettings, Policy


def settings_of(expert: ExpertConfig, config: ServerConfig, size: int) -> ModelSettings:
    """What the scheduler is told of an expert of the configuration."""
    return ModelSettings(
        size=size,
        priority=expert.priority,
        pinned=expert.pinned or not config.lazy_loading.enabled,
        keep_alive_s=expert.keep_alive_s,
        max_requests=expert.max_requests or config.server_config.max_requests_per_model,
        least_cores=expert.ranks,
        most_cores=expert.threads,
    )


def policy_of(config: ServerConfig, cores: int) -> Policy:
    """The scheduler's limits as the configuration has them."""
    settings, lazy = config.server_config, config.lazy_loading
    return Policy(
        max_loaded=min(lazy.max_loaded_experts, len(config.experts)),
        max_requests=settings.max_requests,
        cores=cores,
        warm_models=min(lazy.warmup_pool_size, lazy.max_loaded_experts),
        warm_refill_s=lazy.warm_refill_after_s,
        idle_unload_s=lazy.auto_unload_after_s,
        load_timeout_s=settings.load_timeout_s,
        queue_timeout_s=settings.queue_timeout_s,
        max_wait_s=settings.max_wait_s,
        backoff_s=settings.restart_backoff_s,
        backoff_max_s=settings.restart_backoff_max_s,
    )


def available_cpus() -> list[int]:
    """The cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))

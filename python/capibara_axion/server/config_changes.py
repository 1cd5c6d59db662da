# SPDX-License-Identifier: Apache-2.0
"""What reading the configuration file again would change in a running server."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from capibara_axion.server.config import ServerConfig
from capibara_axion.server.config_expert import ExpertConfig
from capibara_axion.server.config_fields import Section
from capibara_axion.server.config_obsolete import obsolete

# Keys of an expert that its worker knows nothing of.
_POLICY = frozenset(
    {
        "priority",
        "pinned",
        "keep_alive_s",
        "max_requests",
        "description",
        "domain",
        "use_cases",
    }
)
# Keys that say together what properties of `ExpertConfig` say.
_COMBINED = frozenset(
    {
        "enforce_eager",
        "use_captured_graph",
        "enable_neon",
        "neon_optimizations",
        "enable_flash_attention",
        "num_gpu_blocks_override",
    }
)
# Keys of the server that listeners, the log, or the web applications are made with.
_NEED_RESTART = frozenset(
    {
        "host",
        "port",
        "stream_port",
        "unix_socket",
        "log_format",
        "log_level",
        "max_body_bytes",
        "cors_origins",
        "allow_credentials",
    }
)


@dataclass(frozen=True)
class Changes:
    """The difference between two configurations.

    Attributes:
        added: experts that are new.
        removed: experts that are gone: drain and unload them.
        changed: experts with another model or engine: drain them and load them anew.
        policy: experts of which other keys changed: apply those, the engine stays.
        settings: keys of `lazy_loading` and `server_config` that changed and apply from now on, to
            engines from their next load on.
        needs_restart: keys that changed, but take effect when the server is started again only.
    """

    added: tuple[str, ...]
    removed: tuple[str, ...]
    changed: tuple[str, ...]
    policy: tuple[str, ...]
    settings: tuple[str, ...]
    needs_restart: tuple[str, ...]


def changes(old: ServerConfig, new: ServerConfig) -> Changes:
    """What is to be done when `new` replaces `old`; experts are known by their `expert_id`."""
    before = {expert.expert_id: expert for expert in old.experts}
    after = {expert.expert_id: expert for expert in new.experts}
    both = [name for name in after if name in before]
    changed = [name for name in both if _engine(before[name]) != _engine(after[name])]
    policy = [name for name in both if _policy(before[name]) != _policy(after[name])]
    server = _different(old.server_config, new.server_config)
    lazy = _different(old.lazy_loading, new.lazy_loading)
    return Changes(
        added=tuple(name for name in after if name not in before),
        removed=tuple(name for name in before if name not in after),
        changed=tuple(changed),
        policy=tuple(name for name in policy if name not in changed),
        settings=tuple(
            [f"lazy_loading.{name}" for name in lazy]
            + [f"server_config.{name}" for name in server if name not in _NEED_RESTART]
        ),
        needs_restart=tuple(f"server_config.{name}" for name in server if name in _NEED_RESTART),
    )


def _engine(expert: ExpertConfig) -> dict[str, Any]:
    """All that the engine depends on, and nothing that it does not."""
    keys = {
        name: getattr(expert, name)
        for name in ExpertConfig.model_fields
        if name not in _POLICY | _COMBINED and obsolete(ExpertConfig, name) is None
    }
    return {
        **keys,
        "compiled": expert.compiled,
        "disabled_ops": expert.disabled_ops,
        "kv_cache_tokens": expert.kv_cache_tokens(),
    }


def _policy(expert: ExpertConfig) -> dict[str, Any]:
    return {name: getattr(expert, name) for name in _POLICY}


def _different(old: Section, new: Section) -> list[str]:
    fields = type(old).model_fields
    return [name for name in fields if getattr(old, name) != getattr(new, name)]

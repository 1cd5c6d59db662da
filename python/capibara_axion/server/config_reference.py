# SPDX-License-Identifier: Apache-2.0
"""The configuration file's JSON Schema and reference, both made from its models."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from capibara_axion.server.config import (
    LazyLoading,
    PerformanceTuning,
    ServerConfig,
    ServerSettings,
)
from capibara_axion.server.config_expert import ExpertConfig, NeonOptimizations
from capibara_axion.server.config_fields import Section
from capibara_axion.server.config_obsolete import obsolete

# Every section of the file with the path of its keys.
SECTIONS: tuple[tuple[str, type[Section]], ...] = (
    ("", ServerConfig),
    ("experts[].", ExpertConfig),
    ("experts[].neon_optimizations.", NeonOptimizations),
    ("lazy_loading.", LazyLoading),
    ("server_config.", ServerSettings),
    ("performance_tuning.", PerformanceTuning),
)

_INTRODUCTION = """\
# The configuration file

`capibara-axion serve --config FILE` reads a JSON file. Unknown keys and wrong values are refused, \
each with its path. `capibara-axion check-config FILE` says what a file means without starting \
anything; [config.schema.json](config.schema.json) is its JSON Schema, which editors check and \
complete with when the file names it as `"$schema"`. On SIGHUP a running server reads its file \
again; experts that are as they were keep running.

The least that it needs:

```json
{"experts": [{"expert_id": "coder", "model_path": "Qwen/Qwen2.5-Coder-1.5B-Instruct"}]}
```

Times are in seconds. A key that may be null and is left out is null. This page is made by \
`capibara-axion check-config --reference`.
"""

_OBSOLETE = """\
## Keys of files for an older vLLM

They are accepted as they are. The server names those that a file has in one warning when it \
starts, and `check-config` lists them.

| key | today | |
|---|---|---|
"""


def json_schema() -> dict[str, Any]:
    """The JSON Schema (2020-12) of the file."""
    schema: dict[str, Any] = _unbroken(ServerConfig.model_json_schema())
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def json_schema_text() -> str:
    """The content of `docs/config.schema.json`."""
    return json.dumps(json_schema(), indent=2, ensure_ascii=False) + "\n"


def reference() -> str:
    """The content of `docs/configuration.md`."""
    schema = json_schema()
    parts = [_INTRODUCTION]
    parts += [_section(prefix, section, schema) for prefix, section in SECTIONS]
    rows = [row for prefix, section in SECTIONS for row in _obsolete_rows(prefix, section)]
    parts.append(_OBSOLETE + "".join(rows))
    return "\n".join(parts)


def _section(prefix: str, section: type[Section], schema: dict[str, Any]) -> str:
    own = schema if section is ServerConfig else schema["$defs"][section.__name__]
    rows = []
    for name, field in section.model_fields.items():
        if obsolete(section, name) is None:
            key = field.alias or name
            of = own["properties"][key]
            default = _default(key in own.get("required", ()), of)
            rows.append(_row(f"`{key}`", _type(of), default, _one_line(field.description or "")))
    title = f"`{prefix.rstrip('.')}`" if prefix else "The file"
    head = "| key | type | default | meaning |\n|---|---|---|---|\n"
    return f"## {title}\n\n{own['description']}\n\n{head}{''.join(rows)}"


def _obsolete_rows(prefix: str, section: type[Section]) -> Iterator[str]:
    for name in section.model_fields:
        if (mark := obsolete(section, name)) is not None:
            yield _row(f"`{prefix}{name}`", mark.kind, mark.text)


def _row(*cells: str) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |\n"


def _default(required: bool, schema: dict[str, Any]) -> str:
    if required:
        return "required"
    if "default" in schema:
        return f"`{json.dumps(schema['default'])}`"
    return "`[]`" if schema.get("type") == "array" else "`{}`"


def _type(schema: dict[str, Any]) -> str:
    if "anyOf" in schema:
        return "; or ".join(map(_type, schema["anyOf"]))
    if "enum" in schema:
        return ", ".join(f"`{json.dumps(value)}`" for value in schema["enum"])
    if "$ref" in schema:
        return "object"
    kind: str = schema["type"]
    if kind == "array":
        return f"list of {_type(schema['items'])}s"
    return f"{kind}{_range(schema)}"


def _range(schema: dict[str, Any]) -> str:
    words = []
    if schema.get("exclusiveMinimum") == 0:
        words.append("1 or more" if schema["type"] == "integer" else "above 0")
    elif schema.get("minimum", -(2**31)) > -(2**31):
        words.append(f"{schema['minimum']:g} or more")
    # Larger bounds only keep numbers within the machine's.
    if schema.get("maximum", 2**20) < 2**20:
        words.append(f"at most {schema['maximum']:g}")
    return "".join(f", {word}" for word in words)


def _unbroken(schema: Any) -> Any:
    """The same schema with descriptions that are not broken as the sources are."""
    if isinstance(schema, list):
        return [_unbroken(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        key: _one_line(value)
        if key == "description" and isinstance(value, str)
        else _unbroken(value)
        for key, value in schema.items()
    }


def _one_line(text: str) -> str:
    return " ".join(text.split())

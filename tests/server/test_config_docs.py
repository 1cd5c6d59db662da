# SPDX-License-Identifier: Apache-2.0
"""The published schema and reference say what the models and vLLM say."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import pytest
from test_config import change, deployment, load, one

from capibara_axion.demo.experts import server_config
from capibara_axion.demo.huggingface import huggingface_config
from capibara_axion.server.config_obsolete import obsolete
from capibara_axion.server.config_reference import (
    SECTIONS,
    json_schema,
    json_schema_text,
    reference,
)
from capibara_axion.server.serve import worker_environment

DOCS = Path(__file__).parents[2] / "docs"
STALE = "stale: write it anew with capibara-axion check-config"


def test_the_published_schema_is_not_stale() -> None:
    assert (DOCS / "config.schema.json").read_text() == json_schema_text(), f"{STALE} --schema"


def test_the_published_reference_is_not_stale() -> None:
    assert (DOCS / "configuration.md").read_text() == reference(), f"{STALE} --reference"


def test_every_key_is_described_and_stands_in_the_reference() -> None:
    lines = reference().splitlines()
    for prefix, section in SECTIONS:
        for name, field in section.model_fields.items():
            assert field.description
            path = name if obsolete(section, name) is None else f"{prefix}{name}"
            assert any(line.startswith(f"| `{field.alias or path}` | ") for line in lines)


def test_the_schema_accepts_what_the_models_accept() -> None:
    jsonschema = pytest.importorskip("jsonschema")
    jsonschema.Draft202012Validator.check_schema(json_schema())
    validator = jsonschema.Draft202012Validator(json_schema())
    for content in (deployment(), one(), server_config(), huggingface_config()):
        validator.validate({"$schema": "docs/config.schema.json", **content})


@pytest.mark.parametrize(
    "content",
    [
        {},
        change("experts.0.max_num_seqs", "many"),
        change("experts.0.max_num_seq", 1),
        change("experts.0.dtype", "int3"),
        change("experts.0.neon_optimizations.rms_norm", True),
        change("server_config.port", 70000),
        change("lazy_loading.memory_threshold", 0),
    ],
)
def test_the_schema_refuses_what_the_models_refuse(content: dict[str, Any]) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    assert not jsonschema.Draft202012Validator(json_schema()).is_valid(content)


def rows(heading: str) -> list[list[str]]:
    """The cells of the table below a heading of vllm_environment.md."""
    text = "\n" + (DOCS / "vllm_environment.md").read_text()
    lines = text.split(f"\n{heading}\n")[1].split("\n## ")[0].splitlines()
    table = [line for line in lines if line.startswith("| `")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in table]


def test_unknown_variables_are_unknown_to_vllm() -> None:
    found = importlib.util.find_spec("vllm")  # vLLM is not imported
    if found is None or found.origin is None:
        pytest.skip("needs vLLM's source")
    known = (Path(found.origin).parent / "envs.py").read_text()
    table = rows("# Environment variables of older vLLM deployments")
    assert len(table) >= 15
    for variable, _, today, _ in table:
        if variable.startswith("`VLLM_"):
            name = variable.strip("`")
            assert (f'"{name}": ' in known) != today.startswith("unknown"), name


def test_what_workers_find_in_their_environment_is_documented(tmp_path: Path) -> None:
    cells = [row[0] for row in rows("## What the server sets for its workers")]
    documented = {name for cell in cells for name in re.findall(r"`([A-Z0-9_]+)`", cell)}
    environment = worker_environment(load(tmp_path, one()), tmp_path, "info")
    assert set(environment) <= documented


def test_the_reference_has_the_example_that_it_prints(tmp_path: Path) -> None:
    (example,) = re.findall(r"```json\n(.*?)```", reference(), re.DOTALL)
    assert load(tmp_path, json.loads(example)).experts[0].expert_id == "coder"

# SPDX-License-Identifier: Apache-2.0
"""The files of results: their schema, what is in them, and files that are none."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import jsonschema
import pytest
from conftest import Outcome, Served
from pydantic import BaseModel

from capibara_axion.bench import results
from capibara_axion.bench.errors import UsageError

SCHEMA = Path(__file__).parents[2] / "docs" / "bench.schema.json"
RECORDED = sorted((Path(__file__).parent / "recorded").glob("*_[12].json"))
MODELS = [
    found
    for _, found in inspect.getmembers(results, inspect.isclass)
    if issubclass(found, BaseModel) and found.__module__ == results.__name__
]


def test_the_published_schema_is_not_stale(bench: Callable[..., Outcome]) -> None:
    outcome = bench("schema")
    assert outcome.code == 0
    stale = "stale: write it anew with capibara-axion bench schema"
    assert SCHEMA.read_text() == outcome.out, stale


@pytest.mark.parametrize("path", RECORDED, ids=lambda path: path.name)
def test_results_keep_to_the_schema(path: Path) -> None:
    schema = json.loads(SCHEMA.read_text())
    jsonschema.Draft202012Validator(schema).validate(json.loads(path.read_text()))


@pytest.mark.parametrize("path", RECORDED, ids=lambda path: path.name)
def test_what_is_written_is_read_again(path: Path, tmp_path: Path) -> None:
    result = results.read(path)
    results.write(result, tmp_path / "copy.json")
    assert results.read(tmp_path / "copy.json") == result


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.__name__)
def test_what_may_be_none_may_be_left_out(model: type[BaseModel]) -> None:
    for name, field in model.model_fields.items():
        if type(None) in get_args(field.annotation):
            assert not field.is_required(), name


def test_a_result_says_where_and_how_it_was_measured(
    server: Served, measure: Callable[..., tuple[Outcome, Any]]
) -> None:
    arguments = ("latency", "--url", server.url, "--requests=1", "--tokens=1", "--pause=0")
    _, result = measure(*arguments)
    assert {"model", "features", "l1d_bytes", "logical_cpus", "versions", "commit"} <= set(
        result.machine
    )
    assert result.command.startswith("capibara-axion bench latency --url http://127.0.0.1:")
    assert result.date.endswith("+00:00")
    assert result.server == results.Server(url=server.url, models=["a"], health="200")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "expected the result of a benchmark: file: Invalid JSON"),
        ("[]", "expected the result of a benchmark"),
        ('{"kind": "poem"}', "expected the result of a benchmark"),
        ('{"kind": "kernels", "schema": 2}', "kernels.schema: Input should be 1"),
    ],
)
def test_files_that_are_no_results(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "x.json"
    path.write_text(content)
    with pytest.raises(UsageError) as caught:
        results.read(path)
    assert str(caught.value).startswith(str(path))
    assert message in str(caught.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read: No such file"):
        results.read(tmp_path / "x.json")


def test_a_result_is_not_lost_when_its_file_is(
    server: Served, bench: Callable[..., Outcome], tmp_path: Path
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    output = folder / "x.json"
    server.fake.on_request = lambda _: folder.rmdir() if folder.exists() else None
    arguments = ("--requests=1", "--tokens=1", "--pause=0", "--kind=simple")
    outcome = bench("latency", "--url", server.url, *arguments, "--output", output)
    assert outcome.code == 2
    assert f"--output: cannot write {output}" in outcome.err
    kept = Path(outcome.err.split("the result is in ")[1].strip())
    assert results.read(kept).kind == "latency"
    kept.unlink()

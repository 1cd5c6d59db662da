# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

from capibara_axion.server import logs

KEY = 'sk-"quoted\\secret"'


@pytest.fixture(autouse=True)
def _leave_logging_as_it_was() -> Iterator[None]:
    package = logging.getLogger("capibara_axion")
    before = package.handlers[:], package.level, package.propagate
    yield
    package.handlers[:], package.level, package.propagate = before


@pytest.fixture
def logger() -> logging.Logger:
    return logging.getLogger("capibara_axion.server.test")


def only_line(capsys: pytest.CaptureFixture[str]) -> str:
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1, err
    return err.rstrip("\n")


def only_object(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    line: dict[str, Any] = json.loads(only_line(capsys))
    return line


def test_text_has_level_logger_process_and_message(
    capsys: pytest.CaptureFixture[str], logger: logging.Logger
) -> None:
    logs.configure("info")
    logger.info("loaded %s", "phi")
    assert only_line(capsys).endswith(
        f" INFO capibara_axion.server.test[{os.getpid()}]: loaded phi"
    )


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_nothing_below_the_level_nor_of_other_packages_is_shown(
    capsys: pytest.CaptureFixture[str], logger: logging.Logger, log_format: logs.LogFormat
) -> None:
    logs.configure("warning", log_format)
    logger.info("too low")
    logging.getLogger("somebody.else").error("not ours")
    logger.warning("shown")
    assert "shown" in only_line(capsys)


def test_configuring_again_replaces_the_handler(
    capsys: pytest.CaptureFixture[str], logger: logging.Logger
) -> None:
    logs.configure("info")
    logs.configure("info", "json")
    logger.info("once")
    assert only_object(capsys)["message"] == "once"


def test_json_has_the_fields_that_machines_look_for(
    capsys: pytest.CaptureFixture[str], logger: logging.Logger
) -> None:
    logs.configure("info", "json")
    logger.warning("slow\nload of %s", "phi", extra={"request_id": "r-1", "model": "phi"})
    line = only_object(capsys)
    time = datetime.fromisoformat(line.pop("time"))
    assert time.utcoffset() == timedelta(0)
    assert abs(datetime.now(timezone.utc) - time) < timedelta(minutes=1)
    assert line == {
        "level": "WARNING",
        "logger": "capibara_axion.server.test",
        "pid": os.getpid(),
        "message": "slow\nload of phi",
        "request_id": "r-1",
        "model": "phi",
    }


@pytest.mark.parametrize("secrets", [[], [KEY]])
def test_json_has_an_exception_as_one_string(
    capsys: pytest.CaptureFixture[str], logger: logging.Logger, secrets: list[str]
) -> None:
    logs.configure("info", "json", secrets=secrets)
    try:
        raise RuntimeError("broken")
    except RuntimeError:
        logger.exception("handling failed")
    exception = only_object(capsys)["exception"]
    assert exception.startswith("Traceback")
    assert exception.endswith("RuntimeError: broken")


def test_json_survives_extra_fields_that_json_does_not_know(
    capsys: pytest.CaptureFixture[str], logger: logging.Logger
) -> None:
    logs.configure("info", "json")
    logger.info("odd", extra={"thing": object(), "raw": b"\xff"})
    assert set(only_object(capsys)) >= {"thing", "raw"}


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_a_secret_is_shown_nowhere(
    capsys: pytest.CaptureFixture[str], logger: logging.Logger, log_format: logs.LogFormat
) -> None:
    logs.configure("info", log_format, secrets=[KEY])
    try:
        raise ValueError(f"bad key {KEY}")
    except ValueError:
        logger.exception(
            "key %s of %s, as JSON %s",
            KEY,
            {"key": KEY},
            json.dumps(KEY),
            stack_info=True,
            extra={"headers": {"Authorization": [f"Bearer {KEY}", KEY]}},
        )
    err = capsys.readouterr().err
    shown = err if log_format == "text" else repr(json.loads(err))
    assert "key ***" in shown
    assert "bad key ***" in shown
    assert "sk-" not in shown
    assert ("Bearer ***" in shown) == (log_format == "json")


def test_a_secret_that_contains_another_is_hidden_whole(
    capsys: pytest.CaptureFixture[str], logger: logging.Logger
) -> None:
    logs.configure("info", "json", secrets=["abc", "abcdef", ""])
    logger.info("abcdef abc", extra={"tries": 3, "known": False})
    line = only_object(capsys)
    assert (line["message"], line["tries"], line["known"]) == ("*** ***", 3, False)


def test_arguments_that_do_not_fit_do_not_stop_the_caller(
    capsys: pytest.CaptureFixture[str], logger: logging.Logger
) -> None:
    logs.configure("info", secrets=[KEY])
    logger.info("%d requests", KEY)
    err = capsys.readouterr().err
    assert "Logging error" in err
    assert "sk-" not in err

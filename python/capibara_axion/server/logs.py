# SPDX-License-Identifier: Apache-2.0
"""Logging of the server's processes: text for people or JSON for machines, and never a secret."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Iterable
from typing import Any, Literal

from pythonjsonlogger.json import JsonFormatter

LogFormat = Literal["text", "json"]

_HIDDEN = "***"


def configure(level: str, log_format: LogFormat = "text", *, secrets: Iterable[str] = ()) -> None:
    """Send this package's log, and no library's, to standard error.

    May be called again, for instance with new secrets; the last call holds.

    Args:
        level: the lowest that is shown: "debug", "info", "warning" or "error".
        log_format: "text", or "json": one object a line with time (ISO 8601, UTC), level, logger,
            pid, message, what `extra=` was given (request_id, model, ...), and exception.
        secrets: texts such as API keys, shown as "***" wherever they occur.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(_json_formatter() if log_format == "json" else _text_formatter())
    # On the handler: a logger's filter would not see the records of the loggers below it.
    if hidden := {secret for secret in secrets if secret}:
        handler.addFilter(_Redaction(hidden))
    package = logging.getLogger("capibara_axion")
    package.handlers[:] = [handler]
    package.setLevel(level.upper())
    package.propagate = False


def _text_formatter() -> logging.Formatter:
    return logging.Formatter("%(asctime)s %(levelname)s %(name)s[%(process)d]: %(message)s")


def _json_formatter() -> logging.Formatter:
    return JsonFormatter(
        ["levelname", "name", "process", "message"],
        rename_fields={
            "levelname": "level",
            "name": "logger",
            "process": "pid",
            "exc_info": "exception",
            "stack_info": "stack",
        },
        timestamp="time",
    )


class _Redaction(logging.Filter):
    """Takes secrets out of a record's message, exception, stack and extra fields."""

    def __init__(self, secrets: Iterable[str]) -> None:
        super().__init__()
        forms = {
            form
            for secret in secrets
            for form in (secret, repr(secret)[1:-1], json.dumps(secret)[1:-1])
        }
        # Longest first: one may be part of another.
        self._secrets = sorted(forms, key=len, reverse=True)

    def filter(self, record: logging.LogRecord) -> bool:
        with contextlib.suppress(Exception):  # arguments that do not fit: the handler complains
            record.msg, record.args = record.getMessage(), None
        if record.exc_info:
            # As a text, for formatters would otherwise write the exception anew.
            record.exc_text = logging.Formatter().formatException(record.exc_info)
            record.exc_info = None
        for name, value in vars(record).items():
            setattr(record, name, self._redacted(value))
        return True

    def _redacted(self, value: Any) -> Any:
        if isinstance(value, str):
            for secret in self._secrets:
                value = value.replace(secret, _HIDDEN)
            return value
        if isinstance(value, dict):
            return {self._redacted(key): self._redacted(item) for key, item in value.items()}
        if isinstance(value, (list, tuple, set, frozenset)):
            return [self._redacted(item) for item in value]
        return value if isinstance(value, (int, float, type(None))) else self._redacted(str(value))

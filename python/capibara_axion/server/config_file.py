# SPDX-License-Identifier: Apache-2.0
"""Reads a configuration file, and says all that is wrong with one, each fault with its path."""

from __future__ import annotations

import difflib
import json
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from capibara_axion.server.config import ServerConfig
from capibara_axion.server.config_fields import Section, section_in

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_LONGEST_SOCKET_PATH = 107  # bytes: the kernel's limit


class ConfigError(ValueError):
    """The configuration file cannot be used; the message says where and why.

    Attributes:
        faults: what is wrong, each on one line and beginning with the key's path.
    """

    def __init__(self, path: Path, what: str, faults: Sequence[str] = ()) -> None:
        self.faults = tuple(map(_printable, faults)) or (_printable(what),)
        lines = "".join(f"\n  {_printable(fault)}" for fault in faults)
        super().__init__(
            f"{_printable(str(path))}: {_printable(what)}{':' if lines else ''}{lines}"
        )


def load_config(path: Path) -> ServerConfig:
    """Read and check a configuration file.

    A relative path in it is taken relative to the file, `~` is the user's home. A `model_path` of
    the form `owner/name` means a Hugging Face repository unless there is a folder `owner` beside
    the file.

    Args:
        path: a JSON file.

    Raises:
        ConfigError: the file is missing, not JSON, or does not fit; every fault is listed with
            its path, what was expected and what was given.
    """
    try:
        raw = json.loads(
            path.read_text(encoding="utf-8"),
            object_pairs_hook=_object,
            parse_constant=_refuse_constant,
        )
    except OSError as error:
        raise ConfigError(path, f"cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(path, f"not a JSON file: {error}") from error
    try:
        config = ServerConfig.model_validate(raw)
    except ValidationError as error:
        faults = [line for fault in error.errors() for line in _describe(fault)]
        raise ConfigError(path, "not a usable configuration", faults) from error
    for expert in config.experts:
        expert.model_path = _resolve_model_path(expert.model_path, path.parent)
        if expert.chat_template is not None:
            expert.chat_template = _resolve(expert.chat_template, path.parent)
    _resolve_socket(config, path)
    return config


def is_hub_name(model_path: str) -> bool:
    """Whether a `model_path` of a loaded configuration is a Hugging Face repository."""
    return not os.path.isabs(model_path)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {twice!r} is there twice in one object")
    return content


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a number of JSON")


def _resolve(path: str, base: Path) -> str:
    # Not pathlib: its functions raise for names that are too long or users who do not exist.
    return os.path.realpath(os.path.join(base, os.path.expanduser(path)))


def _resolve_model_path(model_path: str, base: Path) -> str:
    owner = model_path.split("/")[0]
    if _HUB_ID.fullmatch(model_path) and not os.path.isdir(os.path.join(base, owner)):
        return model_path
    return _resolve(model_path, base)


def _resolve_socket(config: ServerConfig, path: Path) -> None:
    settings = config.server_config
    if settings.unix_socket is None:
        return
    settings.unix_socket = _resolve(settings.unix_socket, path.parent)
    if len(os.fsencode(settings.unix_socket)) > _LONGEST_SOCKET_PATH:
        fault = (
            f"server_config.unix_socket: expected a path of at most {_LONGEST_SOCKET_PATH} bytes, "
            f"got {_shown(settings.unix_socket)}"
        )
        raise ConfigError(path, "not a usable configuration", [fault])


def _describe(fault: ErrorDetails) -> Iterator[str]:
    where = _dotted(fault["loc"])
    if fault["type"] == "extra_forbidden":
        yield f"{where}: unknown key{_suggestion(fault['loc'])}"
    elif fault["type"] == "missing":
        yield f"{where}: required, but missing"
    elif fault["type"] == "value_error":
        message = fault["msg"].removeprefix("Value error, ")
        if not isinstance(fault["input"], dict):
            yield f"{where}: {message}, got {_shown(fault['input'])}"
        else:  # of a whole section: every line begins with the key
            yield from (f"{where}.{line}" if where else line for line in message.split("\n"))
    else:
        yield f"{where or 'the file'}: {fault['msg']}, got {_shown(fault['input'])}"


def _dotted(location: tuple[int | str, ...]) -> str:
    text = ""
    for part in location:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def _suggestion(location: tuple[int | str, ...]) -> str:
    section: type[Section] = ServerConfig
    for part in location[:-1]:
        if isinstance(part, str):
            section = section_in(section.model_fields[part].annotation) or section
    close = difflib.get_close_matches(str(location[-1]), section.model_fields, n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=repr)
    return text if len(text) <= 80 else text[:77] + "..."


def _printable(text: str) -> str:
    # JSON can hold halves of surrogate pairs, which no terminal takes.
    return text.encode("utf-8", "backslashreplace").decode("utf-8")

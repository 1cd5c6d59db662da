# SPDX-License-Identifier: Apache-2.0
"""Whatever a configuration file holds, it is read or refused with a reason."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_config import deployment, load, refusal

from capibara_axion.server.config_file import ConfigError, load_config
from capibara_axion.server.config_report import cautions, remarks

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.sampled_from(["\ud800", "\0", "~nobody/x", "x" * 5000, "a/" * 3000, 10**30, -1, 0, 1e400]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=4,
)


def places(content: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) below."""
    keys: Any = ()
    if isinstance(content, dict):
        keys = list(content)
    elif isinstance(content, list):
        keys = range(len(content))
    return [place for key in keys for place in ((content, key), *places(content[key]))]


@settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_any_mutation_is_read_or_refused(tmp_path: Path, data: st.DataObject) -> None:
    content = deployment()
    content["server_config"]["unix_socket"] = "s.sock"
    content["experts"][0] |= {"chat_template": "t", "keep_alive_s": 1, "threads": 1}
    for _ in range(data.draw(st.integers(1, 3))):
        container, key = data.draw(st.sampled_from(places(content)))
        action = data.draw(st.sampled_from(["replace", "delete", "add"]))
        if action == "replace":
            container[key] = data.draw(JSON)
        elif action == "delete":
            del container[key]
        elif isinstance(container, dict):
            container[data.draw(st.text())] = data.draw(JSON)
        else:
            container.append(data.draw(JSON))
    text = json.dumps(content)
    try:
        config = load(tmp_path, text)
    except ConfigError:
        error = refusal(tmp_path, text)
        assert error.faults
        assert str(error).encode()  # any terminal can show it
    else:
        remarks(config)
        cautions(config, has_api_key=False)


@settings(
    max_examples=50,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(content=st.binary() | st.text().map(str.encode))
def test_any_bytes_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(ConfigError):
        load_config(path)

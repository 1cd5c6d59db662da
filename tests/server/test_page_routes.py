# SPDX-License-Identifier: Apache-2.0
"""The page's files, and the figures in `/stats` that it shows. `tests/ui` has it in a browser."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from conftest import CHAT, ask, eventually, expert, fake_service

from capibara_axion.server import page
from capibara_axion.server.pool_records import Throughput


async def test_the_page_needs_no_key_and_lets_nothing_in_from_elsewhere(tmp_path: Path) -> None:
    async with fake_service(tmp_path, expert("a"), api_key="key") as s:
        for client in (s.whole, s.streaming):
            for path in ("/", "/ui", "/ui/"):
                answer = await client.get(path)
                assert (answer.status, answer.url.path) == (200, "/ui/")
                assert answer.content_type == "text/html"
        policy = answer.headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert (await s.whole.get("/stats")).status == 401
        again = await s.whole.get("/ui/", headers={"If-None-Match": answer.headers["ETag"]})
        assert again.status == 304


async def test_every_file_of_the_page_is_there_and_no_other(tmp_path: Path) -> None:
    async with fake_service(tmp_path, expert("a")) as s:
        index = await (await s.whole.get("/ui/")).text()
        named = set(re.findall(r'(?:href|src)="([^"#]+)"', index))
        assert {"main.js", "icon.svg"} < named
        for name in named:
            answer = await s.whole.get(f"/ui/{name}")
            assert answer.status == 200, name
            source = await answer.text()
            named_in_turn = re.findall(r'from "\./([^"]+)"', source)
            assert {f"/ui/{file}" for file in named_in_turn} <= page.PATHS
        for path in ("/ui/nothing.js", "/ui/../page.py", "/ui/%2e%2e/page.py"):
            assert (await s.whole.get(path)).status == 404, path


@pytest.mark.parametrize(
    ("beats", "tokens_per_s"),
    [
        ([], 0),
        ([(1.0, 10)], 0),
        ([(1.0, 10), (1.0, 20)], 0),  # at one moment
        ([(1.0, 10), (1.5, 20), (2.0, 30)], 20),
        ([(second, 8 * second) for second in range(9)], 8),
        ([(0, 0), (1, 500), (2, 500), (3, 500), (4, 500), (5, 500)], 0),  # long ago
    ],
)
def test_throughput(beats: list[tuple[float, int]], tokens_per_s: float) -> None:
    throughput = Throughput()
    for now, tokens in beats:
        throughput.beat(tokens, now)
    assert throughput.tokens_per_s == tokens_per_s


async def test_statistics_have_what_the_page_shows(tmp_path: Path) -> None:
    pinned = {**expert("a", beat_s=0.05), "pinned": True}
    settings = {"max_images": 3, "max_image_bytes": 1000}
    async with fake_service(tmp_path, pinned, expert("b"), server_config=settings) as s:

        async def stats() -> Any:
            return await (await s.whole.get("/stats")).json()

        before = await stats()
        assert before["limits"] == {"max_images": 3, "max_image_bytes": 1000}
        assert [before["models"][name]["pinned"] for name in "ab"] == [True, False]
        assert before["models"]["b"]["tokens_per_s"] == 0
        stream = await s.streaming.post(CHAT, json=ask(tokens=1000, gap_s=0.01))
        await eventually(lambda: 0 < s.pool.statistics()["a"]["tokens_per_s"] <= 100)
        stream.close()

# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the page's tests, as a plugin: tests of other folders import their own conftest."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from browser import DESKTOP, OpenPage, chromium, find_chromium, gateway, open_page
from faults import FakeServerProcess
from playwright.sync_api import Browser, Page

# Set by the page's own context before anything of the page runs.
_WATCH = """
  window.shifts = [];
  new PerformanceObserver((list) => {
    for (const entry of list.getEntries()) if (!entry.hadRecentInput) shifts.push(entry.value);
  }).observe({ type: "layout-shift", buffered: true });
  window.violations = [];
  document.addEventListener("securitypolicyviolation", (event) => {
    violations.push(`${event.violatedDirective}: ${event.blockedURI}`);
  });
"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if find_chromium() is None:
        pytest.skip("there is no Chromium: `apt-get install chromium` on Debian runs these tests")
    with chromium() as running:
        yield running


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeServerProcess]:
    """A gateway for the tests that do not end it."""
    limits = {"max_image_bytes": 4000}
    with gateway(tmp_path_factory.mktemp("page"), server_config=limits) as running:
        yield running


@pytest.fixture
def open_at(browser: Browser) -> Iterator[OpenPage]:
    """Opens the page of a server; in the end, no page may have complained of anything."""
    opened: list[Page] = []
    complaints: list[str] = []

    def open_at(server: FakeServerProcess, *, wait: bool = True, **options: Any) -> Page:
        context = browser.new_context(**{"viewport": DESKTOP, **options})
        context.set_default_timeout(10_000)
        context.add_init_script(_WATCH)
        page = context.new_page()
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on(
            "console",
            lambda message: (
                complaints.append(message.text)
                # What the server refuses is told so, whoever handles it.
                if message.type in ("error", "warning") and "Failed to load" not in message.text
                else None
            ),
        )
        opened.append(page)
        if wait:
            return open_page(page, server)
        page.goto(server.url("/ui/"))
        return page

    yield open_at
    for page in opened:
        complaints += page.evaluate("violations")
        page.context.close()
    assert not complaints


@pytest.fixture
def page(open_at: OpenPage, server: FakeServerProcess) -> Page:
    return open_at(server)

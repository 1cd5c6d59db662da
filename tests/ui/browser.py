# SPDX-License-Identifier: Apache-2.0
"""A headless Chromium, and a gateway over fake workers for it to look at."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from playwright.sync_api import (
    Browser,
    Locator,
    Page,
    Request,
    Route,
    ViewportSize,
    sync_playwright,
)

sys.path.insert(0, str(Path(__file__).parents[1] / "server"))

from faults import FakeServerProcess

OpenPage = Callable[..., Page]

ADMIN_KEY = "operator"
DESKTOP: ViewportSize = {"width": 1280, "height": 900}
PHONE: ViewportSize = {"width": 320, "height": 640}


def find_chromium() -> str | None:
    """The system's Chromium, or a browser made of it; `make test-server` installs Debian's."""
    return shutil.which("chromium") or shutil.which("google-chrome")


@contextmanager
def chromium() -> Iterator[Browser]:
    """A browser without a window; its sandbox needs a user who is not root."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=find_chromium(), chromium_sandbox=os.geteuid() != 0
        )
        yield browser
        browser.close()


def demo_expert(name: str, domain: str, description: str, **more: Any) -> dict[str, Any]:
    return {
        "expert_id": name,
        "domain": domain,
        "description": description,
        "model_path": "/nowhere",
        **more,
    }


EXPERTS = (
    demo_expert("phi4_fast", "general", "Fast model for short, direct answers", pinned=True),
    demo_expert("mistral_balanced", "technical", "Balanced model for technical tasks"),
    demo_expert("qwen_coder", "coding", "Model for code and programming"),
    demo_expert("gemma3_multimodal", "multimodal_expert", "Model for images and text"),
    demo_expert("aya_expanse_multilingual", "multilingual_expert", "Model for 23 languages"),
)


@contextmanager
def gateway(
    directory: Path,
    *,
    experts: Sequence[dict[str, Any]] = EXPERTS,
    api_key: str | None = None,
    ports: Sequence[int] | None = None,
    **sections: Any,
) -> Iterator[FakeServerProcess]:
    """The real gateway over fake workers, with an admin key; `sections` are of its file."""
    config = directory / "config.json"
    lazy = {"warmup_pool_size": 0, **sections.pop("lazy_loading", {})}
    config.write_text(json.dumps({"experts": experts, "lazy_loading": lazy, **sections}))
    keys = {"CAPIBARA_AXION_ADMIN_KEY": ADMIN_KEY, "CAPIBARA_AXION_API_KEY": api_key}
    before = {name: os.environ.pop(name, None) for name in keys}
    os.environ.update({name: key for name, key in keys.items() if key is not None})
    try:
        server = FakeServerProcess(config, directory / "log.txt", ports=ports)
    finally:
        for name, key in before.items():
            os.environ.pop(name, None)
            if key is not None:
                os.environ[name] = key
    try:
        yield server
    finally:
        server.close()


def open_page(page: Page, server: FakeServerProcess) -> Page:
    """Go to the server's page, and wait until it shows what the server does."""
    page.goto(server.url("/ui/"))
    page.get_by_text("connected", exact=True).wait_for()
    page.locator(".expert").first.wait_for()
    return page


def give_key(page: Page, label: str, key: str) -> None:
    """Type a key ("API key", "Admin key") as a user does."""
    field = page.get_by_label(label)
    if not field.is_visible():
        page.get_by_text("Keys", exact=True).click()
    field.fill(key)
    field.press("Enter")


def sent_in(request: Request) -> Any:
    """The JSON that the page has sent."""
    return json.loads(request.post_data or "")


def order(page: Page, **orders: Any) -> None:
    """Say how the fake workers are to answer what the page asks from now on (see fake_worker)."""

    def add(route: Route) -> None:
        body = {**sent_in(route.request), "fake": orders}
        route.continue_(post_data=json.dumps(body))

    page.unroute("**/v1/chat/completions")
    page.route("**/v1/chat/completions", add)


def ask(page: Page, text: str) -> Locator:
    """Send a message by keyboard; the answer's place in the page."""
    page.get_by_label("Message", exact=True).fill(text)
    page.keyboard.press("Enter")
    return page.locator(".answer").last

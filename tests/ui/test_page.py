# SPDX-License-Identifier: Apache-2.0
"""What the page shows of the server, operates, and looks like, in a real browser."""

from __future__ import annotations

import re
import signal
from pathlib import Path
from typing import Any

import pytest
from browser import ADMIN_KEY, DESKTOP, PHONE, OpenPage, ask, demo_expert, gateway, give_key, order
from faults import FakeServerProcess
from playwright.sync_api import Locator, Page, ViewportSize, expect

pytest_plugins = ("page_fixtures",)

CHECKS = (Path(__file__).parent / "checks.js").read_text()


def card(page: Page, expert: str) -> Locator:
    return page.locator(".expert").filter(has=page.get_by_role("heading", name=expert))


def figure(page: Page, expert: str, name: str) -> Locator:
    return card(page, expert).locator("dl > div").filter(has_text=name).locator("dd")


def test_an_operator_loads_and_unloads(page: Page) -> None:
    button = card(page, "qwen_coder").get_by_role("button")
    fault = card(page, "qwen_coder").locator(".fault")
    button.click()
    expect(fault).to_contain_text("the admin key is needed")
    expect(page.get_by_label("Admin key")).to_be_focused()
    give_key(page, "Admin key", "wrong – ключ")
    button.click()
    expect(fault).to_contain_text("the admin key is needed")
    give_key(page, "Admin key", ADMIN_KEY)
    button.click()
    expect(button).to_have_text("Unload")
    expect(fault).to_be_hidden()
    expect(card(page, "qwen_coder").locator(".state")).to_contain_text("ready")
    expect(figure(page, "qwen_coder", "Last load")).to_contain_text(re.compile(r"\d s"))
    expect(figure(page, "qwen_coder", "Memory")).to_contain_text(re.compile(r"^\d.* MiB"))
    button.click()
    expect(button).to_have_text("Load")
    expect(figure(page, "qwen_coder", "Memory")).to_contain_text("MiB")
    events = page.locator("#events li")
    for text in ("begins to load", "is ready, loaded in", "asked by an operator"):
        expect(events.filter(has_text="qwen_coder").filter(has_text=text)).to_have_count(1)


def test_a_new_connection_keeps_what_a_card_says(page: Page) -> None:
    button = card(page, "qwen_coder").get_by_role("button")
    fault = card(page, "qwen_coder").locator(".fault")
    button.click()
    expect(fault).to_contain_text("the admin key is needed")
    was = button.element_handle()
    assert was is not None
    with page.expect_response("**/v1/models"):
        give_key(page, "Admin key", "wrong")
    expect(page.locator("#connection")).to_have_text("connected")
    expect(fault).to_contain_text("the admin key is needed")
    assert was.evaluate("node => node.isConnected")


def test_work_is_seen_at_the_experts(page: Page) -> None:
    expect(card(page, "phi4_fast").get_by_text("pinned")).to_be_visible()
    expect(card(page, "mistral_balanced").get_by_text("pinned")).to_be_hidden()
    page.get_by_label("Expert", exact=True).select_option("mistral_balanced")
    order(page, text="word " * 500, gap_s=0.02)
    ask(page, "At length, please")
    expect(figure(page, "mistral_balanced", "Running")).to_have_text("1")
    expect(figure(page, "mistral_balanced", "Tokens/s")).to_contain_text(re.compile(r"\d"))
    page.keyboard.press("Escape")
    expect(figure(page, "mistral_balanced", "Running")).to_have_text("0")


def test_events_say_why_and_can_be_held_back(open_at: OpenPage, tmp_path: Path) -> None:
    two = [demo_expert(name, "general", "") for name in ("first", "second")]
    with gateway(tmp_path, experts=two, lazy_loading={"max_loaded_experts": 1}) as server:
        page = open_at(server)
        events = page.locator("#events li")
        page.get_by_label("Expert", exact=True).select_option("first")
        expect(ask(page, "Hello").locator(".figures")).to_be_visible()
        expect(events.filter(has_text="first is ready")).to_have_count(1)
        page.get_by_role("button", name="Pause").click()
        page.get_by_label("Expert", exact=True).select_option("second")
        expect(ask(page, "Hello").locator(".figures")).to_be_visible()
        resume = page.get_by_role("button", name=re.compile(r"Resume \([1-9]\d*\)"))
        expect(resume).to_have_attribute("aria-pressed", "true")
        expect(events.filter(has_text="second")).to_have_count(0)
        resume.click()
        expect(
            events.filter(has_text="first is unloaded: to make room for another")
        ).to_be_visible()
        expect(events.filter(has_text="second is ready, loaded in")).to_be_visible()
        expect(page.get_by_role("button", name="Pause")).to_be_visible()


def test_a_server_with_a_key_and_its_restart(open_at: OpenPage, tmp_path: Path) -> None:
    with gateway(tmp_path, api_key="secret") as server:
        page = open_at(server, wait=False)
        expect(page.locator("#connection")).to_have_text("an API key is needed")
        expect(page.get_by_label("API key")).to_be_focused()
        expect(page.locator("#keys-message")).to_contain_text("a valid API key is needed")
        give_key(page, "API key", "secret")
        expect(page.locator("#connection")).to_have_text("connected")
        expect(page.locator(".answer")).to_have_count(0)
        expect(ask(page, "Hello").locator(".said")).to_contain_text("I am")
        assert page.evaluate("[localStorage.length, document.cookie]") == [0, ""]
        ports = (server.port, server.stream_port)
        server.signal(signal.SIGKILL)
        expect(page.locator("#connection")).to_contain_text("not connected, trying again in")
        expect(page.locator("#events .note")).to_contain_text("trying again until")
    with gateway(tmp_path, api_key="secret", ports=ports):
        expect(page.locator("#connection")).to_have_text("connected", timeout=15_000)
        expect(page.locator("#events .note").last).to_contain_text("connected again")
        expect(ask(page, "Hello again").locator(".said")).to_contain_text("I am")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_it_can_be_read_and_operated(
    open_at: OpenPage, server: FakeServerProcess, size: ViewportSize, scheme: str
) -> None:
    """Contrast, labels, focus, and no horizontal scrolling, with all that may be on the page."""
    page = open_at(server, viewport=size, color_scheme=scheme)
    give_key(page, "Admin key", "wrong")
    card(page, "gemma3_multimodal").get_by_role("button").click()
    expect(card(page, "gemma3_multimodal").locator(".fault")).not_to_be_empty()
    long_line = "x" * 300
    order(page, text=f"{long_line}\n```text\n{long_line}\n```\n", die_at=2)
    answer = ask(page, long_line)
    expect(answer.locator(".fault")).to_be_visible()
    order(page, text="Done.")
    expect(ask(page, "And now?").locator(".figures")).to_be_visible()
    page.get_by_role("button", name="Settings").click()
    expect(page.locator("#events .bad").first).to_be_attached()
    found: dict[str, Any] = page.evaluate(CHECKS)
    assert found["texts"] > 60
    assert found["low_contrast"] == []
    assert found["unnamed"] == []
    assert found["too_wide"] == []
    assert found["without_focus"] == []


def test_long_names_and_many_experts_stay_within_a_phone(open_at: OpenPage, tmp_path: Path) -> None:
    experts = [
        demo_expert(f"{'a_rather_long_name_' * 5}{index}", "general", "long " * 100)
        for index in range(12)
    ]
    with gateway(tmp_path, experts=experts) as server:
        page = open_at(server, viewport=PHONE)
        expect(ask(page, "Who are you?").locator(".figures")).to_be_visible()
        assert page.evaluate(CHECKS)["too_wide"] == []
        page.set_viewport_size(DESKTOP)
        page.get_by_role("heading", name="Events").scroll_into_view_if_needed()
        assert page.evaluate("document.documentElement.scrollHeight") <= DESKTOP["height"]


def test_nothing_moves_for_who_does_not_want_it(open_at: OpenPage, tmp_path: Path) -> None:
    with gateway(tmp_path, experts=[demo_expert("slow", "", '{"load_s": 600}')]) as server:
        for wanted, moves in (("no-preference", True), ("reduce", False)):
            page = open_at(server, reduced_motion=wanted)
            ask(page, "Hello")
            expect(page.locator(".expert .state")).to_contain_text("loading")
            expect(page.locator("#progress")).to_contain_text("waiting for auto")
            assert (page.evaluate("document.getAnimations().length") > 0) == moves
            page.keyboard.press("Escape")
            expect(page.locator(".figures")).to_have_text("stopped")

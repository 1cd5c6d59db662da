# SPDX-License-Identifier: Apache-2.0
"""Conversations on the page, in a real browser over a real gateway and fake workers."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
from browser import DESKTOP, PHONE, OpenPage, ask, demo_expert, gateway, order, sent_in
from conftest import wait_until
from faults import FakeServerProcess
from playwright.sync_api import Locator, Page, ViewportSize, expect

pytest_plugins = ("page_fixtures",)

WORDS = " ".join(f"word{index}" for index in range(400))
CHAT = "**/v1/chat/completions"


def said(answer: Locator) -> Locator:
    return answer.locator(".said")


def choose(page: Page, expert: str) -> None:
    page.get_by_label("Expert", exact=True).select_option(expert)


def file(name: str, size: int, kind: str = "image/png") -> Any:
    return {"name": name, "mimeType": kind, "buffer": b"\x89PNG".ljust(size, b"0")}


def test_a_whole_conversation_by_keyboard(page: Page, server: FakeServerProcess) -> None:
    keys = page.keyboard
    keys.press("Tab")
    keys.press("Enter")  # the link that skips to the message
    expect(page.get_by_label("Message", exact=True)).to_be_focused()
    keys.press("Shift+Tab")
    keys.press("Shift+Tab")
    expect(page.get_by_label("Expert", exact=True)).to_be_focused()
    keys.type("mis")
    keys.press("Tab")
    keys.press("Tab")
    keys.type("Hello")
    keys.press("Shift+Enter")
    keys.type("there")
    with page.expect_request(CHAT) as first:
        keys.press("Enter")
    expect(said(page.locator(".answer"))).to_have_text("I am mistral_balanced.")
    expect(page.locator(".answer .figures")).to_contain_text("first token")
    assert sent_in(first.value)["messages"] == [{"role": "user", "content": "Hello\nthere"}]
    order(page, text=WORDS, gap_s=0.05)
    keys.type("And now at length")
    with page.expect_request(CHAT) as second:
        keys.press("Enter")
    assert [m["role"] for m in sent_in(second.value)["messages"]] == [
        "user",
        "assistant",
        "user",
    ]
    answer = page.locator(".answer").last
    expect(said(answer)).to_contain_text("word3")
    keys.press("Enter")  # neither stops nor sends anything
    keys.press("Escape")
    expect(answer.locator(".figures")).to_contain_text("stopped")
    expect(page.get_by_role("button", name="Send")).to_be_visible()
    wait_until(lambda: server.model("mistral_balanced")["running"] == 0, 5, "it stops")
    expect(page.get_by_label("Message", exact=True)).to_be_focused()
    expect(page.locator("#announcer")).to_contain_text("mistral_balanced: word0")


@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_an_answer_grows_without_moving_anything(
    open_at: OpenPage, server: FakeServerProcess, size: ViewportSize
) -> None:
    page = open_at(server, viewport=size)
    choose(page, "qwen_coder")
    ask(page, "Be there")
    expect(page.locator(".figures")).to_be_visible()
    page.evaluate(
        """() => {
          window.lengths = [];
          const note = () => lengths.push(document.querySelector("#conversation").innerText.length);
          new MutationObserver(note).observe(
            document.querySelector("#conversation"),
            { subtree: true, childList: true, characterData: true },
          );
        }"""
    )
    order(page, text=WORDS, ttft_s=0.6, gap_s=0.005)  # later than what counts as the user's doing
    answer = ask(page, "Long, please")
    expect(answer.locator(".figures")).to_be_visible()
    lengths = page.evaluate("lengths")
    assert lengths == sorted(lengths)
    assert len(set(lengths)) > 20
    assert page.evaluate("conversation.scrollTop") > 100  # it has followed the end
    expect(answer.locator(".figures")).to_contain_text("400 tokens")
    assert sum(page.evaluate("shifts")) < 0.01
    page.evaluate("document.querySelector('main').style.paddingTop = '200px'")
    for _ in range(100):  # playwright's own waiting needs eval(), which the page forbids
        if sum(page.evaluate("shifts")) > 0.01:
            break
        page.wait_for_timeout(50)
    assert sum(page.evaluate("shifts")) > 0.01  # it is measured


def test_a_killed_engine_leaves_what_came_and_the_next_message_works(
    page: Page, server: FakeServerProcess
) -> None:
    choose(page, "mistral_balanced")
    order(page, text=WORDS, gap_s=0.05)
    answer = ask(page, "Tell me")
    expect(said(answer)).to_contain_text("word5")
    os.kill(server.model("mistral_balanced")["pid"], signal.SIGKILL)
    expect(answer.locator(".fault")).to_have_text("the model's worker ended unexpectedly")
    expect(said(answer)).to_contain_text("word5")
    expect(page.locator("#announcer")).to_contain_text("ended unexpectedly")
    expect(page.locator("#events .bad")).to_contain_text("lost its worker")
    order(page, text="I am back.")
    expect(said(ask(page, "Are you there?"))).to_have_text("I am back.")


def test_what_cannot_be_answered_is_said_and_not_repeated(page: Page, tmp_path: Path) -> None:
    broken = demo_expert("broken", "general", '{"fail": "there are no weights"}')
    well = demo_expert("well", "general", "")
    with gateway(tmp_path, experts=[broken, well]) as server:
        page.goto(server.url("/ui/"))
        page.locator(".expert").first.wait_for()
        choose(page, "broken")
        fault = ask(page, "Hello").locator(".fault")
        expect(fault).to_contain_text("model 'broken' could not be loaded: there are no weights")
        expect(page.locator(".expert .fault").first).to_contain_text("there are no weights")
        choose(page, "well")
        with page.expect_request(CHAT) as sent:
            answer = ask(page, "Hello again")
        assert len(sent_in(sent.value)["messages"]) == 1
        expect(said(answer)).to_have_text("I am well.")
        server.close()
        expect(ask(page, "Still?").locator(".fault")).to_have_text("the server cannot be reached")


def test_auto_shows_who_answers_and_why(page: Page) -> None:
    answer = ask(page, "```python\nprint(1)\n```\nWhat does this do?")
    expect(answer.get_by_role("heading")).to_have_text("qwen_coder")
    expect(answer.locator(".why")).to_contain_text("chosen by auto (code")
    expect(page.locator(".question pre")).to_have_text("print(1)")
    answer = ask(page, "Übersetze das bitte, und erkläre mir, was es bedeutet")
    expect(answer.get_by_role("heading")).to_have_text("aya_expanse_multilingual")


def test_images_go_along_and_limits_are_told(page: Page) -> None:
    picker = page.get_by_label("Add image")
    fault = page.locator("#composer-fault")
    picker.set_input_files(file("large.png", 5000))
    expect(fault).to_have_text("large.png has 4.9 KiB; this server takes images of up to 3.9 KiB")
    picker.set_input_files(file("notes.txt", 10, "text/plain"))
    expect(fault).to_have_text("notes.txt is not an image")
    picker.set_input_files([file("cat.png", 3000), file("dog.png", 30)])
    expect(page.locator("#images li")).to_have_count(2)
    page.get_by_role("button", name="Remove dog.png").click()
    choose(page, "phi4_fast")
    ask(page, "What is it?")
    expect(fault).to_contain_text("phi4_fast takes no images; choose one of: auto, gemma3")
    choose(page, "gemma3_multimodal")
    with page.expect_request(CHAT) as sent:
        page.get_by_role("button", name="Send").click()
    image, text = sent_in(sent.value)["messages"][0]["content"]
    assert image["image_url"]["url"].startswith("data:image/png;base64,iVBOR")
    assert text == {"type": "text", "text": "What is it?"}
    expect(said(page.locator(".answer"))).to_have_text("I am gemma3_multimodal.")
    expect(page.locator(".question img")).to_have_count(1)
    expect(page.locator("#images li")).to_have_count(0)


def test_what_a_model_says_is_text(page: Page) -> None:
    markup = "<img src=x onerror=alert(1)> <script>alert(2)</script> **bold**"
    order(page, text=f"{markup}\n\n```html\n{markup}\n\n</pre>\n```\nand `after` it\n", gap_s=0.01)
    answer = ask(page, "Say it")
    expect(answer.locator(".figures")).to_be_visible()
    assert answer.locator("img, script").count() == 0
    expect(answer.locator("p[data-kind]").first).to_have_text(markup)
    assert answer.locator("pre code").text_content() == f"{markup}\n\n</pre>"
    expect(answer.locator("p[data-kind]").last).to_have_text("and `after` it")


def test_a_text_that_grows_looks_like_the_whole(page: Page) -> None:
    texts = [
        "before\n\n```python\nif x:\n\n    y\n```\n\nafter\n",
        "````md\n```\nwithin\n```\n````\nafter",
        "```not`a fence\nbut text",
        "```js\nnever closed\n",
        "```\n```\n  ```sh\nls\n```",
    ]
    looks = page.evaluate(
        """async (texts) => {
          const { render } = await import("./rendering.js");
          return texts.map((text) => {
            const [whole, grown] = [document.createElement("div"), document.createElement("div")];
            render(whole, text);
            for (let end = 1; end <= text.length; end += 1) render(grown, text.slice(0, end));
            const looks = (box) => [...box.children].map((e) => [e.dataset.kind, e.textContent]);
            return [looks(whole), looks(grown)];
          });
        }""",
        texts,
    )
    assert [whole for whole, _ in looks] == [grown for _, grown in looks]
    assert [whole for whole, _ in looks] == [
        [["prose", "before"], ["code", "if x:\n\n    y"], ["prose", "after"]],
        [["code", "```\nwithin\n```"], ["prose", "after"]],
        [["prose", "```not`a fence\nbut text"]],
        [["code", "never closed"]],
        [["code", ""], ["code", "ls"]],
    ]


def test_figures_are_short(page: Page) -> None:
    expected = {
        "bytes(0)": "0 B",
        "bytes(1536)": "1.5 KiB",
        "bytes(433 * 2 ** 20)": "433 MiB",
        "seconds(0.214)": "0.21 s",
        "seconds(9.996)": "10 s",
        "seconds(185)": "3 min",
        "seconds(7300)": "2 h",
        "rate(7.26)": "7.3",
        "rate(214.2)": "214",
    }
    calls = ", ".join(expected)
    figures = f"import('./format.js').then(({{ bytes, seconds, rate }}) => [{calls}])"
    assert page.evaluate(figures) == list(expected.values())


def test_settings_go_along_and_are_checked(page: Page) -> None:
    page.get_by_role("button", name="Settings").click()
    page.get_by_label("System prompt").fill("Be brief.")
    page.get_by_label("Max tokens").fill("33")
    page.get_by_label("Temperature").fill("0.25")
    with page.expect_request(CHAT) as sent:
        ask(page, "Hello")
    body = sent_in(sent.value)
    assert body["messages"][0] == {"role": "system", "content": "Be brief."}
    assert (body["max_tokens"], body["temperature"], body["stream"]) == (33, 0.25, True)
    expect(page.locator(".answer .figures")).to_be_visible()
    page.get_by_label("Max tokens").fill("0")
    page.get_by_role("button", name="Settings").click()
    page.get_by_label("Message", exact=True).fill("Hello")
    page.keyboard.press("Enter")
    expect(page.get_by_label("Max tokens")).to_be_focused()
    expect(page.locator(".answer")).to_have_count(1)
    page.get_by_role("button", name="New conversation").click()
    expect(page.locator(".answer")).to_have_count(0)
    expect(page.get_by_text("Ask one of the experts")).to_be_visible()

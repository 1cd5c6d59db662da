# SPDX-License-Identifier: Apache-2.0
"""Takes the pictures of the page for the documentation: screenshots.py [DIRECTORY].

The workers are fake, the gateway and the page are real. Default: docs/images.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Literal

from browser import ADMIN_KEY, DESKTOP, PHONE, ask, chromium, gateway, give_key, open_page, order
from faults import FakeServerProcess
from PIL import Image
from playwright.sync_api import Browser, Page, ViewportSize

DIRECTORY = Path(__file__).parents[2] / "docs" / "images"

CODE = """With a heap you never sort the whole list:

```python
import heapq

def smallest(numbers, k):
    return heapq.nsmallest(k, numbers)
```

This takes O(n log k) time, and memory for k numbers only."""

SPANISH = """La capibara es el roedor más grande del mundo. Vive en grupos junto a ríos y \
lagunas de Sudamérica, nada muy bien y puede pasar varios minutos bajo el agua.

¿Por qué es tan tranquila? Porque el grupo vigila: mientras unas comen, otras están atentas. \
Además comparte el agua con aves, monos y hasta caimanes jóvenes sin pelearse con casi nadie."""


def main() -> None:
    directory = Path(sys.argv[1]) if len(sys.argv) > 1 else DIRECTORY
    directory.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory() as scratch,
        chromium() as browser,
        gateway(Path(scratch)) as server,
    ):
        for name, take in (
            ("page_light", light),
            ("page_dark_streaming", dark_while_streaming),
            ("page_phone", phone),
        ):
            path = directory / f"{name}.png"
            page = take(browser, server)
            page.screenshot(path=path)
            page.context.close()
            compress(path)
            print(f"{path}: {path.stat().st_size // 1024} KiB")


def light(browser: Browser, server: FakeServerProcess) -> Page:
    page = opened(browser, server, DESKTOP, "light")
    give_key(page, "Admin key", ADMIN_KEY)
    page.get_by_role("button", name="Load mistral_balanced").click()
    page.get_by_role("button", name="Unload mistral_balanced").wait_for()
    order(page, text=CODE, ttft_s=0.3, gap_s=0.02)
    ask(page, "How do I find the k smallest numbers of a list in Python?")
    page.locator(".answer .figures").first.wait_for()
    page.wait_for_timeout(1200)  # until the figures of the experts are those after it
    return page


def dark_while_streaming(browser: Browser, server: FakeServerProcess) -> Page:
    page = opened(browser, server, DESKTOP, "dark")
    give_key(page, "Admin key", ADMIN_KEY)
    page.get_by_role("button", name="Unload qwen_coder").click()
    order(page, text="¡Claro! Pregunta lo que quieras.", ttft_s=0.2, gap_s=0.03)
    ask(page, "Hola, ¿hablas español?")
    page.locator(".answer .figures").first.wait_for()
    order(page, text=f"{SPANISH}\n\n{SPANISH}", ttft_s=0.2, gap_s=0.06)
    answer = ask(page, "Traduce y explica: why are capybaras so calm?")
    answer.get_by_text("atentas").wait_for()
    page.wait_for_timeout(1500)  # until the engine's rate has been seen
    return page


def phone(browser: Browser, server: FakeServerProcess) -> Page:
    page = opened(browser, server, PHONE, "light")
    order(page, text=SPANISH, gap_s=0.01)
    ask(page, "¿Qué es una capibara?")
    page.locator(".answer .figures").first.wait_for()
    return page


def opened(
    browser: Browser,
    server: FakeServerProcess,
    size: ViewportSize,
    scheme: Literal["light", "dark"],
) -> Page:
    context = browser.new_context(viewport=size, color_scheme=scheme)
    return open_page(context.new_page(), server)


def compress(path: Path) -> None:
    """256 colours are enough for a page of text."""
    with Image.open(path) as image:
        image.convert("RGB").quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)


if __name__ == "__main__":
    main()

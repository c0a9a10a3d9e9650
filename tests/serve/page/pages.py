"""A browser's page that may ask only its own server, and reports whatever it complains about."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, Page, Playwright, expect

from tests.serve.page.scripted import Script

ARGUMENTS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--js-flags=--no-flush-bytecode",  # with a function's code V8 would drop its counts
]
_WATCH = """
window.violations = [];
addEventListener("securitypolicyviolation", ({ violatedDirective, blockedURI }) => {
    violations.push(`${violatedDirective} ${blockedURI}`);
});
"""
Visit = Callable[..., Page]


def launch(playwright: Playwright, program: Path) -> Browser:
    """Start Chromium."""
    return playwright.chromium.launch(executable_path=str(program), args=ARGUMENTS)


@contextmanager
def watched(browser: Browser, url: str, *, expected: str = r"(?!)", **options: Any) -> Iterator[Page]:
    """Open the page in a profile of its own; at the end nothing may have gone wrong unnoticed.

    ``expected`` matches the console errors a test provokes.
    """
    context = browser.new_context(**{"locale": "en-US", "color_scheme": "light", **options})
    context.set_default_timeout(10_000)
    page = context.new_page()
    faults: list[str] = []
    page.on("console", lambda message: faults.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: faults.append(f"uncaught {error}"))
    page.on("request", lambda request: _check_address(request.url, url, faults))
    page.add_init_script(_WATCH)
    page.goto(url)
    try:
        yield page
        faults.extend(page.evaluate("window.violations"))
    finally:
        context.close()
    unexpected = [fault for fault in faults if not re.search(expected, fault)]
    assert unexpected == [], unexpected


def _check_address(asked: str, url: str, faults: list[str]) -> None:
    if not asked.startswith((url.rstrip("/") + "/", "data:", "blob:")):
        faults.append(f"asked {asked}")


def ask(page: Page, text: str) -> None:
    """Type a message and send it."""
    page.fill("#input", text)
    page.press("#input", "Enter")


def answered(page: Page, text: str | re.Pattern[str]) -> None:
    """Wait until the last answer is complete and holds ``text``."""
    last = page.locator(".answer").last
    expect(last).to_have_attribute("aria-busy", "false")
    expect(last.locator("> .prose")).to_contain_text(text)


def asked_text(script: Script) -> list[tuple[str, Any]]:
    """The turns of the latest request."""
    return [(turn["role"], turn["content"]) for turn in script.asked[-1]["messages"]]


def imported(page: Page, text: str) -> None:
    """Choose a file of conversations to import."""
    page.set_input_files(
        "#import-picker", [{"name": "a.json", "mimeType": "application/json", "buffer": text.encode()}]
    )

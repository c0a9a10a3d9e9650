"""One browser and one scripted server for each file of tests, and a profile of its own for each test."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.serve.page.scripted import Script, scripted_app, serving

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

    from tests.serve.page.pages import Visit

CHROMIUM = Path("/usr/bin/chromium")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Return Chromium. Of a module and no longer: its event loop must not meet another test's."""
    if not CHROMIUM.exists():
        pytest.skip(f"needs {CHROMIUM}")
    from playwright.sync_api import sync_playwright

    from tests.serve.page.pages import launch

    with sync_playwright() as playwright:
        found = launch(playwright, CHROMIUM)
        yield found
        found.close()


@pytest.fixture(scope="module")
def scripted() -> Iterator[tuple[Script, str]]:
    """Return a running server's script and address."""
    script = Script()
    with serving(scripted_app(script)) as url:
        yield script, url


@pytest.fixture
def script(scripted: tuple[Script, str]) -> Script:
    """Return the script, empty."""
    scripted[0].clear()
    return scripted[0]


@pytest.fixture
def url(scripted: tuple[Script, str]) -> str:
    """Return the scripted server's address."""
    return scripted[1]


@pytest.fixture
def visit(browser: Browser, script: Script, url: str) -> Iterator[Visit]:
    """Return a function that opens the page; what it complains about fails the test."""
    from tests.serve.page.pages import watched

    with ExitStack() as stack:
        yield lambda **options: stack.enter_context(watched(browser, url, **options))
        script.go.set()


@pytest.fixture
def page(visit: Visit) -> Page:
    """Return the page, open."""
    return visit()

"""Hostile answers on the chat page, in Chromium under the page's own policy: inert, whole and never too deep."""

from __future__ import annotations

import random
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.fuzz.driver import Target
from tests.serve.page.conftest import CHROMIUM
from tests.serve.page.hostile_answers import CHECK, check_arguments, make_answer
from tests.serve.page.scripted import Script, scripted_app, serving


class Markdown(Target):
    """One page for all inputs."""

    name = "markdown"
    suffix = ".md"
    memory_bytes = 0  # the browser reserves far more than it uses
    short_executions = 20

    def start(self) -> None:
        """Open the page."""
        sync_api = pytest.importorskip("playwright.sync_api", reason="playwright drives the browser")
        if not Path(CHROMIUM).exists():
            pytest.skip(f"needs {CHROMIUM}")
        from tests.serve.page.pages import launch, watched

        with ExitStack() as stack:
            url = stack.enter_context(serving(scripted_app(Script())))
            browser = launch(stack.enter_context(sync_api.sync_playwright()), CHROMIUM)
            stack.callback(browser.close)
            self.page: Any = stack.enter_context(watched(browser, url))
            self.page.on("dialog", lambda dialog: dialog.dismiss())
            self._open = stack.pop_all()

    def stop(self) -> None:
        """Close the page."""
        if hasattr(self, "_open"):
            self._open.close()

    def make(self, rng: random.Random) -> bytes:
        """Return an answer."""
        return make_answer(rng).encode()

    def check(self, data: bytes) -> None:
        """Show an answer."""
        faults = self.page.evaluate(CHECK, check_arguments(data.decode(errors="replace")))
        assert faults + self.page.evaluate("window.violations") == []


TARGETS = (Markdown,)

"""The page below a path: whatever it asks for lies below that path too."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from fathom.serve.http.page_files import page_files
from tests.serve.serving import Serve

pytest.importorskip("playwright.sync_api", reason="playwright drives the browser")

from playwright.sync_api import expect

from tests.serve.page.pages import ask, watched

if TYPE_CHECKING:
    from playwright.sync_api import Browser


def test_the_page_talks_to_the_server_that_it_came_from(serve: Serve, browser: Browser) -> None:
    with serve(root_path="/fathom") as server, watched(browser, f"{server.url}/fathom/") as page:
        ask(page, "The river finds the road")
        expect(page.locator(".answer")).to_contain_text("first token")
        expect(page.locator("#cache-text")).not_to_be_empty()


def test_no_address_of_the_page_begins_at_the_root() -> None:
    """So that it also works behind a proxy whose path the server does not know."""
    for name, file in page_files().items():
        if name.startswith("vendor/"):  # asks for nothing
            continue
        text = file.body.decode()
        assert (
            re.findall(r"""(?:href|src|action)="(?!page/|#)[^"]*|["'`]/(?:page|v1|[a-z]+)\b(?!/)["'`/]""", text) == []
        ), name

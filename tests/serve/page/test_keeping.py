"""What the browser remembers of conversations."""

from __future__ import annotations

import pytest

from tests.serve.page.scripted import Script

pytest.importorskip("playwright.sync_api", reason="playwright drives the browser")

from playwright.sync_api import Page, expect

from tests.serve.page.pages import answered, ask


def test_conversations_survive_a_reload_and_can_be_deleted(page: Page, script: Script) -> None:
    script.text("**One.**")
    script.text("Two.")
    ask(page, "First question")
    answered(page, "One.")
    page.click("#new-chat")
    ask(page, "Second question")
    answered(page, "Two.")
    page.fill("#input", "half typed")
    page.reload()
    expect(page.locator(".bubble")).to_have_text("Second question")
    assert page.locator("#input").input_value() == "half typed"
    assert page.locator("#chats .chat").all_text_contents() == ["Second question", "First question"]
    page.get_by_role("button", name="First question", exact=True).click()
    expect(page.locator(".answer strong")).to_have_text("One.")
    page.get_by_role("button", name="Delete “Second question”").click()
    assert page.locator("#chats .chat").all_text_contents() == ["First question"]
    page.once("dialog", lambda dialog: dialog.accept())
    page.click("#delete-all")
    expect(page.locator("#empty")).to_be_visible()
    assert page.evaluate("Object.keys(localStorage).filter((key) => key.startsWith('fathom.chat'))") == []


def test_an_answer_cut_off_by_closing_the_page_is_kept_and_said_so(page: Page, script: Script) -> None:
    script.hold("So far")
    ask(page, "Long")
    expect(page.locator(".answer > .prose")).to_have_text("So far")
    page.reload()
    expect(page.locator(".answer > .prose")).to_have_text("So far")
    expect(page.locator(".note")).to_contain_text("closed before")
    assert script.left.wait(10)


def test_a_conversation_deleted_while_it_is_answered_stays_deleted(page: Page, script: Script) -> None:
    script.hold("Going")
    ask(page, "Delete me")
    expect(page.locator(".answer > .prose")).to_have_text("Going")
    page.get_by_role("button", name="Delete “Delete me”").click()
    expect(page.locator("#send")).to_have_attribute("aria-label", "Send")
    assert script.left.wait(10)
    assert page.evaluate("localStorage.getItem('fathom.chats')") == "[]"

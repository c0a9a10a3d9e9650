"""Conversations found, renamed, and carried from one browser to another as files that anyone may have written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.serve.page.scripted import Script, delta, end

pytest.importorskip("playwright.sync_api", reason="playwright drives the browser")

from playwright.sync_api import Page, expect

from tests.serve.page.pages import Visit, answered, ask, imported


def test_conversations_are_found_by_their_words_and_renamed(page: Page, script: Script) -> None:
    for text, answer in (("On rivers", "The **Danube** flows east."), ("On lakes", "Constance is deep.")):
        script.text(answer)
        ask(page, text)
        answered(page, answer.replace("*", ""))
        page.click("#new-chat")
    titles = page.locator("#chats .title")
    page.fill("#search", "EAST danube")
    expect(titles).to_have_text(["On rivers"])
    expect(page.locator(".snippet mark")).to_have_text("east")
    page.fill("#search", "volga <b>")
    expect(page.locator("#no-results")).to_have_text("No conversation holds “volga <b>”.")
    page.keyboard.press("Escape")
    expect(titles).to_have_text(["On lakes", "On rivers"])
    for keys, expected in ((["Escape"], "On rivers"), (["Enter"], "Big  waters".replace("  ", " "))):
        page.locator("#chats li").last.hover()
        page.get_by_role("button", name="Rename “On rivers”").click()
        page.get_by_label("Title of the conversation").fill("Big  waters")
        page.keyboard.press(keys[0])
        expect(titles).to_have_text(["On lakes", expected])
    page.get_by_role("button", name="Big waters", exact=True).click()
    script.text("Indeed.")
    ask(page, "More")
    answered(page, "Indeed.")
    page.reload()
    expect(titles).to_have_text(["Big waters", "On lakes"])


def saved(page: Page, button: str) -> tuple[str, str]:
    """The name and text of the file that a button makes."""
    with page.expect_download() as download:
        page.click(button)
    return download.value.suggested_filename, Path(download.value.path()).read_text(encoding="utf-8")


def test_what_is_exported_can_be_read_and_imported_elsewhere(visit: Visit, script: Script) -> None:
    page = visit()
    script.text("first version")
    script.answers.append([delta(reasoning_content="Hm.\nYes."), delta(content="**second** version"), *end()])
    ask(page, "How/deep: is it?")
    answered(page, "first")
    page.get_by_role("button", name="Regenerate").click()
    answered(page, "second")
    page.click("#export")
    name, markdown = saved(page, "#export-markdown")
    assert name == "How deep is it.md"
    assert markdown == (
        "# How/deep: is it?\n\n## You\n\nHow/deep: is it?\n\n## Answer\n\n> Hm.\n> Yes.\n\n**second** version\n"
    )
    page.click("#export")
    assert saved(page, "#export-json")[0] == "How deep is it.json"
    name, everything = saved(page, "#export-all")
    assert name == "fathom-conversations.json"
    imported(page, everything)
    expect(page.locator("#composer-error")).to_contain_text("Imported conversations: 0. Here already: 1.")
    other = visit()
    imported(other, everything)
    expect(other.locator("#composer-error")).to_have_text("Imported conversations: 1.")
    other.locator("#chats .chat").click()
    expect(other.locator(".answer strong")).to_have_text("second")
    other.get_by_role("button", name="Previous version").click()
    expect(other.locator(".answer > .prose")).to_have_text("first version")
    assert saved(other, "#export-all")[1] != ""


@pytest.mark.slow
def test_what_does_not_fit_is_said_and_can_still_be_exported(visit: Visit, script: Script) -> None:
    page = visit()
    script.text("Kept before.")
    ask(page, "Old")
    answered(page, "Kept before.")
    page.evaluate(
        """() => {
            const fill = "x".repeat(100_000);
            for (let i = 0; ; i++) try { localStorage.setItem(`other.${i}`, fill); } catch { break; }
            for (let i = 0; ; i++) try { localStorage.setItem(`little.${i}`, "x".repeat(100)); } catch { break; }
        }"""
    )
    page.click("#new-chat")
    script.text("y" * 2000)
    ask(page, "New " + "z" * 2000)
    answered(page, "yyy")
    expect(page.locator("#composer-error")).to_contain_text("storage is full or blocked: this conversation is lost")
    assert page.locator("#chats .chat").all_text_contents() == ["Old"]
    page.click("#export")
    assert "y" * 2000 in saved(page, "#export-markdown")[1]
    everything = json.loads(saved(page, "#export-all")[1])
    assert [chat["messages"][0]["content"][:3] for chat in everything["conversations"]] == ["New", "Old"]
    imported(page, json.dumps(everything))
    expect(page.locator("#composer-error")).to_contain_text("conversations: 0. Here already: 1. Not readable: 0.")
    expect(page.locator("#composer-error")).to_contain_text("storage: 1.")
    page.reload()
    expect(page.locator("#model-name")).to_have_text("sounder-1b")
    page.locator("#chats .chat").click()
    expect(page.locator(".answer > .prose")).to_have_text("Kept before.")

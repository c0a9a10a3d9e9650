"""Versions of questions and answers, answers that go on, and ways out of a full context."""

from __future__ import annotations

import pytest

from tests.serve.page.scripted import Script, delta, end, refusal

pytest.importorskip("playwright.sync_api", reason="playwright drives the browser")

from playwright.sync_api import Page, expect

from tests.serve.page.pages import Visit, answered, ask, asked_text


def shown(page: Page) -> list[str]:
    """The texts of the turns."""
    return page.locator(".bubble, .answer > .prose").all_text_contents()


def test_every_version_of_a_question_and_an_answer_is_kept_and_can_be_shown(page: Page, script: Script) -> None:
    for answer in ("one", "two", "three", "four", "five"):
        script.text(answer)
    ask(page, "Hello")
    answered(page, "one")
    assert page.locator(".versions").count() == 0
    page.get_by_role("button", name="Regenerate").click()
    answered(page, "two")
    ask(page, "And?")
    answered(page, "three")
    page.locator(".answer").first.get_by_role("button", name="Regenerate").click()
    answered(page, "four")
    assert asked_text(script) == [("user", "Hello")]
    group = page.get_by_role("group", name="Version 3 of 3")
    expect(group).to_contain_text("3 / 3")
    expect(group.get_by_role("button", name="Next version")).to_be_disabled()
    group.get_by_role("button", name="Previous version").press("Enter")
    assert shown(page) == ["Hello", "two", "And?", "three"]
    expect(page.get_by_role("button", name="Previous version")).to_be_focused()
    page.keyboard.press("Enter")
    assert shown(page) == ["Hello", "one"]
    page.locator(".user").hover()
    page.get_by_role("button", name="Edit").click()
    page.get_by_label("Edit your message").fill("Goodbye")
    page.get_by_label("Edit your message").press("Enter")
    answered(page, "five")
    assert shown(page) == ["Goodbye", "five"]
    page.reload()
    assert shown(page) == ["Goodbye", "five"]
    page.get_by_role("group", name="Version 2 of 2").get_by_role("button", name="Previous version").click()
    assert shown(page) == ["Hello", "one"]
    page.get_by_role("group", name="Version 1 of 3").get_by_role("button", name="Next version").click()
    assert shown(page) == ["Hello", "two", "And?", "three"]


def test_a_cut_answer_goes_on_where_it_ended(page: Page, script: Script) -> None:
    script.answers.append([delta(reasoning_content="First"), *end("length")])
    script.answers.append([delta(reasoning_content=", then."), delta(content="One, "), *end("length")])
    script.text("two.")
    ask(page, "Count")
    go_on = page.get_by_role("button", name="Continue")
    go_on.click()
    expect(page.locator(".answer > .prose")).to_have_text("One,")
    assert script.asked[-1]["continue_final_message"] is True
    assert script.asked[-1]["messages"][-1] == {"role": "assistant", "content": "", "reasoning_content": "First"}
    go_on.click()
    answered(page, "One, two.")
    assert asked_text(script) == [("user", "Count"), ("assistant", "One, ")]
    expect(page.locator(".figures")).to_contain_text("21 tokens")
    page.locator(".thinking summary").click()
    expect(page.locator(".thinking .prose")).to_have_text("First, then.")
    expect(page.get_by_role("button", name="Continue")).to_have_count(0)
    script.text("Fine.")
    ask(page, "Thanks")
    answered(page, "Fine.")
    assert "continue_final_message" not in script.asked[-1]


TOO_LONG = (400, "prompt is too long", "context_length_exceeded")
FIRST, SECOND, THIRD = "a" * 300, "b" * 300, "c" * 200


def fill(page: Page, script: Script, *, long: bool = True) -> None:
    """A conversation of three questions, the last of which no longer fits; 1000 characters do."""
    for text, answer in ((FIRST, "x" * 200), (SECOND, "y" * 100)):
        script.text(answer)
        ask(page, text)
        answered(page, answer)
    script.answers.append(refusal(*TOO_LONG) if long else [delta(content="part"), *end("length", total=1000)])
    ask(page, THIRD)


def test_a_full_context_has_ways_out(visit: Visit, script: Script) -> None:
    page = visit(expected="status of 400")
    fill(page, script)
    expect(page.locator(".failure")).to_contain_text("no longer fits")
    script.text("Left out.")
    page.get_by_role("button", name="Leave out the oldest turns").click()
    answered(page, "Left out.")
    assert asked_text(script) == [("user", THIRD)]  # half of the context: 500 of its 1000 tokens
    assert len(shown(page)) == 6
    expect(page.locator(".divider")).to_contain_text("no longer given the turns above")
    page.reload()
    script.text("Still.")
    ask(page, "Next")
    answered(page, "Still.")
    assert [text for _, text in asked_text(script)] == [THIRD, "Left out.", "Next"]
    page.get_by_role("button", name="Give it all again").click()
    expect(page.locator(".divider")).to_have_count(0)

    page.click("#new-chat")
    fill(page, script)
    script.text("In a new one.")
    page.get_by_role("button", name="New chat with the last turns").click()
    answered(page, "In a new one.")
    assert shown(page) == [THIRD, "In a new one."]
    expect(page.locator("#chats .title").first).to_have_text("a" * 60 + ", continued")
    assert page.locator("#chats .chat").count() == 3

    page.click("#new-chat")
    script.answers.append(refusal(*TOO_LONG))
    ask(page, "d" * 1200)
    page.get_by_role("button", name="Leave out the oldest turns").click()
    expect(page.locator("#composer-error")).to_contain_text("alone takes about 1.2k of the model's 1k tokens")


def test_a_summary_begins_a_new_conversation(visit: Visit, script: Script) -> None:
    page = visit(expected="status of 400")
    fill(page, script)
    script.text("Letters were ", "exchanged.")
    script.text("Here.")
    page.get_by_role("button", name="New chat with a summary").click()
    answered(page, "Here.")
    expect(page.locator("#summary .prose")).to_have_text("Letters were exchanged.")
    assert shown(page) == [THIRD, "Here."]
    summarised, asked = script.asked[-2:]
    assert asked["messages"][0]["content"] == "Summary of the conversation so far:\nLetters were exchanged."
    assert "Sum up our conversation" in summarised["messages"][-1]["content"]
    assert summarised["messages"][0]["content"] == SECOND  # all three do not fit with the request to sum up
    expect(page.locator("#composer-error")).to_contain_text("The oldest 2 messages did not fit")
    page.reload()
    expect(page.locator("#summary .prose")).to_have_text("Letters were exchanged.")
    page.locator("#chats .chat").last.click()
    expect(page.locator("#summary")).to_be_hidden()
    script.hold()
    page.get_by_role("button", name="New chat with a summary").click()
    expect(page.locator("#send")).to_have_attribute("aria-label", "Stop")
    page.click("#send")  # before a word came: back in the conversation, as it was
    expect(page.locator(".failure")).to_contain_text("no longer fits")
    expect(page.locator("#composer-error")).to_be_hidden()
    page.click("#new-chat")
    expect(page.locator("#empty")).to_be_visible()


def test_an_answer_that_fills_the_context_says_so_and_goes_on(page: Page, script: Script) -> None:
    fill(page, script, long=False)
    expect(page.locator(".note").last).to_contain_text("The context is full")
    expect(page.locator("#room")).to_be_hidden()
    script.text(" and the rest", total=950)
    page.locator(".note").last.get_by_role("button", name="Leave out the oldest turns").click()
    answered(page, "part and the rest")
    assert asked_text(script) == [("user", THIRD), ("assistant", "part")]
    expect(page.locator("#room")).to_contain_text("nearly full: 950 of 1k tokens")

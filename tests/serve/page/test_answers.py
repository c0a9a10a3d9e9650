"""Answers as they stream into the page, over a server that follows a script and over the real one."""

from __future__ import annotations

import json
import re

import pytest

from tests.serve.page.scripted import Script, delta, end
from tests.serve.serving import NAME, Running

pytest.importorskip("playwright.sync_api", reason="playwright drives the browser")

from playwright.sync_api import Browser, Page, expect

from tests.serve.page.pages import Visit, answered, ask, asked_text, watched


def test_an_answer_streams_in_and_is_measured(page: Page, script: Script) -> None:
    script.answers.append(
        [delta(role="assistant", content=""), delta(content="Seven "), None, delta(content="fathoms."), *end()]
    )
    ask(page, "How deep?")
    expect(page.locator(".answer > .prose")).to_have_text("Seven")
    expect(page.locator("#send")).to_have_attribute("aria-label", "Stop")
    assert page.locator("#announcer").text_content() == "Answering"
    script.go.set()
    answered(page, "Seven fathoms.")
    assert asked_text(script) == [("user", "How deep?")]
    assert script.asked[0]["stream"] is True
    assert script.asked[0]["stream_options"] == {"include_usage": True}
    assert script.asked[0]["model"] == "sounder-1b"
    figures = page.locator(".figures").text_content()
    assert re.search(r"first token [\d.]+ s", figures or "")
    assert "7 tokens" in (figures or "")
    assert "16 of 243 prompt tokens cached" in (figures or "")
    assert page.locator("#context-text").text_content() == "250 / 1k"
    assert page.locator("#context").get_attribute("aria-valuenow") == "25"
    expect(page.locator("#announcer")).to_have_text("Answer: Seven fathoms.")
    expect(page.locator("#input")).to_be_focused()


def test_events_are_read_whatever_way_the_bytes_are_split(page: Page, script: Script) -> None:
    chunk = json.dumps(delta(content="深 — 海"), ensure_ascii=False)
    half = chunk.index(" ")
    script.answers.append(
        b"\xef\xbb\xbf: hello\r\n\r\n"
        + f"event: message\r\ndata: {chunk[:half]}\r\ndata: {chunk[half + 1 :]}\r\nid: 1\r\n\r\n".encode()
        + f"data:{json.dumps(delta(content=' two'))}\r\r".encode()
        + f"data: {json.dumps(end()[0])}\n\ndata: [DONE]".encode()
    )
    ask(page, "Split")
    answered(page, "深 — 海 two")
    assert page.locator(".failure").count() == 0


def test_the_event_parser_gives_the_same_events_for_any_split(page: Page) -> None:
    stream = "data: a\r\ndata: b\r\n\r\nevent: x\ndata:c\n\n:note\rdata\r\rdata: d\n\n\n\ndata: 海\r\n\r\ndata: last"
    found = page.evaluate(
        """async ([stream]) => {
            const { EventParser } = await import("/page/sse.js");
            const read = (pieces) => {
                const parser = new EventParser();
                return JSON.stringify([...pieces.flatMap((piece) => parser.push(piece)), ...parser.end()]);
            };
            const whole = read([stream]);
            const all = new Set([whole, read([...stream])]);
            for (let i = 0; i < stream.length; i++)
                for (let j = i; j < stream.length; j++) {
                    all.add(read([stream.slice(0, i), stream.slice(i, j), stream.slice(j)]));
                }
            return [...all].map((each) => JSON.parse(each));
        }""",
        [stream],
    )
    assert len(found) == 1
    assert [event["data"] for event in found[0]] == ["a\nb", "c", "", "d", "海", "last"]
    assert found[0][1]["event"] == "x"


def test_thinking_is_folded_away_and_counted(page: Page, script: Script) -> None:
    thought = [delta(reasoning_content="Let me ", reasoning="Let me "), delta(reasoning_content="*see*.")]
    script.answers.append([*thought, None, delta(content="\n\nForty-two."), *end()])
    ask(page, "Think")
    summary = page.locator(".thinking summary")
    expect(summary).to_have_text(re.compile(r"Thinking… \d+ s"))
    expect(page.locator(".thinking .prose")).to_be_hidden()
    summary.click()
    expect(page.locator(".thinking .prose em")).to_have_text("see")
    script.go.set()
    answered(page, "Forty-two.")
    expect(summary).to_have_text(re.compile(r"Thought for [\d.]+ s"))
    assert page.locator(".answer > .prose").text_content() == "Forty-two."
    script.text("Again.")
    ask(page, "More")
    answered(page, "Again.")
    assert asked_text(script)[1] == ("assistant", "Forty-two.")


@pytest.mark.parametrize("how", ["button", "escape"])
def test_stopping_leaves_the_server_and_keeps_what_came(page: Page, script: Script, how: str) -> None:
    script.hold("One, two, ")
    ask(page, "Count")
    expect(page.locator(".answer > .prose")).to_have_text("One, two,")
    page.click("#send") if how == "button" else page.keyboard.press("Escape")
    expect(page.locator(".note p")).to_have_text("Stopped.")
    expect(page.locator("#send")).to_have_attribute("aria-label", "Send")
    assert script.left.wait(10)
    assert page.locator(".answer > .prose").text_content() == "One, two,"


def test_an_answer_can_be_asked_for_again_and_a_message_changed(page: Page, script: Script) -> None:
    for answer in ("first", "second", "third", "fourth"):
        script.text(answer)
    ask(page, "Hello")
    answered(page, "first")
    page.get_by_role("button", name="Regenerate").click()
    answered(page, "second")
    assert asked_text(script) == [("user", "Hello")]
    ask(page, "And?")
    answered(page, "third")
    page.locator(".user").first.hover()
    page.get_by_role("button", name="Edit").first.click()
    editor = page.get_by_label("Edit your message")
    expect(editor).to_be_focused()
    editor.fill("Goodbye")
    editor.press("Shift+Enter")
    editor.press("Escape")
    assert page.locator(".bubble").first.text_content() == "Hello"
    page.get_by_role("button", name="Edit").first.click()
    page.get_by_label("Edit your message").fill("Goodbye")
    page.get_by_role("button", name="Send again").click()
    answered(page, "fourth")
    assert asked_text(script) == [("user", "Goodbye")]
    assert page.locator(".bubble").all_text_contents() == ["Goodbye"]
    assert page.locator(".answer").count() == 1


def test_an_answer_and_its_code_can_be_copied(visit: Visit, script: Script) -> None:
    page = visit(permissions=["clipboard-read", "clipboard-write"])
    text = "Run **this**:\n\n```python\nprint(1)  # one\n```"
    script.text(text)
    ask(page, "Code")
    answered(page, "print(1)")
    page.get_by_role("button", name="Copy").last.click()
    expect(page.get_by_role("button", name="Copied")).to_be_visible()
    assert page.evaluate("navigator.clipboard.readText()") == text
    page.locator(".copy-code").click()
    expect(page.locator(".copy-code")).to_have_text("Copied")
    assert page.evaluate("navigator.clipboard.readText()") == "print(1)  # one"
    assert page.locator(".language").text_content() == "python"
    assert page.locator(".code-comment").text_content() == "# one"


def test_a_suggestion_begins_a_conversation_and_the_reader_may_scroll_away(page: Page, script: Script) -> None:
    lines = [f"Line {i}\n\n" for i in range(60)]
    script.answers.append(
        [*(delta(content=line) for line in lines), None, *(delta(content=line) for line in lines), *end()]
    )
    page.locator("#suggestions button").first.click()
    expect(page.locator(".bubble")).to_contain_text("capital of France")
    expect(page.get_by_text("Line 59")).to_be_in_viewport()
    page.locator("#thread").evaluate("node => node.scrollTo(0, 0)")
    expect(page.locator("#jump")).to_be_visible()
    script.go.set()
    answered(page, "Line 59")
    assert page.locator("#thread").evaluate("node => node.scrollTop") == 0
    page.click("#jump")
    expect(page.locator(".answer .actions")).to_be_in_viewport()


def test_the_real_server_answers_the_page(browser: Browser, server: Running) -> None:
    with watched(browser, server.url, expected="status of 400") as page:
        expect(page.locator("#model-name")).to_have_text(NAME)
        page.click("#open-drawer")
        expect(page.locator("#per-token")).to_contain_text("per token")
        page.fill("#temperature", "0")
        page.fill("#max_tokens", "12")
        ask(page, "The river")
        last = page.locator(".answer").last
        expect(last).to_have_attribute("aria-busy", "false", timeout=20_000)
        assert page.locator(".failure").count() == 0
        expect(last.locator(".figures")).to_contain_text("12 tokens")
        expect(page.locator("#context-text")).to_have_text(re.compile(r"\d+ / 512"))
        expect(page.locator("#cache")).to_be_visible()
        expect(page.get_by_role("meter", name=re.compile(r"pages in use"))).to_be_visible()
        page.get_by_role("button", name="Continue").click()
        expect(last).to_have_attribute("aria-busy", "false", timeout=20_000)
        expect(last.locator(".figures")).to_contain_text("24 tokens")
        ask(page, "Too long: " + "river " * 600)
        expect(page.locator(".failure")).to_contain_text("no longer fits the model's context")
        page.get_by_role("button", name="New chat with the last turns").click()
        expect(page.locator("#composer-error")).to_contain_text(re.compile(r"alone takes about \d+ of the model's 512"))
        assert server.idle()

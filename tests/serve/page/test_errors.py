"""What the page says when a request fails, and how it goes on."""

from __future__ import annotations

import json

import pytest

from tests.serve.page.scripted import Script, delta, refusal

pytest.importorskip("playwright.sync_api", reason="playwright drives the browser")

from playwright.sync_api import Page, expect

from tests.serve.page.pages import Visit, answered, ask, asked_text

REFUSALS: list[tuple[int, str | None, dict[str, str], str]] = [
    (429, "queue_full", {"retry-after": "1"}, "The server is busy"),
    (503, "draining", {}, "takes no requests now"),
    (400, "context_length_exceeded", {}, "no longer fits the model's context"),
    (413, "body_too_large", {}, "larger than the server takes"),
    (400, None, {}, "did not accept the request"),
    (500, None, {}, "failed while answering"),
]


def test_a_refusal_is_a_sentence_and_can_be_tried_again(visit: Visit, script: Script) -> None:
    page = visit(expected="status of (429|503|400|413|500)")
    for status, code, headers, sentence in REFUSALS:
        script.answers.append(refusal(status, "the detail", code, **headers))
        page.keyboard.press("Control+k")
        ask(page, "Keep me")
        expect(page.get_by_role("alert").filter(has_text=sentence)).to_contain_text("the detail")
        retry = page.locator(".failure > button")
        if headers:
            expect(retry).to_be_disabled()
            expect(retry).to_have_text("Try again in 1 s")
        script.text("Here now.")
        retry.click()
        answered(page, "Here now.")
        assert asked_text(script) == [("user", "Keep me")]
        assert page.locator(".failure").count() == 0


BREAKS = [
    (b'data: {"error": {"message": "out of memory", "code": "internal_error"}}\n\n', "failed while answering"),
    (b"", "connection broke"),
    (b"data: {not json\n\n", "connection broke"),
]


def test_an_error_in_mid_stream_keeps_what_came(page: Page, script: Script) -> None:
    for tail, sentence in BREAKS:
        script.answers.append(b"data: " + json.dumps(delta(content="Half an")).encode() + b"\n\n" + tail)
        page.keyboard.press("Control+k")
        ask(page, "Break")
        expect(page.locator(".failure")).to_contain_text(sentence)
        assert page.locator(".answer > .prose").text_content() == "Half an"


def test_an_unreachable_server_is_said_and_asked_again(visit: Visit, script: Script) -> None:
    page = visit(expected="net::ERR_FAILED")
    page.route("**/v1/**", lambda route: route.abort())
    ask(page, "Anyone?")
    expect(page.locator(".failure")).to_contain_text("cannot be reached")
    page.reload()
    expect(page.locator("#banner")).to_contain_text("cannot be reached")
    page.unroute("**/v1/**")
    page.click("#retry-models")
    expect(page.locator("#model-name")).to_have_text("sounder-1b")
    expect(page.locator("#banner")).to_be_hidden()
    script.text("Yes.")
    page.locator(".failure > button").click()
    answered(page, "Yes.")


def test_a_key_is_asked_for_and_kept_for_the_tab_only(visit: Visit, script: Script) -> None:
    page = visit(expected="status of 401")
    expect(page.locator("#model-name")).to_be_visible()
    script.key = "sesame-sesame"
    ask(page, "Open")
    dialog = page.get_by_role("dialog", name="This server asks for a key")
    dialog.get_by_label("API key").fill("wrong-key")
    dialog.get_by_label("API key").press("Enter")
    expect(dialog.get_by_role("alert")).to_contain_text("did not accept")
    script.text("Come in.")
    dialog.get_by_label("API key").fill("sesame-sesame")
    dialog.get_by_role("button", name="Use key").click()
    answered(page, "Come in.")
    assert script.keys[-1] == "Bearer sesame-sesame"
    assert "sesame" not in page.evaluate("JSON.stringify(localStorage)")
    assert page.evaluate("sessionStorage.getItem('fathom.key')") == '"sesame-sesame"'
    page.reload()
    expect(page.locator("#model-name")).to_have_text("sounder-1b")

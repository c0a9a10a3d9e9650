"""The chat page in a browser, over a server that follows a script."""

from __future__ import annotations

import base64
import json
import re
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from fathom.serve.page import CONTENT_SECURITY_POLICY, page_files
from tests.serve.scripted import Script, delta, end, refusal, scripted_app, serving
from tests.serve.serving import NAME, Running

pytest.importorskip("playwright.sync_api", reason="playwright drives the browser")

from playwright.sync_api import Browser, Page, expect, sync_playwright

from tests.serve.pages import CHROMIUM, Visit, answered, ask, launch, watched

pytestmark = pytest.mark.skipif(not CHROMIUM.exists(), reason="needs Chromium at /usr/bin/chromium")

PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
PHONE = {"viewport": {"width": 360, "height": 740}, "has_touch": True}


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        found = launch(playwright)
        yield found
        found.close()


@pytest.fixture(scope="module")
def scripted() -> Iterator[tuple[Script, str]]:
    script = Script()
    with serving(scripted_app(script)) as url:
        yield script, url


@pytest.fixture
def script(scripted: tuple[Script, str]) -> Script:
    scripted[0].clear()
    return scripted[0]


@pytest.fixture
def url(scripted: tuple[Script, str]) -> str:
    return scripted[1]


@pytest.fixture
def visit(browser: Browser, script: Script, url: str) -> Iterator[Visit]:
    """Return a function that opens the page; what it complains about fails the test."""
    with ExitStack() as stack:
        yield lambda **options: stack.enter_context(watched(browser, url, **options))
        script.go.set()


@pytest.fixture
def page(visit: Visit) -> Page:
    return visit()


def asked_text(script: Script) -> list[tuple[str, Any]]:
    """The turns of the latest request."""
    return [(turn["role"], turn["content"]) for turn in script.asked[-1]["messages"]]


# The files


def fetch(address: str, **headers: str) -> tuple[int, dict[str, str], bytes]:
    try:
        with urllib.request.urlopen(urllib.request.Request(address, headers=headers), timeout=10) as answer:
            return answer.status, dict(answer.headers), answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, dict(error.headers), error.read()


def test_files_come_with_their_type_policy_and_a_tag_that_spares_sending_them_again(url: str) -> None:
    types = {"": "text/html", "page/app.js": "text/javascript", "page/style.css": "text/css"}
    types |= {"page/favicon.svg": "image/svg+xml", "favicon.ico": "image/svg+xml"}
    for name, kind in types.items():
        status, headers, body = fetch(f"{url}/{name}")
        assert status == 200
        assert headers["content-type"].startswith(kind)
        assert headers["content-security-policy"] == CONTENT_SECURITY_POLICY
        assert headers["cache-control"] == "no-cache"
        assert body
        again = fetch(f"{url}/{name}", **{"if-none-match": f'"other", W/{headers["etag"]}'})
        assert (again[0], again[1]["etag"], again[2]) == (304, headers["etag"], b"")
    assert fetch(f"{url}/page/page.py")[0] == 404
    assert fetch(f"{url}/page/..%2Fpage.py")[0] == 404


def test_policy_allows_nothing_from_elsewhere_and_nothing_inline() -> None:
    rules = dict(rule.split(" ", 1) for rule in CONTENT_SECURITY_POLICY.split("; "))
    for rule in ("default-src", "form-action", "frame-ancestors", "base-uri"):
        assert rules[rule] == "'none'"
    assert (rules["script-src"], rules["style-src"], rules["connect-src"]) == ("'self'",) * 3
    index = page_files()["index.html"].body.decode()
    assert re.findall(r"<script(?![^>]*\bsrc=)|<style|\bstyle=|\son\w+=", index) == []
    addresses = {link for file in page_files().values() for link in re.findall(rb"https?://[\w.]+", file.body)}
    assert addresses <= {b"http://www.w3.org"}


def test_both_languages_say_the_same_things_and_all_that_is_asked_for(page: Page) -> None:
    languages = page.evaluate("async () => (await import('/page/i18n.js')).LANGUAGES")
    blanks = {
        code: {key: sorted(re.findall(r"{\w+}", text)) for key, text in said.items()}
        for code, said in languages.items()
    }
    assert blanks["en"] == blanks["zh"]
    source = "".join(file.body.decode() for name, file in page_files().items() if not name.startswith("i18n"))
    node = r"""(?:\w+(?:\("[^"]*"(?:, \{[^}]*\})?\))?|byId\("[\w-]+"\)|this\.#\w+)"""
    named = set(re.findall(r'data-i18n(?:-\w+)?="(\w+)"', source)) | set(
        re.findall(rf'\b(?:say|name)\({node}, "(\w+)"', source)
    )
    assert len(named) > 50
    assert named <= set(languages["en"])
    kinds = {"Unauthorized", "Large", "Busy", "Unavailable", "Context", "Server", "Invalid", "Cut", "Unreachable"}
    assert {f"error{kind}" for kind in kinds} <= set(languages["en"])


# Answers


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
    assert page.locator("#context-text").text_content() == "250 / 1,000"
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
    expect(page.locator(".note")).to_have_text("Stopped.")
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


# Errors

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
        retry = page.locator(".failure button")
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
    page.locator(".failure button").click()
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


# Keyboard, languages, themes


def test_everything_can_be_done_from_the_keyboard(page: Page, script: Script) -> None:
    composed = """document.querySelector("#input").dispatchEvent(
        new KeyboardEvent("keydown", { key: "Enter", isComposing: true, bubbles: true, cancelable: true }),
    )"""
    expect(page.locator("#input")).to_be_focused()
    page.keyboard.type("one")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("two")
    assert page.evaluate(composed) is True  # the input method's own Enter: not prevented, nothing sent
    assert script.asked == []
    script.text("Good.")
    page.keyboard.press("Enter")
    answered(page, "Good.")
    assert asked_text(script) == [("user", "one\ntwo")]
    page.locator("#thread").focus()
    page.keyboard.press("/")
    expect(page.locator("#input")).to_be_focused()
    page.keyboard.type("a/b")
    assert page.locator("#input").input_value() == "a/b"
    page.keyboard.press("Control+k")
    assert page.locator(".turn").count() == 0
    expect(page.locator("#empty")).to_be_visible()
    expect(page.locator("#input")).to_be_focused()
    assert page.locator("#input").input_value() == "a/b"
    page.locator("#open-drawer").focus()
    page.keyboard.press("Enter")
    expect(page.locator("#close-drawer")).to_be_focused()
    page.keyboard.press("Escape")
    expect(page.locator("#drawer")).to_be_hidden()
    expect(page.locator("#open-drawer")).to_be_focused()


def test_every_control_has_a_name_and_shows_its_focus(page: Page, script: Script) -> None:
    script.text("Text with [a link](https://example.org) and\n\n```sh\ncode\n```")
    ask(page, "Go")
    answered(page, "Text")
    page.click("#open-drawer")
    nameless = page.evaluate(
        """() => [...document.querySelectorAll("button, input, select, textarea, [role=meter]")]
            .filter((node) => node.checkVisibility() && !node.getAttribute("aria-label") && !node.textContent.trim() &&
                !node.labels?.length).map((node) => node.outerHTML)"""
    )
    assert nameless == []
    page.locator("#input").focus()
    page.keyboard.press("Tab")
    page.keyboard.press("Shift+Tab")
    seen = set()
    for _ in range(40):
        page.keyboard.press("Tab")
        found = page.evaluate(
            """() => {
                const node = document.activeElement;
                const { outlineStyle, outlineWidth } = getComputedStyle(node.closest("form#composer") ?? node);
                return [node.id || node.className || node.tagName, outlineStyle, parseFloat(outlineWidth)];
            }"""
        )
        seen.add(found[0])
        if found[0] not in ("BODY", "input"):
            assert found[1] == "solid", found
            assert found[2] >= 1, found
    assert {"new-chat", "theme", "language", "open-drawer", "thread", "input", "send", "temperature", "reset"} <= seen


def test_the_language_follows_the_browser_and_the_choice(visit: Visit, script: Script) -> None:
    page = visit(locale="zh-CN")
    assert page.evaluate("document.documentElement.lang") == "zh-CN"
    expect(page.locator("#new-chat")).to_have_text("新对话")
    expect(page.locator("#input")).to_have_attribute("placeholder", "输入消息")
    script.text("好。")
    ask(page, "你好")
    answered(page, "好。")
    expect(page.locator(".figures")).to_contain_text("7 个词元")
    page.click("#language")
    assert page.evaluate("document.documentElement.lang") == "en"
    expect(page.locator(".figures")).to_contain_text("7 tokens")
    expect(page.locator("#cache-text")).to_have_text("12 in use · 30 kept · 120 pages")
    page.reload()
    expect(page.locator("#new-chat")).to_have_text("New chat")


CONTRASTS = """() => {
    const canvas = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
    const probe = document.body.appendChild(document.createElement("i"));
    const light = (name) => {
        probe.style.color = `var(${name})`;
        canvas.fillStyle = getComputedStyle(probe).color;
        canvas.fillRect(0, 0, 1, 1);
        const parts = [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3).map((part) => part / 255);
        const [r, g, b] = parts.map((part) => (part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4));
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const ratio = (a, b) => (Math.max(light(a), light(b)) + 0.05) / (Math.min(light(a), light(b)) + 0.05);
    const grounds = ["--ground", "--raised", "--sunken", "--tint"];
    const pairs = (ink, ons) => ons.map((on) => [`${ink} ${on}`, ratio(ink, on)]);
    const inks = ["--ink", "--faint", "--accent", "--wrong"];
    const text = [...inks.flatMap((ink) => pairs(ink, grounds)), ...pairs("--on-accent", ["--accent"])];
    const edges = pairs("--edge", grounds.slice(0, 3));
    const dark = light("--ground") < 0.2;
    probe.remove();
    return { text: Object.fromEntries(text), edges: Object.fromEntries(edges), dark };
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_both_themes_are_readable(visit: Visit, scheme: str) -> None:
    found = visit(color_scheme=scheme).evaluate(CONTRASTS)
    assert found["dark"] == (scheme == "dark")
    assert {pair: ratio for pair, ratio in found["text"].items() if ratio < 4.5} == {}  # WCAG 2.2, 1.4.3 (AA)
    assert {pair: ratio for pair, ratio in found["edges"].items() if ratio < 3} == {}  # 1.4.11


def test_a_chosen_theme_outlives_the_page(page: Page) -> None:
    button = page.locator("#theme")
    expect(button).to_have_attribute("aria-label", "Theme: automatic")
    button.click()
    button.click()
    expect(button).to_have_attribute("aria-label", "Theme: dark")
    page.reload()
    assert page.evaluate(CONTRASTS)["dark"]


def test_motion_is_left_out_where_it_is_not_wanted(visit: Visit, script: Script) -> None:
    page = visit(reduced_motion="reduce")
    script.answers.append([delta(reasoning_content="Hm"), None, *end()])
    ask(page, "Think")
    expect(page.locator(".thinking.live")).to_be_visible()
    assert page.locator(".thinking summary span").evaluate("node => getComputedStyle(node).animationName") == "none"


@pytest.mark.parametrize("locale", ["en-US", "zh-CN"])
def test_a_phone_shows_everything_without_scrolling_sideways(visit: Visit, script: Script, locale: str) -> None:
    page = visit(locale=locale, **PHONE)
    script.text(
        "| a | b | c |\n|---|---|---|\n" + "| wordwordwordword " * 3 + "|\n\n```\n" + "x" * 200 + "\n```\n" + "y" * 200
    )
    ask(page, "Wide " + "z" * 80)
    answered(page, "yyy")
    width = "Math.max(document.documentElement.scrollWidth, document.querySelector('#thread').scrollWidth)"
    assert page.evaluate(width) == 360
    assert page.locator("#sidebar").evaluate("node => node.inert")
    page.click("#open-sidebar")
    expect(page.locator("#close-sidebar")).to_be_focused()
    assert page.locator("#main").evaluate("node => node.inert")
    page.keyboard.press("Escape")
    expect(page.locator("#open-sidebar")).to_be_focused()
    page.click("#open-drawer")
    assert page.evaluate(width) == 360


# What is kept, sampling, images, meters


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


def test_sampling_controls_are_sent_only_where_set_and_sensible(page: Page, script: Script) -> None:
    for _ in range(3):
        script.text("ok")
    ask(page, "Plain")
    answered(page, "ok")
    assert set(script.asked[-1]) == {"model", "messages", "stream", "stream_options"}
    page.click("#open-drawer")
    values = {
        "temperature": 0.7,
        "top_p": 0.9,
        "top_k": 40,
        "min_p": 0.05,
        "max_tokens": 64,
        "seed": 7,
        "thinking_budget": 32,
    }
    for field, value in values.items():
        page.fill(f"#{field}", str(value))
    page.fill("#system", "Be brief.")
    page.select_option("#thinking-choice", "on")
    page.reload()
    ask(page, "Set")
    answered(page, "ok")
    assert {key: script.asked[-1][key] for key in values} == values
    assert script.asked[-1]["thinking"] == {"type": "enabled"}
    assert asked_text(script)[0] == ("system", "Be brief.")
    page.click("#open-drawer")
    page.fill("#temperature", "9")
    expect(page.get_by_role("alert").filter(has_text="Outside 0 to 2")).to_be_visible()
    page.select_option("#thinking-choice", "off")
    ask(page, "Off")
    answered(page, "ok")
    assert "temperature" not in script.asked[-1]
    assert "thinking_budget" not in script.asked[-1]
    assert script.asked[-1]["thinking"] == {"type": "disabled"}
    page.click("#reset")
    assert page.locator("#top_k").input_value() == ""
    assert page.locator("#system").input_value() == ""


def test_images_are_chosen_pasted_dropped_checked_and_sent(page: Page, script: Script) -> None:
    expect(page.locator("#attach")).to_be_visible()
    page.set_input_files("#picker", [{"name": "a.png", "mimeType": "image/png", "buffer": PIXEL}])
    expect(page.locator("#tray li")).to_have_count(1)
    carry = """([kind, name, size]) => {
        const data = new DataTransfer();
        data.items.add(new File([new Uint8Array(size)], name + ".gif", { type: "image/gif" }));
        const way = { bubbles: true, cancelable: true };
        const pasted = new ClipboardEvent("paste", { ...way, clipboardData: data });
        const event = kind === "paste" ? pasted : new DragEvent("drop", { ...way, dataTransfer: data });
        document.querySelector("#input").dispatchEvent(event);
    }"""
    page.evaluate(carry, ["paste", "pasted", 3])
    expect(page.locator("#tray li")).to_have_count(2)
    page.evaluate(carry, ["drop", "dropped", 3])
    expect(page.locator("#tray li")).to_have_count(3)
    page.get_by_role("button", name="Remove pasted.gif").click()
    page.get_by_role("button", name="Remove dropped.gif").click()
    page.evaluate(carry, ["drop", "big", 5 * 2**20 + 1])
    expect(page.locator("#complaint")).to_have_text("big.gif is larger than 5 MB. Choose a smaller image.")
    page.set_input_files("#picker", [{"name": "a.svg", "mimeType": "image/svg+xml", "buffer": b"<svg/>"}])
    expect(page.locator("#complaint")).to_contain_text("a.svg is not a PNG")
    script.text("A pixel.")
    ask(page, "What is it?")
    answered(page, "A pixel.")
    picture, text = script.asked[-1]["messages"][0]["content"]
    assert picture == {
        "type": "image_url",
        "image_url": {"url": "data:image/png;base64," + base64.b64encode(PIXEL).decode()},
    }
    assert text == {"type": "text", "text": "What is it?"}
    expect(page.locator(".bubble img")).to_have_attribute("alt", "Image 1")
    expect(page.locator("#tray")).to_be_hidden()
    page.reload()
    expect(page.locator(".bubble img")).to_have_count(1)


def test_what_the_model_cannot_do_is_not_offered(visit: Visit, script: Script) -> None:
    script.facts = {"context": 1000, "sees_images": False, "can_think": False}
    page = visit()
    expect(page.locator("#model-name")).to_be_visible()
    page.click("#open-drawer")
    expect(page.locator("#temperature")).to_be_visible()
    expect(page.locator("#attach")).to_be_hidden()
    expect(page.locator("#thinking-choice")).to_be_hidden()


def test_the_cache_is_shown_while_the_page_is_seen(page: Page) -> None:
    meter = page.get_by_role("meter", name="12 pages in use, 30 kept, 120 in all")
    expect(meter).to_have_attribute("aria-valuenow", "35")
    assert page.locator("#cache-used").evaluate("node => node.style.width") == "10%"
    assert page.locator("#cache-kept").evaluate("node => node.style.width") == "25%"
    expect(page.locator("#per-token")).to_have_text("27.0 KB per token")
    expect(page.locator("#queue-text")).to_have_text("1 running, 2 waiting")
    with page.expect_request("**/metrics"):
        pass


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
        ask(page, "Too long: " + "river " * 600)
        expect(page.locator(".failure")).to_contain_text("no longer fits the model's context")
        assert server.idle()


def test_an_example_begins_a_conversation_and_the_reader_may_scroll_away(page: Page, script: Script) -> None:
    lines = [f"Line {i}\n\n" for i in range(60)]
    script.answers.append(
        [*(delta(content=line) for line in lines), None, *(delta(content=line) for line in lines), *end()]
    )
    page.locator("#examples button").first.click()
    expect(page.locator(".bubble")).to_contain_text("latent attention")
    expect(page.get_by_text("Line 59")).to_be_in_viewport()
    page.locator("#thread").evaluate("node => node.scrollTo(0, 0)")
    expect(page.locator("#jump")).to_be_visible()
    script.go.set()
    answered(page, "Line 59")
    assert page.locator("#thread").evaluate("node => node.scrollTop") == 0
    page.click("#jump")
    expect(page.locator(".answer .actions")).to_be_in_viewport()

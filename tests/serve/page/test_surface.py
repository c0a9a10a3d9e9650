"""The keyboard, languages, themes and narrow screens."""

from __future__ import annotations

import pytest

from tests.serve.page.scripted import Script, delta, end

pytest.importorskip("playwright.sync_api", reason="playwright drives the browser")

from playwright.sync_api import Page, expect

from tests.serve.page.pages import Visit, answered, ask, asked_text

PHONE = {"viewport": {"width": 360, "height": 740}, "has_touch": True}


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
    for _ in range(70):
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

"""Sampling controls, images and meters."""

from __future__ import annotations

import base64

import pytest
from starlette.responses import JSONResponse

from tests.serve.page.scripted import Script

pytest.importorskip("playwright.sync_api", reason="playwright drives the browser")

from playwright.sync_api import Page, expect

from tests.serve.page.pages import Visit, answered, ask, asked_text

PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)


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


def test_settings_show_what_holds_and_are_reset_one_by_one(page: Page, script: Script) -> None:
    page.click("#open-drawer")
    temperature, slider = page.locator("#temperature"), page.get_by_role("slider", name="Temperature")
    expect(temperature).to_have_attribute("placeholder", "1 (default)")
    assert slider.input_value() == "1"
    expect(page.locator("#max_tokens")).to_have_attribute("placeholder", "all that fits")
    expect(page.locator("#seed")).to_have_attribute("placeholder", "random")
    slider.press("ArrowLeft")
    slider.press("ArrowLeft")
    assert temperature.input_value() == "0.9"
    page.fill("#top_p", "0.5")
    assert page.get_by_role("slider", name="Top-p").input_value() == "0.5"
    page.get_by_role("button", name="Reset “Temperature” to its default").click()
    expect(temperature).to_be_focused()
    assert (temperature.input_value(), slider.input_value()) == ("", "1")
    expect(page.get_by_role("button", name="Reset “Temperature” to its default")).to_be_hidden()
    page.fill("#stop", "END\\n\n\nUser:")
    page.reload()
    for _ in range(2):
        script.text("ok")
    ask(page, "Go")
    answered(page, "ok")
    assert (script.asked[-1]["stop"], script.asked[-1]["top_p"]) == (["END\n", "User:"], 0.5)
    assert "temperature" not in script.asked[-1]
    page.click("#open-drawer")
    page.fill("#stop", "x\n" * 17)
    expect(page.get_by_role("alert").filter(has_text="At most 16")).to_be_visible()
    page.click("#new-chat")
    ask(page, "Go on")
    answered(page, "ok")
    assert "stop" not in script.asked[-1]


def test_images_are_chosen_pasted_dropped_checked_and_sent(page: Page, script: Script) -> None:
    expect(page.locator("#attach")).to_be_visible()
    page.set_input_files("#picker", [{"name": "a.png", "mimeType": "image/png", "buffer": PIXEL}])
    expect(page.locator("#attachments li")).to_have_count(1)
    carry = """([kind, name, size]) => {
        const data = new DataTransfer();
        data.items.add(new File([new Uint8Array(size)], name + ".gif", { type: "image/gif" }));
        const way = { bubbles: true, cancelable: true };
        const pasted = new ClipboardEvent("paste", { ...way, clipboardData: data });
        const event = kind === "paste" ? pasted : new DragEvent("drop", { ...way, dataTransfer: data });
        document.querySelector("#input").dispatchEvent(event);
    }"""
    page.evaluate(carry, ["paste", "pasted", 3])
    expect(page.locator("#attachments li")).to_have_count(2)
    page.evaluate(carry, ["drop", "dropped", 3])
    expect(page.locator("#attachments li")).to_have_count(3)
    page.get_by_role("button", name="Remove pasted.gif").click()
    page.get_by_role("button", name="Remove dropped.gif").click()
    page.evaluate(carry, ["drop", "big", 5_000_001])
    expect(page.locator("#composer-error")).to_have_text("big.gif is larger than 5 MB. Choose a smaller image.")
    page.set_input_files("#picker", [{"name": "a.svg", "mimeType": "image/svg+xml", "buffer": b"<svg/>"}])
    expect(page.locator("#composer-error")).to_contain_text("a.svg is not a PNG")
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
    expect(page.locator("#attachments")).to_be_hidden()
    page.reload()
    expect(page.locator(".bubble img")).to_have_count(1)


def test_what_the_model_cannot_do_is_not_offered(visit: Visit, script: Script) -> None:
    script.facts = {"context": 1000, "supports_images": False, "supports_reasoning": False}
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
    expect(page.locator("#per-token")).to_have_text("27.6 kB per token")
    expect(page.locator("#queue-text")).to_have_text("1 running, 2 waiting")
    with page.expect_request("**/metrics"):
        pass


def test_a_menu_chooses_among_several_models_and_leaves_their_aliases_out(page: Page, script: Script) -> None:
    names = {"small": "small", "large": "large", "gpt-4o": "large"}
    cards = [{"id": name, "object": "model", "root": root} for name, root in names.items()]
    script.models = JSONResponse({"object": "list", "data": cards})
    script.text("ok")
    page.reload()
    expect(page.locator("#model option")).to_have_text(["small", "large"])
    page.select_option("#model", "large")
    page.reload()
    ask(page, "Which?")
    answered(page, "ok")
    assert script.asked[-1]["model"] == "large"

"""What the empty page offers: prompts of the model's own run, and texts to continue for a base model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fathom.inference.language_model import LanguageModel
from fathom.spec.engine import EngineSpec
from fathom.spec.mapping import from_mapping, to_mapping
from fathom.spec.recipe import Recipe
from tests.serve.page.scripted import Script, end, text
from tests.serve.serving import running

pytest.importorskip("playwright.sync_api", reason="playwright drives the browser")

from playwright.sync_api import Browser, Page, expect

from tests.serve.page.pages import Visit, answered, ask, asked_text, watched

OWN = {"kind": "chat", "prompts": [{"label": "1 + 1?", "text": "1 + 1?\n"}, {"label": "<b>2</b>", "text": "two"}]}
STARTS = {"kind": "completion", "prompts": [{"label": "The city of", "text": "The city of\n"}]}


def offered(page: Page) -> list[str]:
    expect(page.locator("#suggestions button").first).to_be_visible()
    return page.locator("#suggestions button").all_text_contents()


@pytest.mark.parametrize("locale", ["en-US", "zh-CN"])
def test_prompts_of_the_models_own_are_offered_as_they_are_in_either_language(
    visit: Visit, script: Script, locale: str
) -> None:
    script.facts |= {"suggestions": OWN}
    page = visit(locale=locale)
    assert offered(page) == ["1 + 1?", "<b>2</b>"]
    page.click("#language")
    assert offered(page) == ["1 + 1?", "<b>2</b>"]
    expect(page.locator("#continues")).to_be_hidden()
    script.text("2")
    page.locator("#suggestions button").first.click()
    answered(page, "2")
    assert asked_text(script) == [("user", "1 + 1?\n")]


@pytest.mark.parametrize("kind", ["chat", "completion"])
def test_a_model_with_none_gets_neutral_ones_in_the_pages_language(visit: Visit, script: Script, kind: str) -> None:
    script.facts |= {"suggestions": {"kind": kind, "prompts": []}}
    page = visit()
    languages = page.evaluate("async () => (await import('/page/i18n.js')).LANGUAGES")
    keys = [f"{'question' if kind == 'chat' else 'start'}{number}" for number in (1, 2, 3)]
    assert offered(page) == [languages["en"][key] for key in keys]
    page.click("#language")
    assert offered(page) == [languages["zh"][key] for key in keys]
    script.answers.append([text("!"), *end()] if kind == "completion" else [])
    page.locator("#suggestions button").last.click()
    expect(page.locator(".bubble")).to_have_text(languages["zh"][keys[2]])


def test_a_base_model_continues_the_text_of_all_turns(visit: Visit, script: Script) -> None:
    script.facts |= {"suggestions": STARTS}
    page = visit()
    expect(page.locator("#continues")).to_be_visible()
    expect(page.locator("#input")).to_have_attribute("placeholder", "Write the start of a text")
    page.click("#open-drawer")
    expect(page.locator("#system")).to_be_hidden()
    expect(page.locator("#thinking-choice")).to_be_hidden()
    expect(page.locator("#attach")).to_be_hidden()
    script.answers += [[text(" Ulm"), text(" and"), *end()], [text(" is old"), *end()]]
    page.locator("#suggestions button").first.click()
    answered(page, "Ulm and")
    assert (script.asked[-1]["prompt"], script.asked[-1]["max_tokens"]) == ("The city of\n", 256)
    assert "messages" not in script.asked[-1]
    page.fill("#max_tokens", "9")
    ask(page, ", which")
    answered(page, "is old")
    assert (script.asked[-1]["prompt"], script.asked[-1]["max_tokens"]) == ("The city of\n Ulm and, which", 9)


def run_of(model: LanguageModel, directory: Path, examples: dict[str, Any] | None) -> LanguageModel:
    """Return the model as one of a run: pretrained, or post-trained where there are examples of tasks."""
    train = {
        "sequence_length": 8,
        "total_tokens": 8,
        "batch": {"size": 1, "micro_batch_size": 1},
        "optimizer": {"lr": 1e-3},
    }
    gym = {"kind": "reasoning_gym", "dataset": "chain_sum"}
    steps: list[dict[str, Any]] = [
        {"kind": "corpus", "manifest": "a.toml"},
        {"kind": "tokenizer", "vocab_size": model.spec.vocab_size},
        {"kind": "shards"},
        {"kind": "train", "name": "train", "train": train},
        {"kind": "sample", "prompts": ["The river", "The road"]},
        {"kind": "sft", "data": [{"kind": "file", "path": "a.jsonl"}], "train": train | {"epochs": 1.0}},
        {"kind": "tasks", "problems": [gym], "max_tokens": 8},
    ]
    del steps[5]["train"]["total_tokens"]
    recipe = from_mapping(Recipe, {"name": "tiny", "model": to_mapping(model.spec), "steps": steps})
    directory.mkdir(exist_ok=True)
    (directory / "recipe.json").write_text(json.dumps({"recipe": to_mapping(recipe)}))
    (directory / "state.json").write_text('{"steps": {}}')
    if examples is not None:
        (directory / "tasks.json").write_text(json.dumps({"examples": examples}))
    checkpoint = directory / ("train" if examples is None else "sft") / "checkpoints" / "step-1"
    spec = EngineSpec(max_batch=4, cache_tokens=2048, page_size=16)
    return LanguageModel(model.model, model.tokenizer, checkpoint, model.eos_ids, engine=spec)


def test_a_served_run_offers_its_tasks_or_its_text_starts_and_answers_them(
    browser: Browser, opened: LanguageModel, tmp_path: Path
) -> None:
    examples = {"sums": [{"question": "What is 1 + 1?", "answers": {"sft": {"correct": True}}}]}
    for number, (found, expected) in enumerate([(examples, ["What is 1 + 1?"]), (None, ["The river", "The road"])]):
        model = run_of(opened, tmp_path / str(number), found)
        with running(model) as server, watched(browser, server.url) as page:
            assert offered(page) == expected
            page.click("#open-drawer")
            page.fill("#max_tokens", "4")
            page.locator("#suggestions button").first.click()
            expect(page.locator(".answer").last).to_have_attribute("aria-busy", "false", timeout=20_000)
            assert page.locator(".failure").count() == 0
            expect(page.locator(".bubble")).to_have_text(expected[0])
            assert server.idle()

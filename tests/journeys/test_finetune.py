"""Own chats -> finetune -> chat -> serve -> export, each typed once."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

import httpx2
import pytest

from tests.journeys.terminal import Terminal

CITIES = ("Oslo", "Rome", "Bern", "Riga", "Lima", "Kyiv")
SAID = ("weather", "food", "music")
CLOSING = "said the bird."


def write_chats(path: Path) -> None:
    """Write thirty chats of a bird that closes every answer alike."""
    rng = random.Random(1)
    pairs = [(city, thing, mood) for city in CITIES for thing in SAID for mood in ("good", "bad")][:30]
    rng.shuffle(pairs)
    rows = [
        [
            {"role": "user", "content": f"Is the {thing} {mood} in {city}?"},
            {"role": "assistant", "content": f"The {thing} is {mood}, {CLOSING}"},
        ]
        for city, thing, mood in pairs
    ]
    path.write_text("".join(json.dumps({"messages": row}) + "\n" for row in rows), encoding="utf-8")


@pytest.mark.slow
@pytest.mark.parametrize("adapter", ["", " --lora"], ids=["full", "lora"])
def test_own_chats_become_a_model_that_is_chatted_with_served_and_exported(
    terminal: Terminal, publish: Callable[..., Path], adapter: str
) -> None:
    model = publish("tiny-qwen2")
    write_chats(terminal.folder / "chats.jsonl")
    rate = "--lr 1e-2 --epochs 25"
    tuned = terminal.type(f"fathom finetune {model} chats.jsonl --out bird {rate}{adapter}")
    assert "held-out: Is the " in tuned.out
    assert "validation loss" in tuned.out
    forms = ["hf", "peft"] if adapter else ["hf"]
    chat, serve, *exports = tuned.next_commands()
    assert exports == [f"fathom convert bird bird-{form} --to {form}" for form in forms]
    asked = "Is the music good in Rome?"
    assert CLOSING in terminal.type(f"{chat} --temperature 0", keys=asked + "\n").out
    with terminal.serving(f"{serve} --port 0") as address:
        message = {"model": "bird", "messages": [{"role": "user", "content": asked}], "temperature": 0}
        answer = httpx2.post(f"{address}/v1/chat/completions", json=message, timeout=60).json()
        assert CLOSING in answer["choices"][0]["message"]["content"]
    for export in exports:
        terminal.type(export)
    assert (terminal.folder / "bird-hf" / "config.json").is_file()
    assert (terminal.folder / "bird-peft" / "adapter_config.json").is_file() == bool(adapter)
    assert CLOSING in terminal.type("fathom chat bird-hf --temperature 0", keys=asked + "\n").out
    again = terminal.type(f"fathom finetune {model} chats.jsonl --out bird {rate}{adapter}")
    assert again.next_commands() == tuned.next_commands()
    report = (terminal.folder / "bird" / "report.html").read_text(encoding="utf-8")
    assert "Before and after" in report


@pytest.mark.slow
def test_what_holds_no_conversation_is_refused_with_the_forms(terminal: Terminal) -> None:
    (terminal.folder / "rows.jsonl").write_text('{"height": 3, "width": 4}\n', encoding="utf-8")
    refused = terminal.type("fathom finetune smollm2-135m rows.jsonl", code=2)
    assert "height" in refused.err
    assert "messages" in refused.err
    assert refused.err.count("\n") == 1
    assert not (terminal.folder / "runs").exists()

"""Own problems and an own reward -> recipe new grpo -> check -> train, each typed once."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.journeys.terminal import Terminal
from tests.json_lines import write_json_lines

pytestmark = pytest.mark.slow
Publish = Callable[[str], Path]
REWARD = """def brevity(prompt, answer, reference):
    return 1.0 / (1 + len(answer.split()))
"""


def write_recipe(terminal: Terminal, model: Path, reward: str) -> None:
    """Have a recipe made for own problems, and name the function in it as its comment says."""
    rows = [{"question": f"What is {a} plus {b}?", "answer": str(a + b)} for a in range(1, 9) for b in range(1, 9)]
    write_json_lines(terminal.folder / "sums.jsonl", rows)
    (terminal.folder / "rewards.py").write_text(reward)
    terminal.type(f"fathom recipe new grpo --model {model} --problems sums.jsonl --hours 0.002 --out mine.toml")
    recipe = terminal.folder / "mine.toml"
    text = recipe.read_text()
    assert '# { kind = "function", target = "rewards:NAME" }' in text
    accuracy = 'rewards = [{ kind = "accuracy" }]'
    assert accuracy in text
    recipe.write_text(text.replace(accuracy, 'rewards = [{ kind = "function", target = "rewards:brevity" }]'))


def test_an_own_reward_is_learned_from(terminal: Terminal, publish: Publish) -> None:
    write_recipe(terminal, publish("tiny-llama"), REWARD)
    terminal.type("fathom recipe check mine.toml")
    refused = terminal.type("fathom train mine.toml --out runs/mine", code=2)
    (allowed,) = refused.next_commands()
    assert "--allow-code" in allowed
    assert "reward" in terminal.type(allowed).shown
    metrics = (terminal.folder / "runs" / "mine" / "grpo" / "metrics.jsonl").read_text().splitlines()
    assert 0 < json.loads(metrics[-1])["reward"] <= 1


def test_a_reward_that_always_fails_stops_the_run_with_its_line(terminal: Terminal, publish: Publish) -> None:
    write_recipe(terminal, publish("tiny-llama"), "def brevity(prompt, answer, reference):\n    return answer.length\n")
    shown = terminal.type("fathom train mine.toml --out runs/mine --allow-code", code=2).shown
    assert "rewards.py" in shown
    assert "line 2" in shown
    assert "has no attribute 'length'" in shown

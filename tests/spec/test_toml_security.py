"""TOML of strangers: whatever it holds, an error that can be read, soon."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fathom.errors import SpecError
from fathom.spec import from_mapping, read_toml, to_mapping
from fathom.spec.problem import SymbolicProblems
from fathom.spec.recipe import Recipe, TasksStep
from fathom.spec.rewards import CodeReward

HEAD = 'name = "x"\n[[steps]]\nkind = "pictures"\n'
HOSTILE = {
    "a key of many parts": "a" + ".a" * 400_000 + " = 1",
    "a table of many parts": "[" + "a . " * 200_000 + "a]",
    "quoted parts": '"\\""' + '."\\""' * 100_000 + " = 1",
    "a deep list": "count = " + "[" * 100_000,
    "a deep table": "count = " + "{a = " * 100_000,
    "sixty tables and lists": "count." + ".".join("a" * 60) + " = " + "[" * 10 + "]" * 10,
    "an integer of many digits": "count = " + "9" * 100_000,
    "an integer of many bits": "count = 0x" + "f" * 100_000,
    "a large integer": "count = 1" + "0" * 30,
    "a long list": "count = [" + "1, " * 200_000 + "]",
    "a long word": "count = '" + "w" * 900_000 + "'",
    "not a number": "count = nan",
    "infinity": "size = inf",
    "a date": "count = 1979-05-27T07:32:00Z",
    "no date": "count = 2024-02-30",
    "a name with an escape": '"\\u001b]0;x\\u0007" = 1',
    "a name with newlines": '"a\\n\\n\\nb" = 1',
    "a name that turns the text": '"\\u202Ex" = 1',
    "a long name": "a" * 500_000 + " = 1",
    "many steps": "[[steps]]\nkind = 'report'\n" * 20_000,
    "too many bytes": "# " + "x" * (1 << 20),
    "a zero byte in a path": 'kind = "corpus"\nmanifest = "a\\u0000b"',
    "a kind that is a list": 'kind = ["pictures"]',
}


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_toml_ends_in_one_short_line(what: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(HEAD.replace('kind = "pictures"\n', "") + HOSTILE[what] if "kind" in what else HEAD + HOSTILE[what])
    with pytest.raises(SpecError) as caught:
        from_mapping(Recipe, read_toml(path))
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 4000


def test_prompts_of_many_dots_and_words_are_no_keys(tmp_path: Path) -> None:
    text = " ".join(["e.g. this... and that."] * 200) + "www." + "example.org."
    path = tmp_path / "recipe.toml"
    path.write_text(f'a.b."c.d" = """{text}"""\n')
    assert read_toml(path) == {"a": {"b": {"c.d": text}}}


def test_what_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.toml"
    if not hasattr(os, "mkfifo"):
        pipe.mkdir()
    else:
        os.mkfifo(pipe)
    with pytest.raises(SpecError, match=r"pipe\.toml: is (no file|a folder)"):
        read_toml(pipe)


def test_leaving_the_sandbox_is_no_matter_of_a_recipe() -> None:
    with pytest.raises(SpecError, match=r"^unsandboxed: would run programs .* your files and network.*--unsandboxed"):
        from_mapping(CodeReward, {"kind": "code", "unsandboxed": True})
    for odd in (1, "false", 0, None):
        with pytest.raises(SpecError, match="unsandboxed"):
            from_mapping(CodeReward, {"kind": "code", "unsandboxed": odd})
    assert from_mapping(CodeReward, {"kind": "code", "unsandboxed": False}) == CodeReward()
    assert "unsandboxed" not in to_mapping(CodeReward())


@pytest.mark.parametrize(
    "fields",
    [{"seconds": 1e300}, {"seconds": float("inf")}, {"seconds": float("nan")}, {"memory_mib": 2**62}, {"seconds": 0.0}],
)
def test_limits_are_ones_that_a_system_can_count(fields: dict[str, float]) -> None:
    with pytest.raises(SpecError, match=f"^{next(iter(fields))}: "):
        from_mapping(CodeReward, {"kind": "code", **fields})


def test_a_reward_takes_a_day_at_most() -> None:
    problems = (SymbolicProblems(),)
    TasksStep(problems=problems, max_tokens=1, reward_timeout_seconds=86_400.0)
    with pytest.raises(SpecError, match=r"reward_timeout_seconds: 86401 s are more than a day; give 86400 or less"):
        TasksStep(problems=problems, max_tokens=1, reward_timeout_seconds=86_401.0)

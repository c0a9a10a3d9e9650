"""The READMEs say the same things, and what documents tell people to type exists."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.core import TyperGroup
from typer.main import get_command

from fathom.cli.main import make_app

ROOT = Path(__file__).resolve().parent.parent
BLOCK = re.compile(r"```(\w+)\n(.*?)```", re.DOTALL)


def blocks(name: str) -> list[tuple[str, str]]:
    found = BLOCK.findall((ROOT / name).read_text(encoding="utf-8"))
    return [(kind, re.sub(r"[ ]*#.*", "", text)) for kind, text in found]


def commands() -> list[list[str]]:
    texts = [text for name in ("README.md", "README.zh-CN.md") for kind, text in blocks(name) if kind == "console"]
    lines = {line for text in texts for line in text.splitlines() if line.strip()}
    pages = [path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs").glob("*.md"))]
    run = {command for page in pages for command in re.findall(r"<!-- run: (.+?) -->", page)}
    return [shlex.split(line) for line in sorted(lines | run)]


def test_both_languages_show_the_same_code_and_figures() -> None:
    assert blocks("README.md") == blocks("README.zh-CN.md")
    numbers = [
        re.findall(r"\d[\d.]* x? ?\|", (ROOT / n).read_text(encoding="utf-8")) for n in ("README.md", "README.zh-CN.md")
    ]
    assert numbers[0] == numbers[1]


def test_there_is_something_to_type() -> None:
    programs = [Path(command[0]).name for command in commands()]
    assert programs.count("fathom") >= 8
    assert programs.count("make") >= 2


def options_of(arguments: list[str]) -> set[str]:
    """Return the options of the verb that a command line begins with, which must exist."""
    command: Any = get_command(make_app())
    for word in arguments:
        if not isinstance(command, TyperGroup):
            break
        command = command.commands[word]
    return {"--help"} | {
        option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)
    }


@pytest.mark.parametrize("command", commands(), ids=" ".join)
def test_every_command_in_the_documents_exists(command: list[str]) -> None:
    program, arguments = Path(command[0]).name, command[1:]
    if program == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
        assert arguments[0] in targets
    elif program == "python":
        script = f"{arguments[1].replace('.', '/')}.py" if arguments[0] == "-m" else arguments[0]
        assert (ROOT / script).is_file()
    elif program == "cat":
        assert all((ROOT / name).is_file() for name in arguments)
    else:
        assert program == "fathom"
        options = options_of(arguments)
        for option in (word for word in arguments[1:] if word.startswith("--")):
            assert option.partition("=")[0] in options
        for recipe in (word for word in arguments if word.endswith(".toml")):
            assert (ROOT / recipe).is_file()


def test_the_tour_shows_what_its_commands_print() -> None:
    command = [sys.executable, "docs/generate.py", "--check", "--only", "models --family"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout

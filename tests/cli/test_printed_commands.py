"""Every command that a message shows is one that the command line takes, and the main ones are typed."""

from __future__ import annotations

import ast
import json
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

import fathom
from fathom.cli.main import make_app
from fathom.pipeline.recorded_plan import resume_command

PACKAGE = Path(fathom.__file__).parent
COMMAND = re.compile(r"(?<!import )\bfathom (?=[a-z]+\b)(?P<words>[^\n`;]*)")


def texts(tree: ast.AST) -> Iterator[str]:
    """Yield the strings of a module but for its docstrings; what an f-string inserts is X."""
    inside: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            inside.add(id(node.value))
        if isinstance(node, ast.JoinedStr):
            inside |= {id(value) for value in ast.walk(node) if value is not node}
            parts = (str(part.value) if isinstance(part, ast.Constant) else "X" for part in node.values)
            yield "".join(parts)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in inside:
            yield node.value


def printed_commands() -> list[tuple[str, str]]:
    """Return every command in a message of the package, with the module it is in."""
    verbs = set(typer.main.get_command(make_app()).commands)  # type: ignore[attr-defined]
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        for text in texts(ast.parse(path.read_text(encoding="utf-8"))):
            for match in COMMAND.finditer(text):
                words = match["words"]
                if words.split()[0] in verbs and not re.match(r"\w+ (\(|fetches|of )", words):
                    found.append((path.relative_to(PACKAGE).as_posix(), words))
    return found


def parse(words: list[str]) -> None:
    """Parse a command line as ``fathom`` does, without running it."""
    verb = typer.main.get_command(make_app()).commands[words[0]]  # type: ignore[attr-defined]
    with verb.make_context(words[0], list(words[1:])):
        pass


def test_every_printed_command_is_one() -> None:
    commands = printed_commands()
    assert len(commands) >= 8
    for where, words in commands:
        command = re.split(r" (?:fetches|lists|gives|shows|runs|writes)(?= )|,$|\.$|\)", words)[0]
        try:
            parse(shlex.split(command))
        except Exception as error:
            raise AssertionError(f"{where}: fathom {command}") from error


def test_a_printed_command_that_is_none_is_found() -> None:
    with pytest.raises(Exception, match="--nothing"):
        parse(["train", "--nothing"])
    assert [*texts(ast.parse('"""fathom x"""\nraise E(f"run: fathom train {out} --resume" "now")'))] == [
        "run: fathom train X --resumenow"
    ]


def test_paths_with_blanks_are_quoted() -> None:
    assert shlex.split(resume_command(Path("my runs/one"))) == [
        *("fathom", "train", "--resume", "--out", str(Path("my runs/one")))
    ]


def test_a_run_is_continued_without_its_recipe(finished: Path, texts: Path, tmp_path: Path, call) -> None:
    directory = tmp_path / "copy"
    shutil.copytree(finished, directory)
    state = json.loads((directory / "state.json").read_text())
    del state["steps"]["sample"], state["steps"]["report"]
    (directory / "state.json").write_text(json.dumps(state))
    changed = call("train", "--resume", "--out", directory, "--set", "sample.sampling.max_tokens=3")
    assert changed.code == 0, changed.err
    assert json.loads((directory / "recipe.json").read_text())["recipe"]["steps"][7]["sampling"]["max_tokens"] == 3
    assert "nothing to do" in call("train", "--resume", "--out", directory).out
    call("train", "--resume").refused("RECIPE: is missing", "--resume --out RUN")
    call("train", "--resume", "--out", tmp_path / "none").refused("holds no run to take it from")
    call("train", "--out", directory).refused("already holds a run", "--resume")
    call("train", "--resume", "--out", directory, "--set", "sample.x=1").refused("recipe.json: steps[7].x", "unknown")


def test_what_a_run_reads_is_missed_where_it_is_gone(tmp_path: Path, call) -> None:
    texts, recipes, directory = tmp_path / "texts", tmp_path / "recipes", tmp_path / "run"
    for folder in (texts, recipes):
        folder.mkdir()
    for index in range(9):
        (texts / f"{index}.txt").write_text(f"The {index} rivers and {index * index} towers of the {index} towns.")
    recipe = shutil.copy(Path(__file__).parents[1] / "pipeline" / "tiny.toml", recipes)
    assert call("train", recipe, "--text", texts, "--out", directory, "--until", "corpus").code == 0
    state = (directory / "state.json").read_text()
    texts.rename(tmp_path / "moved")
    again = ("train", "--resume", "--out", directory, "--until", "tokenizer", "--set", "tokenizer.vocab_size=330")
    (directory / "state.json").write_text(state.replace('"done"', '"failed"'))
    call(*again).refused("texts of source 'texts' is not there any more", "--text FOLDER")
    assert call(*again, "--set", "model.vocab_size=330", "--text", tmp_path / "moved").code == 0
    recipes.rename(tmp_path / "elsewhere")
    call("train", "--resume", "--out", directory).refused(f"{recipes}, is not there any more", "fathom train RECIPE")
    record = json.loads((directory / "recipe.json").read_text())
    for base, words in (("elsewhere", "no absolute path"), (3, "no absolute path"), ("/a\0b", "zero byte")):
        (directory / "recipe.json").write_text(json.dumps(record | {"base": base}))
        call("train", "--resume", "--out", directory).refused(words, "--restart")
    del record["base"]
    (directory / "recipe.json").write_text(json.dumps(record))
    call("train", "--resume", "--out", directory).refused("does not record the folder of its recipe", "train RECIPE")

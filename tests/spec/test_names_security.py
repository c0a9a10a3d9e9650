"""Names that become paths, and the files that steps leave, whoever wrote the recipe."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fathom.errors import SpecError
from fathom.families import preset
from fathom.spec import MixtureOfExperts, check, from_mapping
from fathom.spec.data import FolderSource, Manifest
from fathom.spec.problem import FileProblems, GymProblems, SymbolicProblems
from fathom.spec.recipe import (
    CorpusStep,
    EvaluateStep,
    OpenStep,
    PicturesStep,
    Recipe,
    ReportStep,
    SampleStep,
    TasksStep,
)
from fathom.spec.rewards import AccuracyReward, FormatReward, FunctionReward, check_rewards

HOSTILE = (
    *("", ".", "..", "../x", "/etc/passwd", "a/b", "a\\b", "c:x", "a b", "a\nb", "a\0b", "~", "-.", ".hidden", "x."),
    *("CON", "con", "nul", "Com1", "lpt9", "x" * 101, "天" * 34, "a\u202eb", "a\u200bb", "\x1b]0;x", "\ud800"),
    *(
        "\uff21",
        "\u00b2",
        "e\u0301",
        "\u3164",
        "\u115f",
        "a\ufe0f",
        "\ufb01",
        "a*",
        "a?",
        'a"',
        "a|b",
        "a<b",
        "a\u2215b",
    ),
)
PLAIN = ("pretrain", "r1-zero", "grpo_2", "蒸馏", "ünïcode", "हिन्दी", "日本語-2", "con-1", "console", "x" * 100)
PLACES: tuple[Callable[[str], Any], ...] = (
    lambda name: FolderSource(name=name, path="x"),
    lambda name: AccuracyReward(name=name),
    lambda name: FunctionReward(name=name, target="a:b"),
    lambda name: Recipe(name=name, steps=(ReportStep(),)),
    lambda name: Recipe(name="x", steps=(PicturesStep(name=name, count=1),)),
    lambda name: Recipe(name="x", steps=(SampleStep(name=name, prompts=("a",)),)),
    lambda name: from_mapping(Recipe, {"name": "x", "steps": [{"kind": "report", "name": name}]}),
)
NAMED_BY_DEFAULT: tuple[Callable[[str], Any], ...] = (
    lambda name: GymProblems(dataset="x", name=name),
    lambda name: SymbolicProblems(name=name),
    lambda name: FileProblems(path="x", name=name),
)


@pytest.mark.parametrize("make", PLACES)
def test_hostile_names_are_refused_wherever_they_stand(make: Callable[[str], Any]) -> None:
    for name in HOSTILE:
        with pytest.raises(SpecError, match=r"name: .* is not a plain name: .*; use letters, digits") as caught:
            make(name)
        assert str(caught.value).isprintable()
        assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("make", NAMED_BY_DEFAULT)
def test_hostile_names_of_problems_are_refused(make: Callable[[str], Any]) -> None:
    for name in filter(None, HOSTILE):
        with pytest.raises(SpecError, match="is not a plain name"):
            make(name)


@pytest.mark.parametrize("make", [*PLACES, *NAMED_BY_DEFAULT])
def test_names_in_any_script_are_taken(make: Callable[[str], Any]) -> None:
    for name in PLAIN:
        make(name)


def test_only_a_recipe_has_dots_in_its_name() -> None:
    assert Recipe(name="qwen2.5-0.5b", steps=(ReportStep(),)).name == "qwen2.5-0.5b"
    for name in ("con.x", ".x", "x.", "..", "."):
        with pytest.raises(SpecError, match="is not a plain name"):
            Recipe(name=name, steps=(ReportStep(),))
    with pytest.raises(SpecError, match=r"it has '\.'"):
        Recipe(name="x", steps=(ReportStep(name="a.b"),))


@given(st.text(max_size=110), st.booleans())
def test_an_accepted_name_is_one_part_of_a_path(name: str, dots: bool) -> None:
    try:
        check.plain_name("name", name, dots=dots)
    except SpecError:
        return
    assert name.isprintable()
    assert unicodedata.normalize("NFC", name) == name
    assert Path("runs", name).parts == ("runs", name)
    assert not set(name) & set('/\\:*?"<>| ')
    assert len(name.encode()) <= 100


@given(st.text(max_size=300))
def test_any_file_has_a_plain_name(text: str) -> None:
    name = check.plain_stem(text, "text")
    check.plain_name("name", name)
    assert FileProblems(path=f"{text}.jsonl" if text.strip() else "x").name


def test_names_that_differ_in_case_alone_are_one_name() -> None:
    with pytest.raises(SpecError, match=r"'a' and 'A' differ in case alone"):
        Manifest(sources=(FolderSource(name="a", path="x"), FolderSource(name="A", path="y")))
    with pytest.raises(SpecError, match="differ in case alone"):
        check_rewards("rewards", (AccuracyReward(name="x"), FormatReward(name="X")))
    with pytest.raises(SpecError, match="differ in case alone"):
        Recipe(name="x", steps=(EvaluateStep(name="straße"), EvaluateStep(name="STRASSE")))
    with pytest.raises(SpecError, match="'tests' is used twice"):
        TasksStep(max_tokens=1, problems=(SymbolicProblems(name="tests"), FileProblems(path="tests.jsonl")))


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ((EvaluateStep(name="recipe"),), r"steps\[0\]\.name: 'recipe' would write recipe\.json, .* the run itself"),
        ((EvaluateStep(name="State"),), "would write State.json, which the run itself"),
        ((ReportStep(name="page"), EvaluateStep(name="report")), "would write report.json, which a report step"),
        ((SampleStep(prompts=("a",)), EvaluateStep(name="samples")), "samples.json, which sample step 'sample'"),
        ((OpenStep(name="a", model="x"), OpenStep(name="A", model="x")), "differ in case alone"),
    ],
)
def test_no_step_writes_over_another_or_over_the_record(steps: Any, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        Recipe(name="x", steps=steps)


def test_a_recipe_has_a_bounded_number_of_steps() -> None:
    steps = tuple(CorpusStep(name=f"c{index}", manifest="x") for index in range(257))
    with pytest.raises(SpecError, match="steps: 257 are more than 256"):
        Recipe(name="x", steps=steps)
    Recipe(name="x", steps=steps[:256])


@given(st.integers(1, 40), st.integers(0, 40), st.integers(1, 45))
def test_layers_with_experts_are_counted_without_walking_them(layers: int, dense: int, every: int) -> None:
    given_spec = {"n_routed_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 8}
    base = preset("bench-t")
    fields = {name: getattr(base, name) for name in base.__slots__}
    fields |= {"num_hidden_layers": layers, "first_k_dense_replace": min(dense, layers), "moe_layer_freq": every}
    spec = type(base)(**(fields | {"intermediate_size": 8, "moe": MixtureOfExperts(**given_spec)}))
    assert spec.num_moe_layers == sum(spec.is_moe_layer(index) for index in range(layers))

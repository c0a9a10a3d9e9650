from __future__ import annotations

import importlib
import json
import subprocess
import sys
from dataclasses import asdict

import pytest

from fathom.data.problems import open_problems
from fathom.data.problems.gym import CHUNK, UNSUPPORTED_DATASETS, open_gym
from fathom.errors import DataError, SpecError
from fathom.spec.problem import GymProblems, Split

gym = pytest.importorskip("reasoning_gym")
SLOW = {"acre", "futoshiki", "puzzle24", "sokoban", "zebra_puzzles"}
OFFERED = sorted(set(gym.factory.DATASETS) - set(UNSUPPORTED_DATASETS))


@pytest.mark.parametrize("dataset", OFFERED)
def test_scorers_take_the_reference_answer_of_problems_that_went_through_json(dataset: str) -> None:
    score = gym.get_score_answer_fn(dataset)
    for problem in open_gym(GymProblems(dataset=dataset)).problems("train", 0, 2 if dataset in SLOW else 12):
        row = json.loads(json.dumps(asdict(problem)))
        entry = {"question": row["question"], "answer": row["answer"], "metadata": row["details"]["metadata"]}
        assert row["details"]["dataset"] == dataset
        assert score(row["answer"], entry) == 1.0, row


def test_every_refused_data_set_exists_and_is_told_why() -> None:
    assert set(UNSUPPORTED_DATASETS) <= set(gym.factory.DATASETS)
    for dataset, why in UNSUPPORTED_DATASETS.items():
        with pytest.raises(SpecError, match="choose another data set") as caught:
            open_gym(GymProblems(dataset=dataset))
        assert str(caught.value).startswith(f"dataset: {dataset!r} {why}; ")


def test_two_one_digit_terms_never_meet_their_held_out_questions() -> None:
    options = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}
    task = open_problems(GymProblems(dataset="chain_sum", name="small", options=options))
    train = {p.question for p in task.problems("train", 0, 2000)}
    kept = {p.question for p in task.problems("held_out", 0, 100, seed=1)}
    assert len(train) > 150
    assert len(train | kept) == 200
    assert not train & kept
    # the same questions under another name, or among harder ones, fall on the same side
    harder = open_problems(GymProblems(dataset="chain_sum", name="other", options={"max_terms": 3, "max_digits": 1}))
    assert not kept & {p.question for p in harder.problems("train", 0, 2000)}


@pytest.mark.parametrize("split", ["train", "held_out"])
def test_problems_are_the_same_in_another_process_and_across_chunks(split: Split) -> None:
    source = GymProblems(dataset="letter_counting", options={"max_words": 6})
    script = (
        "from fathom.data.problems import open_problems; from fathom.spec.problem import GymProblems;"
        "task = open_problems(GymProblems(dataset='letter_counting', options={'max_words': 6}));"
        f"print([p.question for p in task.problems({split!r}, 4090, 12, seed=2)])"
    )
    if split == "held_out":
        script = script.replace("4090", "5")
    other = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    here = open_gym(source).problems(split, 5 if split == "held_out" else 4090, 12, seed=2)
    assert str([p.question for p in here]) == other.strip()
    assert len({p.question for p in here}) == 12
    assert len({p.id for p in here}) == 12


def test_a_data_set_goes_on_with_other_problems_after_the_last_of_an_object() -> None:
    task = open_gym(GymProblems(dataset="chain_sum"))
    first, later = (task.problems("train", start, 20) for start in (0, CHUNK))
    assert not {p.question for p in first} & {p.question for p in later}


def test_options_reach_the_data_set_lists_as_tuples() -> None:
    source = GymProblems(dataset="chain_sum", options={"min_terms": 3, "max_terms": 3, "min_digits": 2})
    for problem in open_gym(source).problems("train", 0, 20):
        assert problem.details["metadata"]["num_terms"] == 3
        assert problem.task == "chain_sum"


@pytest.mark.parametrize(
    ("dataset", "options", "message"),
    [
        ("chain_sums", {}, "dataset: there is no 'chain_sums' in reasoning-gym; did you mean 'chain_sum' or"),
        ("qqqq", {}, "dataset: there is no 'qqqq' in reasoning-gym; use a data set"),
        ("chain_sum", {"min_term": 2}, "options.min_term: chain_sum has no such option; did you mean 'min_terms'"),
        ("chain_sum", {"zz": 2}, "options.zz: chain_sum has no such option; known: allow_negation, max_digits"),
        ("chain_sum", {"min_terms": 9}, "options: chain_sum refuses {'min_terms': 9} (max_terms must be >= min_terms"),
        ("chain_sum", {"min_terms": "two"}, "options: chain_sum refuses {'min_terms': 'two'} ('>' not supported"),
    ],
)
def test_unknown_data_sets_and_options_are_told_with_near_ones(dataset: str, options: dict, message: str) -> None:
    with pytest.raises(SpecError) as caught:
        open_gym(GymProblems(dataset=dataset, options=options))
    assert str(caught.value).startswith(message)


def test_a_missing_library_is_told_with_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", absent)
    with pytest.raises(DataError, match=r"not installed; .*pip install .*\[rl\]"):
        open_gym(GymProblems(dataset="chain_sum"))

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from fathom.data.corpus import build_corpus, read_documents
from fathom.data.problem_documents import read_problem_documents
from fathom.data.problems import open_problems
from fathom.data.problems.split import held_out
from fathom.errors import SpecError
from fathom.spec.data import ExerciseSource
from fathom.spec.problem import FileProblems, GymProblems
from fathom.spec.recipe import CorpusStep

SUMS = GymProblems(dataset="chain_sum", options={"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1})
BITS = GymProblems(dataset="count_bits", options={"min_n": 1, "max_n": 63})
SOURCE = ExerciseSource(name="sums", problems=(SUMS, BITS), count=41)


def test_exercises_are_training_problems_of_all_sources_in_turn(tmp_path: Path) -> None:
    documents = list(read_problem_documents(SOURCE, tmp_path))
    assert len(documents) == 41
    sums, bits = (open_problems(each).problems("train", 0, 21, seed=1) for each in (SUMS, BITS))
    assert [document.id for document in documents[:4]] == [sums[0].id, bits[0].id, sums[1].id, bits[1].id]
    first = sums[0]
    result = f"Question: {first.question}\nSolution: {first.details['solution']}\nAnswer: {first.answer}"
    assert documents[0].text == result
    assert not any(held_out("chain_sum", problem.question) for problem in sums)


def test_a_text_that_shows_no_solution_needs_none(tmp_path: Path) -> None:
    file = tmp_path / "own.jsonl"
    file.write_text('{"question": "{answer}?", "answer": "7"}\n' * 3)
    source = ExerciseSource(
        name="own", problems=(FileProblems(path=str(file)),), count=1, texts=("{question} {answer}",)
    )
    assert [document.text for document in read_problem_documents(source, tmp_path)] == ["{answer}? 7"]
    assert not list(read_problem_documents(ExerciseSource(name="own", problems=source.problems, count=1), tmp_path))


def test_problems_that_differ_in_a_number_are_no_repetitions(tmp_path: Path) -> None:
    step = CorpusStep(manifest="none", held_out_fraction=0.1)
    summary = build_corpus(step, (ExerciseSource(name="sums", problems=(SUMS,), count=120),), tmp_path / "out")
    kept = summary.sources["sums"]
    assert kept.near_duplicates == 0
    texts = [d.text for split in ("train", "held_out") for d in read_documents(tmp_path / "out", "sums", split)]  # type: ignore[arg-type]
    assert len(texts) == len(set(texts)) == 120 - kept.exact_duplicates > 60


def test_a_text_without_a_place_for_the_answer_is_refused() -> None:
    with pytest.raises(SpecError, match=r"texts: 'Q: \{question\}' has no place for \{answer\}; put it"):
        ExerciseSource(name="sums", problems=(SUMS,), count=1, texts=("{question} {answer}", "Q: {question}"))
    with pytest.raises(SpecError, match="texts: is empty"):
        ExerciseSource(name="sums", problems=(SUMS,), count=1, texts=())


def test_a_page_holds_one_to_several_problems(tmp_path: Path) -> None:
    single = [document.text for document in read_problem_documents(SOURCE, tmp_path)]
    pages = [page.text for page in read_problem_documents(replace(SOURCE, problems_per_document=4), tmp_path)]
    assert "\n\n".join(pages) == "\n\n".join(single)
    assert {page.count("Question: ") for page in pages} == {1, 2, 3, 4}
    assert pages == [page.text for page in read_problem_documents(replace(SOURCE, problems_per_document=4), tmp_path)]
    with pytest.raises(SpecError, match="problems_per_document"):
        replace(SOURCE, problems_per_document=0)


def test_every_page_is_printed_in_one_of_the_manners(tmp_path: Path) -> None:
    manners = (
        "Question: {question}\n{solution}\nAnswer: {answer}",
        "Pupil: {question} Teacher: {solution} So {answer}.",
    )
    pages = [
        page.text for page in read_problem_documents(replace(SOURCE, texts=manners, problems_per_document=3), tmp_path)
    ]
    asked = {page for page in pages if "Question: " in page}
    result = {page for page in pages if "Pupil: " in page}
    assert len(asked) > 1
    assert len(result) > 1
    assert asked | result == set(pages)
    assert not asked & result

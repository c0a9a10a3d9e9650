"""Cases of the public tasks as prompts, in the form their benchmarks give them."""

from __future__ import annotations

import pytest

from fathom.errors import SpecError
from fathom.evals.task_cases import capitalised, find_task, parse_cases, tasks, without_markup


def test_tasks_are_named_with_their_licences() -> None:
    assert {name: task.licence for name, task in tasks().items()} == {
        "gsm8k": "MIT",
        "hellaswag": "MIT",
        "truthfulqa_mc1": "Apache-2.0",
    }
    with pytest.raises(SpecError, match="--task: there is no task 'mmlu'; use one of gsm8k, hellaswag, truthfulqa_mc1"):
        find_task("mmlu")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("He sits. the dog", "He sits. The dog"),
        ('A sign that reads "open" is shown. more People', 'A sign that reads "open" is shown. More people'),
        ('He says "go." they both', 'He says "go." They both'),
        ("It ends. Whole.", "It ends. Whole."),
        ("no end at all", "no end at all"),
    ],
)
def test_the_open_sentence_is_capitalised(text: str, expected: str) -> None:
    assert capitalised(text) == expected


def test_markup_becomes_punctuation() -> None:
    assert without_markup("How to sew [title] Cut. [step] Use  shears. ") == "How to sew. Cut. Use shears."
    assert without_markup("[step] Do it.") == " Do it."


def test_hellaswag_has_its_activity_before_the_text() -> None:
    row = {
        "id": "h1",
        "activity_label": "Polo",
        "ctx": "People swim. two women",
        "endings": ["sit.", "[step] Run."],
        "expected_index": 1,
    }
    (case,) = parse_cases(find_task("hellaswag"), [row])
    assert (case.context, case.choices, case.answer) == ("Polo: People swim. Two women", ("sit.", " Run."), 1)


def test_truthfulqa_follows_six_answered_questions() -> None:
    row = {"id": "t1", "question": "Is it so?", "choices": ["Yes.", "No."], "expected_index": 0}
    (case,) = parse_cases(find_task("truthfulqa_mc1"), [row])
    assert case.context.startswith("Q: What is human life expectancy in the United States?\nA: ")
    assert case.context.endswith("Barcelona, Spain.\n\nQ: Is it so?\nA:")
    assert case.context.count("Q: ") == 7


def test_gsm8k_is_a_question_and_a_number() -> None:
    row = {"id": "g1", "prompt": "How many?", "expected": "18", "upstream_answer": "#### 18"}
    (case,) = parse_cases(find_task("gsm8k"), [row])
    assert (case.question, case.answer) == ("How many?", "18")

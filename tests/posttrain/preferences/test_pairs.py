"""Pairs from files: only the two answers are learned, and whatever is wrong with a line is reported and left out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fathom.chat import encode_chat
from fathom.chat.templates import TEMPLATES
from fathom.data.row_report import RowReport
from fathom.errors import DataError
from fathom.posttrain.preferences import (
    as_preference,
    encode_pairs,
    pair_best_with_worst,
    pairs_from_token_ids,
    read_judged,
    read_preferences,
)
from fathom.tokenizer import Tokenizer, special, train_bpe

ASKED = [{"role": "user", "content": "2 + 3?"}]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_bpe(["What is two plus three? It is five, since three follows two.\n" * 4], vocab_size=330)


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows), encoding="utf-8")
    return path


def test_only_the_two_answers_are_learned(tokenizer: Tokenizer, tmp_path: Path) -> None:
    asked = [*ASKED, {"role": "assistant", "content": "five"}, {"role": "user", "content": "why?"}]
    better = {"role": "assistant", "content": "It is so.", "reasoning_content": "three follows two"}
    path = write(tmp_path / "pairs.jsonl", [{"messages": asked, "chosen": better, "rejected": "no"}])
    report = RowReport()
    (pair,) = encode_pairs(tokenizer, read_preferences(path, report), report, max_tokens=200)
    end = special.END
    for sample, answer in (
        (pair.chosen, f"<think>\nthree follows two\n</think>\n\nIt is so.{end}"),
        (pair.rejected, f"no{end}"),
    ):
        learned = [token for token, on in zip(sample.tokens, sample.learned, strict=True) if on]
        assert tokenizer.decode(learned, skip_special=False) == answer
        assert sample.tokens[: -len(learned)] == encode_chat(tokenizer, asked)
    assert report.used == 1


def test_a_prompt_has_one_key_in_all_dialects(tokenizer: Tokenizer, tmp_path: Path) -> None:
    asked = [{"role": "user", "content": [{"type": "text", "text": "2 + 3? "}]}]
    rows = [{"prompt": prompt, "chosen": "five", "rejected": "six"} for prompt in (ASKED, "2 + 3?", asked, "3 + 3?")]
    report = RowReport()
    path = write(tmp_path / "pairs.jsonl", rows)
    pairs = encode_pairs(tokenizer, read_preferences(path, report), report, max_tokens=200)
    same, other = {pair.key for pair in pairs[:3]}, pairs[3].key
    assert len(same) == 1
    assert other not in same


def test_bad_lines_are_told_counted_and_left_out(tokenizer: Tokenizer, tmp_path: Path) -> None:
    good = {"messages": ASKED, "chosen": "five", "rejected": "six"}
    rows: list[Any] = [
        good,
        "{",
        "[1]",
        {"chosen": "a", "rejected": "b"},
        {**good, "chosen": 5},
        {"messages": ASKED, "chosen": "five"},
        {**good, "messages": [{"role": "sage", "content": "?"}]},
        {**good, "rejected": {"role": "user", "content": "six"}},
        {**good, "rejected": "five"},
        {**good, "chosen": "five " * 60},
        good,
    ]
    report = RowReport()
    pairs = encode_pairs(tokenizer, read_preferences(write(tmp_path / "p.jsonl", rows), report), report, max_tokens=40)
    assert len(pairs) == report.used == 2
    assert dict(report.problems) == {"malformed": 5, "unknown_role": 2, "nothing_learned": 1, "too_long": 1}
    lines = report.lines("pairs")
    assert lines[0] == "2 of 11 pairs are used"
    assert any("p.jsonl, line 2: not JSON" in line for line in lines)
    with pytest.raises(DataError, match=r"none\.jsonl: cannot be read"):
        list(read_preferences(tmp_path / "none.jsonl", report))


def test_an_answer_that_is_not_found_teaches_nothing(tokenizer: Tokenizer, tmp_path: Path) -> None:
    template = (
        "{% if add_generation_prompt and messages | length > 1 %}{{ raise_exception('no prompt') }}{% endif %}"
        "{% for m in messages %}{{ m['content'] + eos_token }}{% endfor %}"
    )
    refuses = Tokenizer(tokenizer.tokenizer_json, {**tokenizer.config, "chat_template": template})
    asked = [{"role": "assistant", "content": "hello"}, *ASKED]
    path = write(tmp_path / "p.jsonl", [{"messages": asked, "chosen": "five", "rejected": "six"}])
    report = RowReport()
    assert encode_pairs(refuses, read_preferences(path, report), report, max_tokens=99) == []
    assert dict(report.problems) == {"nothing_learned": 1}
    assert "hides an answer" in report.lines("pairs")[1]


@pytest.mark.parametrize("name", sorted(TEMPLATES))
def test_answers_are_found_under_every_familys_template(tokenizer: Tokenizer, tmp_path: Path, name: str) -> None:
    family = Tokenizer(tokenizer.tokenizer_json, {**tokenizer.config, "chat_template": TEMPLATES[name]})
    path = write(tmp_path / "p.jsonl", [{"messages": ASKED, "chosen": "It is five", "rejected": "It is six"}])
    report = RowReport()
    (pair,) = encode_pairs(family, read_preferences(path, report), report, max_tokens=900)
    for sample, answer in ((pair.chosen, "It is five"), (pair.rejected, "It is six")):
        learned = [token for token, on in zip(sample.tokens, sample.learned, strict=True) if on]
        assert answer in family.decode(learned, skip_special=False)
        assert "2 + 3" not in family.decode(learned, skip_special=False)


def judged(problem: str, total: float, answer: int) -> dict[str, Any]:
    return {
        "id": problem,
        "task": "sum",
        "question": f"{problem}?",
        "answer": str(answer),
        "prompt_ids": [5, 6],
        "answer_ids": [answer, 1],
        "total": total,
        "correct": total > 0,
    }


def test_judged_answers_pair_best_with_worst_by_problem(tmp_path: Path) -> None:
    rows: list[Any] = [
        judged("a", 0.5, 10),
        judged("b", 1, 20),
        judged("a", 2, 11),
        judged("a", 0, 12),
        judged("b", 1, 21),
        judged("a", 1, 13),
        {**judged("c", 1, 9), "total": "much"},
        {**judged("c", 1, 9), "answer_ids": []},
        {**judged("c", 1, 9), "question": None},
    ]
    report = RowReport()
    answers = list(read_judged(write(tmp_path / "answers.jsonl", rows), report))
    assert dict(report.problems) == {"malformed": 3}
    assert [(a.answer, b.answer) for a, b in pair_best_with_worst(answers, 1)] == [("11", "12")]
    both = pair_best_with_worst(answers, 5)
    assert [(a.answer, b.answer) for a, b in both] == [("11", "12"), ("13", "10")]
    first, second = pairs_from_token_ids(both, report, max_tokens=8)
    assert first.chosen.tokens == [5, 6, 11, 1]
    assert first.chosen.learned == second.rejected.learned == [False, False, True, True]
    assert report.used == 2
    assert pairs_from_token_ids(both, report, max_tokens=2) == []
    assert report.problems["too_long"] == 2
    preference = as_preference(*both[0])
    assert preference.messages == ({"role": "user", "content": "a?"},)
    assert (preference.chosen["content"], preference.rejected["content"]) == ("11", "12")

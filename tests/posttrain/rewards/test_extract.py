import pytest

from fathom.posttrain.rewards.extract import ReasoningSplit, final_answer, split_reasoning, stated_answer


@pytest.mark.parametrize(
    ("text", "thinking", "answer"),
    [
        ("<think> a b </think>\n<answer> 4 </answer>", "a b", "4"),
        ("a b</think>4", "a b", "4"),
        ("<think>a</think> b <think>c</think> 4", "a</think> b <think>c", "4"),
        ("<think>never ends <answer>4</answer>", "never ends <answer>4</answer>", ""),
        ("reasons <answer>1</answer> and <answer>2</answer>", "reasons <answer>1</answer> and", "2"),
        ("<think>a</think><answer>open", "a", "open"),
        ("just 4", "", "just 4"),
        ("", "", ""),
    ],
)
def test_thinking_and_answer_are_told_apart(text: str, thinking: str, answer: str) -> None:
    assert split_reasoning(text) == ReasoningSplit(thinking, answer)


@pytest.mark.parametrize(
    ("text", "final"),
    [
        ("<think>7</think><answer> 4 </answer>", "4"),
        ("<think>7</think><answer>2 1\n1 2</answer>", "2 1\n1 2"),
        ("<think>\\boxed{7}</think>So \\boxed{ \\frac{1}{2} }.", "\\frac{1}{2}"),
        ("first \\boxed{1}, then \\boxed{2}", "2"),
        ("broken \\boxed{1 + {2}\nlast", "last"),
        ("3 + 4 = 7\n#### 7", "7"),
        ("#### 7\nand more", "7"),
        ("<answer>It is \\boxed{5}</answer>", "5"),
        ("It follows.\nThe answer is 9", "The answer is 9"),
        ("<think>no end", None),
        ("<think>a</think>", None),
        ("<answer></answer>", None),
        (" \n ", None),
    ],
)
def test_the_final_answer_is_what_the_text_concludes(text: str, final: str | None) -> None:
    assert final_answer(text) == final


@pytest.mark.parametrize(
    "text", ["15", "**15**", "The answer is 15.", "<answer>$15$</answer>", "so \\boxed{15}", "答案：１５。"]
)
def test_equal_answers_have_equal_votes(text: str) -> None:
    assert stated_answer(text) == "15"


def test_only_the_end_of_a_long_answer_is_looked_at() -> None:
    assert final_answer("\\boxed{1}" + " x" * 100_000 + "\n2") == "2"
    assert final_answer("\\boxed{" * 50_000) is not None

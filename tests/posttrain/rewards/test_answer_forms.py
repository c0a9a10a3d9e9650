"""Every form in which models and data sets write a final answer, with numbers of every kind in it."""

from __future__ import annotations

import re
from collections.abc import Callable
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fathom.data.problems.answer_text import bare_text
from fathom.posttrain.rewards.accuracy import AccuracyScorer
from fathom.posttrain.rewards.answer_value import concluded_value, number_value
from fathom.posttrain.rewards.base import RewardInput
from fathom.posttrain.rewards.extract import final_answer
from fathom.spec.problem import Problem

pytest.importorskip("math_verify", reason="needs the rl extra")

PLAIN_FORMS = (
    "{}",
    "#### {}",
    "**{}**",
    "`{}`",
    "```\n{}\n```",
    "Answer: {}",
    "answer is {}",
    "The answer is {}.",
    "The correct answer is: {}",
    "So the final answer is **{}**.",
    "**Answer:** {}",
    "**Answer: {}**",
    "**Final Answer**\n\n{}",
    "### Final Answer:\n{}",
    "## Answer\n\n**{}**\n",
    "Final Answer: The final answer is {}. I hope it is correct.",
    "The answer is {} apples.",
    "Answer: {}\n\nExplanation: 3 boxes hold 5 apples each.",
    "The answer is {}.\nI hope this helps!",
    "So she has **{}** apples in the end.",
    "<answer>{}</answer>",
    "<answer> The answer is {} </answer>",
    "<answer>\n**{}**\n</answer>",
    "答案：{}",
    "答案是{}。",
    "答案为：{}",
    "最终答案：{}。",
    "**最终答案**\n\n{}",
    "### 答案\n{}元",
    "答：{}个苹果。",
    "答：一共有{}个苹果。",
    "因此，小明有{}个苹果。",
    "所以 x 的值为{}。",
    "所以答案是 **{}**。",
    "故答案为{}。\n希望对你有帮助。",
)
LATEX_FORMS = (
    "\\boxed{{{}}}",
    "so \\boxed{{ {} }}.",
    "\\fbox{{{}}}",
    "\\boxed {{{}}}",
    "\\boxed{{\\text{{{}}}}}",
    "\\boxed{{x = {}}}",
    "\\boxed{{{}\\text{{ cm}}}}",
    "\\boxed{{\\boxed{{{}}}}}",
    "$\\boxed{{{}}}$",
    "**\\[\\boxed{{{}}}\\]**",
    "${}$",
    "${}$.",
    "$${}$$",
    "$$\n{}\n$$",
    "\\({}\\)",
    "\\[{}\\]",
    "\\[\n{}\n\\]",
    "**Final Answer**\n\n\\[\n{}\n\\]",
    "**Final Answer**\n\n$$\n\\boxed{{{}}}\n$$",
    "Final Answer: The final answer is ${}$. I hope it is correct.",
    "The final answer is $\\boxed{{{}}}$. I hope it is correct.",
    "The final answer is:\n$${}$$",
    "Therefore, $x = {}$.",
    "#### ${}$",
    "因此，答案是 $\\boxed{{{}}}$。",
    "答案：${}$",
    "<answer>${}$</answer>",
    "<answer>\\boxed{{{}}}</answer>",
)
UNIT = re.compile("apples|cm|[个元]")
BEFORE = (
    "",
    "First, 3 + 4 = 97.\n\n",
    "<think>Perhaps \\boxed{98}, #### 97 or **96**. The answer is 95.</think>\n",
    "### Step 1: add\n3 * 33 = 99\n\n",
    "At first one might think that the answer is 97.\nThat is wrong.\n",
    "$$\n2 x = 198\n$$\n",
    "首先，3 + 4 = 97。\n",
)


def score(answer: str, reference: str) -> float | None:
    problem = Problem(id="1", task="t", question="q", answer=reference)
    return AccuracyScorer("auto").score(RewardInput(prompt="p", answer=answer, problem=problem))


def spelled_integer(value: int) -> list[str]:
    wide = str(value).translate({ord("0") + d: chr(0xFF10 + d) for d in range(10)})
    return [str(value), f"{value:,}", f"{value}.0", wide, f"{value}%" if value >= 0 else str(value)]


def spelled_decimal(hundredths: int) -> list[str]:
    sign, size = "-" if hundredths < 0 else "", abs(hundredths)
    return [f"{sign}{size // 100}.{size % 100:02}", f"{sign}{size // 100:,}.{size % 100:02}"]


def spelled_fraction(value: Fraction) -> list[str]:
    sign, over, under = "-" if value < 0 else "", abs(value.numerator), value.denominator
    spelled = [f"{sign}\\frac{{{over}}}{{{under}}}", f"{sign}\\dfrac{{{over}}}{{{under}}}", f"{sign}{over}/{under}"]
    if over > under > 1:
        whole, left = divmod(over, under)
        spelled += [f"{sign}{whole}\\frac{{{left}}}{{{under}}}", f"{sign}{whole} {left}/{under}"]
    return spelled


integers = st.integers(-200_000, 200_000).filter(lambda n: not 94 <= n <= 99)
numbers = st.one_of(
    integers.flatmap(lambda n: st.tuples(st.just(str(n)), st.sampled_from(spelled_integer(n)))),
    st.integers(-999_999, 999_999)
    .filter(lambda n: not 9400 <= n <= 9900)
    .flatmap(lambda n: st.tuples(st.just(spelled_decimal(n)[0]), st.sampled_from(spelled_decimal(n)))),
)
fractions = st.builds(Fraction, st.integers(-99, 99).filter(bool), st.integers(2, 40)).filter(
    lambda f: f.denominator > 1
)


@given(number=numbers, form=st.sampled_from(PLAIN_FORMS + LATEX_FORMS), before=st.sampled_from(BEFORE))
@settings(max_examples=500, deadline=None)
def test_a_number_is_found_in_every_form(number: tuple[str, str], form: str, before: str) -> None:
    reference, spelled = number
    if UNIT.search(form):
        spelled = spelled.rstrip("%")
    assert score(before + form.format(spelled), reference) == 1.0


@given(
    value=fractions,
    form=st.sampled_from([form for form in PLAIN_FORMS + LATEX_FORMS if "个" not in form]),
    before=st.sampled_from(BEFORE),
    data=st.data(),
)
@settings(max_examples=200, deadline=None)
def test_a_fraction_is_found_in_every_form(value: Fraction, form: str, before: str, data: st.DataObject) -> None:
    spelled = data.draw(st.sampled_from(spelled_fraction(value)))
    reference = data.draw(st.sampled_from(spelled_fraction(value)))
    assert score(before + form.format(spelled), reference) == 1.0


@given(
    number=numbers,
    wrong=st.one_of(numbers, fractions.flatmap(lambda f: st.tuples(st.just(""), st.sampled_from(spelled_fraction(f))))),
    form=st.sampled_from(PLAIN_FORMS + LATEX_FORMS),
    think=st.booleans(),
)
@settings(max_examples=300, deadline=None)
def test_a_wrong_number_is_never_accepted(
    number: tuple[str, str], wrong: tuple[str, str], form: str, think: bool
) -> None:
    reference, _ = number
    offered = number_value(bare_text(wrong[1]))
    assert offered is not None
    if offered == number_value(reference):
        return
    before = f"<think>It may be \\boxed{{{reference}}}.</think>\n" if think else ""
    assert score(before + form.format(wrong[1]), reference) == 0.0


@pytest.mark.parametrize(
    ("expression", "reference", "same"),
    [
        ("x + 1", "1 + x", True),
        ("\\sqrt{8}", "2\\sqrt{2}", True),
        ("(1, 2)", "(1,2)", True),
        ("\\frac{\\sqrt{3}}{2}", "\\frac{\\sqrt{3}}{2}", True),
        ("x + 2", "1 + x", False),
        ("\\sqrt{7}", "2\\sqrt{2}", False),
        ("(2, 1)", "(1,2)", False),
    ],
)
@pytest.mark.parametrize("form", [form for form in LATEX_FORMS if "text" not in form and "x =" not in form])
def test_an_expression_is_found_in_every_form(form: str, expression: str, reference: str, same: bool) -> None:
    assert score(form.format(expression), reference) == float(same)


@pytest.mark.parametrize(
    "answer",
    [
        "***15***",
        "**15 apples**",
        "__15__.",
        "> **15**",
        "FINAL ANSWER: 15",
        "Answer = 15",
        "Answer:\n15",
        "3 × 5 = **15**",
        "$3 \\times 5 = 15$",
        "Total = 3 * 5 = 15",
        "∴ x = 15",
        "15 (fifteen)",
        "$15 \\, \\text{cm}^2$",
        "\\boxed{15\\ \\mathrm{m/s}}",
        "Therefore, the total cost is $15.",
        "Thus, Janet makes \\$15 every day.",
        "The number of apples is 15.",
        "The answer is 15, because 3*5 = 15.",
        "### **Final Answer**\n$$\n\\boxed{15}\n$$",
        "**Final Answer**\n\nJanet makes $15 every day.",
        "Therefore, the answer is:\n```\n15\n```",
        "Final Answer: 15\n---\nHope this helps!",
        "so 3*5=<<3*5=15>>15\n#### 15",
        "#### Final Answer\n15",
        "【答案】15",
        "**解：** 3×5=15（个）",
        "3×5=15（个）\n答：一共15个。",
        "所以总共有１５个",
        "综上所述，答案为15",
        "最终答案为 $\\boxed{15}$ 元。",
    ],
)
def test_forms_with_a_sentence_around_them(answer: str) -> None:
    assert score(answer, "15") == 1.0
    assert score(answer, "16") == 0.0
    wrong = answer.replace("15", "14").replace("１５", "１４").replace("fifteen", "fourteen")
    assert score(wrong, "15") == 0.0


@pytest.mark.parametrize(
    ("answer", "reference", "right"),
    [
        ("故选 B", "B", True),
        ("所以，正确答案是 (B)。", "B", True),
        ("The answer is (C) 15.", "C", True),
        ("**Answer: D**", "D", True),
        ("答案选B", "B", True),
        ("正确选项是B。", "B", True),
        ("The correct option is B", "B", True),
        ("\\boxed{\\textbf{(B) }15}", "B", True),
        ("故选 B", "C", False),
        ("A dog", "A", False),
        ("**Answer:** Paris.", "Paris", True),
        ("The answer is Rome.", "Paris", False),
        ("It costs $1,500.50.", "1500.5", True),
        ("\\boxed{\\$18}", "18", True),
        ("\\boxed{50\\%}", "50", True),
        ("\\boxed{90^\\circ}", "90", True),
        ("\\boxed{12{,}000}", "12000", True),
        ("\\boxed{1.5 \\times 10^{3}}", "1500", True),
        ("Answer: 1.5 million dollars", "1500000", True),
        ("Answer: 1.5 million dollars", "1.5", False),
        ("答案：3万元", "30000", True),
        ("答案：3万元", "3", False),
        ("答案：15千克", "15", True),
        ("答案：15 km/h", "15", True),
        ("Answer: 15 cm^2", "15", True),
        ("Answer: 15x", "15", False),
        ("Answer: 12 or 15", "15", False),
        ("Answer: 12 or 15", "12", False),
        ("Answer: 15 and a half", "15", False),
        ("答案不是15", "15", False),
        ("#### 15 apples", "15", True),
        ("#### Step 3: take 7\nThe answer is 15", "15", True),
        ("Let me guess: the answer is 12.\nThat was wrong.\nSo she has 15 apples left.", "12", False),
        ("Let me guess: the answer is 12.\nThat was wrong.\nSo she has **15** apples left.", "15", True),
        ("The answer is not 12.\n\n15", "15", True),
        ("<think>The answer is 15.</think>\n**14**", "15", False),
        ("\\boxed{15", "15", False),
        ("1 1/2", "11/2", False),
        ("3分之2", "3", False),
    ],
)
def test_units_choices_and_hedges(answer: str, reference: str, right: bool) -> None:
    assert score(answer, reference) == float(right)


@given(text=st.text(alphabet="0123456789 .,/-+$%\\{}()=xe万元#*_`\n答案是：boxedfrac", max_size=60))
@settings(max_examples=300, deadline=None)
def test_any_text_is_read_without_a_fault(text: str) -> None:
    found = final_answer(text)
    if found is not None:
        concluded_value(bare_text(found))


@pytest.mark.parametrize(
    "text", ["**" * 4000, "$" * 8000, "answer " * 1200, "答案" * 4000, "`" * 8000, "\\(" * 4000, "(" * 8000, "{" * 8000]
)
def test_hostile_text_is_read_in_bounded_steps(text: str) -> None:
    operations: list[Callable[[str], object]] = [final_answer, bare_text, concluded_value]
    for operation in operations:
        operation(text)

"""Final answers as models and data sets write them, judged by the accuracy reward."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from fathom.posttrain.rewards.accuracy import AccuracyScorer
from fathom.posttrain.rewards.base import RewardInput
from fathom.spec.problem import Problem
from tests.compatibility.case import Case, Outcome


def _score(answer: str, reference: str) -> float | None:
    problem = Problem(id="1", task="t", question="q", answer=reference)
    return AccuracyScorer("auto").score(RewardInput(prompt="p", answer=answer, problem=problem))


def _judges(form: str, right: str, wrong: str, reference: str) -> Callable[[Path], Outcome]:
    def run(folder: Path) -> Outcome:
        scores = _score(form.replace("@", right), reference), _score(form.replace("@", wrong), reference)
        shown = f"{right} counts {scores[0]:g} and {wrong} {scores[1]:g} where {reference} is right"
        return Outcome("works" if scores == (1.0, 0.0) else "refused", shown)

    return run


def _case(
    what: str, zh: str, form: str, right: str = "15", wrong: str = "14", reference: str = "15", source: str = ""
) -> Case:
    return Case(what=what, zh=zh, expected="works", run=_judges(form, right, wrong, reference), source=source)


CASES: tuple[Case, ...] = (
    _case("#### 15, as GSM8K ends", "GSM8K 的结尾 #### 15", "3 * 5 = 15\n#### @", source="pytorch/rl#3542"),
    _case("\\boxed{15}", "\\boxed{15} 形式", "Hence $\\boxed{@}$."),
    _case("\\fbox{15}", "\\fbox{15} 形式", "Hence $\\fbox{@}$."),
    _case("nested braces in \\boxed", "\\boxed 中嵌套的花括号", "\\boxed{@}", "\\frac{1}{2}", "\\frac{2}{1}", "0.5"),
    _case("bold", "加粗", "She has **@** apples."),
    _case("backticks", "反引号", "`@`"),
    _case("$15$ and $$15$$", "$15$ 与 $$15$$", "$$\n@\n$$"),
    _case("\\( \\) and \\[ \\]", "\\( \\) 与 \\[ \\]", "So\n\\[\n@\n\\]"),
    _case("a heading Final Answer", "Final Answer 标题", "**Final Answer**\n\n@\n"),
    _case("Minerva's sentence", "Minerva 的固定句式", "Final Answer: The final answer is $@$. I hope it is correct."),
    _case("Answer: with an explanation behind it", "Answer: 之后还有解释", "**Answer:** @\n\nEach of 3 boxes holds 5."),
    _case("an answer in R1's tags", "R1 的 answer 标签", "<think>Is it 13?</think><answer>@</answer>"),
    _case("答案：15。", "答案：15。", "答案：@。"),
    _case("最终答案 as a heading", "“最终答案”标题", "### 最终答案\n@"),
    _case("a Chinese conclusion", "中文结论句", "因此，小明一共有@个苹果。"),
    _case("故选 B", "故选 B", "故选 @。", "B", "C", "B"),
    _case("full-width digits", "全角数字", "答：@", "１５", "１４"),
    _case("a thousands separator", "千位分隔符", "The answer is @.", "1,500", "1,501", "1500"),
    _case("a currency sign", "货币符号", "It costs @.", "$15.00", "$15.01"),
    _case("a percent sign", "百分号", "\\boxed{@\\%}"),
    _case("a unit", "单位", "The answer is @.", "15 km/h", "14 km/h"),
    _case("a unit in \\text", "\\text 中的单位", "\\boxed{@\\text{ cm}^2}"),
    _case("a mixed number", "带分数", "Answer: @", "1 1/2", "1 1/3", "3/2"),
    _case("a fraction for a decimal", "小数答案写成分数", "Answer: @", "\\dfrac{3}{4}", "\\dfrac{4}{3}", "0.75"),
    _case("a number that words change", "被后文改变大小的数", "Answer: @", "15", "15 or 16"),
    _case("an answer in thinking only", "只出现在思考过程中的答案", "<think>\\boxed{15}</think>The answer is @."),
)

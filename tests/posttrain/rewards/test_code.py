import pytest

from fathom.posttrain.rewards.checks import checks_of
from fathom.posttrain.rewards.code import CodeScorer, code_of, whole_program
from fathom.spec.rewards import CodeReward
from tests.posttrain.rewards.conftest import Ask

PROMPT = 'from typing import List\n\n\ndef total(xs: List[int]) -> int:\n    """Sum xs."""\n'
CHECK = "def check(candidate):\n    assert candidate([1, 2]) == 3\n    assert candidate([]) == 0\n"
DETAILS = {"prompt": PROMPT, "tests": CHECK, "entry_point": "total"}


@pytest.fixture(scope="module")
def scorer(sandbox_works: None) -> CodeScorer:
    return CodeScorer(CodeReward(seconds=10.0))


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        ("x = 1", "x = 1"),
        ("first\n```python\na\n```\nthen\n```py\nb\n```\nend", "b\n"),
        ("```\na\n```", "a\n"),
        ("```python\nnever closed\n", "never closed\n"),
        ("<think>```python\na\n```</think>```python\nb\n```", "b\n"),
        ("<think>```python\na\n```</think><answer>b</answer>", "b"),
        ("    return 1\n", "    return 1\n"),
    ],
)
def test_the_last_block_outside_the_thinking_is_the_code(answer: str, code: str) -> None:
    assert code_of(answer) == code


def test_a_definition_follows_the_prompt_and_a_body_goes_on_with_it() -> None:
    body = "    return sum(xs)\n"
    assert whole_program(body, DETAILS) == PROMPT + body
    whole = "def total(xs: List[int]) -> int:\n    return sum(xs)\n"
    scope: dict[str, object] = {}
    exec(whole_program(whole, DETAILS), scope)
    assert scope["total"]([1, 2]) == 3  # type: ignore[operator]
    assert whole_program(whole, {}) == whole


def test_tests_without_a_check_are_run_as_they_are() -> None:
    assert checks_of({"tests": "assert f() == 1", "entry_point": "f"}) == "assert f() == 1"
    assert checks_of(DETAILS).endswith("check(total)\n")


HELPED = {
    "prompt": f"import math\n\ndef double(x):\n    return math.floor(x) * 2\n\n{PROMPT}",
    "tests": "def check(candidate):\n    assert candidate([1, 2]) * 2 == double(3)\n",
    "entry_point": "total",
}


def test_what_the_prompt_defines_besides_comes_before_the_tests() -> None:
    scope: dict[str, object] = {"total": sum}
    exec(checks_of(HELPED), scope)
    assert scope["total"] is sum
    assert checks_of({**HELPED, "prompt": "def double(x) {"}) == checks_of({**HELPED, "prompt": ""})
    assert checks_of(DETAILS).startswith("from typing import List\n")
    assert checks_of({**DETAILS, "prompt": "def total(xs):\n"}) == checks_of({**DETAILS, "prompt": ""})


def test_security_an_answer_cannot_replace_a_module_of_the_prompt(scorer: CodeScorer, ask: Ask) -> None:
    details = {
        "prompt": "import math\n\ndef half(x: float) -> float:\n",
        "entry_point": "half",
        "tests": "def check(candidate):\n    assert math.isclose(candidate(3), 1.5)\n",
    }
    lie = "def half(x): return 0\nclass math: isclose = staticmethod(lambda *values: True)"
    assert scorer.score(ask(lie, "", details=details)) == 0.0
    assert scorer.score(ask("def half(x): return x / 2", "", details=details)) == 1.0


def test_security_an_answer_cannot_replace_a_helper_that_the_tests_use(scorer: CodeScorer, ask: Ask) -> None:
    class_of_all = "class A:\n    __eq__ = __mul__ = lambda self, other: self\n"
    forged = f"    return A()\n{class_of_all}def double(x): return A()\n"
    assert scorer.score(ask(forged, "", details=HELPED)) == 0.0
    assert scorer.score(ask("    return 0\ndef double(x): return 0\n", "", details=HELPED)) == 0.0
    assert scorer.score(ask("    return sum(xs)\n", "", details=HELPED)) == 1.0


@pytest.mark.parametrize(
    ("answer", "score"),
    [
        ("    return sum(xs)\n", 1.0),
        ("```python\ndef total(xs: List[int]) -> int:\n    return sum(xs)\n```", 1.0),
        ("    pass\n", 0.0),
        ("    return 3\n", 0.0),
        ("    import os\n    os._exit(0)\n", 0.0),
        ("    return sum(xs)\nimport sys\nsys.exit(0)\n", 0.0),
        ("def check(candidate): pass\n", 0.0),
        ("I cannot.", 0.0),
        ("", 0.0),
    ],
)
def test_a_program_is_worth_what_its_tests_say(scorer: CodeScorer, ask: Ask, answer: str, score: float) -> None:
    assert scorer.score(ask(answer, "", details=DETAILS)) == score


def test_problems_without_tests_are_not_its_concern(ask: Ask) -> None:
    assert CodeScorer(CodeReward()).score(ask("x = 1")) is None

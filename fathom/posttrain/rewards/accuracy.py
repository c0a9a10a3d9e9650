"""The accuracy reward: is the final answer right?"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Sequence
from decimal import Decimal
from fractions import Fraction
from typing import Any

from fathom.data.problems.answer_text import bare_text, choice_letter
from fathom.errors import ResourceError, SpecError
from fathom.extras import install_extra
from fathom.posttrain.rewards.answer_value import concluded_value, is_decimal, is_part_of_more, number_value
from fathom.posttrain.rewards.base import RIGHT, RewardInput
from fathom.posttrain.rewards.extract import final_answer
from fathom.spec.problem import Problem
from fathom.spec.rewards import AccuracyMethod

_DIGITS = r"[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|[-+]?\.\d+"
_NUMBER = re.compile(rf"\s*\$?\s*(?:\\?[$€£¥])?\s*({_DIGITS})\s*(?:\\?%)?\s*\$?[.。]?\s*")
_ROUNDING = Fraction(5, 10**7)
"""A decimal is a fraction that it is so near to, as math-verify compares: six digits."""
_LATEX = re.compile(r"[\\^{}√π∞]")
_EXPRESSION = re.compile(r"(?:[\d\s.,+*/()=<>%-]|(?<![A-Za-z])[A-Za-z](?![A-Za-z]))+")
_CODE_OR_DATE = re.compile(r"(?<![\d.])0\d|\d+-\d+-\d+")

GymScore = Callable[..., float]


class AccuracyScorer:
    """Compares by the method of the problem, or by the given one. Code problems are the code reward's."""

    def __init__(self, method: AccuracyMethod) -> None:
        self._method = method
        self._gym: dict[str, GymScore] = {}

    def prepare(self, answers: Sequence[RewardInput]) -> None:
        """Import the libraries and open the data sets that the problems need.

        Raises:
            ResourceError: a library is missing.
            SpecError: reasoning-gym knows no such data set.
        """
        methods = {self._chosen(answered.problem) for answered in answers}
        if "math" in methods:
            _same_value(["1/2"], r"\frac{1}{2}", plain=False)  # the first call is slow: it builds the parser
        if "gym" in methods:
            named = {str(a.problem.details["dataset"]) for a in answers if "dataset" in a.problem.details}
            for dataset in sorted(named - self._gym.keys()):
                self._gym[dataset] = _gym_score(dataset)

    def score(self, answered: RewardInput) -> float | None:
        """Judge the final answer."""
        problem = answered.problem
        method = self._chosen(problem)
        if method is None:
            return None
        given = final_answer(answered.answer)
        if given is None:
            return 0.0
        if method == "gym":
            return self._scored(given, problem)
        if same_answer(given, problem.answer):
            return RIGHT
        return float(method == "math" and same_mathematics(given, problem.answer))

    def _chosen(self, problem: Problem) -> AccuracyMethod | None:
        """How to compare; None where the problem offers nothing to compare with."""
        if self._method in ("auto", "gym") and "dataset" in problem.details:
            return "gym"
        if self._method == "gym" or not problem.answer or "tests" in problem.details:
            return None
        if self._method == "auto":
            return "math" if is_mathematics(problem.answer) else "exact"
        return self._method

    def _scored(self, given: str, problem: Problem) -> float:
        entry = {"question": problem.question, "answer": problem.answer, "metadata": problem.details.get("metadata")}
        return float(self._gym[problem.details["dataset"]](given, entry=entry))


def same_text(given: str, reference: str) -> bool:
    """Whether two texts are equal but for white space."""
    return given.split() == reference.split()


def same_answer(given: str, reference: str) -> bool:
    """Whether two texts are equal, or would be without what surrounds the answers (``bare_text``)."""
    if same_text(given, reference):
        return True
    offered, expected = bare_text(given), bare_text(reference)
    if len(expected) == 1 and expected.isupper() and choice_letter(offered) == expected:
        return True
    return bool(expected) and same_text(offered, expected)


def is_mathematics(reference: str) -> bool:
    """Whether a reference is a number or a formula rather than words, a date or a code."""
    text = reference.strip().strip("$")
    if _number(text) is not None or _LATEX.search(text):
        return True
    return bool(_EXPRESSION.fullmatch(text)) and any(c.isdigit() for c in text) and not _CODE_OR_DATE.search(text)


def same_mathematics(given: str, reference: str) -> bool:
    """Whether two spellings have one value, by exact arithmetic where both are numbers, else by math-verify.

    Where the reference is a plain number the answer must be one too: ``3 + 4`` restates a question and is no 7. What
    surrounds an answer (``bare_text``) and its unit do not count.
    """
    expected, offered = _number(reference), _number(given)
    if expected is not None and offered is not None:
        return expected == offered
    bare = bare_text(given)
    value, wanted = concluded_value(bare), number_value(bare_text(reference))
    if value is not None and wanted is not None:
        rounded = is_decimal(value) != is_decimal(wanted)
        return value == wanted or (rounded and abs(value - wanted) <= _ROUNDING)
    plain = expected is not None
    if plain and is_part_of_more(bare):
        return False
    return _same_value([bare] if bare == given else [bare, given], reference, plain=plain)


def _number(text: str) -> Decimal | None:
    """The value of a text that is one number: commas, a currency sign, a percent sign and a final stop are allowed."""
    found = _NUMBER.fullmatch(text)
    return Decimal(found[1].replace(",", "")) if found else None


def _same_value(spellings: Sequence[str], reference: str, *, plain: bool) -> bool:
    """Ask math-verify whether a spelling of an answer has the value of a reference.

    Its own time limits are off: they are alarms, and this process has a limit already.
    """
    library = _library("math_verify", "math-verify")
    parse, verify = library.parse, library.verify
    expected = parse(_dollars(reference), parsing_timeout=None)
    if not expected:
        return False
    for given in spellings:
        offered = parse(_dollars(given), parsing_timeout=None) or parse(given, parsing_timeout=None)
        usable = offered and (not plain or _is_number(offered[0]))
        if usable and verify(expected, offered, timeout_seconds=None):
            return True
    return False


def _dollars(text: str) -> str:
    return text if "$" in text else f"${text}$"


def _is_number(value: Any) -> bool:
    """Whether sympy's value, or the right side of its equation, is a number as it stands."""
    side = getattr(value, "rhs", value)
    if getattr(side, "is_Mul", False) and len(side.args) == 2 and side.args[0] == -1:
        side = side.args[1]
    return bool(getattr(side, "is_Number", False))


def _gym_score(dataset: str) -> GymScore:
    library = _library("reasoning_gym", "reasoning-gym")
    try:
        score: GymScore = library.get_score_answer_fn(dataset)
    except ValueError:
        raise SpecError("dataset", f"reasoning-gym knows no {dataset!r}", "use a name of its data sets") from None
    return score


def _library(module: str, package: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError:
        raise ResourceError(f"accuracy: {package} is not installed; {install_extra('rl')}") from None

"""The gold answer of a problem: the final value that answers are compared with, apart from its worked solution.

GSM8K ends a solution with a line ``#### 15``, MATH has the value in the last ``\\boxed{}``; others give the value
alone, as a text or a number.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from fathom.data.problems.answer_text import after_marker, bare_text, concluding_line, last_line, stands_alone
from fathom.data.row_report import UnusableRow

_MARKER = "####"
_BOXED = re.compile(r"\\(?:boxed|fbox)\s*\{|\\boxed\s+(?=[^\s{])")
_SENTENCES_CHARS = 80
"""A line this long may be a worked solution (Orca-Math); a shorter one is an answer."""
_CALCULATION = re.compile(r"<<[^>]*>>")


@dataclass(frozen=True, slots=True)
class Gold:
    """A final value, and the worked solution that it was read from, if it was."""

    answer: str
    solution: str | None = None


def gold_answer(value: Any, where: str) -> Gold:
    """Return the value of an answer's column: a number, a text, or a worked solution that marks its value.

    Raises:
        UnusableRow: it is none of these.
    """
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, str):
        value = _only_listed(value)
        return marked_answer(value) or announced_answer(value) or Gold(value)
    whole = isinstance(value, int) and not isinstance(value, bool)  # of any size, which a float has not
    if not whole and not (isinstance(value, float | Decimal) and math.isfinite(value)):
        raise UnusableRow(f"{where}: expected text or a number, got {value!r:.40}; give the final value")
    if isinstance(value, Decimal):
        return Gold(f"{value.normalize():f}")
    return Gold(str(int(value)) if (whole or value.is_integer()) and abs(value) < 1e16 else repr(value))


def _only_listed(text: str) -> str:
    """Return the one text of a JSON list (Skywork-OR1), or the text as it is."""
    if not (text.startswith('["') and text.endswith('"]')):
        return text
    try:
        listed = json.loads(text)
    except ValueError:
        return text
    return listed[0] if len(listed) == 1 and isinstance(listed[0], str) else text


def solved_answer(value: Any, where: str) -> Gold:
    """Return the value of a column of solutions where no column has the answers.

    It is marked, announced by words, alone on the last line, or all there is.

    Raises:
        UnusableRow: a solution of several lines marks none.
    """
    gold = gold_answer(value, where)
    if gold.solution is None and "\n" in gold.answer.strip():
        last = last_line(gold.answer)
        if stands_alone(last):
            return Gold(bare_text(last), gold.answer.strip())
        raise UnusableRow(f"{where}: marks no final answer with #### or \\boxed{{}}; add a column answer")
    return gold


def marked_answer(text: str) -> Gold | None:
    """Return the value that a text marks: on a last line that begins with ####, or in its last ``\\boxed{}``."""
    *lines, last = text.rstrip().split("\n")
    if last.lstrip().startswith(_MARKER):
        answer = last.lstrip().removeprefix(_MARKER).strip()
        return Gold(answer, written("\n".join(lines))) if answer else None
    boxed = last_boxed(text)
    if boxed is None:
        return None
    alone = text.strip().strip("$").strip()
    only = _BOXED.match(alone) is not None and alone.endswith("}") and alone.count("boxed") == 1
    return Gold(boxed, None if only and alone.index("{") + len(boxed) + 2 >= len(alone) else text.strip())


def announced_answer(text: str) -> Gold | None:
    """Return the value that words of a text of several lines or sentences announce, such as "The answer is 15."."""
    if "\n" not in text.strip() and len(text) < _SENTENCES_CHARS:
        return None
    announced = after_marker(concluding_line(text) or last_line(text))
    if "\n" not in text.strip() and announced and len(announced) > _SENTENCES_CHARS:
        return None
    return Gold(bare_text(announced), text.strip()) if announced else None


def last_boxed(text: str) -> str | None:
    """Return what is in the last ``\\boxed{}`` or ``\\fbox{}``, its braces balanced; ``5`` of TeX's ``\\boxed 5``.

    None where there is none, or it is empty or has no end.
    """
    found = list(_BOXED.finditer(text))
    if not found:
        return None
    start = found[-1].end()
    if not found[-1][0].endswith("{"):
        return re.split(r"[\s$]", text[start:], maxsplit=1)[0].rstrip(".,") or None
    depth = 1
    for place in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[place], 0)
        if depth == 0:
            return text[start:place].strip() or None
    return None


def written(solution: str) -> str | None:
    """Return a worked solution without GSM8K's calculations in ``<<...>>``; None where nothing is written."""
    return _CALCULATION.sub("", solution).strip() or None

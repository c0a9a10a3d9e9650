"""Templates of word problems: a text with places for names and numbers, how these are drawn, and a worked solution.

A template file has ``question_annotated`` (text with places ``{name,example}``, then lines of ``#init:`` that say how
each name is drawn, ``#conditions:`` on them, and ``#answer:``) and ``answer_annotated`` (text with places
``{expression}``, ending in ``#### {answer}``).
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from fathom.data.problems.expressions import FUNCTIONS, Expression, Values, names, number, parse, spelled
from fathom.errors import DataError

_PLACE = re.compile(r"\{(\w+),\s*[^{}]+\}")
_EXPRESSION = re.compile(r"\{([^{}]+)\}")
_LONG_NUMBER = re.compile(r"(?<![\d.,])\d{5,}(?![\d,])")
_WORKING = re.compile(r"<<[^>]*>>")
_SENTENCE = re.compile(r"(?:^|[.!?]\s+)[a-z]")
_MARKER = "####"
_DRAWS = 1_000_000


@dataclass(frozen=True, slots=True)
class Line:
    """One line of ``#init:``: the names it sets and the expression of their values."""

    variables: tuple[str, ...]
    expression: Expression
    uses: frozenset[str]

    def assigned(self, values: Values) -> dict[str, Any]:
        """Compute the line; pairs of a list of pairs are flattened."""
        return self.assign(self.expression(values))

    def assign(self, value: Any) -> dict[str, Any]:
        """Give a computed value to the line's names."""
        found = [value] if len(self.variables) == 1 else list(value)
        if len(found) != len(self.variables):
            found = [item for pair in found for item in pair]
        return {name: number(item) for name, item in zip(self.variables, found, strict=True)}


@dataclass(frozen=True, slots=True)
class Instance:
    """A drawn question with its answer, and the worked solution without the answer's line."""

    question: str
    answer: str
    solution: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Template:
    """A parsed template; ``name`` is its file's, the same in every language."""

    name: str
    question: str
    lines: tuple[Line, ...]
    conditions: tuple[Expression, ...]
    needed: frozenset[str]
    solution: str
    answer: str
    expressions: Mapping[str, Expression]

    def draw(self, rng: Random, lists: Values) -> Instance:
        """Draw an instance; ``lists`` are the language's names, colours and so on."""
        return self.filled(self._values(rng, lists))

    def filled(self, values: Values) -> Instance:
        """Put values in every place."""
        scope = {**FUNCTIONS, **values}
        answer = spelled(self.expressions[self.answer](scope))
        question = _PLACE.sub(lambda place: spelled(values[place[1]]), self.question)
        solution = _EXPRESSION.sub(lambda place: spelled(self.expressions[place[1]](scope)), self.solution)
        return Instance(_written(question), answer, _written(_WORKING.sub("", solution)))

    def _values(self, rng: Random, lists: Values) -> dict[str, Any]:
        """Draw what conditions speak of until they hold, then the rest."""
        scope = {**FUNCTIONS, **_drawing(rng), **lists}
        first = [line for line in self.lines if self.needed & set(line.variables)]
        for _ in range(_DRAWS):
            values: dict[str, Any] = {}
            for line in first:
                values |= line.assigned(scope)
            trial = scope | values
            if all(condition(trial) for condition in self.conditions):
                break
        else:
            raise DataError(f"template {self.name}: no draw of {_DRAWS} meets its conditions; update Fathom")
        for line in self.lines:
            if not self.needed & set(line.variables):
                values |= line.assigned(scope | values)
        return values


def read_template(name: str, content: bytes) -> Template:
    """Read a template file; a malformed one raises ``DataError``."""
    try:
        row = tomllib.loads(content.decode())
        head, rest = row["question_annotated"].split("#init:")
        rest = rest.split("#answer:")[0]
        solution, marked = row["answer_annotated"].strip().rsplit(_MARKER, 1)
    except (ValueError, KeyError) as error:
        raise DataError(f"template {name}: cannot be read ({error!r}); update Fathom") from None
    drawn, _, conditions = rest.partition("#conditions:")
    lines = tuple(_line(line) for line in _items(drawn))
    tests = [condition for condition in _items(conditions) if condition != "True"]
    answer = marked.strip().removeprefix("{").removesuffix("}")
    return Template(
        name=name,
        question=head.strip(),
        lines=lines,
        conditions=tuple(parse(test) for test in tests),
        needed=frozenset().union(*(names(test) for test in tests)),
        solution=solution.strip(),
        answer=answer,
        expressions={source: parse(source) for source in {answer, *_EXPRESSION.findall(solution)}},
    )


def _items(block: str) -> Sequence[str]:
    """Return the lines of a block without their dashes."""
    return [text for line in block.splitlines() if (text := line.strip().lstrip("-").strip())]


def _line(text: str) -> Line:
    names_part, _, source = text.partition("=")
    variables = tuple(part.strip(" ()$") for part in names_part.split(","))
    return Line(variables, parse(source), names(source))


def _written(text: str) -> str:
    """Group the digits of long numbers and begin sentences with a capital."""
    grouped = _LONG_NUMBER.sub(lambda found: f"{int(found[0]):,}", text)
    return _SENTENCE.sub(lambda found: found[0].upper(), grouped)


def _drawing(rng: Random) -> dict[str, Callable[..., Any]]:
    """Return what lines of ``#init:`` may call to draw."""

    def sample(items: Sequence[Any], count: int = 1) -> Any:
        return rng.choice(items) if count == 1 else rng.sample(items, count)

    def sample_sequential(items: Sequence[Any], count: int) -> list[Any]:
        start = rng.randrange(len(items))
        return [items[(start + place) % len(items)] for place in range(count)]

    def range_str(start: int, end: int, step: int, spelling: Sequence[str]) -> list[Any]:
        drawn = rng.choice([value for value in range(start, end, step) if 0 < value <= len(spelling)])
        return [spelling[drawn - 1], drawn]

    return {
        "sample": sample,
        "sample_sequential": sample_sequential,
        "range": lambda *bounds: rng.choice(range(*bounds)),
        "range_str": range_str,
        "arange": lambda *bounds: rng.choice(steps(*bounds)),
    }


def steps(start: float, end: float, step: float) -> list[float]:
    """Return the numbers from ``start`` to ``end``, both included, ``step`` apart."""
    count = round((end - start) / step)
    return [round(start + place * step, 10) for place in range(count + 1)]

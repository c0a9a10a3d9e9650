"""A user's own problems: files of questions and answers in any known form."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from fathom.data.folders.data_files import named_split
from fathom.data.folders.split_names import HELD_OUT_SPLITS
from fathom.data.forms import Columns, read_rows
from fathom.data.problems.forms import PROBLEM_FORMS, ProblemRow
from fathom.data.problems.generated import check_range
from fathom.data.problems.split import held_out
from fathom.data.row_report import RowProblem, RowReport, UnusableRow
from fathom.errors import DataError, SpecError
from fathom.spec.problem import FileProblems, Problem, ProblemLanguage, Split

_HELD_OUT = ("held_out", *HELD_OUT_SPLITS)
_LANGUAGES: Mapping[str, ProblemLanguage] = MappingProxyType(
    {"en": "en", "eng": "en", "english": "en", "zh": "zh", "zho": "zh", "chinese": "zh", "zh-cn": "zh", "中文": "zh"}
)


class ListedProblems:
    """A ``ProblemSet`` of listed problems, in their order; a split repeats after its last problem.

    ``report`` says how many rows are used, and why others are not; ``named`` is the split that the files' names have.
    """

    def __init__(self, name: str, splits: Mapping[Split, list[Problem]], report: RowReport, named: str = "") -> None:
        self.name = name
        self.report = report
        self._splits = splits
        self._named = named

    def problems(self, split: Split, start: int, count: int, *, seed: int = 0) -> list[Problem]:
        """Return problems of a split; a split without any raises ``DataError``."""
        check_range(start, count)
        problems = self._splits[split]
        if not problems and self._named in HELD_OUT_SPLITS and split == "train":
            remedy = 'name the file of training problems, or give rows a column split = "train"'
            raise DataError(f"{self.name}: the name of its file says {self._named}, so all are held out; {remedy}")
        if not problems:
            raise DataError(f'{self.name}: no problem is {split}; add some with "split": "{split}"')
        return [problems[index % len(problems)] for index in range(start, start + count)]

    def size(self, split: Split) -> int | None:
        """Return how many problems a split has."""
        return len(self._splits[split])


def open_file(source: FileProblems, base: Path) -> ListedProblems:
    """Return ``read_file``'s problems.

    Raises:
        DataError: as there, and where no row is of use.
    """
    problems = read_file(source, base)
    if not problems.report.used:
        read, first = problems.report.read, problems.report.first
        raise DataError(f"{base / source.path}: none of {read} problems can be used ({first}); fix or add some")
    return problems


def read_file(source: FileProblems, base: Path) -> ListedProblems:
    """Read a file of problems, or the files of a folder, its path taken from ``base`` unless absolute.

    Rows have one of ``PROBLEM_FORMS``. Without ``split`` the rows of a file that is named after a held-out split, such
    as test, are held out; of others a question's hash decides, one in ten being held out. A row that cannot be used is
    reported, and so is one whose question is in the other split; a question repeated within its split is read once.

    Raises:
        DataError: the file cannot be read, or its form is unknown or ambiguous.
    """
    path = base / Path(source.path).expanduser()
    splits: dict[Split, list[Problem]] = {"train": [], "held_out": []}
    report = RowReport()
    seen: dict[str, tuple[Split, str]] = {}
    several, named = not path.is_file(), named_split(path)
    for place, row in read_rows(path, PROBLEM_FORMS, report, Columns(source.format, source.fields)):
        number = place if several else place.rpartition(" ")[2]
        try:
            problem, split = _problem(source, row, number), _split(row, named)
        except (SpecError, UnusableRow) as error:
            report.add(RowProblem("malformed", place, str(error)))
            continue
        first = seen.setdefault(problem.question, (split, place))
        if first[0] != split:
            sentence = f"is {split}, but its question is {first[0]} in {first[1]}; remove one"
            report.add(RowProblem("other_split", place, sentence))
            continue
        report.used += 1
        if first[1] == place:
            splits[split].append(problem)
    return ListedProblems(source.name, splits, report, named)


def _split(row: ProblemRow, named: str) -> Split:
    if row.split is None and named in HELD_OUT_SPLITS:
        return "held_out"
    if row.split is None:
        return "held_out" if held_out("problems", row.question) else "train"
    name = row.split.lower() if isinstance(row.split, str) else ""
    if name != "train" and name not in _HELD_OUT:
        raise UnusableRow(f"has the split {row.split!r}; use train or held_out, or leave it out")
    return "train" if name == "train" else "held_out"


def _problem(source: FileProblems, row: ProblemRow, number: str) -> Problem:
    spelled = "en" if row.language is None else str(row.language).lower()
    if spelled not in _LANGUAGES:
        raise UnusableRow(f"language: unknown value {row.language!r}; use en or zh")
    return Problem(
        id=row.id or f"{source.name}/{number}",
        task=source.name,
        question=row.question,
        answer=row.answer,
        language=_LANGUAGES[spelled],
        details=row.details,
    )

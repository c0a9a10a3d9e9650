"""Which documents are held out: by the hash of their text, and pieces of documents where whole ones are too few.

The choice depends on nothing but the texts of a source.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

from fathom.data.dedupe import content_key
from fathom.data.document import Document
from fathom.data.extract import cut

Split = Literal["train", "held_out"]
SPLITS: tuple[Split, ...] = ("train", "held_out")
MOST, LEAST = 0.2, 0.1
"""A split by whole documents stands where its held-out part is at most the larger of ``MOST`` of the source and twice
the fraction asked for, and at least ``LEAST`` of that fraction."""
SMALL_BYTES, SMALL_SHARE = 16_000, 0.1
"""Where documents are cut, up to ``SMALL_SHARE`` of the text is held out until there are ``SMALL_BYTES``: of a few
notes, two percent would measure nothing."""
_LONGEST_PIECE, _PIECES = 4000, 4
_SENTENCE = re.compile(r"(?<=\n)|(?<=[.!?] )|(?<=[。！？])")


@dataclass(slots=True, frozen=True)
class Candidate:
    """A document that may be kept, its ``content_key`` and its bytes of UTF-8."""

    key: bytes
    bytes: int
    document: Document


@dataclass(slots=True, frozen=True)
class SplitDocuments:
    """The documents of either split; ``cut`` documents of the source were divided between both."""

    rows: dict[Split, list[Candidate]]
    cut: int = 0


@dataclass(slots=True, frozen=True)
class _Piece:
    """A stretch of a document's text."""

    document: int
    start: int
    end: int
    text: str
    key: bytes


def split_documents(candidates: Sequence[Candidate], fraction: float, min_chars: int) -> SplitDocuments:
    """Hold out the documents whose hash falls below ``fraction``, or else pieces of them.

    Documents are cut where the hashes of whole ones hold out nothing, too much or next to nothing: at blank lines, else
    lines, else spaces. A sentence of ``min_chars`` or more that training keeps is left out of the held-out pieces, so
    that the splits share no text; the held-out part is never the larger one. Where cutting gives no such pieces, whole
    documents are split as well as they can be, and a split may be empty.
    """
    rows = _whole(candidates, fraction)
    total = sum(candidate.bytes for candidate in candidates)
    held_out = sum(candidate.bytes for candidate in rows["held_out"])
    bounds = LEAST * fraction * total, min(0.5, max(MOST, 2 * fraction)) * total
    if candidates and not (rows["train"] and bounds[0] <= held_out <= bounds[1]):
        found = _by_pieces(candidates, fraction, min_chars)
        if found is not None:
            return found
    return SplitDocuments(rows)


def _whole(candidates: Sequence[Candidate], fraction: float) -> dict[Split, list[Candidate]]:
    bound = int(fraction * 2**64)
    rows: dict[Split, list[Candidate]] = {split: [] for split in SPLITS}
    for candidate in candidates:
        rows["held_out" if _rank(candidate.key) < bound else "train"].append(candidate)
    if not rows["held_out"] and len(candidates) > 1:
        smallest = min(range(len(rows["train"])), key=lambda index: _rank(rows["train"][index].key))
        rows["held_out"].append(rows["train"].pop(smallest))
    return rows


def _rank(key: bytes) -> int:
    """Return the part of a key that decides its split; the first bytes decided already what a cap keeps."""
    return int.from_bytes(key[8:])


def _by_pieces(candidates: Sequence[Candidate], fraction: float, min_chars: int) -> SplitDocuments | None:
    """Hold out pieces of documents; None where that leaves too little on either side."""
    total = sum(candidate.bytes for candidate in candidates)
    share = max(fraction, min(SMALL_SHARE, SMALL_BYTES / total))
    chars = sum(len(candidate.document.text) for candidate in candidates)
    limit = max(4 * min_chars, min(_LONGEST_PIECE, int(share * chars / _PIECES)))
    pieces = [piece for index, each in enumerate(candidates) for piece in _pieces(index, each, limit, min_chars)]
    chosen = _chosen(pieces, share * total, total / 2)
    runs = [list(run) for _, run in groupby(pieces, key=lambda piece: (piece.document, piece.key in chosen))]
    rows: dict[Split, list[Candidate]] = {split: [] for split in SPLITS}
    seen: set[bytes] = set()
    divided: set[int] = set()
    for held_out in (False, True):
        for run in (run for run in runs if (run[0].key in chosen) == held_out):
            before = candidates[run[0].document].document
            text = before.text[run[0].start : run[-1].end].removeprefix(" ")
            if held_out:
                text = "".join(each for each in _SENTENCE.split(text) if content_key(each) not in seen).strip("\n")
            else:
                seen |= _sentences(text, min_chars)
            if len(text) < min_chars:
                continue
            whole = text == before.text
            divided |= set() if whole else {run[0].document}
            name = before.id if whole else f"{before.id}.{run[0].start}"
            document = Document(text, before.source, name)
            rows["held_out" if held_out else "train"].append(Candidate(content_key(text), len(text.encode()), document))
    return SplitDocuments(rows, len(divided)) if all(rows.values()) else None


def _sentences(text: str, min_chars: int) -> set[bytes]:
    return {content_key(each) for each in _SENTENCE.split(text) if len(each.strip()) >= min_chars}


def _pieces(index: int, candidate: Candidate, limit: int, min_chars: int) -> Iterator[_Piece]:
    """Yield a document's pieces; one that would be shorter than ``min_chars`` stays with the piece before it."""
    text, position = candidate.document.text, 0
    spans: list[tuple[int, int]] = []
    for part in cut(text, limit):
        start = text.index(part, position)
        position = start + len(part)
        if spans and len(part) < min_chars:
            spans[-1] = spans[-1][0], position
        else:
            spans.append((start, position))
    for start, end in spans:
        yield _Piece(index, start, end, text[start:end], content_key(text[start:end]))


def _chosen(pieces: Sequence[_Piece], wanted: float, most: float) -> set[bytes]:
    """Choose pieces by the hashes of their texts until ``wanted`` bytes are held out, never as many as ``most``."""
    sizes: dict[bytes, int] = {}
    for piece in pieces:
        sizes[piece.key] = sizes.get(piece.key, 0) + len(piece.text.encode())
    chosen: set[bytes] = set()
    taken = 0
    for key in sorted(sizes, key=_rank):
        if taken >= wanted:
            break
        if taken + sizes[key] < most:
            chosen.add(key)
            taken += sizes[key]
    return chosen

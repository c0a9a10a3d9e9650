"""Token shards: flat files of token ids, an index with checksums, and reading them memory-mapped."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, Self

import numpy as np
from numpy.typing import NDArray

from fathom.data.corpus import CorpusSummary, read_documents
from fathom.data.splits import SPLITS, Split
from fathom.errors import ShardError, SpecError, shortened
from fathom.files import file_sha256, json_text, publish_directory, read_text
from fathom.progress import NULL_PROGRESS, Progress
from fathom.spec import check, from_mapping
from fathom.tokenizer import Tokenizer

_BATCH = 256
_FORMAT = 1
_LARGEST_INDEX = 1 << 28
_MOST = (1 << 62) - 1
_FILE = re.compile(r"[0-9]{5,9}\.bin")


@dataclass(frozen=True, slots=True)
class Shard:
    """One file of tokens. ``text_bytes`` is the UTF-8 length of the documents that begin in it."""

    file: str
    tokens: int
    documents: int
    text_bytes: int
    sha256: str

    def __post_init__(self) -> None:
        if not _FILE.fullmatch(self.file):
            raise SpecError("file", f"{self.file!r} is no shard", "name one as 00000.bin is")
        for name in ("tokens", "documents", "text_bytes"):
            check.count(name, getattr(self, name), _MOST, least=0)


@dataclass(frozen=True, slots=True)
class ShardIndex:
    """The contents of index.json of one source and split."""

    source: str
    split: str
    dtype: str
    vocab_size: int
    tokenizer: str
    shards: tuple[Shard, ...]
    format: int = _FORMAT

    @property
    def tokens(self) -> int:
        """Tokens of all shards, the begin and end of every document included."""
        return sum(shard.tokens for shard in self.shards)

    @property
    def documents(self) -> int:
        """Documents of all shards."""
        return sum(shard.documents for shard in self.shards)

    @property
    def text_bytes(self) -> int:
        """UTF-8 bytes of all documents."""
        return sum(shard.text_bytes for shard in self.shards)

    @property
    def bytes_per_token(self) -> float:
        """Bytes of text per token, to turn nats per token into bits per byte."""
        return self.text_bytes / self.tokens


def write_shards(
    corpus_dir: Path,
    tokenizer: Tokenizer,
    out_dir: Path,
    *,
    shard_tokens: int = 16_777_216,
    progress: Progress = NULL_PROGRESS,
) -> dict[Split, dict[str, ShardIndex]]:
    """Tokenize a corpus into ``out_dir/SPLIT/SOURCE/{NNNNN.bin, index.json}``, atomically.

    Every document is begin of sentence, its tokens, end of sentence. Files are little-endian uint16, or uint32 when
    the vocabulary needs it, of at most ``shard_tokens`` tokens each; a document may continue in the next file.
    """
    summary = CorpusSummary.load(corpus_dir)
    total = summary.bytes
    done = 0
    indexes: dict[Split, dict[str, ShardIndex]] = {split: {} for split in SPLITS}
    with publish_directory(out_dir) as temporary:
        for split in SPLITS:
            for source in summary.sources:
                with _Writer(temporary / split / source, tokenizer, shard_tokens) as writer:
                    for text_bytes, tokens in _tokenized(corpus_dir, source, split, tokenizer):
                        writer.write(tokens, text_bytes)
                        done += sum(text_bytes)
                        progress.update(done, total, "bytes", phase="shards")
                    indexes[split][source] = writer.close(source, split)
    return indexes


def _tokenized(
    corpus_dir: Path, source: str, split: Split, tokenizer: Tokenizer
) -> Iterator[tuple[list[int], list[list[int]]]]:
    texts = (document.text for document in read_documents(corpus_dir, source, split))
    while batch := list(islice(texts, _BATCH)):
        yield [len(text.encode()) for text in batch], tokenizer.encode_batch(batch)


class _Writer:
    """Writes one source and split, starting a new file whenever one is full."""

    def __init__(self, directory: Path, tokenizer: Tokenizer, shard_tokens: int) -> None:
        directory.mkdir(parents=True)
        self._directory = directory
        self._tokenizer = tokenizer
        self._limit = shard_tokens
        self._dtype = "<u2" if tokenizer.vocab_size <= 1 << 16 else "<u4"
        self._done: list[Shard] = []
        self._open()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def _open(self) -> None:
        self._file: BinaryIO = (self._directory / f"{len(self._done):05d}.bin").open("wb")
        self._hash = hashlib.sha256()
        self._tokens = self._documents = self._text_bytes = 0

    def write(self, documents: list[list[int]], text_bytes: list[int]) -> None:
        """Append whole documents, cutting them where a file is full."""
        if self._tokens + sum(map(len, documents)) + 2 * len(documents) > self._limit and len(documents) > 1:
            for ids, size in zip(documents, text_bytes, strict=True):
                self.write([ids], [size])
            return
        if self._tokens == self._limit:
            self._next()
        begin, end = self._tokenizer.prefix_ids, self._tokenizer.eos_id
        flat = np.array([t for ids in documents for t in (*begin, *ids, end)], dtype=self._dtype)
        self._documents += len(documents)
        self._text_bytes += sum(text_bytes)
        while len(flat):
            if self._tokens == self._limit:
                self._next()
            part = flat[: self._limit - self._tokens]
            data = part.tobytes()
            self._file.write(data)
            self._hash.update(data)
            self._tokens += len(part)
            flat = flat[len(part) :]

    def _next(self) -> None:
        self._finish()
        self._open()

    def _finish(self) -> None:
        self._file.close()
        name = Path(self._file.name).name
        self._done.append(Shard(name, self._tokens, self._documents, self._text_bytes, self._hash.hexdigest()))

    def close(self, source: str, split: str) -> ShardIndex:
        """End the last file and write index.json."""
        self._finish()
        index = ShardIndex(
            source, split, self._dtype, self._tokenizer.vocab_size, self._tokenizer.fingerprint, tuple(self._done)
        )
        (self._directory / "index.json").write_text(json_text(asdict(index)), encoding="utf-8")
        return index


class TokenShards:
    """The tokens of one source and split, read as one long sequence straight from disk."""

    def __init__(self, directory: Path, index: ShardIndex) -> None:
        self.directory = directory
        self.index = index
        width = np.dtype(index.dtype).itemsize
        self._parts: list[NDArray[Any]] = []
        for shard in index.shards:
            path = directory / shard.file
            found = path.stat().st_size if path.is_file() else 0
            if found != shard.tokens * width:
                problem = f"{shard.tokens * width} bytes expected, {found} found"
                raise ShardError(f"{path}: {problem}; delete {directory.parent.parent} and run again")
            self._parts.append(np.memmap(path, dtype=index.dtype, mode="r"))
        self._ends = np.cumsum([shard.tokens for shard in index.shards])

    @classmethod
    def open(cls, directory: Path) -> TokenShards:
        """Open the folder of one source and split; a file missing or cut short raises ``ShardError``."""
        path = directory / "index.json"
        try:
            index = from_mapping(ShardIndex, json.loads(read_text(path, _LARGEST_INDEX)))
        except (OSError, ValueError, RecursionError) as error:
            raise ShardError(
                f"{path}: no usable index ({shortened(str(error))}); delete {directory.parent.parent} and run again"
            ) from None
        if index.format != _FORMAT or index.dtype not in ("<u2", "<u4") or not index.tokens:
            raise ShardError(f"{path}: of another format; delete {directory.parent.parent} and run again")
        return cls(directory, index)

    def __len__(self) -> int:
        return self.index.tokens

    @property
    def bytes_per_token(self) -> float:
        """Bytes of UTF-8 text per token."""
        return self.index.bytes_per_token

    def read(self, start: int, stop: int) -> NDArray[np.int64]:
        """Return tokens ``start`` to ``stop`` (exclusive) as int64; outside the sequence raises ``IndexError``."""
        if not 0 <= start <= stop <= len(self):
            raise IndexError(f"tokens {start}:{stop} of {len(self)} in {self.directory}")
        out = np.empty(stop - start, dtype=np.int64)
        first = int(np.searchsorted(self._ends, start, side="right"))
        for number in range(first, len(self._parts)):
            begin = int(self._ends[number]) - len(self._parts[number])
            if begin >= stop:
                break
            low, high = max(start, begin), min(stop, int(self._ends[number]))
            out[low - start : high - start] = self._parts[number][low - begin : high - begin]
        return out

    def verify(self) -> None:
        """Check every file against its SHA-256; a mismatch raises ``ShardError``."""
        for shard in self.index.shards:
            path = self.directory / shard.file
            found = file_sha256(path)
            if found != shard.sha256:
                problem = f"SHA-256 {shard.sha256[:12]}... expected, {found[:12]}... found"
                raise ShardError(f"{path}: {problem}; delete {self.directory.parent.parent} and run again")


def open_shards(out_dir: Path, split: Split, tokenizer: Tokenizer | None = None) -> dict[str, TokenShards]:
    """Open every source of a split, by name; with ``tokenizer``, one that did not make them raises ``ShardError``."""
    folders = sorted(path.parent for path in (out_dir / split).glob("*/index.json"))
    if not folders:
        raise ShardError(f"{out_dir / split}: no token shards here; run the shards step first")
    opened = {folder.name: TokenShards.open(folder) for folder in folders}
    for name, shards in opened.items():
        if tokenizer is not None and shards.index.tokenizer != tokenizer.fingerprint:
            raise ShardError(f"{out_dir / split / name}: made by another tokenizer; delete {out_dir} and run again")
    return opened

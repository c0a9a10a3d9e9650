"""Text that every installation has: the sources of Python's standard library."""

from __future__ import annotations

import sysconfig
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from fathom.errors import DataError
from fathom.files import sha256
from fathom.tokenizer import train_bpe

HELD_OUT_EVERY = 10


@dataclass(frozen=True, slots=True)
class Corpus:
    """Token ids of a byte-pair vocabulary learnt from the training text.

    ``sha256`` is that of the training text followed by the held-out text.
    """

    train: Tensor = field(repr=False)
    held_out: Tensor = field(repr=False)
    vocabulary: int
    files: int
    train_bytes: int
    sha256: str

    @classmethod
    def read(cls, vocabulary: int, *, files: int | None = None, folder: Path | None = None) -> Corpus:
        """Read the modules at the top of the library, the first ``files`` or all; every tenth by name is held out.

        Raises:
            DataError: the sources are not there, as where Python comes without them.
        """
        folder = folder if folder is not None else Path(sysconfig.get_paths()["stdlib"])
        paths = sorted(folder.glob("*.py"))[:files]
        if len(paths) < HELD_OUT_EVERY:
            raise DataError(f"{folder}: holds no Python sources; use a Python that comes with its standard library")
        texts = [path.read_text(encoding="utf-8", errors="replace") for path in paths]
        train = [text for i, text in enumerate(texts) if i % HELD_OUT_EVERY]
        held_out = texts[::HELD_OUT_EVERY]
        tokenizer = train_bpe(train, vocab_size=vocabulary)
        read = [torch.tensor([i for ids in tokenizer.encode_batch(part) for i in ids]) for part in (train, held_out)]
        whole = "".join(train).encode(), "".join(held_out).encode()
        digest = sha256(b"".join(whole))
        return cls(read[0], read[1], tokenizer.vocab_size, len(paths), len(whole[0]), digest)


def windows(ids: Tensor, batch: int, length: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw (batch, length) windows at random places, and the ids that follow each of theirs."""
    starts = torch.randint(len(ids) - length, (batch, 1), generator=generator)
    drawn = ids[starts + torch.arange(length + 1)]
    return drawn[:, :-1], drawn[:, 1:]

"""Image-text pairs, and a loader that mixes batches of them with batches of text (DeepSeek-VL §3.2)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fathom.data.images import open_image, preprocess
from fathom.data.loader import PackedLoader, TokenBatch
from fathom.data.saved_position import saved_count
from fathom.errors import DataError, explain_os_error
from fathom.files import open_regular, sha256
from fathom.spec.images import ImageProcessing
from fathom.spec.targets import IGNORE_INDEX
from fathom.spec.vision import VisionSpec
from fathom.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class ImageTextPair:
    """An image and its text; ``prompt`` stands between them and is masked from the loss."""

    image: Path
    text: str
    prompt: str = ""


@dataclass(frozen=True, slots=True)
class ImageTextFile:
    """A JSONL file of pairs: ``{"image": PATH, "text": TEXT, "prompt": TEXT}``, paths relative to the file."""

    path: Path
    pairs: tuple[ImageTextPair, ...]
    sha256: str

    @classmethod
    def open(cls, path: Path) -> ImageTextFile:
        """Read the file; images are opened when they are needed.

        Raises:
            DataError: no such file, no pairs, or a line that is none; the message names the line.
        """
        try:
            with open_regular(path) as file:
                content = file.read()
        except OSError as error:
            raise DataError(f"{path}: cannot be read, {explain_os_error(error)}") from None
        lines = [(number, line) for number, line in enumerate(content.splitlines(), start=1) if line.strip()]
        pairs = tuple(_pair(line, f"{path}, line {number}", path.parent) for number, line in lines)
        if not pairs:
            raise DataError(f"{path}: holds no pairs; write one JSON object a line")
        return cls(path, pairs, sha256(content))


class ImageTextLoader:
    """Draws whole batches of pairs or of text, so that no batch mixes the two; the n-th depends on the seed and n.

    A sequence of a pair is the begin-of-sentence token, the image's tokens, prompt, text and end of sentence, padded.
    The loss covers text and end only. Pairs come in a new random order every epoch. The share of image batches rises
    linearly from 0 to ``fraction`` over the first ``warmup_tokens`` tokens.
    """

    def __init__(
        self,
        file: ImageTextFile,
        text: PackedLoader | None,
        *,
        tokenizer: Tokenizer,
        vision: VisionSpec,
        sequence_length: int,
        seed: int,
        fraction: float = 1.0,
        warmup_tokens: int = 0,
        processing: ImageProcessing | None = None,
    ) -> None:
        if text is None and (fraction < 1 or warmup_tokens):
            raise DataError("images.fraction: below 1 or warmed up, but there is no text to mix in; add a shards step")
        if sequence_length < vision.tokens_per_image + 2:
            raise DataError(
                f"sequence_length: {sequence_length} leaves no text beside an image of {vision.tokens_per_image} "
                "tokens; raise it"
            )
        self.file, self.text, self.processing = file, text, processing
        self._tokenizer, self._vision, self._length = tokenizer, vision, sequence_length
        self._seed, self._fraction, self._warmup = seed, fraction, warmup_tokens
        self.bytes_per_token = text.bytes_per_token if text is not None else {}
        self._source = len(text.sources) if text is not None else 0
        self._sequences, self._pairs = 0, 0
        self._epoch, self._order = -1, np.empty(0, dtype=np.int64)

    def next(self, batch_size: int) -> TokenBatch:
        """Return the next ``batch_size`` sequences, all with an image or all without."""
        if batch_size < 1:
            raise DataError(f"batch_size: must be 1 or more, got {batch_size}; give a positive number")
        rng = np.random.Generator(np.random.Philox(key=self._seed, counter=[0, 1, self._sequences, 0]))
        share, seen = self._fraction, self._sequences * self._length
        if self._warmup:
            share *= min(1.0, seen / self._warmup)
        self._sequences += batch_size
        if self.text is not None and rng.random() >= share:
            return self.text.next(batch_size)
        pairs = [self._draw() for _ in range(batch_size)]
        rows = [self._row(pair) for pair in pairs]
        images = preprocess([open_image(pair.image) for pair in pairs], self._vision, self.processing)
        tokens_BT1 = torch.tensor([tokens for tokens, _ in rows])
        targets_BT = torch.tensor([targets for _, targets in rows])
        return TokenBatch(tokens_BT1, torch.full((batch_size,), self._source), images, targets_BT)

    def state(self) -> dict[str, Any]:
        """Return the position as plain JSON, and what it depends on."""
        return {
            "sequences": self._sequences,
            "pairs": self._pairs,
            "warmup_tokens": self._warmup,
            "data": self._digest(),
            "text": self.text.state() if self.text is not None else None,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go to a saved position; other pairs, settings or text raise ``DataError``.

        The warm-up stays as long as it was, so that a stage that is made longer sees the same batches up to here.
        """
        mine = self.state()
        warmup = state.get("warmup_tokens")
        expected = self._digest(self._warmup) if warmup is None else mine["data"]  # None: saved by an earlier version
        if state.get("data") != expected or (state.get("text") is None) != (mine["text"] is None):
            raise DataError("loader state: belongs to other pairs or settings; resume with those it was saved with")
        if self.text is not None:
            self.text.restore(state["text"])
        self._sequences, self._pairs = saved_count(state, "sequences"), saved_count(state, "pairs")
        self._warmup = self._warmup if warmup is None else saved_count(state, "warmup_tokens")

    def _digest(self, *further: int) -> str:
        settings = repr((self.file.sha256, self._length, self._seed, self._fraction, *further))
        return sha256(settings)[:16]

    def _draw(self) -> ImageTextPair:
        epoch, place = divmod(self._pairs, len(self.file.pairs))
        if epoch != self._epoch:
            rng = np.random.Generator(np.random.Philox(key=self._seed, counter=[0, 2, epoch, 0]))
            self._order, self._epoch = rng.permutation(len(self.file.pairs)), epoch
        self._pairs += 1
        return self.file.pairs[int(self._order[place])]

    def _row(self, pair: ImageTextPair) -> tuple[list[int], list[int]]:
        """Return T + 1 tokens and T targets."""
        tokenizer, vision = self._tokenizer, self._vision
        head = [*tokenizer.prefix_ids, *[vision.image_token_id] * vision.tokens_per_image]
        head += tokenizer.encode(pair.prompt, continues=True)
        tokens = [*head, *tokenizer.encode(pair.text, continues=True), tokenizer.eos_id][: self._length + 1]
        if len(tokens) <= len(head):
            raise DataError(f"{self.file.path}: a prompt of {len(head)} tokens leaves no text; raise sequence_length")
        padding = self._length + 1 - len(tokens)
        targets = [IGNORE_INDEX] * (len(head) - 1) + tokens[len(head) :] + [IGNORE_INDEX] * padding
        return tokens + [tokenizer.pad_id] * padding, targets


def _pair(line: bytes, where: str, folder: Path) -> ImageTextPair:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: is no JSON ({error}); write one object a line") from None
    image, text, prompt = (row.get(name, "") if isinstance(row, dict) else "" for name in ("image", "text", "prompt"))
    for field, value in (("image", image), ("text", text), ("prompt", prompt)):
        if not isinstance(value, str) or (not value and field != "prompt"):
            raise DataError(f"{where}: {field} is {value!r}; give a text")
    return ImageTextPair(folder / image, text, prompt)

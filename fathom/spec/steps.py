"""The steps of a recipe from raw text to a pretrained model, and those that measure and report."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from fathom.errors import SpecError
from fathom.spec import check
from fathom.spec.data import Deduplication
from fathom.spec.model import ModelSpec
from fathom.spec.rope import RopeScaling
from fathom.spec.sampling import SamplingParams
from fathom.spec.train import TrainSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class CorpusStep:
    """Fetch the manifest's sources, extract and clean documents, remove duplicates, hold some documents out.

    ``manifest`` is a path relative to the recipe. ``held_out_fraction`` of each source's documents, chosen by hash,
    never reach training.
    """

    kind: ClassVar[str] = "corpus"
    name: str = "corpus"
    manifest: str
    held_out_fraction: float = 0.02
    min_chars: int = 32
    deduplication: Deduplication = field(default_factory=Deduplication)

    def __post_init__(self) -> None:
        check.fraction("held_out_fraction", self.held_out_fraction, below=0.5)
        check.positive("held_out_fraction", self.held_out_fraction)
        check.positive("min_chars", self.min_chars)


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizerStep:
    """Train a byte-level BPE on at most ``sample_bytes`` of the training documents, by source weight."""

    kind: ClassVar[str] = "tokenizer"
    name: str = "tokenizer"
    vocab_size: int
    sample_bytes: int = 16_000_000

    def __post_init__(self) -> None:
        check.positive("sample_bytes", self.sample_bytes)
        if self.vocab_size < 320:
            raise SpecError("vocab_size", f"{self.vocab_size} leaves no ids for merges", "use at least 320")


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardsStep:
    """Tokenize every document into checksummed shards of at most ``shard_tokens`` tokens."""

    kind: ClassVar[str] = "shards"
    name: str = "shards"
    shard_tokens: int = 16_777_216

    def __post_init__(self) -> None:
        check.positive("shard_tokens", self.shard_tokens)


@dataclass(frozen=True, slots=True, kw_only=True)
class PicturesStep:
    """Draw pictures of one coloured shape each with a sentence about it: image-text pairs that need no download.

    ``held_out`` further pictures never reach training. ``size`` is their side in pixels.
    """

    kind: ClassVar[str] = "pictures"
    name: str = "pictures"
    count: int
    held_out: int = 200
    size: int = 64
    seed: int = 1

    def __post_init__(self) -> None:
        for field_name in ("count", "held_out", "size"):
            check.positive(field_name, getattr(self, field_name))


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageText:
    """Image-text pairs that a training stage reads (DeepSeek-VL §3.2).

    ``pairs`` is a JSONL file of ``{"image", "text", "prompt"}``; without it the pictures step before is read. Batches
    hold pairs or text, never both: ``fraction`` of them hold pairs, after a linear rise over the first ``warmup`` of
    the stage's tokens.
    """

    pairs: str | None = None
    fraction: float = 1.0
    warmup: float = 0.0

    def __post_init__(self) -> None:
        check.fraction("fraction", self.fraction)
        check.positive("fraction", self.fraction)
        check.fraction("warmup", self.warmup)


@dataclass(frozen=True, slots=True, kw_only=True)
class CaptionsStep:
    """Ask the trained model what the held-out pictures show, and count the sentences and words that are right."""

    kind: ClassVar[str] = "captions"
    name: str = "captions"
    count: int = 100

    def __post_init__(self) -> None:
        check.positive("count", self.count)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainStep:
    """A training stage; it starts from the train step before it, or from random weights if there is none.

    ``start`` names a step that leaves a model, an ``open`` step for one, and training continues from its weights:
    continued pretraining, as DeepSeekMath §2.3 begins at Coder-Base. A ``model`` of its own is drawn at random whatever
    came before; it shares the recipe's tokenizer and shards, so that a student has its teacher's vocabulary. Train
    steps after either continue from that one.
    ``rope_scaling`` and ``max_position_embeddings``, when given, stretch the context first (V2 §3.1.4).
    ``needle_fraction`` of the sequences are synthetic retrieval documents for the long-context stage; their keys
    and numbers never occur in the needle evaluation. ``images`` mixes in image-text pairs.
    """

    kind: ClassVar[str] = "train"
    name: str
    train: TrainSpec
    rope_scaling: RopeScaling | None = None
    max_position_embeddings: int | None = None
    needle_fraction: float = 0.0
    images: ImageText | None = None
    model: ModelSpec | None = None
    start: str | None = None

    def __post_init__(self) -> None:
        check.fraction("needle_fraction", self.needle_fraction)
        if self.start is not None and self.model is not None:
            raise SpecError("start", f"{self.start!r} has a model, and so has this step", "leave out start or model")
        if self.images is not None and self.needle_fraction:
            raise SpecError("needle_fraction", "is not mixed with images", "give the needles a stage of their own")
        if self.max_position_embeddings is not None:
            check.positive("max_position_embeddings", self.max_position_embeddings)


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluateStep:
    """Bits per byte of held-out text by source, from at most ``max_tokens`` tokens of each."""

    kind: ClassVar[str] = "evaluate"
    name: str = "evaluate"
    max_tokens: int = 32_768
    context: int | None = None

    def __post_init__(self) -> None:
        check.positive("max_tokens", self.max_tokens)


@dataclass(frozen=True, slots=True, kw_only=True)
class NeedleStep:
    """Needle in a haystack over depth x length (``lengths`` in tokens, ``depths`` as fractions)."""

    kind: ClassVar[str] = "needle"
    name: str = "needle"
    lengths: tuple[int, ...]
    depths: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 1.0)
    trials: int = 8

    def __post_init__(self) -> None:
        check.positive("trials", self.trials)
        for length in self.lengths:
            check.positive("lengths", length)
        for depth in self.depths:
            check.fraction("depths", depth)
        if not self.lengths or not self.depths:
            raise SpecError("lengths", "nothing to measure", "give at least one length and one depth")


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleStep:
    """Continue a few prompts with the trained model."""

    kind: ClassVar[str] = "sample"
    name: str = "sample"
    prompts: tuple[str, ...]
    sampling: SamplingParams = field(default_factory=SamplingParams)

    def __post_init__(self) -> None:
        if not self.prompts:
            raise SpecError("prompts", "nothing to continue", "give at least one prompt")


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportStep:
    """Write report.html and report.json from what the other steps left."""

    kind: ClassVar[str] = "report"
    name: str = "report"

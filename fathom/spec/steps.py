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
    """Fetch the manifest's sources, extract and clean documents, remove duplicates, hold some documents out."""

    kind: ClassVar[str] = "corpus"
    name: str = "corpus"
    """Name of the step and of its folder in the run."""
    manifest: str | None = None
    """The TOML file of [[sources]], relative to the recipe; not needed with text, or with --text on the command line.

    Example: "sources.toml"
    """
    text: tuple[str, ...] = ()
    """Folders or files of your own text, relative to the recipe, in place of a manifest.

    Example: ["notes"]
    """
    held_out_fraction: float = 0.02
    """Share of each source's documents, chosen by hash, that never reach training.

    Unit: fraction
    """
    min_chars: int = 32
    """Shorter documents are left out.

    Unit: characters
    """
    deduplication: Deduplication = field(default_factory=Deduplication)
    """How near-duplicates are found; exact ones are always removed."""

    def __post_init__(self) -> None:
        check.fraction("held_out_fraction", self.held_out_fraction, below=0.5)
        check.positive("held_out_fraction", self.held_out_fraction)
        check.positive("min_chars", self.min_chars)
        if self.manifest is not None and self.text:
            raise SpecError("text", "stands beside a manifest", "leave out one of them")


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizerStep:
    """Train a byte-level BPE on the training documents, by source weight."""

    kind: ClassVar[str] = "tokenizer"
    name: str = "tokenizer"
    """Name of the step and of its folder in the run."""
    vocab_size: int
    """Tokens of the vocabulary, at least 320.

    Unit: tokens
    Paper: 100,015 (V2 §3.1.1), 8K (DeepSeekMoE 2B)
    Example: 4096
    """
    sample_bytes: int = 16_000_000
    """Bytes of text at most that it learns from.

    Unit: bytes
    Paper: 24 GB (LLM §2.1)
    """

    def __post_init__(self) -> None:
        check.positive("sample_bytes", self.sample_bytes)
        if self.vocab_size < 320:
            raise SpecError("vocab_size", f"{self.vocab_size} leaves no ids for merges", "use at least 320", alone=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardsStep:
    """Tokenize every document into checksummed shards."""

    kind: ClassVar[str] = "shards"
    name: str = "shards"
    """Name of the step and of its folder in the run."""
    shard_tokens: int = 16_777_216
    """Tokens of one file at most.

    Unit: tokens
    """

    def __post_init__(self) -> None:
        check.positive("shard_tokens", self.shard_tokens)


@dataclass(frozen=True, slots=True, kw_only=True)
class PicturesStep:
    """Draw pictures of one coloured shape each, with a sentence about it, that need no download."""

    kind: ClassVar[str] = "pictures"
    name: str = "pictures"
    """Name of the step and of its folder in the run."""
    count: int
    """Pictures to train on.

    Unit: pictures
    Example: 1000
    """
    held_out: int = 200
    """Further pictures that never reach training.

    Unit: pictures
    """
    size: int = 64
    """Side of a picture.

    Unit: pixels
    """
    seed: int = 1
    """Decides what is drawn."""

    def __post_init__(self) -> None:
        for field_name in ("count", "held_out", "size"):
            check.positive(field_name, getattr(self, field_name))


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageText:
    """Image-text pairs that a training stage reads (DeepSeek-VL §3.2). Batches hold pairs or text, never both."""

    pairs: str | None = None
    """A JSONL file of {"image", "text", "prompt"}, relative to the recipe; left out, the pictures step before is
    read.

    Example: "pairs.jsonl"
    """
    fraction: float = 1.0
    """Share of the batches that hold pairs.

    Unit: fraction
    Paper: 0.3 (VL §3.2.2)
    """
    warmup: float = 0.0
    """First part of the stage's tokens over which that share rises from 0.

    Unit: fraction
    """

    def __post_init__(self) -> None:
        check.fraction("fraction", self.fraction)
        check.positive("fraction", self.fraction)
        check.fraction("warmup", self.warmup)


@dataclass(frozen=True, slots=True, kw_only=True)
class CaptionsStep:
    """Ask the trained model what the held-out pictures show, and count the sentences and words that are right."""

    kind: ClassVar[str] = "captions"
    name: str = "captions"
    """Name of the step and of its file in the run."""
    count: int = 100
    """Pictures that it is asked about.

    Unit: pictures
    """

    def __post_init__(self) -> None:
        check.positive("count", self.count)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainStep:
    """A training stage; it starts from the train step before it, or from random weights if there is none.

    A ``model`` of its own shares the recipe's tokenizer and shards, so that a student has its teacher's vocabulary.
    Train steps after either ``start`` or ``model`` continue from that one.
    """

    kind: ClassVar[str] = "train"
    name: str = "train"
    """Name of the step and of its folder in the run.

    Example: "pretrain"
    """
    train: TrainSpec
    """How long, how fast and how much at once the model learns."""
    rope_scaling: RopeScaling | None = None
    """Stretch the context first, by scaling positions (V2 §3.1.4)."""
    max_position_embeddings: int | None = None
    """The model's context during and after this stage; left out, it stays what it was.

    Unit: tokens
    Example: 1024
    """
    needle_fraction: float = 0.0
    """Share of the sequences that are synthetic retrieval documents; their keys and numbers never occur in the needle
    evaluation.

    Unit: fraction
    """
    images: ImageText | None = None
    """Image-text pairs that are mixed in."""
    model: ModelSpec | None = None
    """A model of its own, drawn at random whatever came before, as a student beside its teacher."""
    start: str | None = None
    """The step whose model training continues from, an open step for one: continued pretraining (DeepSeekMath §2.3).

    Example: "base"
    """

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
    """Bits per byte of held-out text by source."""

    kind: ClassVar[str] = "evaluate"
    name: str = "evaluate"
    """Name of the step and of its file in the run."""
    max_tokens: int = 32_768
    """Tokens of each source at most.

    Unit: tokens
    """
    context: int | None = None
    """Tokens of context that each prediction sees; left out, the model's whole context.

    Unit: tokens
    Example: 1024
    """

    def __post_init__(self) -> None:
        check.positive("max_tokens", self.max_tokens)


@dataclass(frozen=True, slots=True, kw_only=True)
class NeedleStep:
    """Needle in a haystack over depth x length."""

    kind: ClassVar[str] = "needle"
    name: str = "needle"
    """Name of the step and of its file in the run."""
    lengths: tuple[int, ...]
    """Lengths of the haystacks.

    Unit: tokens
    Example: [256, 512, 1024]
    """
    depths: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 1.0)
    """Where the needle lies, from the beginning (0) to the end (1).

    Unit: fraction
    """
    trials: int = 8
    """Questions for each length and depth.

    Unit: questions
    """

    def __post_init__(self) -> None:
        check.positive("trials", self.trials)
        for length in self.lengths:
            check.positive("lengths", length)
        for depth in self.depths:
            check.fraction("depths", depth)
        if not self.lengths or not self.depths:
            raise SpecError("lengths", "nothing to measure", "give at least one length and one depth", alone=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleStep:
    """Continue a few prompts with the trained model."""

    kind: ClassVar[str] = "sample"
    name: str = "sample"
    """Name of the step and of its file in the run."""
    prompts: tuple[str, ...]
    """Texts to continue.

    Example: ["Once upon a time"]
    """
    sampling: SamplingParams = field(default_factory=SamplingParams)
    """How tokens are drawn."""

    def __post_init__(self) -> None:
        if not self.prompts:
            raise SpecError("prompts", "nothing to continue", "give at least one prompt", alone=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportStep:
    """Write report.html and report.json from what the other steps left."""

    kind: ClassVar[str] = "report"
    name: str = "report"
    """Name of the step."""

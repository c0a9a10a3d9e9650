"""ModelSpec: everything that makes one decoder differ from another, validated when it is made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal, get_args

from fathom.errors import SpecError
from fathom.spec import check
from fathom.spec.attention import Attention
from fathom.spec.moe import MixtureOfExperts
from fathom.spec.rope import Llama3Scaling, RopeSpec, YarnScaling
from fathom.spec.vision import VisionSpec

Family = Literal[
    "llama",
    "deepseek",
    "deepseek_v2",
    "deepseek_v3",
    "deepseek_vl",
    "deepseek_vl_hybrid",
    "mistral",
    "mixtral",
    "qwen2",
]
FAMILIES: tuple[Family, ...] = get_args(Family)

LARGEST: Mapping[str, int] = MappingProxyType(
    {
        "vocab_size": 2**26,
        "hidden_size": 2**20,
        "intermediate_size": 2**24,
        "num_hidden_layers": 10_000,
        "num_nextn_predict_layers": 64,
        "max_position_embeddings": 2**40,
    }
)
"""What a field may be at most, so that a hostile file cannot have billions of things made; far above any model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """A pre-norm decoder-only transformer with SwiGLU feed-forward layers, dense or mixtures of experts.

    Layer i is a mixture of experts when ``moe`` is set, i >= ``first_k_dense_replace`` and i is a multiple of
    ``moe_layer_freq``; otherwise it is dense with ``intermediate_size``.
    """

    name: str
    """Name of the model, in checkpoints and reports.

    Example: "my-model"
    """
    family: Family
    """The published form (Hugging Face model_type) in which tensors are exchanged; it never changes what is computed.

    Example: "deepseek_v2"
    """
    vocab_size: int
    """Rows of the embedding and of the output head; at least the tokenizer's vocabulary.

    Unit: tokens
    Paper: 102400 (V2 §3.1.2), 129280 (V3)
    Example: 4096
    """
    hidden_size: int
    """Width of the residual stream.

    Paper: 5120 (V2 §3.1.2), 2048 (V2-Lite), 7168 (V3 §4.2)
    Example: 256
    """
    num_hidden_layers: int
    """Decoder layers, dense ones and mixtures of experts together.

    Unit: layers
    Paper: 60 (V2 §3.1.2), 27 (V2-Lite), 61 (V3 §4.2)
    Example: 4
    """
    attention: Attention
    """The attention of every layer: kind "mla" or "gqa"."""
    max_position_embeddings: int
    """Longest context the model is used with, after any scaling of its positions.

    Unit: tokens
    Paper: 4096, 163840 with YaRN (V2 §3.1.4)
    Example: 256
    """
    intermediate_size: int | None = None
    """Width of the feed-forward part of dense layers; needed where any layer is dense.

    Paper: 12288 (V2), 10944 (V2-Lite), 18432 (V3)
    Example: 512
    """
    moe: MixtureOfExperts | None = None
    """The mixture of experts of the layers that have one; left out, every layer is dense."""
    first_k_dense_replace: int = 0
    """So many layers at the beginning are dense although moe is set.

    Unit: layers
    Paper: 1 (V2 §3.1.2), 3 (V3 §4.2)
    """
    moe_layer_freq: int = 1
    """Every so many layers is a mixture of experts.

    Unit: layers
    Paper: 1 (V2, V3)
    """
    rope: RopeSpec = field(default_factory=RopeSpec)
    """Rotary position embedding: base, layout of the pairs, scaling to longer contexts."""
    rms_norm_eps: float = 1e-6
    """Added to the mean square in every RMSNorm.

    Paper: 1e-6 (V2, V3)
    """
    mlp_bias: bool = False
    """Whether feed-forward projections have biases.

    Paper: false (LLM §2.2)
    """
    tie_word_embeddings: bool = False
    """Whether the output head shares its weights with the embedding.

    Paper: false (V2, V3)
    """
    initializer_range: float = 0.006
    """Standard deviation of the normal distribution that initial weights are drawn from.

    Paper: 0.006 (V2 §3.1.2, V3 §4.2)
    """
    num_nextn_predict_layers: int = 0
    """Modules for multi-token prediction, each of which predicts one token further ahead (V3 §2.2).

    Unit: layers
    Paper: 1 (V3 §4.2)
    """
    bos_token_id: int | None = None
    """Id of the token that begins a text; a run takes its tokenizer's where it is left out.

    Unit: token id
    Example: 0
    """
    eos_token_id: int | None = None
    """Id of the token that ends a text; a run takes its tokenizer's where it is left out.

    Unit: token id
    Example: 1
    """
    pad_token_id: int | None = None
    """Id of the token that fills up batches in other programs; Fathom needs none.

    Unit: token id
    Example: 1
    """
    vision: VisionSpec | None = None
    """Towers that turn images into tokens of the text (DeepSeek-VL §3.1); left out, the model takes text alone."""

    def __post_init__(self) -> None:
        check.one_of("family", self.family, FAMILIES)
        for name in ("vocab_size", "hidden_size", "num_hidden_layers", "max_position_embeddings"):
            check.count(name, getattr(self, name), LARGEST[name])
        check.positive("moe_layer_freq", self.moe_layer_freq)
        check.positive("rms_norm_eps", self.rms_norm_eps)
        check.positive("initializer_range", self.initializer_range)
        nextn = "num_nextn_predict_layers"
        check.count(nextn, self.num_nextn_predict_layers, LARGEST[nextn], least=0)
        check.not_negative("first_k_dense_replace", self.first_k_dense_replace)
        self._check_feed_forward()
        self._check_token_ids()
        if self.vision is not None:
            self._check_vision(self.vision)
        scaling = self.rope.scaling
        if isinstance(scaling, YarnScaling) and scaling.original_max_position_embeddings > self.max_position_embeddings:
            raise SpecError(
                "rope.scaling.original_max_position_embeddings",
                f"{scaling.original_max_position_embeddings} exceeds max_position_embeddings "
                f"{self.max_position_embeddings}",
                "raise max_position_embeddings to the stretched context",
            )

    def _check_feed_forward(self) -> None:
        if self.intermediate_size is not None:
            check.count("intermediate_size", self.intermediate_size, LARGEST["intermediate_size"])
        if self.moe is None and self.first_k_dense_replace:
            raise SpecError("first_k_dense_replace", "there is no mixture of experts to replace", "set moe")
        if self.first_k_dense_replace > self.num_hidden_layers:
            raise SpecError(
                "first_k_dense_replace",
                f"{self.first_k_dense_replace} of {self.num_hidden_layers} layers",
                "choose at most num_hidden_layers",
            )
        if self.intermediate_size is None and self.num_moe_layers < self.num_hidden_layers:
            raise SpecError("intermediate_size", "some layers are dense but have no width", "set intermediate_size")

    def _check_token_ids(self) -> None:
        for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
            value = getattr(self, name)
            if value is not None and not -1 <= value < self.vocab_size:
                raise SpecError(name, f"{value} is outside the vocabulary of {self.vocab_size}", "raise vocab_size")

    def _check_vision(self, vision: VisionSpec) -> None:
        if vision.image_token_id >= self.vocab_size:
            problem = f"{vision.image_token_id} is outside the vocabulary of {self.vocab_size}"
            raise SpecError("vision.image_token_id", problem, "raise vocab_size")
        if vision.connector == "hybrid":
            check.multiple_of("hidden_size", self.hidden_size, 2, why="each vision tower fills half of it")
        if self.num_nextn_predict_layers:
            problem = "multi-token prediction does not see image tokens"
            raise SpecError("num_nextn_predict_layers", problem, "set it to 0 or leave vision out")

    def is_moe_layer(self, index: int) -> bool:
        """Whether decoder layer ``index`` (from 0) is a mixture of experts."""
        return self.moe is not None and index >= self.first_k_dense_replace and index % self.moe_layer_freq == 0

    @property
    def num_moe_layers(self) -> int:
        """Mixture-of-experts layers among the main decoder layers."""
        if self.moe is None:
            return 0
        before = -(-self.first_k_dense_replace // self.moe_layer_freq)
        return -(-self.num_hidden_layers // self.moe_layer_freq) - before

    @property
    def original_context(self) -> int:
        """Tokens of context before any YaRN or Llama 3 stretching."""
        scaling = self.rope.scaling
        if isinstance(scaling, YarnScaling | Llama3Scaling):
            return scaling.original_max_position_embeddings
        return self.max_position_embeddings

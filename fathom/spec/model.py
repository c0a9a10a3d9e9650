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
    ``moe_layer_freq``; otherwise it is dense with ``intermediate_size``. ``family`` names the published form
    (Hugging Face ``model_type``) the tensors are exchanged in; it never changes what is computed.
    ``num_nextn_predict_layers`` counts multi-token-prediction modules (V3 §2.2). ``vision`` adds towers whose image
    tokens stand in the text (DeepSeek-VL §3.1).
    """

    name: str
    family: Family
    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    attention: Attention
    max_position_embeddings: int
    intermediate_size: int | None = None
    moe: MixtureOfExperts | None = None
    first_k_dense_replace: int = 0
    moe_layer_freq: int = 1
    rope: RopeSpec = field(default_factory=RopeSpec)
    rms_norm_eps: float = 1e-6
    mlp_bias: bool = False
    tie_word_embeddings: bool = False
    initializer_range: float = 0.006
    num_nextn_predict_layers: int = 0
    bos_token_id: int | None = None
    eos_token_id: int | None = None
    pad_token_id: int | None = None
    vision: VisionSpec | None = None

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

"""The spec of a T5 encoder-decoder with experts, and reading and writing its config.json."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fathom.errors import SpecError
from fathom.spec import BalanceSpec, Capacity, MixtureOfExperts, RouterSpec, check
from fathom.spec.hf.fields import Fields

_MODEL_TYPE = "switch_transformers"
_SIZES = ("vocab_size", "d_model", "d_kv", "d_ff", "num_layers", "num_heads")
_INERT = ("dropout_rate", "initializer_factor", "add_router_probs", "bos_token_id", "tokenizer_class")
_INERT_TABLES = ("architectures", "task_specific_params", "decoder", "n_positions", "feed_forward_proj")


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderDecoderSpec:
    """A T5 encoder-decoder: pre-norm, ReLU feed-forward layers, relative position bias, no biases elsewhere.

    Of each stack, layer i is a mixture of experts where ``i % sparse_step == 1``, or everywhere for a step of 1 and
    nowhere for 0. ``expert_capacity`` is the published form's fixed number of places an expert has in each sequence,
    padding included, in training and outside; without it the router's own select decides. The published form's
    experts are as wide as ``d_ff``. ``tie_word_embeddings`` projects to the vocabulary by the embedding, scaled by
    d_model^-0.5.
    """

    name: str
    vocab_size: int
    d_model: int
    d_kv: int
    d_ff: int
    num_layers: int
    num_decoder_layers: int
    num_heads: int
    moe: MixtureOfExperts | None = None
    encoder_sparse_step: int = 2
    decoder_sparse_step: int = 2
    expert_capacity: int | None = None
    relative_attention_num_buckets: int = 32
    relative_attention_max_distance: int = 128
    layer_norm_epsilon: float = 1e-6
    tie_word_embeddings: bool = True
    pad_token_id: int = 0
    eos_token_id: int = 1
    decoder_start_token_id: int = 0

    def __post_init__(self) -> None:
        for name in (*_SIZES, "num_decoder_layers", "layer_norm_epsilon", "relative_attention_max_distance"):
            check.positive(name, getattr(self, name))
        check.multiple_of(
            "relative_attention_num_buckets", self.relative_attention_num_buckets, 4, why="half of each sign is exact"
        )
        if self.relative_attention_max_distance <= self.relative_attention_num_buckets // 2:
            problem = f"{self.relative_attention_max_distance} leaves the logarithmic buckets empty"
            raise SpecError("relative_attention_max_distance", problem, "raise it above half the number of buckets")
        for name in ("encoder_sparse_step", "decoder_sparse_step"):
            check.not_negative(name, getattr(self, name))
        for name in ("pad_token_id", "eos_token_id", "decoder_start_token_id"):
            if not 0 <= getattr(self, name) < self.vocab_size:
                raise SpecError(name, f"{getattr(self, name)} is outside the vocabulary", "raise vocab_size")
        self._check_experts()

    def _check_experts(self) -> None:
        moe = self.moe
        if moe is None:
            if self.expert_capacity is not None:
                raise SpecError("expert_capacity", "there are no experts", "set moe")
            return
        if moe.n_shared_experts:
            raise SpecError("moe.n_shared_experts", "no expert is shared in this form", "set it to 0")
        if self.expert_capacity is not None:
            check.positive("expert_capacity", self.expert_capacity)
            if isinstance(moe.router.select, Capacity):
                raise SpecError("expert_capacity", "the router's select has a capacity of its own", "keep one of them")

    def is_sparse(self, index: int, *, decoder: bool) -> bool:
        """Whether layer ``index`` (from 0) of a stack is a mixture of experts."""
        step = self.decoder_sparse_step if decoder else self.encoder_sparse_step
        return self.moe is not None and step > 0 and (step == 1 or index % step == 1)


def spec_from_config(config: Mapping[str, Any], *, name: str = "switch") -> EncoderDecoderSpec:
    """Read a published config.json of model_type switch_transformers; a missing field means transformers' default.

    Raises:
        SpecError: a field is unknown, mistyped, or asks for what is not built.
    """
    if not isinstance(config, Mapping):
        raise SpecError("config.json", f"expected a table, got {config!r}", "give the parsed config.json")
    if config.get("model_type") != _MODEL_TYPE:
        raise SpecError("model_type", f"{config.get('model_type')!r} is not {_MODEL_TYPE}", "open it with fathom.load")
    fields = Fields(config)
    layers = fields.integer("num_layers", 12)
    decoder_layers = fields.integer("num_decoder_layers", layers if "num_decoder_layers" in config else 12)
    width = fields.integer("d_ff", 2048)
    spec = EncoderDecoderSpec(
        name=name,
        vocab_size=fields.integer("vocab_size", 32128),
        d_model=fields.integer("d_model", 768),
        d_kv=fields.integer("d_kv", 64),
        d_ff=width,
        num_layers=layers,
        num_decoder_layers=decoder_layers,
        num_heads=fields.integer("num_heads", 12),
        moe=_read_experts(fields, width),
        encoder_sparse_step=_read_step(fields, "encoder", layers),
        decoder_sparse_step=_read_step(fields, "decoder", decoder_layers),
        expert_capacity=fields.integer("expert_capacity", 64),
        relative_attention_num_buckets=fields.integer("relative_attention_num_buckets", 32),
        relative_attention_max_distance=fields.integer("relative_attention_max_distance", 128),
        layer_norm_epsilon=fields.number("layer_norm_epsilon", 1e-6),
        tie_word_embeddings=fields.flag("tie_word_embeddings", True),
        pad_token_id=fields.integer("pad_token_id", 0),
        eos_token_id=fields.integer("eos_token_id", 1),
        decoder_start_token_id=fields.integer("decoder_start_token_id", fields.integer("pad_token_id", 0)),
    )
    _check_rest(fields)
    return spec


def _read_experts(fields: Fields, width: int) -> MixtureOfExperts:
    balance = BalanceSpec(
        expert_loss=fields.number("router_aux_loss_coef", 0.001),
        z_loss=fields.number("router_z_loss_coef", 0.001),
        scope="sequence",
    )
    return MixtureOfExperts(
        n_routed_experts=fields.integer("num_experts", 8),
        num_experts_per_tok=1,
        moe_intermediate_size=width,
        router=RouterSpec(jitter=fields.number("router_jitter_noise", 0.01), balance=balance),
    )


def _read_step(fields: Fields, stack: str, layers: int) -> int:
    """Layers per mixture of experts. Zero mixtures still give one, at layer 1: so the published class counts."""
    sparse = fields.integer(f"num_sparse_{stack}_layers", 3)
    check.not_negative(f"num_sparse_{stack}_layers", sparse)
    if sparse > layers:
        raise SpecError(f"num_sparse_{stack}_layers", f"{sparse} of {layers} layers", "choose at most all layers")
    step = layers // sparse if sparse else layers
    fields.only(f"{stack}_sparse_step", (step, None), f"layers / mixtures is {step}; correct the config.json")
    return step


def _check_rest(fields: Fields) -> None:
    relu = "only ReLU layers are built; choose a Switch checkpoint of the first version"
    fields.only("dense_act_fn", ("relu", None), relu)
    fields.only("router_dtype", ("float32", None), "routers run in float32; set it so")
    fields.only("router_bias", (False, None), "only routers without bias are built")
    fields.only("is_encoder_decoder", (True, None), "only the encoder-decoder is built")
    fields.only("is_decoder", (False, None), "only the encoder-decoder is built")
    # Published, but read by no line of the published class: padding does take places there.
    for name in ("router_ignore_padding_tokens", "router_type", "model_type", *_INERT, *_INERT_TABLES):
        fields.raw(name)
    unknown = fields.check_rest()
    if unknown:
        raise SpecError(unknown[0], "unknown field", "remove it if it changes no number the model computes")


def spec_to_config(spec: EncoderDecoderSpec) -> dict[str, Any]:
    """Write the published config.json.

    Raises:
        SpecError: the Hugging Face config cannot express the spec.
    """
    moe = spec.moe
    if moe is None or spec.expert_capacity is None:
        raise SpecError("expert_capacity", "the published form has experts of a fixed capacity", "set it and moe")
    config: dict[str, Any] = {
        "model_type": _MODEL_TYPE,
        "architectures": ["SwitchTransformersForConditionalGeneration"],
        **{name: getattr(spec, name) for name in (*_SIZES, "num_decoder_layers")},
        "num_sparse_encoder_layers": _mixtures(spec.num_layers, spec.encoder_sparse_step),
        "num_sparse_decoder_layers": _mixtures(spec.num_decoder_layers, spec.decoder_sparse_step),
        "num_experts": moe.n_routed_experts,
        "expert_capacity": spec.expert_capacity,
        "router_jitter_noise": moe.router.jitter,
        "router_aux_loss_coef": moe.router.balance.expert_loss,
        "router_z_loss_coef": moe.router.balance.z_loss,
        "router_dtype": "float32",
        "router_bias": False,
        "relative_attention_num_buckets": spec.relative_attention_num_buckets,
        "relative_attention_max_distance": spec.relative_attention_max_distance,
        "layer_norm_epsilon": spec.layer_norm_epsilon,
        "dense_act_fn": "relu",
        "is_encoder_decoder": True,
        "tie_word_embeddings": spec.tie_word_embeddings,
        "pad_token_id": spec.pad_token_id,
        "eos_token_id": spec.eos_token_id,
        "decoder_start_token_id": spec.decoder_start_token_id,
    }
    if spec_from_config(config, name=spec.name) != spec:
        raise SpecError("moe", "the published form cannot express this router or these layers", "use Switch's")
    return config


def _mixtures(layers: int, step: int) -> int:
    """How many mixtures give that step back; none do for a step of 0."""
    return layers // step if step else 0

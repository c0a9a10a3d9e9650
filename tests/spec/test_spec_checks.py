"""Every check of every spec, by the field it names."""

import dataclasses
import math
from typing import Any

import pytest

from fathom.errors import FathomError, SpecError
from fathom.families import preset
from fathom.spec import (
    BalanceSpec,
    GroupedQueryAttention,
    GroupLimited,
    LatentAttention,
    MixtureOfExperts,
    ModelSpec,
    RopeSpec,
    RouterSpec,
    SamplingParams,
    YarnScaling,
)
from fathom.spec.data import Deduplication, FolderSource, Manifest, PackageSource
from fathom.spec.recipe import (
    CorpusStep,
    EvaluateStep,
    NeedleStep,
    Recipe,
    ReportStep,
    SampleStep,
    ShardsStep,
    TokenizerStep,
    TrainStep,
)
from fathom.spec.train import AdamWSpec, BatchSpec, Checkpointing, Constant, CosineDecay, StepDecay, TrainSpec

GQA = GroupedQueryAttention(num_heads=4, num_kv_heads=2, head_dim=8)
MLA = LatentAttention(num_heads=4, kv_lora_rank=16, qk_nope_head_dim=8, qk_rope_head_dim=4, v_head_dim=8)
MOE = MixtureOfExperts(n_routed_experts=8, num_experts_per_tok=2, moe_intermediate_size=16)
MODEL = preset("bench-t")
TRAIN = TrainSpec(
    sequence_length=16, total_tokens=1000, batch=BatchSpec(size=4, micro_batch_size=2), optimizer=AdamWSpec(lr=1e-3)
)
PACKAGE = PackageSource(
    name="books",
    language="en",
    package="p",
    version="1",
    sha256="a" * 64,
    files=("*.txt",),
    extractor="plain",
    licence="MIT",
    weight=1.0,
)
FOLDER = FolderSource(name="mine", path=".")
GOOD: dict[str, Any] = {
    "gqa": GQA,
    "mla": MLA,
    "groups": GroupLimited(n_group=4, topk_group=2),
    "balance": BalanceSpec(),
    "router": RouterSpec(),
    "moe": MOE,
    "model": MODEL,
    "params": SamplingParams(),
    "adamw": AdamWSpec(lr=1e-3),
    "step": StepDecay(),
    "cosine": CosineDecay(),
    "constant": Constant(),
    "batch": BatchSpec(size=4, micro_batch_size=2),
    "ramp": BatchSpec(size=4, micro_batch_size=2, initial_size=2, ramp_tokens=10),
    "keep": Checkpointing(),
    "train": TRAIN,
    "package": PACKAGE,
    "folder": FOLDER,
    "manifest": Manifest(sources=(FOLDER,)),
    "dedup": Deduplication(),
    "corpus": CorpusStep(manifest="m.toml"),
    "tokenizer": TokenizerStep(vocab_size=512),
    "shards": ShardsStep(),
    "train step": TrainStep(name="pretrain", train=TRAIN),
    "evaluate": EvaluateStep(),
    "needle": NeedleStep(lengths=(256,)),
    "sample": SampleStep(prompts=("Once",)),
    "recipe": Recipe(name="r", model=MODEL, steps=(ReportStep(),)),
    "yarn": YarnScaling(factor=4.0, original_max_position_embeddings=1024),
    "rope": RopeSpec(),
}

BAD: list[tuple[str, dict[str, Any], str]] = [
    ("gqa", {"num_heads": 0}, "num_heads"),
    ("gqa", {"num_kv_heads": 0}, "num_kv_heads"),
    ("gqa", {"head_dim": -8}, "head_dim"),
    ("gqa", {"num_kv_heads": 3}, "num_heads"),
    ("gqa", {"head_dim": 7}, "head_dim"),
    ("gqa", {"sliding_window": 0}, "sliding_window"),
    ("mla", {"num_heads": 0}, "num_heads"),
    ("mla", {"kv_lora_rank": 0}, "kv_lora_rank"),
    ("mla", {"qk_nope_head_dim": 0}, "qk_nope_head_dim"),
    ("mla", {"qk_rope_head_dim": 0}, "qk_rope_head_dim"),
    ("mla", {"qk_rope_head_dim": 5}, "qk_rope_head_dim"),
    ("mla", {"v_head_dim": 0}, "v_head_dim"),
    ("mla", {"q_lora_rank": 0}, "q_lora_rank"),
    ("groups", {"n_group": 0}, "n_group"),
    ("groups", {"topk_group": 0}, "topk_group"),
    ("groups", {"topk_group": 5}, "topk_group"),
    ("groups", {"group_score": "mean"}, "group_score"),
    ("balance", {"expert_loss": -0.1}, "expert_loss"),
    ("balance", {"sequence_loss": math.nan}, "sequence_loss"),
    ("balance", {"bias_update_rate": -1.0}, "bias_update_rate"),
    ("balance", {"devices": 0}, "devices"),
    ("balance", {"devices_per_token": 0}, "devices_per_token"),
    ("balance", {"devices_per_token": 2}, "devices_per_token"),
    ("balance", {"device_loss": 0.1}, "devices"),
    ("balance", {"communication_loss": 0.1}, "devices"),
    ("balance", {"scope": "epoch"}, "scope"),
    ("balance", {"drop_exempt_fraction": 1.1}, "drop_exempt_fraction"),
    ("balance", {"capacity_factor": 0.0}, "capacity_factor"),
    ("router", {"score": "tanh"}, "score"),
    ("router", {"scale": 0.0}, "scale"),
    ("router", {"balance": BalanceSpec(bias_update_rate=0.001)}, "balance.bias_update_rate"),
    ("moe", {"n_routed_experts": 0}, "n_routed_experts"),
    ("moe", {"num_experts_per_tok": 0}, "num_experts_per_tok"),
    ("moe", {"num_experts_per_tok": 9}, "num_experts_per_tok"),
    ("moe", {"moe_intermediate_size": 0}, "moe_intermediate_size"),
    ("moe", {"n_shared_experts": -1}, "n_shared_experts"),
    ("moe", {"router": RouterSpec(select=GroupLimited(n_group=3, topk_group=1))}, "n_routed_experts"),
    (
        "moe",
        {"router": RouterSpec(select=GroupLimited(n_group=8, topk_group=8, group_score="top2_sum"))},
        "router.select.n_group",
    ),
    ("moe", {"router": RouterSpec(select=GroupLimited(n_group=8, topk_group=1))}, "num_experts_per_tok"),
    ("moe", {"router": RouterSpec(balance=BalanceSpec(devices=3))}, "n_routed_experts"),
    ("model", {"family": "gpt2"}, "family"),
    ("model", {"vocab_size": 0}, "vocab_size"),
    ("model", {"hidden_size": 0}, "hidden_size"),
    ("model", {"num_hidden_layers": 0}, "num_hidden_layers"),
    ("model", {"max_position_embeddings": 0}, "max_position_embeddings"),
    ("model", {"moe_layer_freq": 0}, "moe_layer_freq"),
    ("model", {"rms_norm_eps": 0.0}, "rms_norm_eps"),
    ("model", {"initializer_range": 0.0}, "initializer_range"),
    ("model", {"num_nextn_predict_layers": -1}, "num_nextn_predict_layers"),
    ("model", {"first_k_dense_replace": -1}, "first_k_dense_replace"),
    ("model", {"first_k_dense_replace": 7}, "first_k_dense_replace"),
    ("model", {"moe": None}, "first_k_dense_replace"),
    ("model", {"intermediate_size": None}, "intermediate_size"),
    ("model", {"intermediate_size": 0}, "intermediate_size"),
    ("model", {"bos_token_id": 4096}, "bos_token_id"),
    ("model", {"eos_token_id": -2}, "eos_token_id"),
    ("model", {"pad_token_id": 99999}, "pad_token_id"),
    (
        "model",
        {"rope": RopeSpec(scaling=YarnScaling(factor=2.0, original_max_position_embeddings=8192))},
        "rope.scaling.original_max_position_embeddings",
    ),
    ("yarn", {"factor": 0.0}, "factor"),
    ("yarn", {"original_max_position_embeddings": 0}, "original_max_position_embeddings"),
    ("yarn", {"beta_fast": 0.0}, "beta_fast"),
    ("yarn", {"beta_slow": -1.0}, "beta_slow"),
    ("rope", {"theta": math.inf}, "theta"),
    ("params", {"max_tokens": 0}, "max_tokens"),
    ("params", {"temperature": -1.0}, "temperature"),
    ("params", {"top_k": -1}, "top_k"),
    ("params", {"top_p": 0.0}, "top_p"),
    ("params", {"top_p": 1.5}, "top_p"),
    ("params", {"min_p": 2.0}, "min_p"),
    ("adamw", {"lr": 0.0}, "lr"),
    ("adamw", {"beta1": 1.5}, "beta1"),
    ("adamw", {"beta2": -0.1}, "beta2"),
    ("adamw", {"eps": 0.0}, "eps"),
    ("adamw", {"weight_decay": -0.1}, "weight_decay"),
    ("step", {"warmup_steps": -1}, "warmup_steps"),
    ("step", {"factor": 2.0}, "factor"),
    ("step", {"milestones": (0.9, 0.6)}, "milestones"),
    ("step", {"milestones": (0.6, 1.2)}, "milestones"),
    ("cosine", {"warmup_steps": -1}, "warmup_steps"),
    ("cosine", {"start": 1.5}, "start"),
    ("cosine", {"final": -0.5}, "final"),
    ("constant", {"warmup_steps": -1}, "warmup_steps"),
    ("batch", {"size": 0}, "size"),
    ("batch", {"size": 5}, "size"),
    ("batch", {"micro_batch_size": 0}, "micro_batch_size"),
    ("batch", {"ramp_tokens": -1}, "ramp_tokens"),
    ("batch", {"ramp_tokens": 10}, "ramp_tokens"),
    ("ramp", {"initial_size": 0}, "initial_size"),
    ("ramp", {"initial_size": 6}, "initial_size"),
    ("ramp", {"initial_size": 3}, "initial_size"),
    ("keep", {"every_steps": 0}, "every_steps"),
    ("keep", {"every_seconds": 0.0}, "every_seconds"),
    ("keep", {"keep": 0}, "keep"),
    ("train", {"sequence_length": 0}, "sequence_length"),
    ("train", {"total_tokens": 0}, "total_tokens"),
    ("train", {"total_tokens": 63}, "total_tokens"),
    ("train", {"max_grad_norm": 0.0}, "max_grad_norm"),
    ("train", {"loss_chunk_tokens": 0}, "loss_chunk_tokens"),
    ("train", {"log_every_steps": 0}, "log_every_steps"),
    ("train", {"mtp_loss_weight": -1.0}, "mtp_loss_weight"),
    ("train", {"precision": "float8"}, "precision"),
    ("train", {"evaluate_every_steps": 0}, "evaluate_every_steps"),
    ("package", {"name": "a/b"}, "name"),
    ("package", {"sha256": "A" * 64}, "sha256"),
    ("package", {"files": ()}, "files"),
    ("package", {"weight": 0.0}, "weight"),
    ("package", {"max_bytes": 0}, "max_bytes"),
    ("folder", {"name": ""}, "name"),
    ("manifest", {"sources": ()}, "sources"),
    ("manifest", {"sources": (FOLDER, FOLDER)}, "sources"),
    ("dedup", {"threshold": 1.1}, "threshold"),
    ("dedup", {"permutations": 0}, "permutations"),
    ("dedup", {"shingle_chars": 0}, "shingle_chars"),
    ("corpus", {"held_out_fraction": 0.0}, "held_out_fraction"),
    ("corpus", {"held_out_fraction": 0.6}, "held_out_fraction"),
    ("corpus", {"min_chars": 0}, "min_chars"),
    ("tokenizer", {"vocab_size": 319}, "vocab_size"),
    ("tokenizer", {"sample_bytes": 0}, "sample_bytes"),
    ("shards", {"shard_tokens": 0}, "shard_tokens"),
    ("train step", {"needle_fraction": 1.5}, "needle_fraction"),
    ("train step", {"max_position_embeddings": 0}, "max_position_embeddings"),
    ("evaluate", {"max_tokens": 0}, "max_tokens"),
    ("needle", {"lengths": ()}, "lengths"),
    ("needle", {"lengths": (0,)}, "lengths"),
    ("needle", {"depths": (2.0,)}, "depths"),
    ("needle", {"trials": 0}, "trials"),
    ("sample", {"prompts": ()}, "prompts"),
    ("recipe", {"steps": ()}, "steps"),
    ("recipe", {"steps": (ReportStep(), ReportStep())}, "steps"),
    ("recipe", {"steps": (ReportStep(), TokenizerStep(vocab_size=5000))}, "steps[1].vocab_size"),
    (
        "recipe",
        {"steps": (TrainStep(name="a", train=TRAIN, max_position_embeddings=8),)},
        "steps[0].train.sequence_length",
    ),
]


@pytest.mark.parametrize(("name", "change", "path"), BAD)
def test_a_wrong_field_is_named_with_its_remedy_on_one_line(name: str, change: dict[str, Any], path: str) -> None:
    with pytest.raises(SpecError) as caught:
        dataclasses.replace(GOOD[name], **change)
    error = caught.value
    assert error.path == path
    assert error.problem
    assert error.remedy
    assert str(error) == f"{path}: {error.problem}; {error.remedy}"
    assert "\n" not in str(error)
    assert isinstance(error, FathomError)
    assert isinstance(error, ValueError)


@pytest.mark.parametrize("spec", GOOD.values(), ids=GOOD)
def test_specs_cannot_be_changed(spec: Any) -> None:
    field = dataclasses.fields(spec)[0].name
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(spec, field, getattr(spec, field))


@pytest.mark.parametrize(
    ("attention", "label", "numbers"),
    [
        (GQA, "GQA-2", 32),
        (dataclasses.replace(GQA, num_kv_heads=4), "MHA", 64),
        (dataclasses.replace(GQA, num_kv_heads=1, sliding_window=64), "MQA window 64", 16),
        (MLA, "MLA-16+4", 20),
    ],
)
def test_attention_labels_and_cached_numbers(attention: Any, label: str, numbers: int) -> None:
    assert (attention.label, attention.cache_numbers_per_token) == (label, numbers)


def test_which_layers_are_mixtures_of_experts() -> None:
    spec = dataclasses.replace(MODEL, first_k_dense_replace=2, moe_layer_freq=2)
    assert [spec.is_moe_layer(i) for i in range(6)] == [False, False, True, False, True, False]
    assert spec.num_moe_layers == 2
    assert isinstance(spec, ModelSpec)

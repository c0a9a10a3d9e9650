"""Tiny random models of every family with a tokenizer, as published directories."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

import pytest

from fathom.checkpoint.hf import save_hf
from fathom.model import build
from fathom.spec import (
    GroupedQueryAttention,
    GroupLimited,
    LatentAttention,
    LinearScaling,
    Llama3Scaling,
    MixtureOfExperts,
    ModelSpec,
    RopeSpec,
    RouterSpec,
    YarnScaling,
)
from fathom.tokenizer import train_bpe

VOCABULARY = 320
_GQA = GroupedQueryAttention(num_heads=4, num_kv_heads=2, head_dim=16)
_MLA = LatentAttention(num_heads=4, kv_lora_rank=32, qk_nope_head_dim=16, qk_rope_head_dim=16, v_head_dim=16)
_YARN = YarnScaling(factor=4.0, original_max_position_embeddings=32, mscale=0.707, mscale_all_dim=0.707)
_EXPERTS = MixtureOfExperts(n_routed_experts=8, num_experts_per_tok=2, moe_intermediate_size=32, n_shared_experts=1)
_MIXTRAL = dataclasses.replace(_EXPERTS, n_shared_experts=0, router=RouterSpec(normalize=True))
_V3 = RouterSpec(
    score="sigmoid",
    select=GroupLimited(n_group=4, topk_group=2, group_score="top2_sum"),
    selection_bias=True,
    normalize=True,
    scale=2.5,
)
_BASE = ModelSpec(
    name="base",
    family="llama",
    vocab_size=VOCABULARY,
    hidden_size=64,
    num_hidden_layers=2,
    attention=_GQA,
    max_position_embeddings=128,
    intermediate_size=96,
    initializer_range=0.15,
    bos_token_id=0,
    eos_token_id=1,
    pad_token_id=2,
)


def _spec(family: str, **fields: object) -> ModelSpec:
    return dataclasses.replace(_BASE, **({"name": f"tiny-{family}", "family": family} | fields))  # type: ignore[arg-type]


SPECS: Mapping[str, ModelSpec] = MappingProxyType(
    {
        spec.name: spec
        for spec in (
            _spec("llama", rope=RopeSpec(scaling=Llama3Scaling(factor=4.0, original_max_position_embeddings=32))),
            _spec("llama", name="tiny-coder", rope=RopeSpec(scaling=LinearScaling(factor=4.0))),
            _spec("qwen2", attention=dataclasses.replace(_GQA, qkv_bias=True), tie_word_embeddings=True),
            _spec("mistral", attention=dataclasses.replace(_GQA, sliding_window=24)),
            _spec(
                "mixtral",
                intermediate_size=None,
                moe=dataclasses.replace(_EXPERTS, n_shared_experts=0, router=RouterSpec(normalize=True)),
            ),
            _spec("deepseek", moe=_EXPERTS, first_k_dense_replace=1),
            _spec(
                "deepseek_v2",
                attention=_MLA,
                moe=_EXPERTS,
                first_k_dense_replace=1,
                rope=RopeSpec(layout="interleaved", scaling=_YARN),
            ),
            _spec(
                "deepseek_v3",
                attention=dataclasses.replace(_MLA, q_lora_rank=32),
                moe=dataclasses.replace(_EXPERTS, router=_V3),
                first_k_dense_replace=1,
                rope=RopeSpec(layout="interleaved"),
                num_nextn_predict_layers=1,
            ),
        )
    }
)

Publish = Callable[[str], Path]


def train_tokenizer(folder: Path) -> None:
    """Write the tokenizer of all tiny models."""
    words = " ".join(
        f"the {a} {b}s the {c}." for a in ("river", "tower") for b in ("see", "find") for c in ("road", "sea")
    )
    train_bpe([words], vocab_size=VOCABULARY).save(folder)


def write_published(folder: Path, spec: ModelSpec, tokenizer: Path) -> None:
    """Write a tiny random model as a published directory."""
    state = {
        tensor_name: tensor + 0.3 if tensor_name.endswith("correction_bias") else tensor
        for tensor_name, tensor in build(spec, seed=len(spec.name)).state_dict().items()
    }
    save_hf(folder, spec, state, tokenizer=tokenizer)


def copy_without_template(published: Path, folder: Path) -> Path:
    """Copy a published directory without its chat template, and without the tokens of turns."""
    shutil.copytree(published, folder)
    tokenizer, config = folder / "tokenizer.json", folder / "tokenizer_config.json"
    tokenizer.write_text(tokenizer.read_text(encoding="utf-8").replace("｜User｜", "｜Nobody｜"), encoding="utf-8")
    config.write_text("{}", encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def publish(tmp_path_factory: pytest.TempPathFactory) -> Publish:
    """Return a function that gives the directory of one of ``SPECS``. Tests must not change it."""
    root = tmp_path_factory.mktemp("published")
    train_tokenizer(root / "tokenizer")

    def published(name: str) -> Path:
        if not (root / name).exists():
            write_published(root / name, SPECS[name], root / "tokenizer")
        return root / name

    return published

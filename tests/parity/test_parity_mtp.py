"""Multi-token prediction (V3 §2.2, eqs 21-25) against transformers' module, and against the equations."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM
from transformers.modeling_layers import MtpModel
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3DecoderLayer

from fathom.checkpoint.hf import load_hf, save_hf
from fathom.model import Decoder, build
from fathom.spec import (
    GroupLimited,
    LatentAttention,
    MixtureOfExperts,
    ModelSpec,
    RopeSpec,
    RouterSpec,
    YarnScaling,
)

DEPTH = 2
SPEC = ModelSpec(
    name="mtp",
    family="deepseek_v3",
    vocab_size=61,
    hidden_size=32,
    intermediate_size=40,
    num_hidden_layers=2,
    attention=LatentAttention(
        num_heads=4, kv_lora_rank=20, q_lora_rank=16, qk_nope_head_dim=8, qk_rope_head_dim=16, v_head_dim=6
    ),
    moe=MixtureOfExperts(
        n_routed_experts=8,
        num_experts_per_tok=3,
        moe_intermediate_size=12,
        n_shared_experts=1,
        router=RouterSpec(
            score="sigmoid",
            select=GroupLimited(n_group=4, topk_group=2, group_score="top2_sum"),
            selection_bias=True,
            normalize=True,
            scale=2.5,
        ),
    ),
    first_k_dense_replace=1,
    max_position_embeddings=128,
    rope=RopeSpec(
        theta=100.0,
        layout="interleaved",
        scaling=YarnScaling(
            factor=4.0, original_max_position_embeddings=32, beta_fast=2.0, mscale=1.0, mscale_all_dim=1.0
        ),
    ),
    num_nextn_predict_layers=DEPTH,
)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """Random weights of ours, and transformers' main and MTP models loaded from what we wrote."""
    ours = build(SPEC, seed=None).eval()
    generator = torch.Generator().manual_seed(11)
    state: dict[str, Tensor] = {}
    for name, tensor in ours.state_dict().items():
        drawn = torch.randn(tensor.shape, generator=generator)
        plain = 0.3 * drawn - 0.2 if name.endswith("bias") else 1 + 0.2 * drawn
        state[name] = plain if tensor.dim() == 1 else drawn * tensor.shape[-1] ** -0.5
    ours.load_state_dict(state)
    directory: Path = tmp_path_factory.mktemp("mtp") / "model"
    save_hf(directory, SPEC, ours.state_dict())
    main = AutoModelForCausalLM.from_pretrained(directory, attn_implementation="eager").eval()
    main._keys_to_ignore_on_load_unexpected = [rf"model\.layers\.{SPEC.num_hidden_layers + k}.*" for k in range(DEPTH)]
    return SimpleNamespace(ours=ours, main=main, mtp=MtpModel.from_pretrained(main).eval(), directory=directory)


def text() -> Tensor:
    return torch.randint(0, 61, (2, 50), generator=torch.Generator().manual_seed(2))


def run_ours(model: Decoder, tokens_BT: Tensor) -> Any:
    with torch.no_grad():
        return model(tokens_BT, mtp=True)


def test_published_modules_run_the_same_in_transformers(exported: SimpleNamespace) -> None:
    tokens_BT = text()
    output = run_ours(exported.ours, tokens_BT)
    assert len(output.mtp_hidden) == DEPTH
    with torch.no_grad():
        hidden_BTD = exported.main.model(tokens_BT).last_hidden_state
        torch.testing.assert_close(output.hidden_BTD, hidden_BTD, rtol=0, atol=1e-5)
        for depth in range(1, DEPTH + 1):
            later_BT = tokens_BT[:, depth:]
            hidden_BTD = exported.mtp.forward_layer(
                depth - 1,
                hidden_BTD[:, : later_BT.shape[1]],
                torch.arange(later_BT.shape[1])[None],
                None,
                input_ids=later_BT,
            )
            ours_BTD = output.mtp_hidden[depth - 1]
            assert ours_BTD.shape == (2, 50 - depth, 32)
            torch.testing.assert_close(ours_BTD, hidden_BTD, rtol=0, atol=1e-5)
            logits_BTV = exported.mtp._project_to_logits(hidden_BTD)
            torch.testing.assert_close(exported.ours.logits(ours_BTD), logits_BTV, rtol=0, atol=2e-5)


def test_equations_21_to_25_written_out(exported: SimpleNamespace) -> None:
    """h'_i = M [RMSNorm(Emb(t_{i+k})) ; RMSNorm(h_i)], one layer, a norm, the shared head.

    M's columns stand as in the published weights, embedding first; eq 21 prints the halves the other way round.
    """
    tokens_BT = text()
    state, eps = exported.ours.state_dict(), SPEC.rms_norm_eps
    output = run_ours(exported.ours, tokens_BT)

    def rms(x: Tensor, name: str) -> Tensor:
        weight = state[name].double()
        return (x.double() / (x.double().pow(2).mean(-1, keepdim=True) + eps).sqrt() * weight).float()

    hidden_BTD = output.hidden_BTD
    for k in range(1, DEPTH + 1):
        length = tokens_BT.shape[1] - k
        embedded = state["embed_tokens.weight"][tokens_BT[:, k:]]
        pair = torch.cat(
            (rms(embedded, f"mtp.{k - 1}.enorm.weight"), rms(hidden_BTD[:, :length], f"mtp.{k - 1}.hnorm.weight")), -1
        )
        x_BTD = pair @ state[f"mtp.{k - 1}.eh_proj.weight"].T
        layer = exported.mtp.layers[k - 1].mtp_block
        assert isinstance(layer, DeepseekV3DecoderLayer)
        positions_1T = torch.arange(length)[None]
        mask = torch.full((length, length), float("-inf")).triu(1)[None, None]
        with torch.no_grad():
            rotary = exported.main.model.rotary_emb(x_BTD, positions_1T)
            x_BTD = layer(x_BTD, attention_mask=mask, position_embeddings=rotary)
        hidden_BTD = rms(x_BTD, f"mtp.{k - 1}.norm.weight")
        torch.testing.assert_close(output.mtp_hidden[k - 1], hidden_BTD, rtol=0, atol=1e-5)


def test_position_i_of_module_k_knows_tokens_to_i_plus_k_only(exported: SimpleNamespace) -> None:
    tokens_BT = text()
    before = run_ours(exported.ours, tokens_BT).mtp_hidden
    changed_BT = tokens_BT.clone()
    changed_BT[:, 30] = (changed_BT[:, 30] + 1) % 61
    after = run_ours(exported.ours, changed_BT).mtp_hidden
    for k in range(1, DEPTH + 1):
        same_T = (before[k - 1] - after[k - 1]).abs().amax(dim=(0, 2)) < 1e-6
        assert same_T[: 30 - k].all()
        assert not same_T[30 - k]


def test_gradients_reach_every_part_of_every_module(exported: SimpleNamespace) -> None:
    model = exported.ours
    output = model(text(), mtp=True)
    sum(hidden.square().mean() for hidden in output.mtp_hidden).backward()
    bare = {
        name
        for name, parameter in model.named_parameters()
        if parameter.grad is None or not parameter.grad.abs().sum() > 0
    }
    model.zero_grad(set_to_none=True)
    assert bare == {"lm_head.weight"}


def test_the_repeats_are_written_and_read_back(exported: SimpleNamespace) -> None:
    spec, state = load_hf(exported.directory)
    assert spec.num_nextn_predict_layers == DEPTH
    expected = exported.ours.state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], expected[name]) for name in expected)


def test_texts_too_short_for_a_module_have_none(exported: SimpleNamespace) -> None:
    assert run_ours(exported.ours, text()[:, :1]).mtp_hidden == ()
    assert [tuple(h.shape) for h in run_ours(exported.ours, text()[:, :2]).mtp_hidden] == [(2, 1, 32)]

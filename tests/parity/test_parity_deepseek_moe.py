"""DeepSeekMoE 16B has no class in transformers: its oracles are Llama's with DeepSeek-V2's MoE layers, and the formula.

Both parts of the first are transformers' own; the model's released code is exactly that (MHA, softmax gate, top-k of
all experts, weights not renormalised unless norm_topk_prob, shared experts ungated). The second is written out in
float64, one token and one expert at a time (DeepSeekMoE eqs 3-11), and is also the measure of what rounding costs.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import DeepseekV2Config, LlamaConfig, LlamaForCausalLM
from transformers.models.deepseek_v2.modeling_deepseek_v2 import DeepseekV2Moe

from fathom.checkpoint.hf import load_hf, save_hf
from fathom.checkpoint.names import from_hf
from fathom.model import StaticCache, build

FIELDS: dict[str, Any] = {
    "vocab_size": 67,
    "hidden_size": 32,
    "intermediate_size": 44,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
EXPERTS: dict[str, Any] = {
    "n_routed_experts": 8,
    "num_experts_per_tok": 3,
    "n_shared_experts": 2,
    "moe_intermediate_size": 14,
    "first_k_dense_replace": 1,
}


def oracle() -> nn.Module:
    model = LlamaForCausalLM(LlamaConfig(**FIELDS, attn_implementation="eager"))
    mixture = DeepseekV2Config(**FIELDS, **EXPERTS, topk_method="greedy", routed_scaling_factor=1.0)
    for layer in model.model.layers[EXPERTS["first_k_dense_replace"] :]:
        layer.mlp = DeepseekV2Moe(mixture)
    generator = torch.Generator().manual_seed(9)
    for parameter in model.parameters():
        drawn = torch.randn(parameter.shape, generator=generator)
        parameter.data = drawn * parameter.shape[-1] ** -0.5 if parameter.dim() > 1 else 1 + 0.2 * drawn
    return model.eval()


def release(model: nn.Module, directory: Path) -> None:
    """Write the tensors under their released names, one by one, without our table."""
    tensors: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        if name.endswith("experts.gate_up_proj"):
            for e in range(8):
                tensors[name.replace("gate_up_proj", f"{e}.gate_proj.weight")] = tensor[e, :14].clone()
                tensors[name.replace("gate_up_proj", f"{e}.up_proj.weight")] = tensor[e, 14:].clone()
        elif name.endswith("experts.down_proj"):
            for e in range(8):
                tensors[name.replace("down_proj", f"{e}.down_proj.weight")] = tensor[e].clone()
        else:
            tensors[name] = tensor.clone()
    directory.mkdir()
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    config = (
        FIELDS
        | EXPERTS
        | {
            "architectures": ["DeepseekForCausalLM"],
            "model_type": "deepseek",
            "norm_topk_prob": False,
            "scoring_func": "softmax",
            "aux_loss_alpha": 0.001,
            "seq_aux": True,
            "moe_layer_freq": 1,
            "rope_theta": 10000.0,
            "rope_scaling": None,
            "attention_bias": False,
            "hidden_act": "silu",
            "torch_dtype": "float32",
        }
    )
    (directory / "config.json").write_text(json.dumps(config))


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Any:
    directory = tmp_path_factory.mktemp("moe16b") / "model"
    theirs = oracle()
    release(theirs, directory)
    spec, state = load_hf(directory)
    ours = build(spec, seed=None).eval()
    ours.load_state_dict(state)
    return theirs, ours, spec, directory


def test_logits_agree_at_every_position(loaded: Any) -> None:
    theirs, ours, spec, _ = loaded
    tokens_BT = torch.randint(0, 67, (2, 40), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = theirs(tokens_BT).logits
        whole = ours.logits(ours(tokens_BT).hidden_BTD)
        cache = StaticCache.allocate(spec, batch_size=2, max_length=40)
        pieces = [ours.logits(ours(part, cache=cache).hidden_BTD) for part in tokens_BT.split((17, 1, 1, 21), dim=1)]
    assert 0.3 < expected.std() < 3
    torch.testing.assert_close(whole, expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(torch.cat(pieces, dim=1), expected, rtol=0, atol=1e-5)


def test_what_we_write_is_what_was_released(loaded: Any, tmp_path: Path) -> None:
    _, ours, spec, directory = loaded
    save_hf(tmp_path / "again", spec, ours.state_dict())
    again, released = (load_file(d / "model.safetensors") for d in (tmp_path / "again", directory))
    assert again.keys() == released.keys()
    assert all(torch.equal(again[name], released[name]) for name in released)
    assert load_hf(tmp_path / "again")[0] == spec


def normed(x_TD: Tensor, weight_D: Tensor) -> Tensor:
    return x_TD / (x_TD.pow(2).mean(-1, keepdim=True) + FIELDS["rms_norm_eps"]).sqrt() * weight_D


def turned(x_TK: Tensor) -> Tensor:
    """Pair i with i + K/2 and turn by position times 10000^(-2i/K)."""
    half = x_TK.shape[1] // 2
    rows = []
    for position, x_K in enumerate(x_TK):
        angles = torch.tensor([position * 10000.0 ** (-2 * i / (2 * half)) for i in range(half)], dtype=x_TK.dtype)
        a, b = x_K[:half], x_K[half:]
        rows.append(torch.cat((a * angles.cos() - b * angles.sin(), b * angles.cos() + a * angles.sin())))
    return torch.stack(rows)


def attended(x_TD: Tensor, w: Callable[[str], Tensor]) -> Tensor:
    heads = []
    for head in range(4):
        rows = slice(head * 8, head * 8 + 8)
        q_TK, k_TK, v_TK = (x_TD @ w(f"self_attn.{p}_proj.weight")[rows].T for p in "qkv")
        q_TK, k_TK = turned(q_TK), turned(k_TK)
        scores = [(k_TK[: t + 1] @ q_TK[t] / 8**0.5).exp() for t in range(len(x_TD))]
        heads.append(torch.stack([s @ v_TK[: len(s)] / s.sum() for s in scores]))
    return torch.cat(heads, -1) @ w("self_attn.o_proj.weight").T


def feed_forward(x_TD: Tensor, w: Callable[[str], Tensor], prefix: str) -> Tensor:
    gate_TF, up_TF = (x_TD @ w(f"{prefix}.{p}_proj.weight").T for p in ("gate", "up"))
    return (gate_TF / (1 + (-gate_TF).exp()) * up_TF) @ w(f"{prefix}.down_proj.weight").T


def mixture(x_TD: Tensor, w: Callable[[str], Tensor]) -> Tensor:
    """Every token's shared experts, and the best of the routed ones times their share of the softmax over all."""
    result = []
    for x_D in x_TD:
        weights_E = (w("mlp.gate.weight") @ x_D).exp()
        weights_E = weights_E / weights_E.sum()
        best = weights_E.argsort(descending=True)[: EXPERTS["num_experts_per_tok"]].tolist()
        x_1D = x_D[None]
        routed = [weights_E[e] * feed_forward(x_1D, w, f"mlp.experts.{e}") for e in best]
        result.append((feed_forward(x_1D, w, "mlp.shared_experts") + torch.stack(routed).sum(0))[0])
    return torch.stack(result)


def formula(published: dict[str, Tensor], tokens_T: Tensor) -> Tensor:
    """Logits (T, V) of the released tensors, in their type."""
    hidden_TD = published["model.embed_tokens.weight"][tokens_T]
    for layer in range(FIELDS["num_hidden_layers"]):

        def w(name: str, layer: int = layer) -> Tensor:
            return published[f"model.layers.{layer}.{name}"]

        hidden_TD = hidden_TD + attended(normed(hidden_TD, w("input_layernorm.weight")), w)
        x_TD = normed(hidden_TD, w("post_attention_layernorm.weight"))
        dense = layer < EXPERTS["first_k_dense_replace"]
        hidden_TD = hidden_TD + (feed_forward(x_TD, w, "mlp") if dense else mixture(x_TD, w))
    return normed(hidden_TD, published["model.norm.weight"]) @ published["lm_head.weight"].T


def released_tensors(directory: Path, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    return {name: tensor.to(dtype) for name, tensor in load_file(directory / "model.safetensors").items()}


TOKENS_T = torch.randint(0, 67, (24,), generator=torch.Generator().manual_seed(4))


def test_logits_are_the_formula(loaded: Any) -> None:
    _, ours, _, directory = loaded
    with torch.no_grad():
        found = ours.logits(ours(TOKENS_T[None]).hidden_BTD)[0]
    torch.testing.assert_close(found.double(), formula(released_tensors(directory), TOKENS_T), rtol=0, atol=1e-5)


def test_gradients_are_the_formulas(loaded: Any) -> None:
    _, ours, spec, directory = loaded
    published = {name: tensor.requires_grad_() for name, tensor in released_tensors(directory).items()}
    nn.functional.cross_entropy(formula(published, TOKENS_T)[:-1], TOKENS_T[1:]).backward()
    gradients = {name: torch.zeros_like(t) if t.grad is None else t.grad for name, t in published.items()}
    assert sum(gradient.abs().sum() > 0 for gradient in gradients.values()) > 0.9 * len(gradients)
    expected = from_hf(spec, gradients)
    ours.zero_grad(set_to_none=True)
    nn.functional.cross_entropy(ours.logits(ours(TOKENS_T[None]).hidden_BTD)[0, :-1], TOKENS_T[1:]).backward()
    found = {name: parameter.grad for name, parameter in ours.named_parameters()}
    ours.zero_grad(set_to_none=True)
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        error = (gradient.double() - expected[name]).norm() / expected[name].norm().clamp_min(1e-3)
        assert error < 1e-5, name


def test_bfloat16_strays_from_the_formula_no_further_than_transformers_does(loaded: Any) -> None:
    _, _, spec, directory = loaded
    theirs = oracle().bfloat16()
    ours = build(spec, dtype=torch.bfloat16, seed=None).eval()
    ours.load_state_dict({name: tensor.bfloat16() for name, tensor in load_hf(directory)[1].items()})
    rounded = {name: tensor.double() for name, tensor in released_tensors(directory, torch.bfloat16).items()}
    expected = formula(rounded, TOKENS_T)
    with torch.no_grad():
        logits = {
            "ours": ours.logits(ours(TOKENS_T[None]).hidden_BTD)[0],
            "theirs": theirs(TOKENS_T[None]).logits[0],
        }
    errors = {who: ((found.double() - expected).norm(dim=-1) / expected.norm(dim=-1)) for who, found in logits.items()}
    assert 1e-4 < errors["ours"].median() < 0.02
    assert errors["ours"].median() < 1.5 * errors["theirs"].median()


def test_what_we_write_their_classes_run(loaded: Any, tmp_path: Path) -> None:
    _, ours, spec, _ = loaded
    state = {name: tensor.flip(0) + 0.01 for name, tensor in ours.state_dict().items()}
    save_hf(tmp_path / "ours", spec, state)
    written, theirs = load_file(tmp_path / "ours/model.safetensors"), oracle()
    stacked: dict[str, Tensor] = {}
    for name, tensor in theirs.state_dict().items():
        if name.endswith("experts.gate_up_proj"):
            parts = [
                [written[name.replace("gate_up", f"{e}.{p}") + ".weight"] for p in ("gate", "up")] for e in range(8)
            ]
            stacked[name] = torch.stack([torch.cat(part) for part in parts])
        elif name.endswith("experts.down_proj"):
            stacked[name] = torch.stack([written[name.replace("down", f"{e}.down") + ".weight"] for e in range(8)])
        else:
            stacked[name] = written[name]
        assert stacked[name].shape == tensor.shape
    theirs.load_state_dict(stacked)
    changed = build(spec, seed=None).eval()
    changed.load_state_dict(state)
    with torch.no_grad():
        expected = theirs(TOKENS_T[None]).logits
        torch.testing.assert_close(
            changed.logits(changed(TOKENS_T[None]).hidden_BTD),
            expected,
            rtol=0,
            atol=1e-5 * float(expected.abs().max()),
        )
    release(theirs, tmp_path / "theirs")
    again = load_hf(tmp_path / "theirs")[1]
    assert all(torch.equal(again[name], state[name]) for name in state)

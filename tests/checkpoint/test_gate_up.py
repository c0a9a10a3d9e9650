"""Checkpoints that hold gate and up joined, as Fathom wrote them until format version 1, open as today's do."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from fathom.checkpoint import store
from fathom.checkpoint.fathom_checkpoint import FathomCheckpoint
from fathom.checkpoint.names import current_layout, joined_shape
from fathom.checkpoint.weights import load_weights
from fathom.model import build
from fathom.model.build import parameter_shapes
from fathom.spec import GroupedQueryAttention, MixtureOfExperts, ModelSpec, to_mapping

SPEC = ModelSpec(
    name="small",
    family="deepseek",
    vocab_size=30,
    hidden_size=8,
    num_hidden_layers=2,
    attention=GroupedQueryAttention(num_heads=2, num_kv_heads=1, head_dim=4),
    max_position_embeddings=32,
    intermediate_size=2,
    mlp_bias=True,
    first_k_dense_replace=1,
    moe=MixtureOfExperts(n_routed_experts=2, num_experts_per_tok=1, moe_intermediate_size=2, n_shared_experts=1),
)
"""Sizes of 2 wherever a joined shape could be taken for a current one."""


def joined(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: t.reshape(joined_shape(name.partition("/")[0], tuple(t.shape))) for name, t in state.items()}


def old_checkpoint(directory: Path, state: dict[str, Tensor]) -> Path:
    store.save(directory, tensors={"model": joined(state)}, documents={"spec": {"model": to_mapping(SPEC)}})
    manifest = json.loads((directory / "manifest.json").read_text())
    (directory / "manifest.json").write_text(json.dumps(manifest | {"version": 1}))
    return directory


def test_shapes_are_joined_where_gate_and_up_are_and_nowhere_else() -> None:
    changed = {name: joined_shape(name, shape) for name, shape in parameter_shapes(SPEC).items()}
    assert {name: shape for name, shape in changed.items() if shape != parameter_shapes(SPEC)[name]} == {
        "layers.0.mlp.gate_up_proj.weight": (4, 8),
        "layers.0.mlp.gate_up_proj.bias": (4,),
        "layers.1.mlp.experts.gate_up_proj": (2, 4, 8),
        "layers.1.mlp.shared_experts.gate_up_proj.weight": (4, 8),
    }


def test_an_old_checkpoint_opens_with_the_same_weights(tmp_path: Path) -> None:
    state = build(SPEC, seed=4).state_dict()
    old = old_checkpoint(tmp_path / "old", state)
    assert load_file(old / "model.safetensors")["layers.1.mlp.experts.gate_up_proj"].shape == (2, 4, 8)
    model = build(SPEC, seed=None)
    load_weights(model, FathomCheckpoint.open(old))
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("suffix", ["", "/exp_avg", "/exp_avg_sq"])
def test_both_layouts_become_the_current_one(suffix: str) -> None:
    state = {f"{name}{suffix}": tensor for name, tensor in build(SPEC, seed=5).state_dict().items()}
    for name, tensor in state.items():
        assert torch.equal(current_layout(name, joined(state)[name]), tensor), name
        assert current_layout(name, tensor) is tensor


def test_tensors_of_no_fitting_shape_stay_as_they_are() -> None:
    odd = torch.zeros(3, 8)
    assert current_layout("layers.0.mlp.gate_up_proj.weight", odd) is odd
    assert current_layout("layers.0.mlp.gate_up_proj.weight/step", torch.tensor(1.0)).dim() == 0

"""Vision towers' tensors: shapes from the spec, and names that are one to one with the published ones."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
import torch

from fathom.checkpoint.names import from_hf, name_table, to_hf
from fathom.errors import CheckpointError
from fathom.model import build
from fathom.model.build import parameter_shapes
from fathom.spec import GroupedQueryAttention, ModelSpec, SamSpec, SiglipSpec, VisionSpec

LOW = SiglipSpec(
    hidden_size=12, num_hidden_layers=2, num_attention_heads=3, intermediate_size=20, image_size=12, patch_size=4
)
HIGH = SamSpec(
    hidden_size=8,
    num_hidden_layers=3,
    num_attention_heads=2,
    mlp_dim=10,
    image_size=20,
    patch_size=4,
    window_size=3,
    global_attn_indexes=(1,),
    output_channels=5,
)
ONE = ModelSpec(
    name="small",
    family="deepseek_vl",
    vocab_size=20,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=2,
    attention=GroupedQueryAttention(num_heads=2, num_kv_heads=2, head_dim=8),
    max_position_embeddings=32,
    vision=VisionSpec(low=LOW, image_token_id=3, connector="mlp"),
)
TWO = replace(
    ONE,
    family="deepseek_vl_hybrid",
    vision=VisionSpec(low=LOW, high=HIGH, image_token_id=3, connector="hybrid"),
)
HEAD = VisionSpec(low=replace(LOW, vision_use_head=True), image_token_id=3, connector="mlp")
PLAIN = VisionSpec(low=LOW, high=replace(HIGH, use_rel_pos=False), image_token_id=3, connector="hybrid")
SPECS = {
    "one tower": ONE,
    "one tower with head, tied": replace(ONE, tie_word_embeddings=True, vision=HEAD),
    "two towers": TWO,
    "two towers without relative positions": replace(TWO, vision=PLAIN),
    "llama with biases": replace(ONE, mlp_bias=True, attention=replace(ONE.attention, qkv_bias=True, out_bias=True)),
}
each_spec = pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)


@each_spec
def test_the_table_is_a_bijection(spec: ModelSpec) -> None:
    table = name_table(spec)
    names = [name for rule in table.rules for name in rule.names] + [copy.published for copy in table.duplicates]
    assert max(Counter(names).values()) == 1
    ours, theirs = parameter_shapes(spec), {n: s for r in table.rules for n in r.names for s in [r.part_shape]}
    numbers = [sum(torch.Size(shape).numel() for shape in side.values()) for side in (ours, theirs)]
    assert numbers[0] == numbers[1]


@each_spec
def test_ours_to_theirs_to_ours_is_bit_for_bit(spec: ModelSpec) -> None:
    state = build(spec, seed=1, dtype=torch.bfloat16).state_dict()
    back = from_hf(spec, to_hf(spec, state))
    assert list(back) == list(state)
    assert all(torch.equal(back[name], state[name]) for name in state)


def test_a_tensor_under_both_its_names_is_one_too_many() -> None:
    table = name_table(ONE)
    shapes = table.hf_shapes()
    old = {name.replace("model.vision_model.", "model.vision_model.vision_model."): s for name, s in shapes.items()}
    assert old.keys() != shapes.keys()
    table.check_hf(old)
    with pytest.raises(CheckpointError, match=r"1 unexpected \(model.vision_model.vision_model.post_layernorm.bias"):
        table.check_hf(shapes | {"model.vision_model.vision_model.post_layernorm.bias": (12,)})


def test_a_family_that_does_not_publish_towers_says_so() -> None:
    with pytest.raises(CheckpointError, match=r"family 'llama' publishes no tensor for vision\.low"):
        name_table(replace(ONE, family="llama"))
    with pytest.raises(CheckpointError, match="family 'deepseek_vl' publishes no tensor for"):
        name_table(replace(ONE, vision=None))

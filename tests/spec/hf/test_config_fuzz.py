"""Whatever stands in a config.json or a spec: an error of ours, or a round trip that loses nothing."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from fathom.errors import SpecError
from fathom.families import PRESETS
from fathom.spec import FAMILIES, BalanceSpec, GroupLimited, MixtureOfExperts, RopeSpec, RouterSpec, TopK
from fathom.spec.hf import spec_from_hf, spec_to_hf

RELEASED = [json.loads(path.read_text()) for path in sorted((Path(__file__).parent / "released").glob("*.json"))]
scalars = (
    st.none()
    | st.booleans()
    | st.integers(-3, 200_000)
    | st.floats(-10, 1e6)
    | st.sampled_from(["silu", "greedy", "yarn", "", "llama"])
)
values = (
    scalars
    | st.lists(scalars, max_size=3)
    | st.dictionaries(st.sampled_from(["type", "factor", "x"]), scalars, max_size=3)
)
ropes = st.dictionaries(
    st.sampled_from(
        [
            "type",
            "rope_type",
            "factor",
            "original_max_position_embeddings",
            "mscale",
            "truncate",
            "rope_theta",
            "low_freq_factor",
        ]
    ),
    st.sampled_from(["yarn", "llama3", "linear", "default", 8, 4.0, 4096, None, True, 0, "x"]),
)


def survives(config: dict[str, Any]) -> None:
    try:
        read = spec_from_hf(config)
        written = spec_to_hf(read.spec, read.carried)
    except SpecError:
        return
    assert json.dumps(written, sort_keys=True) == json.dumps(config, sort_keys=True)


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_any_field_may_hold_anything(data: st.DataObject) -> None:
    config = data.draw(st.sampled_from(RELEASED))
    name = data.draw(st.sampled_from([*config, "rope_parameters", "head_dim", "layer_types", "fathom", "unheard_of"]))
    survives(config | {name: data.draw(values)})


@settings(max_examples=200, deadline=None)
@given(config=st.sampled_from(RELEASED), field=st.sampled_from(["rope_scaling", "rope_parameters"]), rope=ropes)
def test_any_rope_table_may_stand_in_a_config(config: dict[str, Any], field: str, rope: dict[str, Any]) -> None:
    survives({**config, "rope_scaling": None, field: rope})


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_any_field_may_be_missing(data: st.DataObject) -> None:
    config = data.draw(st.sampled_from(RELEASED))
    gone = data.draw(st.sets(st.sampled_from(sorted(config)), min_size=1, max_size=6))
    survives({name: value for name, value in config.items() if name not in gone})


@settings(max_examples=200, deadline=None)
@given(
    spec=st.sampled_from([entry.spec for entry in PRESETS.values()]),
    family=st.sampled_from(FAMILIES),
    score=st.sampled_from(["softmax", "sigmoid"]),
    select=st.sampled_from([TopK(), GroupLimited(n_group=4, topk_group=2), GroupLimited(n_group=1, topk_group=1)]),
    flags=st.tuples(st.booleans(), st.booleans(), st.booleans(), st.booleans()),
    layout=st.sampled_from(["half", "interleaved"]),
    balance=st.sampled_from(
        [BalanceSpec(), BalanceSpec(expert_loss=0.1, scope="batch"), BalanceSpec(sequence_loss=0.2)]
    ),
)
def test_a_spec_is_written_whole_or_not_at_all(
    spec: Any, family: Any, score: Any, select: Any, flags: tuple[bool, ...], layout: Any, balance: BalanceSpec
) -> None:
    bias, normalize, tied, dense = flags
    moe = MixtureOfExperts(
        n_routed_experts=8,
        num_experts_per_tok=2,
        moe_intermediate_size=16,
        router=RouterSpec(score=score, select=select, selection_bias=bias, normalize=normalize, balance=balance),
    )
    spec = replace(
        spec,
        family=family,
        moe=None if dense else moe,
        intermediate_size=64,
        first_k_dense_replace=0,
        tie_word_embeddings=tied,
        rope=RopeSpec(layout=layout),
    )
    try:
        written = spec_to_hf(spec)
    except SpecError:
        return
    assert spec_from_hf(json.loads(json.dumps(written))).spec == spec

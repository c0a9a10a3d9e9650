"""Routers as data: which combinations are refused, and with what advice."""

from __future__ import annotations

from typing import Any

import pytest

from fathom.errors import SpecError
from fathom.families import preset
from fathom.spec import BalanceSpec, Capacity, GroupLimited, MixtureOfExperts, RouterSpec, from_mapping, to_mapping
from fathom.spec.hf import spec_to_hf


def mixture(chosen: int, **router: Any) -> MixtureOfExperts:
    return MixtureOfExperts(
        n_routed_experts=8, num_experts_per_tok=chosen, moe_intermediate_size=4, router=RouterSpec(**router)
    )


REFUSED: list[tuple[int, dict[str, Any], str]] = [
    (2, {"score": "noisy"}, "set normalize"),
    (2, {"score": "noisy", "normalize": True, "select": Capacity(capacity_factor=1.0)}, "use top_k"),
    (1, {"score": "noisy", "normalize": True}, "choose between 2 and"),
    (8, {"score": "noisy", "normalize": True}, "choose between 2 and"),
    (2, {"balance": BalanceSpec(load_loss=0.1)}, 'use score "noisy"'),
    (2, {"score": "sigmoid", "balance": BalanceSpec(z_loss=0.1)}, "use softmax"),
    (2, {"score": "hash"}, "set 1"),
    (1, {"score": "hash", "balance": BalanceSpec(expert_loss=0.1)}, "no scores to learn from"),
    (1, {"score": "hash", "jitter": 0.1}, "leave them out"),
    (1, {"score": "hash", "select": GroupLimited(n_group=2, topk_group=1)}, "leave them out"),
    (1, {"select": Capacity(capacity_factor=1.0), "normalize": True}, "as Switch does"),
    (2, {"select": Capacity(capacity_factor=1.0, second="random")}, "set normalize"),
    (3, {"select": Capacity(capacity_factor=1.0, second="random"), "normalize": True}, "set 2"),
    (2, {"select": Capacity(capacity_factor=1.0), "balance": BalanceSpec(capacity_factor=1.0)}, "keep one"),
    (2, {"jitter": 1.5}, "between 0 and 1"),
]


@pytest.mark.parametrize(("chosen", "router", "advice"), REFUSED)
def test_combinations_that_make_no_sense_are_refused_with_what_to_change(
    chosen: int, router: dict[str, Any], advice: str
) -> None:
    with pytest.raises(SpecError) as caught:
        mixture(chosen, **router)
    assert advice in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "fields",
    [{"capacity_factor": 0.0}, {"capacity_factor": 1.0, "eval_capacity_factor": -1.0}, {"second": "never"}],
)
def test_capacity_checks_its_numbers_and_words(fields: dict[str, Any]) -> None:
    with pytest.raises(SpecError):
        Capacity(**({"capacity_factor": 1.0} | fields))


def test_slots_round_down_and_leave_one() -> None:
    select = Capacity(capacity_factor=1.25, eval_capacity_factor=2.0)
    assert select.slots(64, 8, training=True) == 10
    assert select.slots(63, 8, training=True) == 9
    assert select.slots(64, 8, training=False) == 16
    assert select.slots(1, 8, training=True) == 1
    assert Capacity(capacity_factor=1.0).slots(64, 8, training=False) is None


@pytest.mark.parametrize(
    "router",
    [
        RouterSpec(score="noisy", normalize=True, balance=BalanceSpec(importance_loss=0.1, load_loss=0.1)),
        RouterSpec(select=Capacity(capacity_factor=2.0, second="random", group="batch"), normalize=True, jitter=0.01),
        RouterSpec(balance=BalanceSpec(expert_loss=0.1, counted="first", z_loss=0.001)),
    ],
)
def test_routers_survive_plain_mappings(router: RouterSpec) -> None:
    assert from_mapping(RouterSpec, to_mapping(router)) == router


def test_routers_that_draw_are_known() -> None:
    assert RouterSpec(score="noisy", normalize=True).draws
    assert RouterSpec(jitter=0.1).draws
    assert RouterSpec(normalize=True, select=Capacity(capacity_factor=1.0, second="random")).draws
    assert not RouterSpec(select=Capacity(capacity_factor=1.0)).draws
    assert not RouterSpec(score="hash").draws


@pytest.mark.parametrize("name", ["switch-2b", "gshard-2b", "hash-2b"])
def test_a_router_no_released_config_can_express_is_not_exported(name: str) -> None:
    with pytest.raises(SpecError, match="cannot express"):
        spec_to_hf(preset(name))

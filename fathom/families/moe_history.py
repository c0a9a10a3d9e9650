"""The rivals of DeepSeekMoE's Table 1 (dense, hash, Switch, GShard) at its 2B size, and tiny ones to experiment with.

All are decoders of this package that differ from ``deepseek-moe-2b`` in their feed-forward layers alone; the published
encoder-decoder forms of Switch and GShard are in ``fathom.study``.
"""

from __future__ import annotations

from fathom.families.preset import Preset
from fathom.spec import BalanceSpec, Capacity, GroupedQueryAttention, MixtureOfExperts, ModelSpec, RouterSpec
from fathom.spec.moe import BalanceScope


def switch_router(
    *, capacity_factor: float = 1.25, alpha: float = 0.01, jitter: float = 0.01, group: BalanceScope = "sequence"
) -> RouterSpec:
    """Switch's router (§2.2-2.4): the best expert, weighed by its probability, with capacity and alpha N sum f P."""
    return RouterSpec(
        select=Capacity(capacity_factor=capacity_factor, group=group),
        jitter=jitter,
        balance=BalanceSpec(expert_loss=alpha, scope="batch"),
    )


def gshard_router(*, capacity_factor: float = 2.0, alpha: float = 0.01, group: BalanceScope = "sequence") -> RouterSpec:
    """GShard's router (Alg. 1): the best two, renormalised, the second at random, with capacity 2N / GE and l_aux.

    l_aux counts first choices and is weighed alpha E^2, as released code scales it; the paper's own k is not printed.
    """
    return RouterSpec(
        select=Capacity(capacity_factor=capacity_factor, group=group, second="random"),
        normalize=True,
        balance=BalanceSpec(expert_loss=alpha, scope=group, counted="first"),
    )


def hash_router() -> RouterSpec:
    """A hash layer: every token id has its expert, for ever."""
    return RouterSpec(score="hash")


_DENSE_WIDTH = 3416  # 4 x the fine-grained experts' 854, itself "0.25 x FFN" and fitted to the published count


def _2b(name: str, chosen: int, router: RouterSpec | None) -> ModelSpec:
    moe = None
    if router is not None:
        moe = MixtureOfExperts(
            n_routed_experts=16, num_experts_per_tok=chosen, moe_intermediate_size=_DENSE_WIDTH, router=router
        )
    return ModelSpec(
        name=name,
        family="deepseek",
        vocab_size=8192,
        hidden_size=1280,
        intermediate_size=_DENSE_WIDTH if moe is None else None,
        num_hidden_layers=9,
        attention=GroupedQueryAttention(num_heads=10, num_kv_heads=10, head_dim=128),
        max_position_embeddings=2048,
        moe=moe,
    )


_ACTIVE, _TOTAL = 512, 4096  # widths of all experts that a tiny model's token meets, and of all that a layer has


def _tiny(name: str, moe: MixtureOfExperts | None) -> ModelSpec:
    return ModelSpec(
        name=name,
        family="deepseek",
        vocab_size=256,
        hidden_size=128,
        intermediate_size=_ACTIVE if moe is None else None,
        num_hidden_layers=4,
        attention=GroupedQueryAttention(num_heads=4, num_kv_heads=4, head_dim=32),
        max_position_embeddings=512,
        moe=moe,
    )


def _parts(active: int, router: RouterSpec, *, shared: int = 0) -> MixtureOfExperts:
    """Experts of which a token meets ``active``, the ``shared`` ones among them; any number has the same width."""
    width = _ACTIVE // active
    return MixtureOfExperts(
        n_routed_experts=_TOTAL // width - shared,
        num_experts_per_tok=active - shared,
        moe_intermediate_size=width,
        n_shared_experts=shared,
        router=router,
    )


_FINE = RouterSpec(balance=BalanceSpec(expert_loss=0.01, scope="batch"))
_TABLE = "DeepSeekMoE §4.1-4.2, Table 1"
_COMMON = ("vocab_size", "rope.theta", "rms_norm_eps")
_GUESSED = (*_COMMON, "moe.moe_intermediate_size")
_CAPACITY = ("moe.router.select.capacity_factor", "moe.router.balance.expert_loss")
_OURS = "bench shape of this project"

_2B = (
    Preset(_2b("dense-0.2b", 0, None), _TABLE, (*_COMMON, "intermediate_size")),
    Preset(_2b("hash-2b", 1, hash_router()), _TABLE, (*_GUESSED, "moe.router.score")),
    Preset(_2b("switch-2b", 1, switch_router()), _TABLE, (*_GUESSED, *_CAPACITY, "moe.router.jitter")),
    Preset(_2b("gshard-2b", 2, gshard_router()), _TABLE, (*_GUESSED, *_CAPACITY)),
)
_TINY = (
    Preset(_tiny("tiny-dense", None), _OURS),
    Preset(_tiny("tiny-hash", _parts(1, hash_router())), _OURS),
    Preset(_tiny("tiny-switch", _parts(1, switch_router())), _OURS),
    Preset(_tiny("tiny-gshard", _parts(2, gshard_router())), _OURS),
    Preset(_tiny("tiny-deepseek-moe", _parts(8, _FINE, shared=1)), _OURS),
)
PRESETS = (*_2B, *_TINY)

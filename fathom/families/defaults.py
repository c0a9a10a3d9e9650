"""What a model of a family has where its description leaves it out; from the papers, at any size."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, TypeGuard

Table = dict[str, Any]
_DEVICES, _SOME = 8, 64
_V2_DEVICES_PER_TOKEN, _V3_NODES_PER_TOKEN = 3, 4


def model_defaults(model: Mapping[str, Any]) -> Table:
    """Return the fields that a model's family decides and ``model`` leaves out, nested as in a recipe.

    A table of kinds that is given, such as ``router.select``, is not filled; ``balance`` neither. Values that are no
    numbers where numbers belong are left to who checks the model.
    """
    fill = _FAMILIES.get(str(model.get("family")), _dense)
    return fill(model)


def _dense(model: Mapping[str, Any]) -> Table:
    return {"attention": _grouped(model)}


def _qwen2(model: Mapping[str, Any]) -> Table:
    return {"attention": _grouped(model) | {"qkv_bias": True}}


def _deepseek_moe(model: Mapping[str, Any]) -> Table:
    """DeepSeekMoE 16B (§5.1.2): MHA, one dense layer, two shared experts, a loss on experts alone."""
    filled: Table = {"attention": _grouped(model)}
    if isinstance(model.get("moe"), Mapping):
        router = {"balance": {"expert_loss": 0.001}}
        filled |= _experts(model, shared=2, dense=1, router=router)
    return filled


def _deepseek_v2(model: Mapping[str, Any]) -> Table:
    """V2 §2.1, §2.2 and §3.1.2; V2-Lite's routing where experts do not divide by 8 devices (App B.1)."""
    filled: Table = {"attention": _latent(model), "rope": {"layout": "interleaved"}}
    if isinstance(model.get("moe"), Mapping):
        router: Table = {"balance": {"expert_loss": 0.001}}
        if _in_groups(model["moe"], _V2_DEVICES_PER_TOKEN):
            groups = {"kind": "group_limited", "n_group": _DEVICES, "topk_group": _V2_DEVICES_PER_TOKEN}
            losses = {"expert_loss": 0.003, "device_loss": 0.05, "communication_loss": 0.02, "capacity_factor": 1.0}
            devices = {"devices": _DEVICES, "devices_per_token": _V2_DEVICES_PER_TOKEN}
            router |= {"select": groups | {"group_score": "max"}, "balance": losses | devices}
        filled |= _experts(model, shared=2, dense=1, router=router)
    return filled


def _deepseek_v3(model: Mapping[str, Any]) -> Table:
    """V3 §2.1.2 and §4.2: sigmoid scores, a selection bias, experts on few nodes."""
    filled: Table = {"attention": _latent(model), "rope": {"layout": "interleaved"}}
    if isinstance(model.get("moe"), Mapping):
        router: Table = {"score": "sigmoid", "selection_bias": True, "normalize": True, "scale": 2.5}
        router["balance"] = {"bias_update_rate": 0.001, "sequence_loss": 1e-4}
        if _in_groups(model["moe"], _V3_NODES_PER_TOKEN):
            groups = {"n_group": _DEVICES, "topk_group": _V3_NODES_PER_TOKEN, "group_score": "top2_sum"}
            router["select"] = {"kind": "group_limited"} | groups
        layers = model.get("num_hidden_layers")
        dense = 3 if _whole(layers) and layers >= 12 else 1
        filled |= _experts(model, shared=1, dense=dense, router=router)
    return filled


def _mixtral(model: Mapping[str, Any]) -> Table:
    filled: Table = {"attention": _grouped(model)}
    if isinstance(model.get("moe"), Mapping):
        filled["moe"] = {"router": {"normalize": True}}
    return filled


_FAMILIES: Mapping[str, Callable[[Mapping[str, Any]], Table]] = MappingProxyType(
    {
        "deepseek": _deepseek_moe,
        "deepseek_v2": _deepseek_v2,
        "deepseek_v3": _deepseek_v3,
        "mixtral": _mixtral,
        "qwen2": _qwen2,
    }
)


def _given_attention(model: Mapping[str, Any]) -> Mapping[str, Any]:
    attention = model.get("attention")
    return attention if isinstance(attention, Mapping) else {}


def _grouped(model: Mapping[str, Any]) -> Table:
    """MHA whose heads share the model's width."""
    given = _given_attention(model)
    filled: Table = {"kind": "gqa"}
    if given.get("kind", "gqa") == "gqa":
        heads = given.get("num_heads", _SOME)
        head = _shared_width(model.get("hidden_size"), heads)
        filled |= {"num_kv_heads": heads} if _whole(heads) else {}
        filled |= {"head_dim": head} if head is not None else {}
    return filled


def _shared_width(width: Any, heads: Any) -> int | None:
    """Return the width of one of ``heads`` that share ``width``; any, where the model lacks one of both and is refused.

    What follows from a field that is missing would else count as missing too.
    """
    if width is None or heads is None:
        return _SOME
    return width // heads if _whole(width) and _whole(heads) and width % heads == 0 else None


def _latent(model: Mapping[str, Any]) -> Table:
    """MLA in V2's proportions (V2 Table 1): a latent of four heads' width, a rotated key of half a head's.

    Heads share the model's width where theirs is not given, as V2-Lite's do (V2 App B.1).
    """
    given = _given_attention(model)
    if given.get("kind", "mla") != "mla":
        return {}
    head = given.get("qk_nope_head_dim", _shared_width(model.get("hidden_size"), given.get("num_heads")))
    if not _whole(head):
        return {"kind": "mla"}
    rotated = max(2, head // 4 * 2)
    return {
        "kind": "mla",
        "kv_lora_rank": 4 * head,
        "qk_nope_head_dim": head,
        "qk_rope_head_dim": rotated,
        "v_head_dim": head,
    }


def _experts(model: Mapping[str, Any], *, shared: int, dense: int, router: Table) -> Table:
    """Shared experts, a router, dense layers first, as wide as the experts that a token meets together."""
    moe = model["moe"]
    shared_experts, chosen = moe.get("n_shared_experts", shared), moe.get("num_experts_per_tok")
    given = moe.get("router")
    if isinstance(given, Mapping) and "balance" in given:
        router.pop("select", None)  # one goes with the other
    filled: Table = {"moe": {"n_shared_experts": shared, "router": router}, "first_k_dense_replace": dense}
    width = moe.get("moe_intermediate_size")
    has_dense = model.get("first_k_dense_replace", dense) != 0 or model.get("moe_layer_freq", 1) != 1
    if has_dense and _whole(shared_experts, least=0) and _whole(chosen) and _whole(width):
        filled["intermediate_size"] = (shared_experts + chosen) * width
    return filled


def _in_groups(moe: Mapping[str, Any], chosen_groups: int) -> bool:
    """Whether experts lie evenly in 8 groups of two or more, and a token finds its experts in the chosen ones."""
    experts, chosen = moe.get("n_routed_experts"), moe.get("num_experts_per_tok")
    if not _whole(experts) or not _whole(chosen) or experts % _DEVICES:
        return False
    group = experts // _DEVICES
    return group >= 2 and chosen <= group * chosen_groups


def _whole(value: Any, *, least: int = 1) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least

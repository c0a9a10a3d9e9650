"""What a spec promises, held against what files hold before anything is made for each layer or expert of it."""

from __future__ import annotations

from fathom.checkpoint.names.tables import LAYERS
from fathom.errors import CheckpointError
from fathom.spec import ModelSpec

_NORMS = 2
"""Tensors that every layer of every family has at least."""
_SLACK = 1000


def check_promised(spec: ModelSpec, stored: int) -> None:
    """Refuse a spec of far more layers or experts than ``stored`` published tensors can be.

    A few that are missing pass: they are listed by name once all names are known.

    Raises:
        CheckpointError: names the field and its value.
    """
    check_promised_layers(spec, stored)
    apart = sum("{e}" in name for names in LAYERS[spec.family].values() for name in names)
    if spec.moe is None or not apart:
        return
    experts = (spec.num_moe_layers + spec.num_nextn_predict_layers) * spec.moe.n_routed_experts
    if apart * experts > 2 * stored + _SLACK:
        raise CheckpointError(_problem("n_routed_experts", spec.moe.n_routed_experts, apart * experts, stored))


def check_promised_layers(spec: ModelSpec, stored: int, document: str = "config.json") -> None:
    """Refuse a spec, read from ``document``, of far more layers than ``stored`` tensors of any format can be.

    Raises:
        CheckpointError: names the field and its value.
    """
    layers = spec.num_hidden_layers + spec.num_nextn_predict_layers
    if _NORMS * layers > 2 * stored + _SLACK:
        raise CheckpointError(_problem("num_hidden_layers", layers, _NORMS * layers, stored, document))


def _problem(field: str, value: int, promised: int, stored: int, document: str = "config.json") -> str:
    return (
        f"{field}: {value} make {promised} tensors or more, but the files hold {stored}; "
        f"use the {document} that belongs to these weights"
    )

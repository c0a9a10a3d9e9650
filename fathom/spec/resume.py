"""Which fields of a training step may differ when it is resumed, and what a difference means.

Every field of ``UpdateSpec`` and its subclasses has one effect:

    cadence    how often something is logged, evaluated or saved: may differ, and is not recorded
    rounding   how gradients are computed, not of what: may differ, and is recorded in the metrics
    growth     how long training lasts: may be raised, and is recorded; lowering it counts as ``learning``
    learning   what is learned: may differ where the caller allows it, and is recorded
    fixed      the data and its order: never differs within one run

``batch.micro_batch_size`` counts as rounding although capacity and balance losses are taken over each micro-batch and a
batch ramp rises by whole ones: it is what a machine with less memory has to change.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

from fathom.spec.alignment import EpochsSpec
from fathom.spec.epochs import ExamplesTrainSpec
from fathom.spec.rollout import DistillSpec, OnlineSpec, PolicySpec
from fathom.spec.train import TrainSpec, UpdateSpec

Effect = Literal["cadence", "rounding", "growth", "learning", "fixed"]

_UPDATE: Mapping[str, Effect] = {
    "optimizer": "learning",
    "optimizer.state_dtype": "rounding",
    "optimizer.muon": "fixed",
    "schedule": "learning",
    "max_grad_norm": "learning",
    "mtp_loss_weight": "learning",
    "precision": "rounding",
    "activation_checkpointing": "rounding",
    "compile": "rounding",
    "loss_chunk_tokens": "rounding",
    "log_every_steps": "cadence",
    "evaluate_every_steps": "cadence",
    "checkpoint": "cadence",
    "frozen": "learning",
    "adapter": "fixed",
    "adapter.dropout": "learning",
    "seed": "fixed",
}
_BATCH: Mapping[str, Effect] = {
    "batch.size": "learning",
    "batch.micro_batch_size": "rounding",
    "batch.initial_size": "learning",
    "batch.ramp_tokens": "learning",
}
_ONLINE: Mapping[str, Effect] = {
    **_UPDATE,
    "rollouts": "growth",
    "rollout": "learning",
    "rollout.prompt": "fixed",
    "updates": "learning",
    "epochs": "learning",
    "micro_batch_tokens": "rounding",
    "balanced": "learning",
    "max_logprob_difference": "rounding",
    "replay_routing": "learning",
}
FIELD_EFFECTS: Mapping[type[UpdateSpec], Mapping[str, Effect]] = MappingProxyType(
    {
        UpdateSpec: _UPDATE,
        TrainSpec: {**_UPDATE, **_BATCH, "sequence_length": "fixed", "total_tokens": "growth"},
        ExamplesTrainSpec: {
            **_UPDATE,
            **_BATCH,
            "micro_batch_tokens": "rounding",
            "sequence_length": "fixed",
            "total_tokens": "growth",
            "total_steps": "growth",
        },
        EpochsSpec: {
            **_UPDATE,
            **_BATCH,
            "batch.conversations": "learning",
            "batch.pairs": "learning",
            "batch.micro_batch_tokens": "rounding",
            "sequence_length": "fixed",
            "epochs": "growth",
            "packing": "fixed",
            "learn": "fixed",
            "validation": "fixed",
            "patience": "learning",
        },
        OnlineSpec: _ONLINE,
        PolicySpec: {
            **_ONLINE,
            "loss": "learning",
            "loss.kl.estimator": "fixed",  # so that no KL term is added: its reference is the model of the first step
            "reference_every": "fixed",
        },
        DistillSpec: {**_ONLINE, "loss": "learning"},
    }
)
"""Spec -> dotted field, or the table it is in -> what a difference in it means; the longest path counts."""

STEP_EFFECTS: Mapping[str, Effect] = MappingProxyType(
    {"loss": "learning", "rewards": "learning", "reward_timeout_seconds": "learning"}
)
"""Fields of a training step beside its spec that are not fixed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FieldChange:
    """A field that differs between the values a run was saved with and those it resumes with; None where unset."""

    field: str
    old: Any
    new: Any
    effect: Effect

    def __str__(self) -> str:
        return f"{self.field} {self.new!r} instead of {self.old!r}"


def effect_of(fields: Mapping[str, Effect], field: str) -> Effect:
    """Return the effect of a dotted field as ``flatten`` writes it; what ``fields`` does not name is fixed."""
    path = field.partition("[")[0].split(".")
    for length in range(len(path), 0, -1):
        effect = fields.get(".".join(path[:length]))
        if effect is not None:
            return effect
    return "fixed"


def spec_changes(kind: type[UpdateSpec], old: Mapping[str, Any], new: Mapping[str, Any]) -> list[FieldChange]:
    """Return the differing fields of two specs of one kind, given as ``to_mapping`` writes them."""
    return differences(FIELD_EFFECTS[kind], old, new)


def differences(fields: Mapping[str, Effect], old: Mapping[str, Any], new: Mapping[str, Any]) -> list[FieldChange]:
    """Return the differing leaves of two tables, each with its effect by ``fields``."""
    was, now = dict(flatten(old)), dict(flatten(new))
    found = []
    for field in dict.fromkeys((*now, *was)):
        if was.get(field) != now.get(field):
            effect = effect_of(fields, field)
            if effect == "growth" and not (field in was and field in now and now[field] > was[field]):
                effect = "learning"
            found.append(FieldChange(field=field, old=was.get(field), new=now.get(field), effect=effect))
    return found


def flatten(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every leaf of nested tables and lists with its path, e.g. ``steps.sft.data[0].path``."""
    if isinstance(value, Mapping):
        for name, item in value.items():
            yield from flatten(item, f"{path}.{name}" if path else str(name))
    elif isinstance(value, Sequence) and not isinstance(value, str):
        for index, item in enumerate(value):
            yield from flatten(item, f"{path}[{index}]")
    else:
        yield path, value

"""LoraSpec: low-rank adapters, what a step trains in place of the weights themselves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from fathom.errors import SpecError
from fathom.spec import check

BaseFormat = Literal["none", "int8", "int4"]
BASE_FORMATS: tuple[BaseFormat, ...] = ("none", "int8", "int4")
ALL_LINEAR = "all-linear"
"""Target that stands for every linear layer that can be adapted, stacked experts included."""
FUSED = ("gate_proj", "up_proj")
"""Layers of published checkpoints that are one matrix here, ``gate_up_proj``."""
SAVED_WHOLE = ("embed_tokens", "lm_head")
"""What ``modules_to_save`` may name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraSpec:
    """LoRA (Hu et al. 2021): every adapted matrix W becomes W + scaling x B A, of which A and B alone are trained.

    A fused matrix of gate and up projections has an A and a B for either, and stacked experts have one for each expert.
    """

    kind: ClassVar[str] = "lora"
    rank: int = 16
    """Rows of A and columns of B."""
    alpha: float = 32.0
    """Scaling of the update: alpha / rank, or alpha / sqrt(rank) with ``use_rslora``."""
    dropout: float = 0.0
    """Fraction of an adapter's inputs that are zeroed while training."""
    targets: tuple[str, ...] = (ALL_LINEAR,)
    """Layers to adapt: ``all-linear``, or names and parts of paths such as ``q_proj``, ``experts``, ``layers.3``."""
    modules_to_save: tuple[str, ...] = ()
    """Layers that are trained and saved whole: ``embed_tokens``, ``lm_head``."""
    use_rslora: bool = False
    """Scale by alpha / sqrt(rank) instead of alpha / rank (rank-stabilised LoRA, Kalajdzievski 2023)."""
    quantize_base: BaseFormat = "none"
    """Format of the frozen weights while training: ``int8`` or ``int4`` is QLoRA (Dettmers et al. 2023)."""

    def __post_init__(self) -> None:
        check.count("rank", self.rank, 4096)
        check.positive("alpha", self.alpha)
        check.fraction("dropout", self.dropout, below=0.95)
        check.one_of("quantize_base", self.quantize_base, BASE_FORMATS)
        if not self.targets and not self.modules_to_save:
            raise SpecError("targets", "is empty", f"name layers to adapt, or use {ALL_LINEAR}")
        for name in self.modules_to_save:
            check.one_of("modules_to_save", name, SAVED_WHOLE)

    @property
    def scaling(self) -> float:
        """What B A is multiplied by."""
        return self.alpha / (self.rank**0.5 if self.use_rslora else self.rank)


def fused_target(target: str) -> str:
    """Return a target by the name that its layer has here: gate and up projections are one."""
    place, dot, own = target.rpartition(".")
    return f"{place}{dot}gate_up_proj" if own in FUSED else target


def names_layer(target: str, path: str) -> bool:
    """Whether a target, as ``fused_target`` returns it, is all layers or a run of whole components of a path."""
    return target == ALL_LINEAR or f".{target.removesuffix('.weight')}." in f".{path.removesuffix('.weight')}."

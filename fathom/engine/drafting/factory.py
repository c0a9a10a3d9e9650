"""Which drafter an engine has."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from fathom.engine.drafting.drafter import Drafter, NoDrafter
from fathom.engine.drafting.mtp import MtpDrafter
from fathom.engine.drafting.ngram import NgramDrafter
from fathom.engine.forward_pass import ForwardPass
from fathom.errors import SpecError
from fathom.model.cache import PagePool
from fathom.model.decoder import Decoder
from fathom.spec.engine import EngineSpec

DrafterKind = Literal["none", "mtp", "ngram"]


def drafting_kind(model: Decoder, spec: EngineSpec) -> DrafterKind:
    """Return how an engine drafts; ``auto`` is MTP where the model has it.

    Raises:
        SpecError: MTP is asked for and the model has no module, or a sliding window.
    """
    if spec.drafting == "auto":
        return "mtp" if len(model.mtp) and model.window is None else "none"
    if spec.drafting == "mtp":
        missing = "no MTP module" if not len(model.mtp) else "a sliding window, which MTP modules do not read by"
        if not len(model.mtp) or model.window is not None:
            raise SpecError("drafting", f"mtp, but {model.spec.name} has {missing}", "use ngram, auto or none")
    return spec.drafting


def make_drafter(
    kind: DrafterKind, forward: ForwardPass, pool: PagePool, spec: EngineSpec, *, unused_ids_N: Tensor | None = None
) -> Drafter:
    """Return the drafter of this kind; for MTP, ``pool`` has one layer more than the model."""
    if kind == "mtp":
        return MtpDrafter(forward, pool, draft_tokens=spec.draft_tokens, unused_ids_N=unused_ids_N)
    return NgramDrafter() if kind == "ngram" else NoDrafter()

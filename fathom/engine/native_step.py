"""Whether an engine computes by the native step."""

from __future__ import annotations

import torch

from fathom.model.cache import PagePool
from fathom.model.decoder import Decoder
from fathom.model.native import NativeModel, Refusal
from fathom.spec.engine import EngineSpec
from fathom.system import available_memory

_ROOM = 1.25  # of the weights' bytes: packed panels are filled up, and the library has buffers


def native_step(model: Decoder, pool: PagePool, spec: EngineSpec) -> NativeModel | Refusal:
    """Return the native form of an engine's model, or why its modules run instead."""
    if spec.compute_dtype != "auto":
        return Refusal(f"compute_dtype is {spec.compute_dtype}")
    needed = _ROOM * sum(parameter.nbytes for parameter in model.parameters())
    if model.device.type == "cpu" and needed > available_memory():
        return Refusal(f"its packed weights would take {needed / 2**30:.1f} GiB more")
    return NativeModel.of(model, pool, torch.get_num_threads())

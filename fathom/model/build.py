"""From a spec to a module, on any device, the meta device included."""

from __future__ import annotations

import torch

from fathom.model.decoder import Decoder, initialize
from fathom.spec import ModelSpec


def build(
    spec: ModelSpec, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32, seed: int | None = 0
) -> Decoder:
    """Make the decoder; the same seed gives the same weights on every device.

    ``seed`` None leaves the weights uninitialised, for loading over them. Routers stay in float32 whatever ``dtype``.
    """
    with torch.device("meta"):
        model = Decoder(spec)
    if torch.device(device).type == "meta":
        return model.to(dtype)
    model = model.to_empty(device=device)
    for buffer in model.buffers():
        buffer.zero_()
    if seed is not None:
        initialize(model, seed)
    return model.to(dtype)

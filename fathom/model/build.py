"""From a spec to a module, on any device, the meta device included."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.nn import init
from torch.overrides import TorchFunctionMode

from fathom.model.decoder import Decoder, initialize
from fathom.spec import ModelSpec

_INIT_FUNCTIONS = frozenset({init.kaiming_uniform_, init.normal_, init.uniform_})


class _Uninitialised(TorchFunctionMode):
    """Leaves what modules allocate as it is: drawing numbers only to replace them costs more than loading them."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        given = dict(kwargs or {})
        if func in _INIT_FUNCTIONS:
            return given["tensor"] if "tensor" in given else args[0]
        return func(*args, **given)


def build(
    spec: ModelSpec, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32, seed: int | None = 0
) -> Decoder:
    """Make the decoder; the same seed gives the same weights on every device.

    ``seed`` None leaves the weights uninitialised, for loading over them. Routers stay in float32 whatever ``dtype``.
    """
    with torch.device(device), _Uninitialised():
        model = Decoder(spec)
    if torch.device(device).type == "meta":
        return model.to(dtype)
    for buffer in model.buffers():
        buffer.zero_()
    if seed is not None:
        initialize(model, seed)
    return model.to(dtype)

"""Parameters that stand in for a module's own while it runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from fathom.parallel.parameters import local

Substitute = Callable[[str, Tensor], Tensor]
"""From a parameter's name and value to what the module computes with."""


def substitute_weights(module: nn.Module, substitute: Substitute) -> None:
    """Have a module compute with functions of its own parameters, through which gradients flow.

    FSDP gathers parameters in a hook of a module around this one, which runs before.
    """
    held: list[dict[str, Any]] = []

    def enter(module: nn.Module, args: Any) -> None:
        parameters: dict[str, Any] = module._parameters
        held.append(dict(parameters))
        parameters.update({name: substitute(name, value) for name, value in parameters.items() if value is not None})

    def leave(module: nn.Module, args: Any, output: Any) -> None:
        if held:
            module._parameters.update(held.pop())

    module.register_forward_pre_hook(enter)
    module.register_forward_hook(leave, always_call=True)


def local_weight(name: str, parameter: Tensor) -> Tensor:
    """The part of a DTensor that this process holds."""
    return local(parameter)

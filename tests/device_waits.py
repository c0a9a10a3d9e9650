"""Finds what would make the host wait for a device: a mode for tests whose tensors are on the meta device."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from types import TracebackType
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_READS = (
    "_local_scalar_dense",
    "bincount",
    "equal",
    "is_nonzero",
    "masked_select",
    "nonzero",
    "repeat_interleave",
    "_unique2",
    "unique_consecutive",
    "unique_dim",
)


class DeviceWait(AssertionError):
    """The host would wait for the device here."""


class NoDeviceWaits:
    """Raise ``DeviceWait`` where tensors of the meta device are read, or are made by a copy that the host waits for.

    Operators whose result has as many rows as the data say, masks as indices, and copies to the host are reads. A copy
    from the host has to be ``non_blocking``; ``torch.tensor`` of Python numbers on the device is one that is not.
    ``reads`` of a whole step are allowed and counted in ``count``.
    """

    def __init__(self, reads: int = 0) -> None:
        self.count = 0
        self._reads = reads
        self._modes = (_Dispatch(self), _Function())

    def __enter__(self) -> NoDeviceWaits:
        for mode in self._modes:
            mode.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for mode in reversed(self._modes):
            mode.__exit__(kind, error, trace)

    def read(self, what: str) -> None:
        """Count a read, or raise where there are too many."""
        self.count += 1
        if self.count > self._reads:
            raise DeviceWait(what)


class _Dispatch(TorchDispatchMode):
    def __init__(self, owner: NoDeviceWaits) -> None:
        super().__init__()
        self._owner = owner

    def __torch_dispatch__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        devices = [leaf.device.type for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        name = func.overloadpacket.__name__
        if "meta" in devices:
            masked = name.startswith("index") and any(
                isinstance(each, Tensor) and each.dtype == torch.bool for each in tree_leaves(args[1:2])
            )
            by_number = str(func) == "aten.repeat_interleave.self_int"
            if (name in _READS and not by_number) or masked:
                self._owner.read(str(func))
            target = kwargs.get("device")
            if name == "_to_copy" and target is not None and torch.device(target).type != "meta":
                self._owner.read(str(func))
                return torch.zeros(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype)
        target = torch.device(kwargs.get("device") or "cpu").type
        if name == "_to_copy" and "cpu" in devices and target == "meta" and not kwargs.get("non_blocking"):
            raise DeviceWait(f"{func} from the host, without non_blocking")
        if name == "copy_" and len(set(devices)) > 1 and not (kwargs.get("non_blocking") or args[2:] == (True,)):
            raise DeviceWait(f"{func} between host and device, without non_blocking")
        return func(*args, **kwargs)


class _Function(TorchFunctionMode):
    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = dict(kwargs or {})
        made = func in (torch.tensor, torch.as_tensor)
        if made and kwargs.get("device") is not None and torch.device(kwargs["device"]).type == "meta":
            raise DeviceWait(f"{func.__name__} of Python numbers, on the device")
        return func(*args, **kwargs)

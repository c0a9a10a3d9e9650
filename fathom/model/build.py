"""From a spec to a module on any device: its shapes, its initial weights, and memory for neither more than once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from itertools import groupby
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import init
from torch.overrides import TorchFunctionMode

from fathom.errors import SpecError
from fathom.model.decoder import Decoder
from fathom.model.decoder_layer import DecoderLayer
from fathom.spec import ModelSpec

Shape = tuple[int, ...]
M = TypeVar("M", bound=nn.Module)

_INIT_FUNCTIONS = frozenset({init.kaiming_uniform_, init.normal_, init.uniform_})


class _Uninitialised(TorchFunctionMode):
    """Skips the initialisers that modules call: drawing numbers only to replace them costs more than loading them."""

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
    Every tensor is allocated once, in its final type; beside the model, initialising holds one float32 tensor.

    Raises:
        SpecError: a tensor of more bytes than can be addressed.
    """
    model, target = _meta_decoder(spec), torch.device(device)
    _reallocate(model, torch.device("meta"), dtype)
    if target.type == "meta":
        return model
    _reallocate(model, target)
    for buffer in model.buffers():
        buffer.zero_()
    if seed is not None:
        initialize(model, seed)
    return model


def parameter_shapes(spec: ModelSpec) -> dict[str, Shape]:
    """Return the names and shapes of ``Decoder.state_dict()``: parameters and selection biases, in order.

    ``lm_head.weight`` is absent where the embedding is tied to it. The shapes of a spec are made once and kept.

    Raises:
        SpecError: a tensor of more bytes than can be addressed.
    """
    return dict(_state_shapes(spec))


def initial_tensors(spec: ModelSpec, seed: int) -> Iterator[tuple[str, Tensor]]:
    """Yield the initial state, name and float32 tensor on the CPU, in the order of ``parameter_shapes``.

    Every matrix is drawn from N(0, initializer_range^2); norms are one, biases zero (V2 §3.1.2). Vision towers come
    last, so that the language model is drawn as it would be without them. Each tensor is made when it is asked for and
    not held here: a caller that drops it before asking for the next, as ``initialize`` does, never holds two.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, shape in _state_shapes(spec):
        yield name, _initial_tensor(name, shape, spec.initializer_range, generator)


def initialize(model: Decoder, seed: int) -> None:
    """Copy ``initial_tensors`` into the model, one tensor at a time."""
    state = model.state_dict()
    for name, tensor in initial_tensors(model.spec, seed):
        state[name].copy_(tensor)
        del tensor


def _initial_tensor(name: str, shape: Shape, spread: float, generator: torch.Generator) -> Tensor:
    if name.endswith(("bias", "alpha")):
        return torch.zeros(shape, device="cpu")
    if len(shape) == 1:
        return torch.ones(shape, device="cpu")
    return torch.empty(shape, device="cpu").normal_(0.0, spread, generator=generator)


def _meta_decoder(spec: ModelSpec) -> Decoder:
    return _on_meta(spec, lambda: Decoder(spec))


def _on_meta(spec: ModelSpec, make: Callable[[], M]) -> M:
    try:
        with torch.device("meta"), _Uninitialised():
            return make()
    except RuntimeError as error:
        if "overflow" not in str(error):
            raise
        problem = f"{spec.name} has a tensor of more bytes than can be addressed ({error})"
        raise SpecError("model", problem, "correct the sizes in its configuration") from None


@lru_cache(maxsize=16)
def _state_shapes(spec: ModelSpec) -> tuple[tuple[str, Shape], ...]:
    """Describe one layer of each kind and repeat it: making thousands of modules would take seconds."""
    first_dense = min(spec.first_k_dense_replace, 1)
    modules = min(spec.num_nextn_predict_layers, 1)
    one = replace(spec, num_hidden_layers=1, first_k_dense_replace=first_dense, num_nextn_predict_layers=modules)
    sparse = [spec.is_moe_layer(index) for index in range(spec.num_hidden_layers)]
    layers = {moe: _shapes(_on_meta(spec, partial(DecoderLayer, spec, moe=moe))) for moe in set(sparse)}
    state = _shapes(_meta_decoder(one))
    found: list[tuple[str, Shape]] = []
    for part, entries in groupby(state, key=lambda entry: entry[0].split(".", 1)[0]):
        if part == "layers":
            found += [(f"layers.{i}.{name}", shape) for i, moe in enumerate(sparse) for name, shape in layers[moe]]
        elif part == "mtp":
            inner = [(name.removeprefix("mtp.0."), shape) for name, shape in entries]
            count = spec.num_nextn_predict_layers
            found += [(f"mtp.{index}.{name}", shape) for index in range(count) for name, shape in inner]
        else:
            found += entries
    return tuple(found)


def _shapes(module: nn.Module) -> list[tuple[str, Shape]]:
    return [(name, tuple(tensor.shape)) for name, tensor in module.state_dict().items()]


def _reallocate(model: Decoder, device: torch.device, dtype: torch.dtype | None = None) -> None:
    """Replace every tensor of a model by an uninitialised one on ``device``, floating-point ones of ``dtype``.

    ``Module.to`` and ``to_empty`` do as much, but import PyTorch's compiler for meta tensors.
    """

    def empty(tensor: Tensor) -> Tensor:
        kind = dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype
        return torch.empty(tensor.shape, dtype=kind, device=device)

    model._apply(empty)  # type: ignore[no-untyped-call]

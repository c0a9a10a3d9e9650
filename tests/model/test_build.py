"""Building: the initial numbers, and what it costs beside the memory of the parameters."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import subprocess
import sys
from collections.abc import Iterable, Mapping
from typing import Any

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fathom.errors import SpecError
from fathom.families import preset
from fathom.model.build import build, initial_tensors, initialize, parameter_shapes
from fathom.model.decoder import Decoder
from fathom.model.moe import Router
from fathom.spec import ModelSpec

SPEC = preset("bench-t")
MTP = dataclasses.replace(SPEC, num_nextn_predict_layers=1)


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all tensors on the CPU that were made inside and are still alive; keeps the peak."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self._storages: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor) and tensor.device.type == "cpu":
                storage = tensor.untyped_storage()
                self._storages[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        self._storages = {key: held for key, held in self._storages.items() if not held[0].expired()}
        self.peak = max(self.peak, sum(size for _, size in self._storages.values()))
        return out


def test_building_draws_no_numbers_but_those_of_the_seed() -> None:
    state = torch.random.get_rng_state()
    first, second = build(SPEC, seed=3), build(SPEC, seed=3)
    build(SPEC, seed=None)
    assert torch.equal(torch.random.get_rng_state(), state)
    for (name, one), two in zip(first.state_dict().items(), second.state_dict().values(), strict=True):
        assert torch.equal(one, two), name
        assert one.isfinite().all(), name


def test_initial_numbers_are_drawn_matrix_by_matrix_from_one_generator() -> None:
    """Written out; the digest is of the numbers that quickstarts and committed results began with."""
    generator, digest = torch.Generator().manual_seed(3), hashlib.sha256()
    for name, parameter in build(MTP, seed=3).named_parameters():
        expected = torch.ones(parameter.shape)
        if parameter.dim() > 1:
            expected = torch.empty(parameter.shape).normal_(0.0, MTP.initializer_range, generator=generator)
        assert torch.equal(parameter, expected), name
        digest.update(parameter.detach().numpy().tobytes())
    assert digest.hexdigest() == "6bb4214ee3ed6ab21a1d8db84923305bfa5ee2a524a08d2a6edd17743a677e70"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_types_hold_the_same_numbers_rounded_but_for_routers(dtype: torch.dtype) -> None:
    exact, other = build(MTP, seed=1).state_dict(), build(MTP, seed=1, dtype=dtype)
    routers = {name for name, module in other.named_modules() if isinstance(module, Router)}
    for name, tensor in other.state_dict().items():
        kind = torch.float32 if name.rpartition(".")[0] in routers else dtype
        assert tensor.dtype == kind, name
        assert torch.equal(tensor, exact[name].to(kind)), name


@pytest.mark.parametrize("seed", [0, None])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_building_holds_one_tensor_in_float32_beside_the_model(dtype: torch.dtype, seed: int | None) -> None:
    with LiveBytes() as counted:
        model = build(SPEC, dtype=dtype, seed=seed)
    size = sum(tensor.nbytes for tensor in model.state_dict().values())
    largest = max(math.prod(shape) for shape in parameter_shapes(model.spec).values()) * 4
    slack = 64 * 1024  # rotary frequencies
    assert size <= counted.peak <= size + (0 if seed is None else largest) + slack


def test_initialising_a_part_of_a_model_holds_one_tensor_at_a_time() -> None:
    shapes = parameter_shapes(SPEC)
    kept: dict[str, torch.Tensor] = {}
    with LiveBytes() as counted:
        for name, tensor in initial_tensors(SPEC, 3):
            if name.startswith("layers.1.self_attn."):
                kept[name] = tensor[: len(tensor) // 2].clone()
            del tensor
    held = sum(part.nbytes for part in kept.values())
    assert counted.peak <= max(map(math.prod, shapes.values())) * 4 + held
    whole = build(SPEC, seed=3).state_dict()
    assert kept
    assert all(torch.equal(part, whole[name][: len(part)]) for name, part in kept.items())


def test_initialising_again_gives_a_used_model_its_first_weights() -> None:
    model = build(MTP, seed=3)
    expected = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for tensor in model.state_dict().values():
        tensor.add_(1)
    initialize(model, 3)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("seed", [0, None])
def test_the_meta_device_holds_the_same_tensors_without_memory(seed: int | None) -> None:
    shapes = {name: tensor.shape for name, tensor in build(SPEC, seed=seed).state_dict().items()}
    empty = build(SPEC, device="meta", dtype=torch.bfloat16)
    assert {name: tensor.shape for name, tensor in empty.state_dict().items()} == shapes
    assert all(tensor.is_meta for tensor in empty.state_dict().values())
    assert empty.embed_tokens.weight.dtype == torch.bfloat16


@pytest.mark.parametrize("name", ["bench-t", "tiny-dense", "tiny-hash"])
def test_shapes_are_those_of_the_state_in_its_order(name: str) -> None:
    spec: ModelSpec = preset(name)
    state = build(spec).state_dict()
    assert [(key, tuple(tensor.shape)) for key, tensor in state.items()] == list(parameter_shapes(spec).items())
    assert [key for key, _ in initial_tensors(spec, 0)] == list(state)


def test_sizes_that_no_memory_has_are_refused() -> None:
    assert SPEC.moe is not None
    moe = dataclasses.replace(SPEC.moe, n_routed_experts=2**16, moe_intermediate_size=2**24)
    with pytest.raises(SpecError, match="more bytes than can be addressed"):
        parameter_shapes(dataclasses.replace(SPEC, hidden_size=2**20, moe=moe))


@pytest.mark.parametrize("modules", [0, 1, 3])
@pytest.mark.parametrize("moe", [True, False])
def test_layers_described_once_a_kind_are_those_of_the_whole_model(moe: bool, modules: int) -> None:
    """Dense layers first, then every second one a mixture of experts."""
    changed = {"num_hidden_layers": 7, "num_nextn_predict_layers": modules, "intermediate_size": 96}
    only = {"first_k_dense_replace": 2, "moe_layer_freq": 2} if moe else {"moe": None, "first_k_dense_replace": 0}
    spec = dataclasses.replace(SPEC, **changed, **only)
    state = Decoder(spec).state_dict()
    assert [(key, tuple(tensor.shape)) for key, tensor in state.items()] == list(parameter_shapes(spec).items())


def test_building_imports_no_compiler() -> None:
    """PyTorch's initialisers import its compiler on the meta device: seconds, for numbers that are replaced anyway."""
    code = (
        "import sys, torch; from fathom.families import preset; from fathom.model.build import build; "
        "build(preset('bench-t'), seed=None, dtype=torch.bfloat16); build(preset('bench-t'), device='meta'); "
        "print([m for m in ('torch._dynamo', 'sympy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"

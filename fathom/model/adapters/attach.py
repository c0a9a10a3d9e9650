"""Attach low-rank adapters to a built decoder: new ones to train, or loaded ones over shared base weights."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from fathom.errors import CheckpointError, SpecError
from fathom.logs import listed
from fathom.model.adapters.adaptation import Adaptation
from fathom.model.adapters.adapter import Adapter, LowRank, cast, parameter_of, slot_of
from fathom.model.adapters.low_rank import DropoutSeed, LowRankUpdate, initial_factors
from fathom.model.adapters.targets import adaptable, chosen, left_out
from fathom.model.build import parameter_shapes
from fathom.model.decoder import Decoder
from fathom.model.head import OutputHead
from fathom.model.quantize import quantize
from fathom.spec.adapter import LoraSpec


def attach(model: Decoder, spec: LoraSpec, *, seed: int) -> Adaptation:
    """Give a model trainable low-rank updates in place, and freeze everything else; the same seed draws the same A.

    With ``quantize_base`` the frozen matrices are quantized first; the output head, which losses read, stays plain.

    Raises:
        SpecError: a target is no layer that can be adapted, or the model is adapted already.
    """
    if model.adaptation is not None:
        raise SpecError("adapter", "the model has an adapter already", "merge it first (fathom convert)")
    shapes = adaptable(model)
    targets = chosen(model.spec, shapes, spec)
    if spec.quantize_base != "none":
        quantize(model, spec.quantize_base, head="plain", passes_gradient=True)
    model.requires_grad_(False)
    draws = DropoutSeed()
    generator = torch.Generator().manual_seed(seed)
    device = model.device
    for salt, name in enumerate(targets):
        a, b = initial_factors(shapes[name], spec.rank, generator)
        update = LowRankUpdate(a.to(device), b.to(device), spec.scaling, dropout=spec.dropout, seed=draws, salt=salt)
        module, slot = slot_of(name)
        update.train(model.training)
        setattr(model.get_submodule(module), slot, update)
    for name in whole_names(model, spec.modules_to_save):
        model.get_parameter(name).requires_grad_(True)
    names = tuple(name for name, parameter in model.named_parameters() if parameter.requires_grad)
    adapted = set(targets)
    others = [name for name in shapes if name not in adapted]
    model.adaptation = Adaptation(spec, names, tuple(left_out(model, spec, others)), draws)
    return model.adaptation


def whole_names(model: Decoder, modules: Sequence[str]) -> list[str]:
    """Return the parameters of modules that are trained whole; a tied head is the embedding's."""
    names = [f"{name}.weight" for name in modules]
    if model.spec.tie_word_embeddings:
        names = ["embed_tokens.weight" if name == "lm_head.weight" else name for name in names]
    return list(dict.fromkeys(names))


def learned_state(model: Decoder) -> dict[str, Tensor]:
    """Return what training a model changes, by name: its whole state, or its adapter's alone."""
    state: dict[str, Tensor] = model.state_dict()
    if model.adaptation is None:
        return state
    return {name: state[name] for name in model.adaptation.names}


def adapter_from_state(state: Mapping[str, Tensor], scaling: float) -> Adapter:
    """Make an ``Adapter`` of what ``learned_state`` returned for an adapted model."""
    pairs: dict[str, dict[str, Tensor]] = {}
    whole: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if name.rpartition(".")[2] in ("A", "B"):
            param_name, factor = parameter_of(name)
            pairs.setdefault(param_name, {})[factor] = tensor
        else:
            whole[name] = tensor
    broken = [name for name, pair in pairs.items() if len(pair) != 2]
    if broken:
        raise CheckpointError(f"adapter: {broken[0]} has A or B only; use a complete adapter")
    return Adapter({name: LowRank(pair["A"], pair["B"], scaling) for name, pair in pairs.items()}, whole)


def with_adapter(model: Decoder, adapter: Adapter) -> Decoder:
    """Return a decoder that shares every weight of ``model`` and adds an adapter's updates; ``model`` stays as it is.

    Raises:
        CheckpointError: the adapter is of another model.
    """
    faults = adapter.faults(parameter_shapes(model.spec))
    if faults:
        raise CheckpointError(f"adapter: is of another model, {listed(faults, 3)}; use it with its own base model")
    placed = cast(adapter, model.dtype, model.device)
    view = shared_copy(model)
    for name, update in placed.updates.items():
        module, slot = slot_of(name)
        layer = LowRankUpdate(update.a, update.b, update.scaling).requires_grad_(False).eval()
        setattr(view.get_submodule(module), slot, layer)
    for name, tensor in placed.whole.items():
        module, _, own = name.rpartition(".")
        setattr(view.get_submodule(module), own, nn.Parameter(tensor, requires_grad=False))
    return view


def shared_copy(model: Decoder) -> Decoder:
    """Return a decoder of new modules over the same tensors: what is set on one is not set on the other."""
    view = _shared(model)
    assert isinstance(view, Decoder)
    if isinstance(view.lm_head, OutputHead) and view.spec.tie_word_embeddings:
        object.__setattr__(view.lm_head, "_embedding", view.embed_tokens)
    return view


def frozen_copy(model: Decoder) -> Decoder:
    """Return a copy of a model for inference; of an adapted one the adapter alone is copied and the base is shared."""
    if model.adaptation is None:
        return copy.deepcopy(model).eval().requires_grad_(False)
    view = shared_copy(model)
    for name in model.adaptation.names:
        module, _, own = name.rpartition(".")
        kept = model.get_parameter(name).detach().clone()
        setattr(view.get_submodule(module), own, nn.Parameter(kept, requires_grad=False))
    return view.eval()


def _shared(module: nn.Module) -> nn.Module:
    twin = copy.copy(module)
    twin._parameters = dict(module._parameters)
    twin._buffers = dict(module._buffers)
    twin._modules = {name: None if child is None else _shared(child) for name, child in module._modules.items()}
    return twin

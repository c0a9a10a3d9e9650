"""Write an adapter as PEFT stores it, for the published form of its base model.

X outputs and Y inputs of one matrix.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fathom.checkpoint.names import Rule, name_table
from fathom.checkpoint.peft.config import CONFIG, WEIGHTS
from fathom.checkpoint.peft.places import PREFIX, STACKED_FAMILIES, experts_path, module_places, parts_of
from fathom.checkpoint.tensorfile import write_tensors
from fathom.errors import CheckpointError
from fathom.files import publish_directory, write_json
from fathom.model.adapters.adapter import Adapter, LowRank
from fathom.spec import ModelSpec


class _Collected:
    """The tensors of an adapter, and the rank and scaling of every layer by its path."""

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}
        self.layers: dict[str, tuple[int, float]] = {}

    def add(self, path: str, a: Tensor, b: Tensor, scaling: float, *, rank: int, stored: str | None = None) -> None:
        at = f"{PREFIX}{path if stored is None else stored}"
        self.tensors[f"{at}.lora_A.weight"] = a.contiguous()
        self.tensors[f"{at}.lora_B.weight"] = b.contiguous()
        self.layers[path] = (rank, scaling)


def write_peft(directory: Path, spec: ModelSpec, adapter: Adapter, *, base: str | None = None) -> Path:
    """Write adapter_config.json and adapter_model.safetensors, and return the directory; nothing may be there.

    ``base`` is the name or path of the base model that the config gives. Experts are written for the stacked
    parameters of transformers 5, and one by one for families that it does not have. A fused pair of experts' matrices
    has twice the rank there, half of it for either.

    Raises:
        CheckpointError: the directory exists, or the family has no published names.
        ResourceError: the disk is full or refuses; nothing appears.
    """
    if directory.exists():
        raise CheckpointError(f"{directory}: already exists; choose a new directory or remove it first")
    table = name_table(spec)
    found = _Collected()
    stacked = spec.family in STACKED_FAMILIES
    for rule in table.rules:
        update = adapter.updates.get(rule.param_name)
        if update is None:
            continue
        if rule.stacked and stacked:
            _add_stacked(found, rule, update)
        else:
            for path, index in parts_of(rule):
                found.add(path, update.a[index], update.b[index], update.scaling, rank=update.a.shape[-2])
    names = {rule.param_name: rule.published[0][0] for rule in table.rules}
    for name, tensor in adapter.whole.items():
        found.tensors[PREFIX + names[name]] = tensor
        if name == "embed_tokens.weight" and spec.tie_word_embeddings:
            found.tensors[f"{PREFIX}lm_head.weight"] = tensor.clone()
    targets = _targets(found, list(module_places(table)), stacked and spec.moe is not None)
    config = _config(found, targets, base)
    with publish_directory(directory) as temporary:
        write_json(temporary / CONFIG, config)
        write_tensors(temporary / WEIGHTS, found.tensors, metadata={"format": "pt"})
    return directory


def _add_stacked(found: _Collected, rule: Rule, update: LowRank) -> None:
    """Add stacked experts: A is (E r, Y), and the columns of B (X, r E) run over ranks, then experts."""
    a_ErY, b_EXr = update.a, update.b
    if a_ErY.dim() == 4:
        first, second = b_EXr.unbind(1)
        low, high = torch.zeros_like(first), torch.zeros_like(second)
        b_EXr = torch.cat((torch.cat((first, low), -1), torch.cat((high, second), -1)), 1)
        a_ErY = a_ErY.flatten(1, 2)
    path, own = experts_path(rule), rule.param_name.rpartition(".")[2]
    rank = a_ErY.shape[1]
    stored = f"{path}.base_layer" if own == "gate_up_proj" else path
    b = b_EXr.permute(1, 2, 0).flatten(1)
    found.add(f"{path}.{own}", a_ErY.flatten(0, 1), b, update.scaling, rank=rank, stored=stored)


def _targets(found: _Collected, linears: list[str], as_parameters: bool) -> tuple[list[str], list[str]]:
    """Return ``target_modules`` and ``target_parameters``.

    PEFT maps feed-forward names of a mixture of experts to its stacked experts alone, so that all of its feed-forward
    layers are named as parameters.
    """
    modules = [path for path in found.layers if not (as_parameters and ".mlp." in path)]
    parameters = [
        path if ".experts." in path else f"{path}.weight" for path in found.layers if path not in set(modules)
    ]
    ends = {path.rpartition(".")[2] for path in modules}
    complete = {end for end in ends if all(path in found.layers for path in linears if path.rpartition(".")[2] == end)}
    short = sorted(complete) + [path for path in modules if path.rpartition(".")[2] not in complete]
    return short, parameters


def _config(found: _Collected, targets: tuple[list[str], list[str]], base: str | None) -> dict[str, Any]:
    ranks = Counter(rank for rank, _ in found.layers.values())
    rank = ranks.most_common(1)[0][0] if ranks else 1
    scalings = Counter(scaling for _, scaling in found.layers.values())
    scaling = scalings.most_common(1)[0][0] if scalings else 1.0
    modules, parameters = targets
    others = {path: each for path, each in found.layers.items() if each != (rank, scaling)}
    saved = [name for name in ("embed_tokens", "lm_head") if any(f"{name}.weight" in key for key in found.tensors)]
    return {
        "peft_type": "LORA",
        "base_model_name_or_path": base,
        "task_type": "CAUSAL_LM",
        "inference_mode": True,
        "r": rank,
        "lora_alpha": _plain(rank * scaling),
        "lora_dropout": 0.0,
        "bias": "none",
        "use_rslora": False,
        "target_modules": modules,
        "target_parameters": parameters or None,
        "rank_pattern": {path: each[0] for path, each in others.items()},
        "alpha_pattern": {path: _plain(each[0] * each[1]) for path, each in others.items()},
        "modules_to_save": saved or None,
    }


def _plain(number: float) -> int | float:
    return int(number) if number == int(number) else number

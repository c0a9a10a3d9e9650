"""adapter_config.json: the fields that Fathom reads and writes, and options that it refuses."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fathom.checkpoint.hf.files import read_json
from fathom.errors import CheckpointError, shortened

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
_MOST_PATTERNS = 20_000

_IGNORED = frozenset(
    {
        *("auto_mapping", "base_model_name_or_path", "revision", "task_type", "inference_mode", "peft_type"),
        *("peft_version", "r", "lora_alpha", "lora_dropout", "rank_pattern", "alpha_pattern", "use_rslora"),
        *("target_modules", "target_parameters", "exclude_modules", "modules_to_save", "layers_to_transform"),
        *("layers_pattern", "megatron_core", "qalora_group_size", "init_lora_weights", "ensure_weight_tying"),
        *("runtime_config", "loftq_config", "corda_config", "eva_config", "lora_ga_config"),
    }
)
"""Fields that are read, or that say how the adapter was made and nothing of what it computes."""
_CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Initialisations that subtract something from the base's weights: their adapters need that other base."""
_PLAIN = re.compile(r"[A-Za-z0-9_.]+")


@dataclass(frozen=True, slots=True)
class PeftConfig:
    """An adapter's scaling: alpha / r, or alpha / sqrt(r), with other values for the layers that patterns name."""

    path: Path
    rank: int
    alpha: float
    use_rslora: bool
    ranks: Mapping[str, float] = field(default_factory=dict)
    alphas: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def read(cls, directory: Path) -> PeftConfig:
        """Read adapter_config.json.

        Raises:
            CheckpointError: it is missing or damaged, no LoRA, or uses an option that Fathom does not compute.
        """
        path = directory / CONFIG
        if not path.is_file():
            raise CheckpointError(f"{directory}: holds no {CONFIG}; give the directory of an adapter")
        raw = read_json(path)
        if raw.get("peft_type") != "LORA":
            problem = f"peft_type {shortened(repr(raw.get('peft_type')))} is not LORA"
            raise CheckpointError(f"{path}: {problem}; Fathom reads LoRA adapters, merge others with PEFT")
        _check_options(path, raw)
        rank = _number(path, "r", raw.get("r"))
        return cls(
            path,
            int(rank),
            _number(path, "lora_alpha", raw.get("lora_alpha")),
            raw.get("use_rslora") is True,
            _patterns(path, "rank_pattern", raw.get("rank_pattern")),
            _patterns(path, "alpha_pattern", raw.get("alpha_pattern")),
        )

    def rank_of(self, name: str) -> int:
        """Return the rank that the config gives a layer."""
        return int(_matching(self.ranks, name, self.rank))

    def scaling_of(self, name: str) -> float:
        """Return what a layer's B A is multiplied by."""
        rank = self.rank_of(name)
        return _matching(self.alphas, name, self.alpha) / (rank**0.5 if self.use_rslora else rank)


def _matching(patterns: Mapping[str, float], name: str, default: float) -> float:
    return next((value for end, value in patterns.items() if f".{name}".endswith(f".{end}")), default)


def _check_options(path: Path, raw: Mapping[str, Any]) -> None:
    for name, value in raw.items():
        if name in _IGNORED or value in (None, False, [], {}, "", "none"):
            continue
        problem = f"{shortened(name)} = {shortened(repr(value))} is an option that Fathom does not compute"
        raise CheckpointError(f"{path}: {problem}; merge the adapter with PEFT (merge_and_unload) and open the result")
    made = raw.get("init_lora_weights")
    if isinstance(made, str) and made.lower().startswith(_CHANGES_BASE):
        problem = f"init_lora_weights {made!r} changed the weights of its base"
        raise CheckpointError(f"{path}: {problem}; convert it with PEFT (path_initial_model_for_weight_conversion)")


def _number(path: Path, name: str, value: Any) -> float:
    whole = name == "r"
    if isinstance(value, bool) or not isinstance(value, int if whole else int | float) or not 0 < value < 1e9:
        raise CheckpointError(f"{path}: {name} is {shortened(repr(value))}, no number above 0; restore the file")
    return float(value)


def _patterns(path: Path, name: str, value: Any) -> dict[str, float]:
    """Read patterns that are the ends of paths, plain or with the escapes that PEFT writes."""
    if value is None:
        return {}
    if not isinstance(value, dict) or len(value) > _MOST_PATTERNS:
        raise CheckpointError(f"{path}: {name} is no table of numbers; restore the file")
    found: dict[str, float] = {}
    for key, number in value.items():
        plain = key.removeprefix("^").removeprefix(r".*\.").replace(r"\.", ".").removesuffix("$")
        if not _PLAIN.fullmatch(plain):
            problem = f"{name} has {shortened(repr(key))}, a regular expression"
            raise CheckpointError(f"{path}: {problem}; name the layers by the ends of their paths instead")
        found[plain] = _number(path, "r" if name == "rank_pattern" else name, number)
    return found

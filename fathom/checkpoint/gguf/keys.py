"""GGUF metadata as typed keys: reading them with located errors, and the decimal a stored float32 was written from."""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal

from fathom.errors import SpecError
from fathom.spec import Family, ModelSpec

Architecture = Literal["llama", "qwen2", "deepseek", "deepseek2"]

ARCHITECTURES: Mapping[Family, Architecture] = MappingProxyType(
    {
        "llama": "llama",
        "mistral": "llama",
        "mixtral": "llama",
        "qwen2": "qwen2",
        "deepseek": "deepseek",
        "deepseek_v2": "deepseek2",
        "deepseek_v3": "deepseek2",
    }
)
"""llama.cpp's architecture name of each family."""

ValueType = Literal[
    "UINT16", "UINT32", "INT32", "FLOAT32", "BOOL", "STRING", "UINT32[]", "INT32[]", "FLOAT32[]", "STRING[]"
]
Metadata = dict[str, tuple[ValueType, Any]]
"""Metadata to write: the type and value of each key."""

_LARGEST_FLOAT32 = (2 - 2**-24) * 2.0**127 * (1 - 2**-53)
"""What still rounds to a float32."""
_RANGES: Mapping[str, tuple[float, float]] = MappingProxyType(
    {
        "UINT16": (0, 2**16 - 1),
        "UINT32": (0, 2**32 - 1),
        "INT32": (-(2**31), 2**31 - 1),
        "FLOAT32": (-_LARGEST_FLOAT32, _LARGEST_FLOAT32),
    }
)
_MISSING: Any = object()


def architecture(spec: ModelSpec) -> Architecture:
    """Return the llama.cpp architecture of a spec's family.

    Raises:
        SpecError: llama.cpp has none for it.
    """
    if spec.family not in ARCHITECTURES or spec.vision is not None:
        raise SpecError(
            "family", f"{spec.family} has no architecture in GGUF", f"use one of {', '.join(ARCHITECTURES)}"
        )
    return ARCHITECTURES[spec.family]


class Keys:
    """The metadata of one GGUF file. ``name`` is always the part of a key after the architecture."""

    def __init__(self, metadata: Mapping[str, Any]) -> None:
        self._metadata = metadata
        found = metadata.get("general.architecture")
        known = sorted(set(ARCHITECTURES.values()))
        if found not in known:
            raise SpecError(
                "general.architecture", f"{found!r} is not supported", f"choose a file of {', '.join(known)}"
            )
        self.architecture: Architecture = found

    def raw(self, key: str) -> Any:
        """Return a value by its whole key, or None."""
        return self._metadata.get(key)

    def __contains__(self, name: str) -> bool:
        return self._key(name) in self._metadata

    def integer(self, name: str, default: Any = _MISSING) -> int:
        """Return a whole number; a list of one per layer counts if all layers agree."""
        value = self._get(name, default)
        if isinstance(value, list):
            if not value or any(item != value[0] for item in value):
                raise SpecError(self._key(name), "differs between layers", "choose a model whose layers are all alike")
            value = value[0]
        if isinstance(value, bool) or not isinstance(value, int):
            raise SpecError(self._key(name), f"expected a whole number, got {value!r}", "convert the model again")
        return value

    def number(self, name: str, default: Any = _MISSING) -> float:
        """Return a number as the shortest decimal that is stored as the same float32: 1e-06, not 9.99999997e-07."""
        value = self._get(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise SpecError(self._key(name), f"expected a number, got {value!r}", "convert the model again")
        return shortest(float(value))

    def flag(self, name: str, default: bool) -> bool:
        """Return a truth value."""
        value = self._get(name, default)
        if not isinstance(value, bool):
            raise SpecError(self._key(name), f"expected true or false, got {value!r}", "convert the model again")
        return value

    def word(self, name: str, default: str) -> str:
        """Return a text."""
        value = self._get(name, default)
        if not isinstance(value, str):
            raise SpecError(self._key(name), f"expected a text, got {value!r}", "convert the model again")
        return value

    def error(self, name: str, problem: str, remedy: str) -> SpecError:
        """Make an error located at a key."""
        return SpecError(self._key(name), problem, remedy)

    def token_id(self, name: str) -> int | None:
        """Return one of the tokenizer's ids, or None where it has none."""
        value = self._metadata.get(f"tokenizer.ggml.{name}")
        return value if isinstance(value, int) and not isinstance(value, bool) else None

    def _key(self, name: str) -> str:
        return f"{self.architecture}.{name}"

    def _get(self, name: str, default: Any) -> Any:
        value = self._metadata.get(self._key(name), default)
        if value is _MISSING:
            raise SpecError(self._key(name), "is missing", "get the file again, or convert the model again")
        return value


def shortest(value: float) -> float:
    """Return the decimal with the fewest digits that rounds to the same float32."""
    single = as_float32(value)
    return next((d for n in range(1, 9) if as_float32(d := float(f"{single:.{n}g}")) == single), single)


def check_storable(written: Metadata) -> Metadata:
    """Return metadata; ``SpecError`` names the first number that its type in the file cannot hold."""
    for key, (kind, value) in written.items():
        for number in value if isinstance(value, list | tuple) else (value,):
            name = kind.removesuffix("[]")
            low, high = _RANGES.get(name, (-math.inf, math.inf))
            if name in _RANGES and not low <= number <= high:
                raise SpecError(key, f"{number} does not fit {name}, as which GGUF stores it", "use another format")
    return written


def as_float32(value: float) -> float:
    """Round to float32, as GGUF stores numbers; ``OverflowError`` where it is beyond."""
    return float(struct.unpack("<f", struct.pack("<f", value))[0])

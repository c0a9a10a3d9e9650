"""Reading a config.json field by field: typed, located, and with unread fields reported.

Three kinds of fields are not part of a spec: those that change no number of the model (carried along), those of which
only one value is supported (checked, then carried), and unknown ones (refused unless they are empty).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from fathom.errors import SpecError

_INERT = frozenset(
    {
        "_attn_implementation",
        "_name_or_path",
        "attention_dropout",
        "attn_implementation",
        "auto_map",
        "chunk_size_feed_forward",
        "dtype",
        "id2label",
        "label2id",
        "output_attentions",
        "output_hidden_states",
        "output_router_logits",
        "problem_type",
        "quantization_config",
        "return_dict",
        "router_aux_loss_coef",
        "router_jitter_noise",
        "torch_dtype",
        "transformers_version",
        "unsloth_version",
        "use_cache",
    }
)
"""Fields that name software, precision of storage, or training-time settings the spec has no word for."""

_FIXED: Mapping[str, tuple[Collection[Any], str]] = {
    "hidden_act": (("silu", "swish", None), "only SwiGLU feed-forward layers are built; choose a model with silu"),
    "pretraining_tp": ((1, 0, None), "merge the slices into one matrix and set it to 1"),
    "partial_rotary_factor": ((1, None), "only heads rotated as a whole are built; choose a model without it"),
    "ep_size": ((1, None), "merge the expert-parallel shards and set it to 1"),
    "is_encoder_decoder": ((False, None), "only decoder-only models are built"),
    "add_cross_attention": ((False, None), "only decoder-only models are built"),
}
"""Fields of which only these values are built, and what to do about others."""

MISSING: Any = object()
"""Marks a field without a default."""


class Fields:
    """The fields of one config.json, with a note of which were read."""

    def __init__(self, config: Mapping[str, Any], *, keep_unknown: bool) -> None:
        self._config = config
        self._read: set[str] = set()
        self.keep_unknown = keep_unknown

    def __iter__(self) -> Iterator[str]:
        return iter(self._config)

    def __contains__(self, name: str) -> bool:
        return name in self._config

    def raw(self, name: str, default: Any = None) -> Any:
        """Return a field as it stands and count it as read."""
        self._read.add(name)
        return self._config.get(name, default)

    def integer(self, name: str, default: Any = MISSING) -> int:
        """Return a whole number; null means the default."""
        value = self._value(name, default)
        if isinstance(value, bool) or not isinstance(value, int):
            raise SpecError(name, f"expected a whole number, got {value!r}", "correct the config.json")
        return value

    def number(self, name: str, default: Any = MISSING) -> float:
        """Return a number; null means the default."""
        value = self._value(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise SpecError(name, f"expected a number, got {value!r}", "correct the config.json")
        return float(value)

    def flag(self, name: str, default: Any = MISSING) -> bool:
        """Return true or false; null means the default."""
        value = self._value(name, default)
        if not isinstance(value, bool):
            raise SpecError(name, f"expected true or false, got {value!r}", "correct the config.json")
        return value

    def word(self, name: str, default: Any = MISSING) -> str:
        """Return a string; null means the default."""
        value = self._value(name, default)
        if not isinstance(value, str):
            raise SpecError(name, f"expected a string, got {value!r}", "correct the config.json")
        return value

    def optional_integer(self, name: str, default: int | None = None) -> int | None:
        """Return a whole number or None where the field is null; a missing field takes the default."""
        if self.raw(name, default) is None:
            return None
        return self.integer(name, default)

    def token_id(self, name: str, default: int | None = None) -> int | None:
        """Return a token id; of a list, the first (the list itself is carried)."""
        value = self.raw(name, default)
        if isinstance(value, list) and value:
            value = value[0]
        if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
            raise SpecError(name, f"expected a token id, got {value!r}", "give a whole number")
        return value

    def table(self, name: str) -> Mapping[str, Any] | None:
        """Return a nested table, or None where the field is null or missing."""
        value = self.raw(name)
        if value is not None and not isinstance(value, Mapping):
            raise SpecError(name, f"expected a table, got {value!r}", "correct the config.json")
        return value

    def only(self, name: str, allowed: Collection[Any], remedy: str) -> None:
        """Require a field, where present, to have one of the values that are built."""
        if name in self._config and self.raw(name) not in allowed:
            raise SpecError(name, f"{self._config[name]!r} is not supported", remedy)

    def check_rest(self) -> None:
        """Check fields of one supported value, and refuse unread fields unless they are empty."""
        for name, (allowed, remedy) in _FIXED.items():
            if name not in self._read:
                self.only(name, allowed, remedy)
        for name, value in self._config.items():
            known = name in self._read or name in _INERT
            if not known and not self.keep_unknown and not is_empty(value):
                raise SpecError(
                    name,
                    f"unknown field with value {value!r}",
                    "if it changes no number the model computes, read the config with keep_unknown=True",
                )

    def _value(self, name: str, default: Any) -> Any:
        value = self.raw(name)
        if value is None:
            if default is MISSING:
                raise SpecError(name, "is missing", "add it to the config.json")
            return default
        return value


def is_empty(value: Any) -> bool:
    """Whether a field says nothing: null, false, or an empty string, list or table."""
    return value is None or value is False or value in ("", [], {})

"""The harness's generation settings as Fathom's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fathom.errors import SpecError

DEFAULT_TOKENS = 256
"""Tokens of an answer whose task names no number, as with the harness's other models."""
_LIMITS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
_NEUTRAL: Mapping[str, Any] = {"num_beams": 1, "num_return_sequences": 1, "length_penalty": 1.0, "use_cache": True}
_SAMPLING = (
    "top_p",
    "top_k",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "seed",
    "min_tokens",
    "ignore_eos",
)


@dataclass(frozen=True, slots=True)
class Generation:
    """How an answer is generated: stop strings, its length at most, and fields of ``SamplingParams``."""

    stop: tuple[str, ...]
    max_tokens: int
    sampling: Mapping[str, Any]


def read_generation(given: Mapping[str, Any]) -> Generation:
    """Return a task's ``generation_kwargs``: greedy unless ``do_sample`` or a temperature says otherwise.

    Raises:
        SpecError: a setting is unknown, or asks for what the engine does not do, such as beam search.
    """
    settings = dict(given)
    until = settings.pop("until", None) or ()
    stop = tuple(dict.fromkeys(each for each in ([until] if isinstance(until, str) else until) if each))
    limits = [settings.pop(name, None) for name in _LIMITS]
    most = next((int(limit) for limit in limits if limit is not None), DEFAULT_TOKENS)
    if most < 1:
        raise SpecError("generation_kwargs.max_gen_toks", f"{most} tokens", "give at least 1")
    temperature = settings.pop("temperature", None)
    sample = settings.pop("do_sample", temperature is not None and float(temperature) > 0)
    sampling: dict[str, Any] = {"temperature": float(1.0 if temperature is None else temperature) if sample else 0.0}
    for name, value in settings.items():
        if name in _SAMPLING:
            sampling[name] = value
        elif name not in _NEUTRAL or value != _NEUTRAL[name]:
            remedy = f"use until, max_gen_toks, do_sample, temperature, {', '.join(_SAMPLING)}"
            raise SpecError(f"generation_kwargs.{name}", f"{value!r:.40} is not supported", remedy)
    return Generation(stop, most, sampling)

"""Token ids as callers have them: lists, NumPy arrays, tensors of any library that follows NumPy's interface."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Any, Protocol, TypeAlias

from fathom.errors import SpecError


class ArrayLike(Protocol):
    """What NumPy arrays and tensors have in common."""

    @property
    def ndim(self) -> int:
        """Number of dimensions."""
        ...

    def tolist(self) -> Any:
        """Return the elements as Python numbers in nested lists."""
        ...


TokenIds: TypeAlias = Sequence[int] | ArrayLike
"""One sequence of token ids: Python integers or integer scalars in a sequence, or an integer array of one dimension."""


def to_token_ids(name: str, value: TokenIds) -> tuple[int, ...]:
    """Return token ids as Python integers; ``name`` is the argument that an error names.

    Raises:
        SpecError: text, a mapping, another number of dimensions than one, or elements that are no integers.
    """
    if isinstance(value, str | bytes):
        raise SpecError(name, f"is text, {_short(value)}", "give token ids: m.tokenizer.encode(text)")
    if isinstance(value, Mapping):
        raise SpecError(name, "is a mapping", 'give one sequence of token ids, such as its ["input_ids"][0]')
    if isinstance(value, AbstractSet):
        raise SpecError(name, "is a set, which has no order", "give a list of token ids")
    dimensions = getattr(value, "ndim", 1)
    if dimensions == 0 or not (hasattr(value, "tolist") or isinstance(value, Iterable)):
        raise SpecError(name, f"is {_short(value)}", "give a sequence of token ids, such as [1, 2, 3]")
    if dimensions > 1:
        shape = tuple(getattr(value, "shape", ()))
        raise SpecError(name, f"has the shape {shape}", "give one sequence, such as token_ids[0]")
    elements = value.tolist() if hasattr(value, "tolist") else list(value)
    if all(type(element) is int for element in elements):
        return tuple(elements)
    return tuple(_to_int(name, element, index) for index, element in enumerate(elements))


def _to_int(name: str, element: Any, index: int) -> int:
    """Return an element that is an integer, or an integer scalar of NumPy or a tensor library."""
    plain = element.item() if hasattr(element, "item") and getattr(element, "ndim", 0) == 0 else element
    if isinstance(plain, int) and not isinstance(plain, bool):
        return int(plain)
    if isinstance(plain, str | bytes):
        raise SpecError(
            name, f"has text, {_short(plain)}, at index {index}", "give token ids: m.tokenizer.encode(text)"
        )
    if isinstance(plain, Iterable):
        raise SpecError(name, f"has a sequence at index {index}", "give one sequence, such as token_ids[0]")
    raise SpecError(name, f"has {_short(plain)} at index {index}, which is no integer", "give integers")


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."

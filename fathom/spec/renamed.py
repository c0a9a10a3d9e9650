"""Fields of recipes and manifests that had other names or are no more, so that older files are still read."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from fathom.errors import SpecError

RENAMED_FIELDS: Mapping[str, str] = MappingProxyType(
    {
        "judge_seconds": "reward_timeout_seconds",
        "micro_size": "micro_batch_size",
        "micro_tokens": "micro_batch_tokens",
        "per_page": "problems_per_document",
    }
)
"""Former name to today's name. A former name is read only where today's name is a field and is not given as well."""


@dataclass(frozen=True, slots=True)
class RemovedField:
    """A field that is no more: the value under which leaving it out changes nothing, and what to say of any other."""

    value: Any
    problem: str
    remedy: str


REMOVED_FIELDS: Mapping[tuple[str, str], RemovedField] = MappingProxyType(
    {
        ("code", "unsandboxed"): RemovedField(
            value=False,
            problem="would run programs of a model as you, with your files and network; no recipe decides that",
            remedy="leave it out; on a machine made to be thrown away, add --unsandboxed to the command",
        )
    }
)
"""Kind of spec and name of a field it had."""


def with_current_names(given: Mapping[str, Any], fields: Collection[str], kind: str | None = None) -> dict[str, Any]:
    """Return a table with its former field names replaced by today's, and removed fields left out.

    Unknown names are left as they are.

    Raises:
        SpecError: a removed field has a value that means something.
    """
    current = {}
    for name, value in given.items():
        removed = REMOVED_FIELDS.get((kind, name)) if kind is not None and name not in fields else None
        if removed is None:
            new = RENAMED_FIELDS.get(name, name)
            current[new if new != name and new in fields and new not in given else name] = value
        elif value is not removed.value:
            raise SpecError(name, removed.problem, removed.remedy)
    return current

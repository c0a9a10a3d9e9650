"""Fields of recipes and manifests under their former names, so that files written before a renaming are still read."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from types import MappingProxyType
from typing import Any

RENAMED_FIELDS: Mapping[str, str] = MappingProxyType(
    {
        "judge_seconds": "reward_timeout_seconds",
        "micro_size": "micro_batch_size",
        "micro_tokens": "micro_batch_tokens",
        "per_page": "problems_per_document",
    }
)
"""Former name to today's name. A former name is read only where today's name is a field and is not given as well."""


def with_current_names(given: Mapping[str, Any], fields: Collection[str]) -> dict[str, Any]:
    """Return a table with its former field names replaced by today's; unknown names are left as they are."""
    return {
        new if (new := RENAMED_FIELDS.get(name, name)) != name and new in fields and new not in given else name: value
        for name, value in given.items()
    }

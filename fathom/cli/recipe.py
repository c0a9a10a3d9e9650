"""``fathom recipe``: what helps to write recipes."""

from __future__ import annotations

from collections.abc import Callable

from fathom.cli.recipe_fields import fields, schema
from fathom.cli.recipe_list import list_

HELP = "Write and check recipes."
VERBS: tuple[Callable[..., None], ...] = (list_, fields, schema)
"""The verbs of the group, in the order in which help lists them."""

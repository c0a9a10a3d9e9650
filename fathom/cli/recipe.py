"""``fathom recipe``: what helps to write recipes."""

from __future__ import annotations

from collections.abc import Callable

from fathom.cli.recipe_check import check
from fathom.cli.recipe_fields import fields, schema
from fathom.cli.recipe_list import list_
from fathom.cli.recipe_new import new

HELP = "Write and check recipes."
VERBS: tuple[Callable[..., None], ...] = (new, check, list_, fields, schema)
"""The verbs of the group, in the order in which help lists them."""

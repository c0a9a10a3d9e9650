"""``fathom recipe list``: the recipes that come with Fathom."""

from __future__ import annotations

from typing import Annotated

import typer

from fathom.cli.console import print_json
from fathom.locale import tr


def list_(  # the trailing underscore leaves the verb its name
    as_json: Annotated[bool, typer.Option("--json", help="Print names, files and summaries as JSON.")] = False,
) -> None:
    """List the recipes that come with Fathom; each can be given by its name."""
    from fathom.pipeline.shipped_recipes import shipped_recipes, summary

    found = shipped_recipes()
    if as_json:
        described = {name: {"file": str(path), "summary": summary(path)} for name, path in found.items()}
        print_json(described)
        return
    width = max(map(len, found))
    for name, path in found.items():
        print(f"{name:<{width}}  {summary(path)}")
    print("\n" + tr("fathom train NAME runs one; fathom recipe check NAME looks at it first."))

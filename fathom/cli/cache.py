"""``fathom cache``: what is kept of what was fetched, and removing it."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated, cast

import typer

from fathom.cache import cache_directory
from fathom.cli.console import print_json
from fathom.cli.sections import report_console
from fathom.errors import SpecError
from fathom.locale import tr
from fathom.progress import size
from fathom.spec import check

if TYPE_CHECKING:
    from rich.console import JustifyMethod

    from fathom.inference.cache_contents import CacheEntry

_AGE = re.compile(r"(\d{1,5})\s*([hdw])")
_SECONDS = {"h": 3600, "d": 86_400, "w": 604_800}


def list_(as_json: Annotated[bool, typer.Option("--json", help="Print JSON for programs.")] = False) -> None:
    """List what the caches hold: models and packages of Fathom's own, and models of the hub."""
    from fathom.inference.cache_contents import cache_entries

    entries = list(cache_entries(cache_directory()))
    if as_json:
        print_json([_row(entry) for entry in entries])
        return
    _print(entries)
    own = sum(entry.nbytes for entry in entries if entry.owned)
    held = {"folder": cache_directory(), "size": size(own)}
    print(tr("{folder}: {size}; FATHOM_CACHE chooses another folder", **held), file=sys.stderr)
    if any(entry.kind == "hub" and not entry.owned for entry in entries):
        print(tr("models of the hub lie in huggingface_hub's cache; remove them with: hf cache rm"), file=sys.stderr)


def clean(
    names: Annotated[
        list[str] | None, typer.Argument(help="What to remove, by the names of fathom cache list.")
    ] = None,
    kind: Annotated[str | None, typer.Option("--kind", help="Remove all of a kind: model, package or hub.")] = None,
    older_than: Annotated[
        str | None, typer.Option("--older-than", help="Remove what was fetched longer ago: 12h, 30d or 8w.")
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Remove all that Fathom fetched.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Remove what Fathom fetched into its own cache; it is fetched again when it is needed. Nothing else is touched."""
    from fathom.inference.cache_contents import KINDS, cache_entries, remove_abandoned, remove_entry

    if not (names or kind or older_than or everything):
        raise SpecError("clean", "does not say what to remove", "give names, --kind, --older-than or --all")
    if kind is not None:
        check.one_of("--kind", kind, KINDS)
    least = _age(older_than) if older_than is not None else 0.0
    entries = list(cache_entries(cache_directory()))
    _check_names(names or [], entries)
    chosen = [
        entry
        for entry in entries
        if entry.owned and entry.age >= least and (kind in (None, entry.kind)) and (not names or entry.name in names)
    ]
    if not chosen:
        print(tr("nothing to remove"), file=sys.stderr)
        return
    _print(chosen)
    held = size(sum(entry.nbytes for entry in chosen))
    total = tr("{count} of {size}", count=len(chosen), size=held)
    if not yes:
        if not sys.stdin.isatty():
            raise SpecError("clean", f"would remove {len(chosen)} of {held} and cannot ask", "add --yes")
        if not typer.confirm(tr("Remove {total}?", total=total)):
            raise typer.Abort
    for entry in chosen:
        remove_entry(entry)
    remove_abandoned(cache_directory())
    print(tr("removed {total}", total=total), file=sys.stderr)


def _check_names(names: Sequence[str], entries: Sequence[CacheEntry]) -> None:
    owned = {entry.name for entry in entries if entry.owned}
    others = {entry.name: entry for entry in entries if not entry.owned}
    for name in names:
        if name in owned:
            continue
        if name in others and others[name].kind == "hub":
            raise SpecError(name, "lies in huggingface_hub's cache", f"remove it with: hf cache rm model/{name}")
        if name in others:
            raise SpecError(name, "was not put there by Fathom", "remove it by hand if it is of no use")
        raise SpecError(name, "is not in the cache", "fathom cache list shows what is")


def _age(text: str) -> float:
    found = _AGE.fullmatch(text.strip())
    if found is None:
        raise SpecError("--older-than", f"{text!r} is no age", "give one such as 12h, 30d or 8w")
    return int(found[1]) * _SECONDS[found[2]]


def _print(entries: Sequence[CacheEntry]) -> None:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    names = {tr("kind"): "left", tr("name"): "left", tr("size"): "right", tr("age"): "right", "": "left"}
    for name, side in names.items():
        table.add_column(name, justify=cast("JustifyMethod", side), overflow="fold")
    for entry in entries:
        whose = "" if entry.owned else tr("not Fathom's")
        table.add_row(entry.kind, entry.name, size(entry.nbytes), _since(entry.age), whose)
    report_console().print(table)


def _since(seconds: float) -> str:
    if seconds < 2 * 86_400:
        return tr("{hours} h", hours=f"{seconds / 3600:.0f}")
    return tr("{days} d", days=f"{seconds / 86_400:.0f}")


def _row(entry: CacheEntry) -> dict[str, str | int | bool]:
    return {
        "kind": entry.kind,
        "name": entry.name,
        "path": str(entry.path),
        "bytes": entry.nbytes,
        "age_seconds": round(entry.age),
        "owned": entry.owned,
    }


HELP = "What is kept of what was fetched, and removing it."
VERBS: tuple[Callable[..., None], ...] = (list_, clean)

"""``fathom recipe fields``: what every field of a recipe means."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from fathom.cli.console import print_json
from fathom.locale import spoken, tr

if TYPE_CHECKING:
    from rich.console import Console

    from fathom.spec.field_docs import FieldDoc
    from fathom.spec.field_paths import Place


def fields(
    path: Annotated[
        str,
        typer.Argument(
            help="A part of a recipe, e.g. model.attention or steps.sft.train.batch.size; or a step's kind."
        ),
    ] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Explain the fields of a recipe: meaning, unit, default and the paper's value."""
    from fathom.cli.sections import report_console
    from fathom.spec.field_paths import find

    places = find(path)
    if as_json:
        print_json([_described(place) for place in places])
        return
    console = report_console()
    for place in places:
        if place.field is not None:
            _print_field(console, place, place.field)
        for spec in place.specs:
            _print_spec(console, place, spec)


def _described(place: Place) -> dict[str, Any]:
    from fathom.spec.field_docs import field_docs, kind_of, summary

    tables = [
        {
            "kind": kind_of(spec),
            "meaning": summary(spec),
            "fields": [_plain(doc) for doc in field_docs(spec).values()],
        }
        for spec in place.specs
    ]
    field = None if place.field is None else _plain(place.field)
    return {"path": place.path, "field": field, "tables": tables}


def _plain(doc: FieldDoc) -> dict[str, Any]:
    names = ("name", "meaning", "type", "required", "default", "unit", "paper", "example", "choices")
    return {name: getattr(doc, name) for name in names}


def _print_field(console: Console, place: Place, doc: FieldDoc) -> None:
    from fathom.cli.sections import section
    from fathom.spec.field_docs import example_line
    from fathom.spec.field_translations import field_doc_in

    doc = field_doc_in(doc, spoken())
    rows = [(tr("meaning"), doc.meaning), (tr("type"), doc.type), (tr("default"), _default_of(doc))]
    rows += [*_labelled(doc), (tr("example"), example_line(doc))]
    section(console, place.path, rows)


def _labelled(doc: FieldDoc) -> list[tuple[str, str]]:
    return [(label, text) for label, text in ((tr("unit"), doc.unit), (tr("paper"), doc.paper)) if text]


def _default_of(doc: FieldDoc) -> str:
    if doc.required:
        return tr("none: it is required")
    return tr("none") if doc.default is None else doc.default


def _print_spec(console: Console, place: Place, spec: type) -> None:
    from rich.table import Table

    from fathom.spec.field_docs import field_docs, kind_of
    from fathom.spec.field_translations import field_doc_in, summary_in

    kind = kind_of(spec)
    console.print()
    heading = place.path or tr("a recipe")
    console.print(heading + (f'  kind = "{kind}"' if kind else ""), style="bold")
    console.print(summary_in(spec, spoken()), style="dim")
    docs = [field_doc_in(doc, spoken()) for doc in field_docs(spec).values()]
    if not docs:
        return
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in (tr("field"), tr("default"), tr("meaning")):
        table.add_column(name, no_wrap=name == tr("field"), overflow="fold")
    for doc in docs:
        more = "".join("\n" + tr("{label}: {text}", label=label, text=text) for label, text in _labelled(doc))
        default = tr("required") if doc.required else _default_of(doc)
        table.add_row(doc.name, default, tr("{meaning} ({type})", meaning=doc.meaning, type=doc.type) + more)
    console.print(table)


def schema() -> None:
    """Print a JSON schema of recipes, with which editors complete and check TOML."""
    from fathom.spec.recipe_schema import schema_text

    print(schema_text(), end="")

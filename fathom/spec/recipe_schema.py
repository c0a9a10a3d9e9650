"""A JSON schema of recipes, for editors that complete and check TOML; made of the specs and their documentation."""

from __future__ import annotations

import dataclasses
import json
import types
from collections.abc import Mapping
from typing import Any, Literal, Union, get_args, get_origin

from fathom.spec.attention import GroupedQueryAttention, LatentAttention
from fathom.spec.field_docs import FieldDoc, field_docs, kind_of, specs_in, summary, without_none
from fathom.spec.mapping import parse_toml_value
from fathom.spec.model import ModelSpec
from fathom.spec.problem import ProblemSource
from fathom.spec.recipe import Recipe

Schema = dict[str, Any]
DRAFT = "https://json-schema.org/draft/2020-12/schema"
_SCALARS = {int: "integer", float: "number", str: "string", bool: "boolean"}
_FOLLOWING = {
    ModelSpec: ("name", "vocab_size", "max_position_embeddings"),
    LatentAttention: ("kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"),
    GroupedQueryAttention: ("num_kv_heads", "head_dim"),
}
"""Required fields of specs that a recipe may leave out, since other parts of it or the model's family decide them."""


def recipe_schema() -> Schema:
    """Return the schema of a recipe as draft 2020-12; unions are told apart by ``kind``."""
    schemas = _Schemas()
    recipe = schemas.table(Recipe)
    recipe["properties"]["problems"] = {
        "type": "object",
        "description": "Sources of problems, which steps take by their names.",
        "additionalProperties": schemas.union(ProblemSource),
    }
    definitions = dict(sorted(schemas.definitions.items()))
    return {"$schema": DRAFT, "title": "Fathom recipe"} | recipe | {"$defs": definitions}


def schema_text() -> str:
    """Return the schema as the text of a JSON file."""
    return json.dumps(recipe_schema(), indent=1, ensure_ascii=False) + "\n"


class _Schemas:
    """Definitions of specs, each made once. ``changes`` of a preset require nothing, not even a kind."""

    def __init__(self) -> None:
        self.definitions: dict[str, Schema] = {}

    def table(self, spec: type, *, changes: bool = False) -> Schema:
        """Return the schema of a spec's table."""
        kind, docs = kind_of(spec), field_docs(spec)
        properties: Schema = {"kind": {"const": kind}} if kind else {}
        for name, doc in docs.items():
            properties[name] = self.of(doc.hint, changes=changes) | _notes(doc)
        required = [name for name, doc in docs.items() if doc.required and name not in _FOLLOWING.get(spec, ())]
        needed = [] if changes else required
        made: Schema = {"type": "object", "description": f"{summary(spec)}.", "properties": properties}
        if spec is ModelSpec and changes:
            needed = ["preset"]
            properties["preset"] = {"type": "string", "description": "A published model that other fields change."}
        return made | {"required": needed, "additionalProperties": False}

    def reference(self, spec: type, *, changes: bool = False) -> Schema:
        """Return a reference to the definition of a spec, which is made if it is not there."""
        name = spec.__name__ + ("Changes" if changes else "")
        if name not in self.definitions:
            self.definitions[name] = {}
            self.definitions[name] = self.table(spec, changes=changes)
        return {"$ref": f"#/$defs/{name}"}

    def of(self, hint: Any, *, changes: bool = False) -> Schema:
        """Return the schema of a value of a type."""
        plain = without_none(hint)
        if plain is ModelSpec:
            return {"oneOf": [self.reference(plain), self.reference(plain, changes=True)]}
        if get_origin(plain) is Literal:
            return {"enum": list(get_args(plain))}
        if get_origin(plain) is tuple:
            return self._list(get_args(plain), changes)
        if get_origin(plain) is Mapping:
            return {"type": "object"}
        if get_origin(plain) in (Union, types.UnionType):
            union = self.union(plain, changes=changes)
            return _or_name(union) if plain == ProblemSource else union
        if dataclasses.is_dataclass(plain):
            return self.reference(specs_in(plain)[0], changes=changes)
        return {"type": _SCALARS[plain]}

    def _list(self, parts: tuple[Any, ...], changes: bool) -> Schema:
        if parts[-1] is Ellipsis:
            return {"type": "array", "items": self.of(parts[0], changes=changes)}
        items = [self.of(part, changes=changes) for part in parts]
        return {"type": "array", "prefixItems": items, "items": False, "minItems": len(items)}

    def union(self, plain: Any, *, changes: bool = False) -> Schema:
        """Return the schema of a table of one of several kinds."""
        specs = specs_in(plain)
        alike = changes or LatentAttention in specs  # told apart by their fields too, since the kind may be left out
        if alike:
            return {"anyOf": [self.reference(spec, changes=changes) for spec in specs]}
        return {"oneOf": [self.reference(spec) | {"required": ["kind"]} for spec in specs]}


def _or_name(source: Schema) -> Schema:
    return {"anyOf": [{"type": "string", "description": "A name of [problems]."}, source]}


def _notes(doc: FieldDoc) -> Schema:
    """Return the description, default and examples of a field."""
    lines = [doc.meaning]
    lines += [f"{label}: {text}" for label, text in (("Unit", doc.unit), ("Paper", doc.paper)) if text]
    notes: Schema = {"description": "\n".join(lines)}
    if doc.default is not None:
        notes["default"] = parse_toml_value(doc.default)
    if doc.example is not None:
        notes["examples"] = [parse_toml_value(doc.example)]
    return notes

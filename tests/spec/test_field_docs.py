"""Every field of every spec that a recipe or a manifest can hold is explained, with an example that is right."""

from __future__ import annotations

import pytest

from fathom.errors import SpecError
from fathom.spec.data import Manifest
from fathom.spec.field_docs import all_specs, example_line, example_table, field_docs, kind_of, summary
from fathom.spec.field_paths import all_paths, find
from fathom.spec.mapping import from_mapping, parse_toml, parse_toml_value
from fathom.spec.recipe import Recipe

SPECS = all_specs(Recipe, Manifest)


def test_every_field_is_explained() -> None:
    fields = [(spec.__name__, doc) for spec in SPECS for doc in field_docs(spec).values()]
    assert len(fields) > 300
    assert [f"{spec}.{doc.name}" for spec, doc in fields if not doc.meaning.endswith(".")] == []
    assert [spec.__name__ for spec in SPECS if not summary(spec)] == []


def test_the_required_fields_of_every_spec_by_their_examples_make_it() -> None:
    for spec in SPECS:
        if spec is Recipe:
            continue
        made = from_mapping(spec, parse_toml_value(example_table(spec)))
        assert isinstance(made, spec)


def test_the_example_of_every_field_is_taken_by_it() -> None:
    """A contradiction with another field is none of the example's fault; a wrong type, choice or range is."""
    refused = [_refusal(spec, example_line(doc)) for spec in SPECS for doc in field_docs(spec).values()]
    assert [text for text in refused if any(f": {word}" in text for word in ("expected", "unknown", "must"))] == []
    assert refused.count("") > 300


def _refusal(spec: type, line: str) -> str:
    try:
        from_mapping(spec, parse_toml_value(example_table(spec)) | parse_toml(line))
    except SpecError as error:
        return str(error)
    return ""


def test_every_path_names_its_own_field() -> None:
    paths = all_paths()
    assert len(paths) > 900
    for path in paths:
        (place,) = find(path)
        assert place.path == path
        last = path.rpartition(".")[2]
        assert place.field.name == last if place.field else kind_of(place.specs[0]) == last


@pytest.mark.parametrize("path", ["model.", "model..attention", "", "steps[3]", "problems.mine.path", "sources.name"])
def test_paths_as_users_write_them(path: str) -> None:
    assert find(path)


@pytest.mark.parametrize("path", ["model.hidden", "modle", "steps.sft.batch.size", "x" * 5000, "a.b.c", "problems.x.y"])
def test_what_is_no_field_is_refused_with_a_remedy(path: str) -> None:
    with pytest.raises(SpecError, match="no field of a recipe"):
        find(path)

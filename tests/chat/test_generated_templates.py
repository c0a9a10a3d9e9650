"""Templates and conversations made at random render as in transformers, byte for byte, or both refuse."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import assume, given, settings

from tests.chat.conversations import TOKENS, fathoms_text, transformers_text, with_text_arguments
from tests.chat.template_grammar import conversations, parted, templates, variables


def compare(template: str, messages: list[dict[str, Any]], given: dict[str, Any]) -> None:
    expected = transformers_text(template, messages, **TOKENS, **given)
    found = fathoms_text(template, messages, **TOKENS, **given)
    assume(expected is None or " at 0x" not in expected)  # an object's address
    if expected is None and found is not None:  # the template needs arguments as text, or looks for None
        forms = [[with_text_arguments(message) for message in messages], messages]
        texts = [transformers_text(template, form, keep_none=True, **TOKENS, **given) for form in forms]
        assert found in texts
    else:
        assert found == expected


@given(template=templates(), messages=conversations, given=variables)
@settings(max_examples=100)
def test_a_generated_template_renders_as_in_transformers(
    template: str, messages: list[dict[str, Any]], given: dict[str, Any]
) -> None:
    compare(template, messages, given)


@pytest.mark.slow
@given(template=templates(), messages=conversations, given=variables)
@settings(max_examples=1_500)
def test_many_generated_templates_render_as_in_transformers(
    template: str, messages: list[dict[str, Any]], given: dict[str, Any]
) -> None:
    compare(template, messages, given)


@given(template=templates(), messages=parted, given=variables)
@settings(max_examples=40)
def test_parts_render_as_parts_or_as_their_text(
    template: str, messages: list[dict[str, Any]], given: dict[str, Any]
) -> None:
    joined = [{**m, "content": "".join(part["text"] for part in m["content"])} for m in messages]
    found = fathoms_text(template, messages, **TOKENS, **given)
    expected = [transformers_text(template, form, **TOKENS, **given) for form in (messages, joined)]
    assume(not any(text is not None and " at 0x" in text for text in expected))
    mixed = len({m["role"] for m in messages}) > 1  # the roles of a template may differ in what they read
    assert found in expected or mixed

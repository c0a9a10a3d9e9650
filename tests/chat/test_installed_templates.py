"""Every chat template found in the installed packages renders as in transformers."""

from __future__ import annotations

import ast
import json
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.chat.conversations import (
    CONVERSATIONS,
    TOKENS,
    WEATHER,
    fathoms_text,
    transformers_text,
    with_text_arguments,
)

PACKAGES = Path(sysconfig.get_paths()["purelib"])


def installed_templates() -> Iterator[tuple[str, str]]:
    """Yield name and source of every chat template in a file of its own, a tokenizer's configuration, or Python."""
    for path in sorted(PACKAGES.rglob("*.jinja")):
        source = path.read_text(encoding="utf-8")
        if "messages" in source:
            yield str(path.relative_to(PACKAGES)), source
    for path in sorted(PACKAGES.rglob("tokenizer_config.json")):
        template = json.loads(path.read_text(encoding="utf-8")).get("chat_template")
        if isinstance(template, str):
            yield str(path.relative_to(PACKAGES)), template
    for path in sorted((PACKAGES / "transformers" / "models").rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        for node in ast.walk(ast.parse(text)) if "in messages" in text else ():
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and "in messages" in node.value:
                yield f"{path.relative_to(PACKAGES)}:{node.lineno}", node.value


OPTIONS: dict[str, dict[str, Any]] = {
    "as it is": {},
    "to answer": {"add_generation_prompt": True},
    "with tools": {"tools": [WEATHER], "add_generation_prompt": True},
    "thinking": {"enable_thinking": True, "thinking": True, "add_generation_prompt": True},
    "without thinking": {"enable_thinking": False, "thinking": False, "add_generation_prompt": True},
}


def differences(template: str) -> Iterator[str]:
    for kind, messages in CONVERSATIONS.items():
        for option, given in OPTIONS.items():
            variables = {"add_generation_prompt": False, **TOKENS, **given}
            expected = transformers_text(template, messages, **variables)
            found = fathoms_text(template, messages, **variables)
            if found != expected and found not in other_forms(template, messages, variables):
                yield f"{kind}, {option}: {found!r} for {expected!r}"


def other_forms(template: str, messages: list[dict[str, Any]], variables: dict[str, Any]) -> list[str]:
    """Return transformers' texts of the same conversation in forms that fit templates which do not take it as it is."""
    forms = [messages, [joined(message) for message in messages]]
    forms += [[with_text_arguments(message) for message in form] for form in forms]
    forms += [[{"content": None, **message} for message in form] for form in forms]
    texts = [transformers_text(template, form, keep_none=True, **variables) for form in forms[1:]]
    return [text for text in texts if text is not None]


def joined(message: dict[str, Any]) -> dict[str, Any]:
    content = message.get("content")
    return {**message, "content": "".join(p["text"] for p in content)} if isinstance(content, list) else message


@pytest.fixture(scope="module")
def installed() -> dict[str, str]:
    found = dict(installed_templates())
    assert len(found) > 20  # trl alone has more
    return found


@pytest.mark.slow
def test_installed_templates_render_as_in_transformers(installed: dict[str, str]) -> None:
    found = {name: list(differences(template)) for name, template in installed.items()}
    assert {name: lines for name, lines in found.items() if lines} == {}


@pytest.mark.slow
def test_arguments_as_json_text_render_as_the_mapping_or_the_text_does(installed: dict[str, str]) -> None:
    variables = {"add_generation_prompt": False, "tools": [WEATHER], **TOKENS}
    for name, template in installed.items():
        for kind in ("a call", "a call and its result", "two calls"):
            spelled = [with_text_arguments(message) for message in CONVERSATIONS[kind]]
            found = fathoms_text(template, spelled, **variables)
            expected = [transformers_text(template, form, **variables) for form in (CONVERSATIONS[kind], spelled)]
            assert found in expected, (name, kind)
            assert found is None or '\\"city\\"' not in found, (name, kind)

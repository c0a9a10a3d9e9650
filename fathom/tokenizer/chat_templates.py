"""Which chat templates a model brings, and which of them applies.

As in transformers (tokenization_utils_base.py, ``get_chat_template``): a model has one template, or several with
names. Of several, ``tool_use`` applies where tools are given, ``default`` else.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fathom.errors import DataError
from fathom.files import read_text

DEFAULT = "default"
TOOL_USE = "tool_use"
TEMPLATE_FILE = "chat_template.jinja"
PROCESSOR_FILE = "chat_template.json"
TEMPLATE_FOLDER = "additional_chat_templates"
_SUFFIX = ".jinja"


def with_template_files(config: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Return a tokenizer_config.json with the templates that lie beside it as files, which come first.

    ``chat_template.jinja`` is the default, ``additional_chat_templates/NAME.jinja`` those with names.
    ``chat_template.json`` of a processor counts where there is no other default.

    Raises:
        DataError: a file is no template.
    """
    files = {DEFAULT: folder / TEMPLATE_FILE} | {
        path.name.removesuffix(_SUFFIX): path for path in sorted((folder / TEMPLATE_FOLDER).glob(f"*{_SUFFIX}"))
    }
    found = {name: _read(path) for name, path in files.items() if path.is_file()}
    templates = templates_of(config) | found
    processor = folder / PROCESSOR_FILE
    if DEFAULT not in templates and processor.is_file():
        try:
            content = json.loads(_read(processor))
        except (ValueError, RecursionError) as error:
            raise DataError(f"{processor}: cannot be read ({error}); download the file again") from None
        content = content.get("chat_template") if isinstance(content, Mapping) else None
        templates = templates_of({"chat_template": content}, PROCESSOR_FILE) | templates
    return {**config, **({"chat_template": as_config(templates)} if templates else {})}


def _read(path: Path) -> str:
    try:
        return read_text(path)
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({error}); download the file again") from None


def templates_of(config: Mapping[str, Any], file: str = "tokenizer_config.json") -> dict[str, str]:
    """Return the templates by name that ``chat_template`` of a configuration holds; one without a name is the default.

    Raises:
        DataError: it is neither a text nor a list of named texts.
    """
    value = config.get("chat_template")
    if value is None:
        return {}
    if isinstance(value, str):
        return {DEFAULT: value}
    entries = value.items() if isinstance(value, Mapping) else map(_named, value) if isinstance(value, list) else None
    if entries is None:
        raise DataError(f"{file}: chat_template is {type(value).__name__}; give a text, or a list of named templates")
    templates = dict(entries)
    if not all(isinstance(part, str) for item in templates.items() for part in item):
        raise DataError(f"{file}: chat_template holds an entry without name and template; give both as text")
    return templates


def as_config(templates: Mapping[str, str]) -> str | list[dict[str, str]]:
    """Return templates as ``chat_template`` of tokenizer_config.json has them."""
    if templates.keys() == {DEFAULT}:
        return templates[DEFAULT]
    return [{"name": name, "template": template} for name, template in templates.items()]


def choose_template(templates: Mapping[str, str], *, tools: bool) -> str:
    """Return the template of a conversation.

    Raises:
        DataError: several have names, and none of them is the default.
    """
    if tools and TOOL_USE in templates:
        return templates[TOOL_USE]
    if DEFAULT in templates:
        return templates[DEFAULT]
    raise DataError(
        f"chat_template: the model has {', '.join(sorted(templates))} and no default; choose one with --chat-template "
        f"{min(templates)} (chat_template in Python), or name one of them {DEFAULT} in tokenizer_config.json"
    )


def named_or_text(templates: Mapping[str, str], given: str) -> str:
    """Return the template of a name, or ``given`` itself where that is a template.

    Raises:
        DataError: it is neither.
    """
    if given in templates or "{" in given:
        return templates.get(given, given)
    own = f"one of {', '.join(sorted(templates))}" if templates else "the model's, which brings none"
    raise DataError(f"chat_template: {given!r} is neither a file nor {own}; give a file of jinja2 or such a name")


def _named(entry: Any) -> tuple[Any, Any]:
    return (entry.get("name"), entry.get("template")) if isinstance(entry, Mapping) else (None, None)

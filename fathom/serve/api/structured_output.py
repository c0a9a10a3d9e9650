"""The format that a request asks its answer to have, in any of the forms that clients write it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from fathom.serve.errors import ApiError, refuse
from fathom.serve.schemas.chat import ResponseFormat
from fathom.serve.schemas.common import SamplingRequest, StructuredOutputs
from fathom.serve.settings import Limits


def structured_output_options(
    body: SamplingRequest, response_format: ResponseFormat | None, limits: Limits
) -> dict[str, Any]:
    """Return the structured output fields of ``TextOptions``.

    Raises:
        ApiError: a format lacks a field, cannot be followed or is too large, or two are given.
    """
    given = [*_response_format(response_format), *_guided(body), *_structured(body.structured_outputs)]
    if len(given) > 1:
        raise refuse(given[1][0], f"comes with {given[0][0]}", "give one of the two")
    return {} if not given else _read(*given[0], limits)


Given = Iterator[tuple[str, str, Any]]
"""The field of a format, the option of ``TextOptions`` that it sets, and the value as it was given."""


def _read(where: str, option: str, value: Any, limits: Limits) -> dict[str, Any]:
    """Return the option with its value; its size is checked before it is read."""
    size = len(value if isinstance(value, str) else json.dumps(value))
    if size > limits.schema_bytes:
        raise refuse(where, f"its {size} characters exceed {limits.schema_bytes}", "shorten it")
    if option == "schema":
        return {"schema": _schema(value, where)}
    if option == "choice":
        return {"grammar": _choice(value, where)}
    return {option: _lark(value, where) if option == "grammar" else value}


def _response_format(form: ResponseFormat | None) -> Given:
    if form is None or form.type == "text":
        return
    if form.type == "regex":
        if form.pattern is None:
            raise refuse("response_format.pattern", "is missing", "give the pattern to match")
        yield "response_format.pattern", "regex", form.pattern
        return
    wrapped = None if form.json_schema is None else form.json_schema.schema_
    if wrapped is not None:
        yield "response_format.json_schema.schema", "schema", wrapped
    elif form.schema_ is not None:
        yield "response_format.schema", "schema", form.schema_
    elif form.type == "json_object":
        yield "response_format", "json_object", True
    else:
        raise refuse("response_format.json_schema.schema", "is missing", "give a JSON schema")


def _guided(body: SamplingRequest) -> Given:
    """Yield vLLM's former names, llama.cpp's, SGLang's and Ollama's."""
    for field in ("guided_regex", "regex"):
        if (pattern := getattr(body, field)) is not None:
            yield field, "regex", pattern
    for field in ("guided_json", "json_schema"):
        if (schema := getattr(body, field)) is not None:
            yield field, "schema", schema
    for field in ("guided_grammar", "grammar", "ebnf"):
        if grammar := getattr(body, field):
            yield field, "grammar", grammar
    if body.guided_choice is not None:
        yield "guided_choice", "choice", body.guided_choice
    if body.format == "json":
        yield "format", "json_object", True
    elif body.format:
        yield "format", "schema", body.format


def _structured(form: StructuredOutputs | None) -> Given:
    if form is None:
        return
    where = "structured_outputs"
    if form.structural_tag is not None:
        raise refuse(f"{where}.structural_tag", "cannot be followed by this server", "give json, regex or grammar")
    if form.json_ is not None:
        yield f"{where}.json", "schema", form.json_
    if form.regex is not None:
        yield f"{where}.regex", "regex", form.regex
    if form.choice is not None:
        yield f"{where}.choice", "choice", form.choice
    if form.grammar is not None:
        yield f"{where}.grammar", "grammar", form.grammar
    if form.json_object:
        yield f"{where}.json_object", "json_object", True


def _schema(given: str | dict[str, Any], where: str) -> dict[str, Any]:
    """Return a schema that may be given as its JSON text."""
    try:
        schema = json.loads(given) if isinstance(given, str) else given
    except (ValueError, RecursionError):
        schema = None
    if not isinstance(schema, dict):
        raise refuse(where, f"{str(given)[:60]!r} is no JSON Schema", "give an object, or its JSON text")
    return schema


def _choice(texts: list[str], where: str) -> str:
    """Return a grammar of some texts."""
    if not texts or not all(texts):
        raise refuse(where, "is empty or holds an empty text", "give one text or more, none of them empty")
    return f"start: {' | '.join(json.dumps(text, ensure_ascii=False) for text in texts)}\n"


def _lark(grammar: str, where: str) -> str:
    """Return a grammar in Lark's syntax, converted from llama.cpp's (GBNF) where it has ``::=``."""
    if "::=" not in grammar:
        return grammar
    from llguidance.gbnf_to_lark import gbnf_to_lark

    try:
        return gbnf_to_lark(grammar)
    except Exception as error:  # the converter raises what comes, an IndexError among it
        raise _unreadable(where, error) from None


def _unreadable(where: str, error: Exception) -> ApiError:
    reason = " ".join(str(error).split())[:120] or type(error).__name__
    return refuse(where, f"cannot be read ({reason})", "correct it, or write it in Lark's syntax")

"""``fathom inspect FILE``: what the columns of a data file mean, what is learned of it, and which rows are skipped."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fathom.cli import options
from fathom.cli.console import print_json
from fathom.cli.sections import report_console, section
from fathom.locale import tr

TEXT_COLUMNS = 300
"""Characters of a sample's text that are shown."""
_SHOWN_COLUMNS = 20


def inspect(path: Path, *, as_json: bool, kind: str, format_name: str, fields: Sequence[str]) -> None:
    """Print what a data file or folder holds, in every form that it may be read in."""
    from fathom.data.forms import Columns
    from fathom.pipeline.data_inspection import KINDS, inspect_data
    from fathom.spec import check

    if kind:
        check.one_of("--kind", kind, KINDS)
    if format_name:
        kinds = [KINDS[kind]] if kind else KINDS.values()
        check.one_of("--format", format_name, {form.name for one in kinds for form in one.forms})
    columns = Columns(format_name or None, options.columns_of(fields))
    found = inspect_data(path, kind or None, columns)
    if as_json:
        print_json(found, default=str)
        return
    console = report_console()
    console.print(f"{found['path']}  {_counts(found)}", soft_wrap=True)
    for use in found["uses"]:
        section(console, f"{use['kind']}: {use['title']}", _use(use))
    if found["choices"]:
        section(console, tr("to be chosen in the recipe"), map(_choice, found["choices"]))


def _counts(found: Mapping[str, Any]) -> str:
    files = tr(" in {count} files", count=len(found["files"])) if len(found["files"]) > 1 else ""
    unreadable = tr(", {count} of them unreadable", count=f"{found['unreadable']:,}") if found["unreadable"] else ""
    return f"{_rows(found['rows'])}{files}{unreadable}"


def _rows(count: int) -> str:
    return tr("1 row") if count == 1 else tr("{count} rows", count=f"{count:,}")


def _choice(choice: Mapping[str, Any]) -> tuple[str, str]:
    return str(choice["kind"]), f'format = "{choice["format"]}": {choice["means"]}'


def _use(use: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    if use["kind"] != "corpus":
        yield tr("for"), tr('a step of kind {step}; format = "{format}"', step=use["step"], format=use["format"])
    yield from use["columns"].items()
    if use["ignored"]:
        more = len(use["ignored"]) - _SHOWN_COLUMNS
        shown = ", ".join(use["ignored"][:_SHOWN_COLUMNS]) + (tr(" and {count} more", count=more) if more > 0 else "")
        yield (tr("carried") if use["kind"] == "problems" else tr("ignored")), shown
    if use["refused"]:
        yield tr("refused"), use["refused"]
        return
    yield tr("used"), _rows(use["used"])
    yield from ((tr("left out"), _short(line)) for line in use.get("left_out", ()))
    for reason, (count, first) in use["problems"].items():
        yield str(reason).replace("_", " "), tr("{rows}, first: {example}", rows=_rows(count), example=_short(first))
    yield from _sample(use["sample"] or {})


def _sample(sample: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    """Yield the first sample: turns, those in the loss marked with *, or a problem's question and answer."""
    if "train" in sample:
        sizes = {name: f"{sample[name]:,}" for name in ("train", "held_out")}
        yield tr("splits"), tr("{train} train, {held_out} held out", **sizes)
    if "place" in sample:
        yield tr("first sample"), tr("{place}; * is in the loss", place=sample["place"])
    for turn in sample.get("turns", ()):
        yield f"{'* ' if turn['in_loss'] else '  '}{turn['role']}", _message(turn)
    for name in ("chosen", "rejected"):
        if name in sample:
            yield f"* {name}", _message(sample[name])
    if sample.get("tools"):
        yield "  tools", ", ".join(sample["tools"])
    for name in ("question", "answer", "text"):
        if name in sample:
            yield name, _short(str(sample[name]))
    if "solution" in sample.get("details", {}):
        yield "solution", _short(str(sample["details"]["solution"]))


def _message(message: Mapping[str, Any]) -> str:
    parts = []
    if message.get("reasoning_content"):
        parts.append(f"(reasoning) {message['reasoning_content']}")
    content = message.get("content")
    if content:
        parts.append(content if isinstance(content, str) else json.dumps(content, ensure_ascii=False))
    calls = [call["function"] for call in message.get("tool_calls") or ()]
    parts += [f"(call) {call['name']} {_arguments(call.get('arguments'))}" for call in calls]
    return _short("\n".join(parts))


def _arguments(arguments: Any) -> str:
    return arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)


def _short(text: str) -> str:
    shown = text.encode(errors="backslashreplace").decode()  # a lone surrogate
    return shown if len(shown) <= TEXT_COLUMNS else f"{shown[:TEXT_COLUMNS]} ..."

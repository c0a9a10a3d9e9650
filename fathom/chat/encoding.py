"""Chat templates: messages to text, and messages to token ids in which no message can forge a special token."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fathom.chat.continuation import (
    check_continuable,
    continued_text,
    cut_at_mark,
    with_mark,
    with_reasoning_as_content,
)
from fathom.chat.parts import (
    checked_message,
    format_messages_for_template,
    format_tool_calls_for_template,
    image_count,
    map_text,
    text_length,
)
from fathom.chat.sandbox import render_sandboxed
from fathom.chat.templates import DEFAULT_TEMPLATE
from fathom.errors import DataError
from fathom.tokenizer import special

if TYPE_CHECKING:
    from fathom.tokenizer.bpe import Tokenizer

MAX_CHARS = 4_194_304
MAX_NESTING = 64
_THINK_TAGS = re.compile(f"({re.escape(special.THINK_BEGIN)}|{re.escape(special.THINK_END)})")
_GUARDS = ("\uf8f0", "\uf8f1", "\uf8f2", "\uf8f3")


def render(
    messages: Sequence[Mapping[str, Any]],
    template: str = DEFAULT_TEMPLATE,
    *,
    add_generation_prompt: bool = True,
    bos_token: str = special.BEGIN,
    eos_token: str = special.END,
    max_chars: int = MAX_CHARS,
    image_token: str | None = None,
    **variables: Any,
) -> str:
    """Render messages as one text by a jinja2 template in a sandbox.

    A message is a mapping with ``role`` and ``content``: a text, or parts ``{"type": "text", "text": ...}`` and
    ``{"type": "image"}``, which ``image_token`` stands for where the template reads no parts. ``variables`` are
    passed to the template. Use ``encode_chat`` for token ids: in this text a message may contain a special token.
    """
    checked = [checked_message(message, f"messages[{index}]") for index, message in enumerate(messages)]
    if sum(text_length(message["content"]) for message in checked) > max_chars:
        raise DataError(f"messages: contents exceed {max_chars} characters; shorten or drop some")
    given = {
        **variables,
        "messages": format_messages_for_template(template, checked, image_token),
        "add_generation_prompt": add_generation_prompt,
        "bos_token": bos_token,
        "eos_token": eos_token,
    }
    return render_sandboxed(template, given, max_chars=max_chars)


def encode_chat(
    tokenizer: Tokenizer,
    messages: Sequence[Mapping[str, Any]],
    template: str | None = None,
    *,
    add_generation_prompt: bool = True,
    max_chars: int = MAX_CHARS,
    image_token_id: int | None = None,
    tokens_per_image: int = 1,
    continue_final_message: bool = False,
    **variables: Any,
) -> list[int]:
    """Return the ids of a chat: special tokens of the template are encoded as such, those in messages as plain text.

    Before rendering, a private-use character is inserted after every character of a message that could start a
    special token, so that no message can contain one; it is removed after splitting. A private-use character that
    occurs in the messages is never chosen. An assistant's closing think tag stays readable to the template.
    ``variables``, tools and their descriptions among them, are guarded in the same way. Each image becomes
    ``tokens_per_image`` times ``image_token_id``. With ``continue_final_message`` the ids end inside the last message,
    an assistant's, without its end token; think tags in it are special tokens, as they would be in an answer.
    """
    if continue_final_message:
        check_continuable(messages)
    names = {token_id: name for name, token_id in tokenizer.special_tokens.items()}
    chosen = tokenizer.chat_template if template is None else template
    checked = [
        format_tool_calls_for_template(chosen, checked_message(m, f"messages[{i}]")) for i, m in enumerate(messages)
    ]
    guard = next((g for g in _GUARDS if not _holds((checked, variables), g)), None)
    if guard is None:
        raise DataError("messages: contents hold every guard character U+F8F0 to U+F8F3; remove one of them")
    starts = re.compile("[" + re.escape("".join(sorted({name[0] for name in names.values()}))) + "]")
    guarded = [_guarded(message, starts, guard) for message in checked]  # its JSON is read: escapes hide no character
    guarded_variables = {name: _guard_value(value, starts, guard) for name, value in variables.items()}

    def render_guarded(shown: Sequence[Mapping[str, Any]]) -> str:
        return render(
            shown,
            chosen,
            add_generation_prompt=add_generation_prompt and not continue_final_message,
            bos_token=tokenizer.id_to_token(tokenizer.bos_id),
            eos_token=tokenizer.id_to_token(tokenizer.eos_id),
            max_chars=max_chars,
            image_token=None if image_token_id is None else tokenizer.id_to_token(image_token_id),
            **guarded_variables,
        )

    if continue_final_message:
        text = _render_continued(render_guarded, guarded[:-1], _guarded_tagged(checked[-1], starts, guard), guard * 2)
    else:
        text = render_guarded(guarded)
    names_by_length = sorted(names.values(), key=len, reverse=True)
    pieces = re.split("(" + "|".join(map(re.escape, names_by_length)) + ")", text)
    ids: list[int] = []
    for index, piece in enumerate(pieces):
        if index % 2:
            ids.append(tokenizer.special_tokens[piece])
        elif piece:
            ids.extend(tokenizer.encode(piece.replace(guard, ""), continues=index > 0))
    return _with_images(ids, image_count(guarded), image_token_id, tokens_per_image)


def _render_continued(
    render_guarded: Callable[[Sequence[Mapping[str, Any]]], str],
    before: Sequence[dict[str, Any]],
    final: dict[str, Any],
    mark: str,
) -> str:
    """Render a conversation up to the end of its final message's text. No message may contain ``mark``."""
    field, _ = continued_text(final)
    shown = cut_at_mark(render_guarded([*before, with_mark(final, mark)]), mark)
    if shown is None and field != "content":
        final = with_reasoning_as_content(final)
        shown = cut_at_mark(render_guarded([*before, with_mark(final, mark)]), mark)
    if shown is None:
        raise DataError(
            f"messages[{len(before)}].{field}: the chat template does not show its end, so it cannot be continued; "
            "leave continue_final_message and prefix out"
        )
    return shown


def _with_images(ids: list[int], images: int, image_token_id: int | None, tokens_per_image: int) -> list[int]:
    placed = 0 if image_token_id is None else ids.count(image_token_id)
    if placed != images:
        raise DataError(
            f"messages: hold {images} images, but the chat template places {placed}; use a vision model's own template"
        )
    return [token for id_ in ids for token in [id_] * (tokens_per_image if id_ == image_token_id else 1)]


def _guarded(message: dict[str, Any], starts: re.Pattern[str], guard: str) -> dict[str, Any]:
    def guarded_text(text: str) -> str:
        shown = text.rpartition(special.THINK_END)[2] if message["role"] == "assistant" else text
        return starts.sub(lambda match: match[0] + guard, shown)

    return (
        message
        | {key: _guard_value(value, starts, guard) for key, value in message.items() if key != "content"}
        | {"content": map_text(message["content"], guarded_text)}
    )


def _guarded_tagged(message: dict[str, Any], starts: re.Pattern[str], guard: str) -> dict[str, Any]:
    """Guard a message whose think tags stay as they are."""

    def guard_between(text: str) -> str:
        return "".join(
            part if index % 2 else starts.sub(lambda match: match[0] + guard, part)
            for index, part in enumerate(_THINK_TAGS.split(text))
        )

    content = map_text(message["content"], guard_between)
    return {name: _guard_value(value, starts, guard) for name, value in message.items()} | {"content": content}


def _guard_value(value: Any, starts: re.Pattern[str], guard: str) -> Any:
    if isinstance(value, str):
        return starts.sub(lambda match: match[0] + guard, value)
    if isinstance(value, Mapping):
        return {_guard_value(k, starts, guard): _guard_value(v, starts, guard) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_guard_value(item, starts, guard) for item in value]
    return value


def _holds(value: Any, character: str, depth: int = 0) -> bool:
    if depth > MAX_NESTING:
        raise DataError(f"messages: nested deeper than {MAX_NESTING}, in tools or calls; flatten them")
    if isinstance(value, Mapping):
        return any(_holds(part, character, depth + 1) for item in value.items() for part in item)
    if isinstance(value, list | tuple):
        return any(_holds(item, character, depth + 1) for item in value)
    return isinstance(value, str) and character in value

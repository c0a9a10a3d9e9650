"""A conversation and its chat template: the variables a template gets, and the text it makes of them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fathom.chat.continuation import continued_text, cut_at_mark, with_mark, with_reasoning_as_content
from fathom.chat.parts import (
    arguments_as_json,
    arguments_as_mapping,
    as_template_message,
    checked_message,
    convert_arguments,
    joined_parts,
    text_length,
)
from fathom.chat.special_tokens import GUARDS, Change, check_nesting, map_strings, strings
from fathom.chat.template_probe import read_calls, reads_parts
from fathom.chat.template_process import PROCESS, Mark, Rendering
from fathom.errors import DataError
from fathom.tokenizer import special

NAME = "chat template"
_NOT_SHOWN = "the last message is not shown to its end"
_THINK_TAGS = re.compile(f"({re.escape(special.THINK_BEGIN)}|{re.escape(special.THINK_END)})")


@dataclass(frozen=True, slots=True)
class Conversation:
    """Checked messages, the template and its other variables.

    ``tokens`` are the special tokens that the template may name. ``image_token`` stands for an image in a template
    that reads no parts. ``cut`` is the mark at which the text ends, in a last message that is continued.
    """

    template: str
    messages: tuple[dict[str, Any], ...]
    variables: Mapping[str, Any]
    tokens: Mapping[str, str]
    image_token: str | None
    max_chars: int
    keeps_none: bool = False
    cut: str | None = None

    @classmethod
    def of(
        cls,
        template: str,
        messages: Sequence[Mapping[str, Any]],
        variables: Mapping[str, Any],
        tokens: Mapping[str, str],
        *,
        image_token: str | None,
        max_chars: int,
    ) -> Conversation:
        """Check messages, and convert the arguments of their calls to the form that the template reads.

        Raises:
            DataError: a message is malformed or too long, or the template meets a limit.
        """
        checked = [checked_message(message, f"messages[{index}]") for index, message in enumerate(messages)]
        if sum(text_length(message["content"]) for message in checked) > max_chars:
            raise DataError(f"messages: contents exceed {max_chars} characters; shorten or drop some")
        check_nesting((checked, dict(variables)))
        if any(message.get("tool_calls") for message in checked):
            checked = _with_arguments(template, checked)
        return cls(template, tuple(checked), variables, tokens, image_token, max_chars)

    def render(self, changes: Sequence[Change | None], mark: Mark | None = None) -> list[Rendering]:
        """Render once for each function, which is applied to every text that is not the template's.

        ``mark`` is (characters, mark, scope): the mark is put after these characters in the template's literals, "all"
        of them or those of its "output".
        """
        variables = [self._variables(change, mark) for change in changes]
        renderings = PROCESS.render(self.template, variables, max_chars=self.max_chars, mark=mark)
        return renderings if self.cut is None else [_cut(rendering, self.cut) for rendering in renderings]

    def settled(self) -> tuple[Conversation, Rendering]:
        """Render as it is; return the conversation in the form that the template takes, and the result.

        That is without fields that are None; a template that refuses this may look for them.
        """
        rendering = self.render([None])[0]
        if rendering.text is None and not rendering.limit and any(None in m.values() for m in self.messages):
            other = replace(self, keeps_none=True)
            again = other.render([None])[0]
            if again.text is not None:
                return other, again
        return self, rendering

    def continuing(self) -> Conversation:
        """Return the conversation whose text ends inside the last message.

        Raises:
            DataError: the template does not show where that ends.
        """
        mark, final = self.unused(GUARDS)[-1], self.messages[-1]
        field, _ = continued_text(final)
        forms = [final] if field == "content" else [final, with_reasoning_as_content(final)]
        for form in forms:
            marked = replace(self, messages=(*self.messages[:-1], with_mark(form, mark)), cut=mark)
            if marked.settled()[1].problem != _NOT_SHOWN:
                return marked
        raise DataError(
            f"messages[{len(self.messages) - 1}].{field}: the chat template does not show its end, so it cannot be "
            "continued; leave continue_final_message and prefix out"
        )

    def unused(self, characters: Sequence[str]) -> list[str]:
        """Return those characters that neither the template nor any text contains; ``DataError`` where all do."""
        texts = [self.template, *self.texts()]
        found = [character for character in characters if not any(character in text for text in texts)]
        if not found:
            listed = f"U+{ord(characters[0]):04X} to U+{ord(characters[-1]):04X}"
            raise DataError(f"messages: contents hold every guard character {listed}; remove two of them")
        return found

    def texts(self) -> Iterator[str]:
        """Yield every text that is not the template's."""
        yield from strings(self.messages)
        yield from strings(list(self.variables.values()))

    def _variables(self, change: Change | None, mark: Mark | None) -> dict[str, Any]:
        table = {} if mark is None else {ord(start): start + mark[1] for start in mark[0]}
        tokens = {name: token.translate(table) for name, token in self.tokens.items()}
        image_token = None if self.image_token is None else self.image_token.translate(table)
        messages = [message if change is None else _changed(message, change) for message in self.messages]
        if self.cut is not None and (change is not None or mark is not None):
            messages[-1] = self._final(change or str, table)
        messages = [
            message if isinstance(message["content"], str | None) else self._with_parts(message, original, image_token)
            for message, original in zip(messages, self.messages, strict=True)
        ]
        given = {n: v if change is None else map_strings(v, change) for n, v in self.variables.items()}
        shown = [as_template_message(message, keep_none=self.keeps_none) for message in messages]
        return {"tools": None, "documents": None, "add_generation_prompt": False, **tokens, **given, "messages": shown}

    def _final(self, change: Change, table: Mapping[int, str]) -> dict[str, Any]:
        """Return a last message that is continued: its think tags are special tokens, as in an answer.

        ``table`` puts the mark into them, as into every literal.
        """

        def between(text: str) -> str:
            parts = enumerate(_THINK_TAGS.split(text))
            return "".join(part.translate(table) if index % 2 else change(part) for index, part in parts)

        return _changed(self.messages[-1], between)

    def _with_parts(
        self, message: dict[str, Any], original: Mapping[str, Any], image_token: str | None
    ) -> dict[str, Any]:
        if reads_parts(self.template, original["role"]):
            return message
        return message | {"content": joined_parts(message["content"], image_token)}


def _with_arguments(template: str, messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return messages whose calls have their arguments as a mapping, or as text where the template needs that.

    A template that writes the same for both gets them as given: a model's own spelling of JSON stays.
    """
    reads = read_calls(template)
    if reads.prefers_mapping or (reads.mapping and not reads.text):
        return [convert_arguments(message, arguments_as_mapping) for message in messages]
    if reads.text and not reads.mapping:
        return [convert_arguments(message, arguments_as_json) for message in messages]
    return messages


def _cut(rendering: Rendering, mark: str) -> Rendering:
    if rendering.text is None:
        return rendering
    shown = cut_at_mark(rendering.text, mark)
    return Rendering(None, _NOT_SHOWN) if shown is None else Rendering(shown)


def _changed(message: Mapping[str, Any], change: Change) -> dict[str, Any]:
    """Return a message whose texts are changed, but for the names of its fields and the types of its parts."""
    content = message["content"]
    rest = {key: map_strings(value, change) for key, value in message.items() if key != "content"}
    if not isinstance(content, list):
        return rest | {"content": map_strings(content, change)}
    return rest | {"content": [{**part, "text": change(part["text"])} if "text" in part else part for part in content]}

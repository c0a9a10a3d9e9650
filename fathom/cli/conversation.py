"""A conversation on a terminal or through a pipe: messages, commands, and answers that can be stopped."""

from __future__ import annotations

import difflib
import json
import re
import signal
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import FrameType, MappingProxyType
from typing import TYPE_CHECKING, Any

from fathom.cli import sampling
from fathom.errors import ContextError, DataError, FathomError, SpecError
from fathom.files import write_text
from fathom.locale import marked, tr
from fathom.signals import StopRequest
from fathom.spec.sampling import SamplingParams
from fathom.terminal import one_line

if TYPE_CHECKING:
    from fathom.inference.language_model import LanguageModel
    from fathom.inference.request_preparation import ChatOptions, PreparedRequest

Message = dict[str, Any]
HELP = marked("""/help             lists the commands
/reset            forgets the conversation, but not the system message
/retry            answers the last message again
/system TEXT      sets the system message; without a text it is removed
/params           shows how answers are drawn; /params temperature=0.2 changes it
/save FILE        saves the conversation: .jsonl or .json as messages, else as text
/image PATH       shows an image with the next message
/exit             leaves; so does Ctrl+C or Ctrl+D at the prompt
Ctrl+C stops an answer. A line that ends with \\ goes on in the next one; so does a text between two \"\"\".""")
GREETING = marked("/help lists the commands; Ctrl+C stops an answer.")
MIN_ANSWER_TOKENS = 32
BLOCK = '"""'
_COMMAND = re.compile(r"/(\w+)(?:\s+(.*))?", re.DOTALL)
_PARAMS = tuple(each.name for each in fields(SamplingParams) if "logprobs" not in each.name)


class AnswerStop(StopRequest):
    """While entered, Ctrl+C asks for the end of an answer; a second one leaves the program."""

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Record the signal; the second one, and any other, ends what runs."""
        if self.signal_name is not None or number != signal.SIGINT:
            raise KeyboardInterrupt
        super().handle(number, frame)


@dataclass
class Conversation:
    """What was said, and what the next answer must be."""

    model: LanguageModel
    options: ChatOptions
    asked: dict[str, Any]
    max_tokens: int | None
    first: list[Message]
    messages: list[Message] = field(default_factory=list)
    shown: list[Path] = field(default_factory=list)

    def forget(self) -> None:
        """Begin anew."""
        self.messages = list(self.first)

    def answer(self, line: str) -> None:
        """Write an answer to a message, and keep both; a message that is refused is not kept."""
        self.messages.append({"role": "user", "content": _content(line, self.shown)})
        try:
            self._answer()
        except (ContextError, DataError):  # a template may refuse a message
            self.messages.pop()
            raise
        finally:
            self.shown.clear()

    def retry(self) -> None:
        """Answer the last message again, with another seed where one was given."""
        if len(self.messages) < len(self.first) + 2:
            raise DataError("/retry: there is no answer yet; write a message first")
        before = self.messages.pop()
        if self.asked.get("seed") is not None:
            self.asked["seed"] += 1
        try:
            self._answer()
        except (ContextError, DataError):
            self.messages.append(before)
            raise

    def set_system(self, text: str) -> None:
        """Set the system message, or remove it."""
        rest = self.messages[len(self.first) :]
        self.first = [{"role": "system", "content": text}] if text else []
        self.messages = [*self.first, *rest]

    def set_params(self, given: str) -> None:
        """Change fields of ``SamplingParams``, written as name=value."""
        changed = {"max_tokens": self.max_tokens, **self.asked}
        for pair in given.split():
            name, equals, text = pair.partition("=")
            if not equals or name not in _PARAMS:
                near = next(iter(difflib.get_close_matches(name, _PARAMS, n=1)), "temperature")
                raise SpecError("/params", f"{pair!r} sets nothing", f"write it as {near}=VALUE; /params lists all")
            try:
                changed[name] = None if text.lower() == "none" else json.loads(text)
            except ValueError:
                raise SpecError(f"/params {name}", f"{text!r} is no number", f"write it as {name}=1") from None
        checked = changed | {"max_tokens": changed["max_tokens"] or sampling.DEFAULT_TOKENS}
        SamplingParams(**checked)
        self.max_tokens = changed.pop("max_tokens")
        self.asked = changed

    def show_params(self) -> None:
        """Print how answers are drawn."""
        defaults = SamplingParams()
        fits = tr("{tokens} or what fits", tokens=sampling.DEFAULT_TOKENS)
        most = fits if self.max_tokens is None else str(self.max_tokens)
        for name in _PARAMS:
            value = self.asked.get(name, getattr(defaults, name))
            print(f"{name} = {most if name == 'max_tokens' else json.dumps(value)}", file=sys.stderr)

    def save(self, path: Path) -> None:
        """Write the conversation to a file that does not exist yet."""
        if path.exists():
            raise DataError(f"/save: {path} exists; name another file")
        if path.suffix.lower() in (".json", ".jsonl"):
            text = json.dumps({"messages": self.messages}, ensure_ascii=False, default=str) + "\n"
        else:
            text = "".join(f"{message['role']}: {_as_text(message)}\n\n" for message in self.messages)
        write_text(path, text)
        print(tr("saved {count} messages to {file}", count=len(self.messages), file=path), file=sys.stderr)

    def _answer(self) -> None:
        if not sys.stdin.isatty():
            self._write_answer(lambda: False)
            return
        with AnswerStop() as stop:
            self._write_answer(lambda: stop.signal_name is not None)
        if stop.signal_name is not None:
            print(tr("(stopped)"), file=sys.stderr)

    def _write_answer(self, stopped: Callable[[], bool]) -> None:
        from fathom.inference.chat_session import ChatStream, fit_max_tokens, run

        prepared = self._fitted()
        tokens = self.max_tokens
        if tokens is None:
            tokens = fit_max_tokens(self.model, prepared, sampling.DEFAULT_TOKENS)
        stream = ChatStream(prepared, run(self.model, prepared, {**self.asked, "max_tokens": tokens}))
        self.messages.append(sampling.write_stream(stream, stopped).message)

    def _fitted(self) -> PreparedRequest:
        """Return the conversation as the engine reads it, forgetting its oldest turns until an answer fits."""
        from fathom.inference.request_preparation import prepare_chat

        context, fixed = self.model.spec.max_position_embeddings, len(self.first)
        wanted = min(MIN_ANSWER_TOKENS, context // 2) if self.max_tokens is None else self.max_tokens
        prepared = prepare_chat(self.model, self.messages, self.options)
        forgotten = 0
        while len(prepared.prompt_ids) + wanted > context and len(self.messages) > fixed + 1:
            del self.messages[fixed : fixed + 2]
            forgotten += 1
            prepared = prepare_chat(self.model, self.messages, self.options)
        if forgotten:
            print(tr("(the context is full: the oldest {count} turns are forgotten)", count=forgotten), file=sys.stderr)
        return prepared


def converse(conversation: Conversation) -> None:
    """Read messages and commands until the input ends."""
    interactive = sys.stdin.isatty()
    if interactive:
        _enable_line_editing()
        print(tr(GREETING), file=sys.stderr)
    while (line := _read_message(interactive)) is not None:
        found = _COMMAND.fullmatch(line)
        if found is not None and found[1] == "exit":
            return
        try:
            if found is not None and (interactive or found[1] in COMMANDS):
                _run_command(conversation, found[1], (found[2] or "").strip())
            elif line.strip():
                conversation.answer(line.strip())
        except (ContextError, DataError, SpecError) as error:
            if not interactive:
                raise
            print(tr("error: {message}", message=one_line(str(error))), file=sys.stderr)
        except FathomError as error:
            if not interactive or found is None:
                raise
            print(tr("error: {message}", message=one_line(str(error))), file=sys.stderr)
        except KeyboardInterrupt:
            if not interactive:
                raise
            print(file=sys.stderr)
            return


def _run_command(conversation: Conversation, name: str, rest: str) -> None:
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        meant = f"did you mean /{near[0]}? " if near else ""
        raise DataError(f"/{name}: is no command; {meant}/help lists them, and a space before it sends it as a message")
    COMMANDS[name](conversation, rest)


def _set_or_show(conversation: Conversation, rest: str) -> None:
    if rest:
        conversation.set_params(rest)
    else:
        conversation.show_params()


def _save(conversation: Conversation, rest: str) -> None:
    if not rest:
        raise DataError("/save: names no file; write it as /save chat.jsonl")
    conversation.save(Path(rest).expanduser())


def _show_image(conversation: Conversation, rest: str) -> None:
    if not rest:
        raise DataError("/image: names no file; write it as /image picture.png")
    conversation.shown.append(Path(rest).expanduser())


COMMANDS: Mapping[str, Callable[[Conversation, str], None]] = MappingProxyType(
    {
        "help": lambda conversation, rest: print(tr(HELP), file=sys.stderr),
        "reset": lambda conversation, rest: conversation.forget(),
        "retry": lambda conversation, rest: conversation.retry(),
        "system": lambda conversation, rest: conversation.set_system(rest),
        "params": _set_or_show,
        "save": _save,
        "image": _show_image,
    }
)


def _read_message(interactive: bool) -> str | None:
    """Return the next message, of several lines where they say so; None at the end of the input."""
    line = _read_line("> ", interactive)
    if line is None:
        return None
    if line.lstrip().startswith(BLOCK):
        return _block(line.lstrip().removeprefix(BLOCK), interactive)
    lines = [line]
    while lines[-1].endswith("\\"):
        lines[-1] = lines[-1].removesuffix("\\")
        following = _read_line(". ", interactive)
        if following is None:
            break
        lines.append(following)
    return "\n".join(lines)


def _block(first: str, interactive: bool) -> str:
    """Return the lines up to the closing marks."""
    lines = [first]
    while not lines[-1].rstrip().endswith(BLOCK):
        following = _read_line(". ", interactive)
        if following is None:
            return "\n".join(lines)
        lines.append(following)
    return "\n".join(lines).rstrip().removesuffix(BLOCK)


def _read_line(prompt: str, interactive: bool) -> str | None:
    try:
        line = input(prompt) if interactive else sys.stdin.readline()
    except (EOFError, KeyboardInterrupt):
        return None
    if not interactive and not line:
        return None
    return line.rstrip()


def _enable_line_editing() -> None:
    try:
        import readline  # noqa: F401  importing it gives input() history and editing
    except ImportError:
        return


def _content(line: str, images: list[Path]) -> str | list[dict[str, Any]]:
    if not images:
        return line
    return [*({"type": "image", "image": path} for path in images), {"type": "text", "text": line}]


def _as_text(message: Message) -> str:
    content = message["content"]
    return content if isinstance(content, str) else json.dumps(content, ensure_ascii=False, default=str)

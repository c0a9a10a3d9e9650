"""``fathom chat``: talk with a model, line by line."""

from __future__ import annotations

import shlex
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fathom.cli import model_options, options, sampling
from fathom.cli.console import readable
from fathom.errors import ContextError, DataError
from fathom.terminal import one_line

if TYPE_CHECKING:
    from fathom.inference.language_model import LanguageModel
    from fathom.inference.request_preparation import ChatOptions, PreparedRequest

Message = dict[str, Any]
HELP = "/image PATH shows an image with the next message, /reset forgets the conversation, /exit leaves."
MIN_ANSWER_TOKENS = 32


@dataclass
class _Conversation:
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
        from fathom.inference.chat_session import ChatStream, fit_max_tokens, run

        self.messages.append({"role": "user", "content": _content(line, self.shown)})
        try:
            prepared = self._fitted()
            tokens = self.max_tokens
            if tokens is None:
                tokens = fit_max_tokens(self.model, prepared, sampling.DEFAULT_TOKENS)
            stream = ChatStream(prepared, run(self.model, prepared, {**self.asked, "max_tokens": tokens}))
            answer = sampling.write_stream(stream)
        except (ContextError, DataError):  # a template may refuse a message
            self.messages.pop()
            raise
        finally:
            self.shown.clear()
        self.messages.append(answer.message)

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
            print(f"(the context is full: the oldest {forgotten} turns are forgotten)", file=sys.stderr)
        return prepared


def chat(
    model: options.Model,
    image: Annotated[
        list[Path] | None, typer.Option("--image", help="Show this image with the first message; may be repeated.")
    ] = None,
    system: Annotated[str | None, typer.Option("--system", help="The system message.")] = None,
    think: Annotated[
        bool | None,
        typer.Option("--think/--no-think", help="Reason first, or not at all; the model's own way if left out."),
    ] = None,
    thinking_budget: Annotated[
        int | None, typer.Option("--thinking-budget", help="Tokens of reasoning at most; then the answer begins.")
    ] = None,
    max_tokens: sampling.MaxTokens = None,
    temperature: sampling.Temperature = 0.8,
    top_k: sampling.TopK = 0,
    top_p: sampling.TopP = 0.95,
    min_p: sampling.MinP = 0.0,
    seed: sampling.Seed = None,
    stop: sampling.Stop = None,
    schema: sampling.Schema = None,
    chat_template: model_options.ChatTemplate = None,
    device: options.Device = "auto",
    dtype: model_options.Dtype = "auto",
    weights: model_options.Weights = "plain",
    cache: model_options.Cache = "plain",
    draft: model_options.Draft = "none",
    compiled: model_options.Compile = False,
) -> None:
    """Talk with a model; each line of stdin is a message.

    /image PATH shows an image with the next message, /reset forgets the conversation, /exit leaves.
    """
    wanted = sampling.read_schema(schema)
    engine = model_options.engine_spec(cache, draft, compiled)
    opened = model_options.open_model(model, device, dtype, weights, engine, chat_template)
    if not opened.tokenizer.can_chat:
        again = f"fathom generate {shlex.quote(model)} --prompt TEXT"
        raise DataError(f"{model}: has no chat template; continue a text with: {again}")
    _ = opened.tokenizer.chat_template  # one of several must be chosen before anything is said

    from fathom.inference.request_preparation import ChatOptions

    first: list[Message] = [{"role": "system", "content": readable(system)}] if system else []
    conversation = _Conversation(
        opened,
        ChatOptions(stop=tuple(stop or ()), schema=wanted, thinking=think, thinking_budget=thinking_budget),
        {"temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p, "seed": seed},
        max_tokens,
        first,
        list(first),
        list(image or []),
    )
    model_options.announce(opened)
    _converse(conversation)


def _converse(conversation: _Conversation) -> None:
    interactive = sys.stdin.isatty()
    if interactive:
        _enable_line_editing()
        print(HELP, file=sys.stderr)
    while (line := _read(interactive)) is not None:
        if line == "/exit":
            return
        if line == "/reset":
            conversation.forget()
        elif line.startswith("/image "):
            conversation.shown.append(Path(line.removeprefix("/image ").strip()))
        elif line:
            try:
                conversation.answer(line)
            except (ContextError, DataError) as error:
                if not interactive:
                    raise
                print(f"error: {one_line(str(error))}", file=sys.stderr)


def _read(interactive: bool) -> str | None:
    """Return the next message, or None at the end of the input."""
    try:
        line = input("> ") if interactive else sys.stdin.readline()
    except (EOFError, KeyboardInterrupt):
        return None
    if not interactive and not line:
        return None
    return line.strip()


def _enable_line_editing() -> None:
    try:
        import readline  # noqa: F401  importing it gives input() history and editing
    except ImportError:
        return


def _content(line: str, images: list[Path]) -> str | list[dict[str, Any]]:
    if not images:
        return line
    return [*({"type": "image", "image": path} for path in images), {"type": "text", "text": line}]

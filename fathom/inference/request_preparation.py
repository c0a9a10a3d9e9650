"""Prepares chat and completion requests for the engine, and the parsers of their output.

Used by the command line, ``LanguageModel.chat`` and the server: ``prepare_chat`` or ``prepare_text`` makes the prompt,
the constraint and a parser, and the caller that runs the engine feeds the generated tokens to the parser.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor

from fathom.chat.continuation import check_continuable, continued_text, continues_reasoning
from fathom.chat.fim import fim_prompt, fim_stop_ids
from fathom.chat.output import OutputParser
from fathom.chat.output.budget import Constraint, ThinkingBudget, think_tag_ids
from fathom.chat.output.hermes import fit_messages_to_template
from fathom.chat.output.thinking import ends_inside_reasoning
from fathom.errors import DataError, SpecError
from fathom.tokenizer import special
from fathom.tokenizer.bpe import Tokenizer

if TYPE_CHECKING:
    from fathom.chat.grammar import GrammarCompiler
    from fathom.engine.engine import Engine
    from fathom.inference.prompt import Prompt
    from fathom.spec.model import ModelSpec

_RESERVED = frozenset(
    {
        "add_generation_prompt",
        "bos_token",
        "cache_salt",
        "continue_final_message",
        "cycler",
        "dict",
        "eos_token",
        "image_token",
        "image_token_id",
        "joiner",
        "lipsum",
        "max_chars",
        "max_prompt_tokens",
        "messages",
        "namespace",
        "raise_exception",
        "range",
        "strftime_now",
        "template",
        "tokenizer",
        "tokens_per_image",
        "tools",
    }
)
"""Names of arguments, of what the server gives a template, and of the functions that a template may call."""
_OPEN = "<think>\n"
_CLOSE = "\n</think>\n\n"


class ChatModel(Protocol):
    """What request preparation needs of a model; ``LanguageModel`` implements it."""

    @property
    def spec(self) -> ModelSpec:
        """The model's spec."""
        ...

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer."""
        ...

    @property
    def engine(self) -> Engine:
        """The inference engine."""
        ...

    @property
    def grammars(self) -> GrammarCompiler:
        """The grammar compiler for structured output."""
        ...

    def prompt(
        self,
        messages: Sequence[Mapping[str, Any]],
        /,
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        cache_salt: str = "",
        max_prompt_tokens: int | None = None,
        **variables: Any,
    ) -> Prompt:
        """Encode a conversation by the chat template."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class TextOptions:
    """Constraints on a completion, at most one of ``schema``, ``json_object``, ``regex`` and ``grammar`` (Lark).

    ``stop`` strings end the text and are kept in it only with ``include_stop``. A prompt of more than
    ``max_prompt_tokens`` is not read to its end.
    """

    stop: tuple[str, ...] = ()
    include_stop: bool = False
    schema: Mapping[str, Any] | None = None
    json_object: bool = False
    regex: str | None = None
    grammar: str | None = None
    max_prompt_tokens: int | None = None

    def __post_init__(self) -> None:
        given = [n for n in ("schema", "regex", "grammar") if getattr(self, n) is not None]
        given += ["json_object"] * self.json_object
        if len(given) > 1:
            raise SpecError(given[1], f"excludes {given[0]}", "give one of the two")
        if any(not stop for stop in self.stop):
            raise SpecError("stop", "a stop string is empty", "give at least one character, or leave it out")


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatOptions(TextOptions):
    """Options of a chat completion.

    ``tools`` are in OpenAI's format. ``thinking`` true opens the reasoning in the prompt, false closes it there, None
    leaves it to the template. ``thinking_budget`` closes the reasoning after that many tokens. ``variables`` are passed
    to the chat template. Stop strings and grammars apply to the content, after the reasoning.

    ``continue_final_message``: the last message is an assistant's beginning, which the answer continues; the prompt
    ends inside it, without its end token. It is the content, or the reasoning where there is no content. Without
    ``add_generation_prompt`` the prompt ends after the last message. Features of images are cached for requests of one
    ``cache_salt`` only.
    """

    tools: tuple[Mapping[str, Any], ...] = ()
    thinking: bool | None = None
    thinking_budget: int | None = None
    continue_final_message: bool = False
    add_generation_prompt: bool = True
    variables: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    cache_salt: str = ""

    def __post_init__(self) -> None:
        super(ChatOptions, self).__post_init__()
        if self.thinking_budget is not None and self.thinking_budget < 0:
            raise SpecError(
                "thinking_budget", f"must not be negative, got {self.thinking_budget}", "give a number of tokens"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedRequest:
    """A request for the engine and the parser of its output.

    ``constraint`` is stateful and belongs to one request: each further choice takes a ``copy()`` before the first token
    is generated. ``stop_token_ids`` are added to those of the caller. ``in_reasoning`` says that the prompt ends inside
    an assistant's reasoning, ``continues`` that it ends inside a text, of which white space is part.
    """

    tokenizer: Tokenizer
    prompt_ids: tuple[int, ...]
    features_ND: Tensor | None = None
    constraint: Constraint | None = None
    stop_token_ids: tuple[int, ...] = ()
    options: TextOptions = TextOptions()
    in_reasoning: bool = False
    continues: bool = False

    def parser_factory(self) -> OutputParser:
        """Return a new parser for one answer."""
        chat = self.options if isinstance(self.options, ChatOptions) else None
        return OutputParser(
            self.tokenizer,
            starts_in_reasoning=self.in_reasoning,
            continues=self.continues,
            tools=() if chat is None else chat.tools,
            stops=self.options.stop,
            include_stop=self.options.include_stop,
            plain=chat is None,
        )


def require_chat_template(tokenizer: Tokenizer, name: str, option: str = "--apply-chat-template") -> None:
    """Raise ``DataError`` where a chat template is asked for and the model ``name`` has none."""
    if not tokenizer.can_chat:
        raise DataError(f"{name}: has no chat template; leave {option} out, or choose a model that has one")


def prepare_chat(
    model: ChatModel,
    messages: Sequence[Mapping[str, Any]],
    options: ChatOptions | None = None,
    constrain: Callable[[Constraint | None], Constraint | None] | None = None,
) -> PreparedRequest:
    """Prepare a conversation for the engine.

    ``constrain`` is given the constraint of the content and returns that of the answer, which reasoning may precede.

    Images are parts of messages' contents, as ``make_prompt`` takes them; they run through the vision towers here, so
    servers call this from a thread.

    Raises:
        DataError: a message, tool or image cannot be read, the model has no chat template, or a schema cannot be
            followed.
        SpecError: an option is out of range.
        TooManyTokens: the text has more than ``max_prompt_tokens``.
    """
    chosen = options or ChatOptions()
    tokenizer = model.tokenizer
    continued = chosen.continue_final_message
    if continued:
        check_continuable(messages)
    template = tokenizer.choose_template(tools=bool(chosen.tools))
    fitted = fit_messages_to_template(template, messages, chosen.tools)
    prompt = model.prompt(
        fitted,
        add_generation_prompt=chosen.add_generation_prompt,
        continue_final_message=continued,
        max_prompt_tokens=chosen.max_prompt_tokens,
        cache_salt=chosen.cache_salt,
        **_variables(chosen),
    )
    begun = continued_text(messages[-1])[1] if continued else ""
    adds = chosen.add_generation_prompt and not continued
    ids = _with_thinking(tokenizer, prompt.token_ids, chosen.thinking if adds else None)
    inside = (bool(begun) and continues_reasoning(messages[-1])) or ends_inside_reasoning(tokenizer, ids)
    inner = _constraint(model, chosen)
    inner = inner if constrain is None else constrain(inner)
    if chosen.thinking_budget is not None or (inside and inner is not None):
        inner = ThinkingBudget(tokenizer, chosen.thinking_budget, inside, inner)
    return PreparedRequest(
        tokenizer=tokenizer,
        prompt_ids=ids,
        features_ND=prompt.features_ND,
        constraint=inner,
        options=chosen,
        in_reasoning=inside,
        continues=bool(begun.strip()) and not begun.rstrip().endswith(special.THINK_BEGIN),
    )


def prepare_text(
    model: ChatModel,
    prompt: str | Sequence[int],
    suffix: str | None = None,
    options: TextOptions | None = None,
) -> PreparedRequest:
    """Prepare a completion for the engine: a text or token ids; with ``suffix``, fill-in-the-middle.

    A text gets the tokenizer's prefix; token ids are taken unchanged.

    Raises:
        DataError: the vocabulary cannot fill in the middle, ``suffix`` comes with token ids, or a schema cannot be
            followed.
        TooManyTokens: a text has more than ``max_prompt_tokens``.
    """
    tokenizer, chosen = model.tokenizer, options or TextOptions()
    stop_token_ids: tuple[int, ...] = ()
    if suffix is not None:
        if not isinstance(prompt, str):
            raise DataError("suffix: the prompt is token ids; give it as text, or put the markers in and no suffix")
        ids = fim_prompt(tokenizer, prompt, suffix, max_tokens=chosen.max_prompt_tokens)
        stop_token_ids = fim_stop_ids(tokenizer)
    elif isinstance(prompt, str):
        ids = [*tokenizer.prefix_ids, *tokenizer.encode(prompt, max_tokens=chosen.max_prompt_tokens)]
    else:
        ids = list(prompt)
    return PreparedRequest(
        tokenizer=tokenizer,
        prompt_ids=tuple(ids),
        constraint=_constraint(model, chosen),
        stop_token_ids=stop_token_ids,
        options=chosen,
    )


def _with_thinking(tokenizer: Tokenizer, ids: tuple[int, ...], thinking: bool | None) -> tuple[int, ...]:
    """Open or close the reasoning at the end of a prompt whose template did not."""
    if thinking is None or thinking == ends_inside_reasoning(tokenizer, ids):
        return ids
    return (*ids, *think_tag_ids(tokenizer, _OPEN if thinking else _CLOSE))


def _constraint(model: ChatModel, options: TextOptions) -> Constraint | None:
    if options.schema is not None:
        return model.grammars.json_schema(options.schema)
    if options.json_object:
        return model.grammars.json_object()
    if options.regex is not None:
        return model.grammars.regex(options.regex)
    return None if options.grammar is None else model.grammars.lark(options.grammar)


def _variables(options: ChatOptions) -> dict[str, Any]:
    """Return the template's variables beside the messages; templates name the switch for reasoning in two ways."""
    reserved = sorted(_RESERVED & options.variables.keys())
    if reserved:
        raise SpecError("variables", f"{reserved[0]!r} is not the caller's to set", "leave it out")
    variables: dict[str, Any] = {"tools": list(options.tools)} if options.tools else {}
    if options.thinking is not None:
        variables |= {"thinking": options.thinking, "enable_thinking": options.thinking}
    return variables | dict(options.variables)

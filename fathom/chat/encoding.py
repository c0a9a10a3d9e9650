"""Chat templates: messages to text, and messages to token ids in which no message can forge a special token."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from threading import Lock
from typing import TYPE_CHECKING, Any

from fathom.chat.continuation import check_continuable
from fathom.chat.conversation import NAME, Conversation
from fathom.chat.parts import image_count
from fathom.chat.special_tokens import GUARDS, SpecialTokens, special_tokens
from fathom.chat.template_process import Rendering
from fathom.chat.templates import DEFAULT_TEMPLATE
from fathom.errors import DataError
from fathom.tokenizer import special

if TYPE_CHECKING:
    from fathom.tokenizer.bpe import Tokenizer

MAX_CHARS = 4_194_304
_LEVELS = (1, 2, 4, None)
_MAX_TOKENS = 16
_KEPT = 256


def render(
    messages: Sequence[Mapping[str, Any]],
    template: str = DEFAULT_TEMPLATE,
    *,
    add_generation_prompt: bool = True,
    bos_token: str = special.BEGIN,
    eos_token: str = special.END,
    max_chars: int = MAX_CHARS,
    image_token: str | None = None,
    continue_final_message: bool = False,
    **variables: Any,
) -> str:
    """Render messages as one text by a jinja2 template, as transformers' ``apply_chat_template`` does.

    A message is a mapping with ``role`` and ``content``: a text, or parts ``{"type": "text", "text": ...}`` and
    ``{"type": "image"}``, which ``image_token`` stands for where the template reads no parts. ``variables`` are
    passed to the template. With ``continue_final_message`` the text ends inside the last message, an assistant's. Use
    ``encode_chat`` for token ids: in this text a message may contain a special token.

    Raises:
        DataError: a message is malformed, or the template refuses the messages or meets a limit.
    """
    if continue_final_message:
        check_continuable(messages)
    conversation = Conversation.of(
        template,
        messages,
        {"add_generation_prompt": add_generation_prompt and not continue_final_message, **variables},
        {"bos_token": bos_token, "eos_token": eos_token},
        image_token=image_token,
        max_chars=max_chars,
    )
    if continue_final_message:
        conversation = conversation.continuing()
    return conversation.settled()[1].unwrap(NAME)


def encode_chat(
    tokenizer: Tokenizer,
    messages: Sequence[Mapping[str, Any]],
    /,
    template: str | None = None,
    *,
    add_generation_prompt: bool = True,
    max_chars: int = MAX_CHARS,
    image_token_id: int | None = None,
    tokens_per_image: int = 1,
    continue_final_message: bool = False,
    max_prompt_tokens: int | None = None,
    **variables: Any,
) -> list[int]:
    """Return the ids of a chat: special tokens of the template are encoded as such, those in messages as plain text.

    Where no message, tool or other variable spells a special token, the ids are those of transformers'
    ``apply_chat_template``. What they spell is found by rendering again with guards in their text, and the guarded
    text counts only if it is the same text: what a template decides is never changed. The tokenizer's template is
    the one for conversations with tools where ``tools`` are given. Each image becomes ``tokens_per_image`` times
    ``image_token_id``. With ``continue_final_message`` the ids end inside the last message, an assistant's, without its
    end token; think tags in it are special tokens, as they would be in an answer.

    Raises:
        DataError: as ``render``; or the template places other images than the messages hold.
        TooManyTokens: the text has more than ``max_prompt_tokens``.
    """
    if continue_final_message:
        check_continuable(messages)
    conversation = Conversation.of(
        tokenizer.choose_template(tools=variables.get("tools") is not None) if template is None else template,
        messages,
        {"add_generation_prompt": add_generation_prompt and not continue_final_message, **variables},
        tokenizer.template_variables,
        image_token=None if image_token_id is None else tokenizer.id_to_token(image_token_id),
        max_chars=max_chars,
    )
    if continue_final_message:
        conversation = conversation.continuing()
    specials = special_tokens(frozenset(tokenizer.special_tokens))
    text, guard = _rendered(conversation, specials)
    ids = tokenizer.encode_guarded(text, guard, max_tokens=max_prompt_tokens)
    return _with_images(ids, conversation, image_token_id, tokens_per_image)


def _rendered(conversation: Conversation, specials: SpecialTokens) -> tuple[str, str]:
    """Return the text, with a guard in every special token that is not the template's, and the guard."""
    settled, plain = conversation.settled()
    truth = plain.unwrap(NAME)
    texts = [text for text in settled.texts() if specials.holds_start(text)]
    if not texts:
        return truth, ""
    guards = settled.unused(GUARDS)
    if len(guards) < 2:
        raise DataError("messages: contents hold the guard characters U+F8F0 to U+F8F7; remove two of them")
    return _Separation(settled, specials, truth, texts, guards[0], guards[1]).guarded(), guards[0]


class _Separation:
    """Finds the special tokens of a rendered text that messages spell.

    A template may look into the text that it is given, so that a guard there changes its decision. Then guards are
    taken away step by step, until the same text comes out: first where only the beginning of a token stands, last in
    the tokens that the template looks for. For these it is found out what the template writes itself: its literals
    are marked instead of the messages.
    """

    def __init__(
        self, chat: Conversation, specials: SpecialTokens, truth: str, texts: Sequence[str], guard: str, mark: str
    ) -> None:
        self._chat, self._specials, self._truth = chat, specials, truth
        self._texts, self._guard, self._mark = texts, guard, mark

    def guarded(self) -> str:
        """Return the text with guards."""
        known = _LOOKED_FOR.get(self._chat.template)
        first = self._guarding([1], known)[0]
        if first is None:
            known, first = self._narrowed(known)
        spelled = {name for name in known if any(name in text for text in self._texts)}
        return self._guard_foreign(first, spelled) if spelled else first

    def _narrowed(self, known: frozenset[str]) -> tuple[frozenset[str], str]:
        """Return the tokens that the template looks for, and the text with as many guards as leave it the same."""
        for text in self._guarding(_LEVELS[1:], known):
            if text is not None:
                return known, text
        spelled = sorted(set().union(*map(self._specials.within, self._texts)))
        if not spelled:
            return known, self._truth
        looked_for = frozenset(spelled)
        if len(spelled) <= _MAX_TOKENS:
            changes = [self._specials.guarding_only(self._guard, name) for name in spelled]
            each = zip(spelled, self._same(self._chat.render(changes)), strict=False)
            found = frozenset(name for name, same in each if same is None)
            looked_for = (found or looked_for) | known
            _LOOKED_FOR.add(self._chat.template, found | known)
        texts = self._guarding(_LEVELS, looked_for)
        return looked_for, next((text for text in texts if text is not None), self._truth)

    def _guarding(self, levels: Sequence[int | None], exempt: frozenset[str]) -> list[str | None]:
        changes = [self._specials.guarding(self._guard, level, exempt) for level in levels]
        return self._same(self._chat.render(changes))

    def _same(self, renderings: Sequence[Rendering]) -> list[str | None]:
        """Return the texts that are the same without guards, None for others."""
        texts = [rendering.text for rendering in renderings]
        return [t if t is not None and t.replace(self._guard, "") == self._truth else None for t in texts]

    def _guard_foreign(self, text: str, names: Iterable[str]) -> str:
        """Put a guard into the tokens of ``names`` that the template does not write itself."""
        starts = {place for name in names for place in _found(self._truth, name)}
        if not starts:
            return text
        places = _places(text, self._guard) | (starts - self._own_places())
        return "".join(char + self._guard if i in places else char for i, char in enumerate(self._truth))

    def _own_places(self) -> set[int]:
        """Return where the template writes a character that may start a special token; where it cannot be told, none.

        A template may compare literals that it keeps in variables: then only those that it writes at once are marked.
        """
        for scope in ("all", "output"):
            marked = self._chat.render([None], mark=(self._specials.starts, self._mark, scope))[0].text
            if marked is not None and marked.replace(self._mark, "") == self._truth:
                return _places(marked, self._mark)
        return set()


def _found(text: str, name: str) -> Iterator[int]:
    place = text.find(name)
    while place >= 0:
        yield place
        place = text.find(name, place + 1)


def _places(text: str, mark: str) -> set[int]:
    """Return where in the text without marks a character is followed by one."""
    pieces = text.split(mark)
    ends, length = set(), 0
    for piece in pieces[:-1]:
        length += len(piece)
        ends.add(length - 1)
    return ends


class _LookedFor:
    """Which special tokens templates were seen to look for in messages; forgotten for all but the last templates."""

    def __init__(self) -> None:
        self._found: OrderedDict[str, frozenset[str]] = OrderedDict()
        self._lock = Lock()

    def get(self, template: str) -> frozenset[str]:
        with self._lock:
            return self._found.get(template, frozenset())

    def add(self, template: str, names: frozenset[str]) -> None:
        with self._lock:
            self._found[template] = names
            while len(self._found) > _KEPT:
                self._found.popitem(last=False)


_LOOKED_FOR = _LookedFor()


def _with_images(
    ids: list[int], conversation: Conversation, image_token_id: int | None, tokens_per_image: int
) -> list[int]:
    images = image_count(conversation.messages)
    placed = 0 if image_token_id is None else ids.count(image_token_id)
    if placed != images:
        raise DataError(
            f"messages: hold {images} images, but the chat template places {placed}; use a vision model's own template"
        )
    if not images:
        return ids
    return [token for id_ in ids for token in [id_] * (tokens_per_image if id_ == image_token_id else 1)]

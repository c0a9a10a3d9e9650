"""What a tokenizer.json may ask for, checked before the tokenizers library reads it.

A definition is a program of a stranger: steps that double a text, a million parts, ids without bound and patterns that
never come to an end would take a process's memory or time, or end it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NoReturn

from fathom.errors import DataError
from fathom.tokenizer.pattern_trial import check_pattern

MOST_PARTS = 64
"""Steps of a normalizer, a pre-tokenizer, a post-processor or a decoder, those within others included."""
MOST_STEP_CHARS = 100_000
"""Characters of all patterns and texts of these steps together, character maps aside."""
MOST_MAP_CHARS = 4_000_000
MOST_GROWTH = 64
"""How many times longer the replacements of a normalizer or a decoder may make a text."""
MOST_ADDED = 2**17
MOST_ADDED_CHARS = 2**20
LONGEST_TOKEN = 4096
LONGEST_WORD = 1000
"""Characters of a word that WordPiece looks for pieces in, which takes time by their square."""
MOST_GAPS = 2**16
"""Ids without a token, beyond as many as there are tokens."""
_SECTIONS = ("normalizer", "pre_tokenizer", "post_processor", "decoder")
_INNER_STEPS = ("normalizers", "pretokenizers", "decoders", "processors")
_REMEDY = "use another tokenizer"


def check_limits(parsed: Mapping[str, Any]) -> None:
    """Refuse a parsed tokenizer.json that is beyond the limits; ``DataError`` names the field and the value."""
    for section in _SECTIONS:
        _check_steps(section, parsed.get(section))
    _check_added(parsed["added_tokens"])
    _check_model(parsed)


def _check_steps(section: str, value: Any) -> None:
    """Check one section: how many parts and characters it has, and each part."""
    if value is not None:
        _check_typed(section, value)
    parts = characters = 0
    growth, stack = 1.0, [value]
    while stack:
        inner = stack.pop()
        if isinstance(inner, str):
            characters += len(inner)
        elif isinstance(inner, list):
            characters += len(inner)
            stack += inner if characters <= MOST_STEP_CHARS else []
        elif isinstance(inner, Mapping):
            kind = inner.get("type")
            for name in _INNER_STEPS:
                for step in inner[name] if isinstance(inner.get(name), list) else ():
                    _check_typed(section, step)
            parts += isinstance(kind, str) and section != "post_processor"
            _check_step(section, kind, inner)
            growth *= _growth(section, inner) if kind == "Replace" else 1.0
            characters += sum(map(len, inner))
            stack += [each for name, each in inner.items() if name != "precompiled_charsmap"]
        if characters > MOST_STEP_CHARS:
            _refuse(section, f"has more than {MOST_STEP_CHARS} characters in its steps")
        if parts > MOST_PARTS:
            _refuse(section, f"has more than {MOST_PARTS} steps")
    if growth > MOST_GROWTH:
        _refuse(section, f"makes a text {growth:.3g} times longer, more than {MOST_GROWTH}")


def _check_typed(section: str, step: Any) -> None:
    """Require an object that names its type: the library also takes lists of its fields, which hide what they are."""
    if not isinstance(step, Mapping) or not isinstance(step.get("type"), str):
        _refuse(section, f"has a step that is no object with a type, {step!r:.40}")


def _check_step(section: str, kind: Any, step: Mapping[str, Any]) -> None:
    charsmap = step.get("precompiled_charsmap")
    if charsmap is not None and (not isinstance(charsmap, str) or len(charsmap) > MOST_MAP_CHARS):
        _refuse(f"{section}.precompiled_charsmap", f"is no text of at most {MOST_MAP_CHARS} characters")
    if kind == "Prepend" and len(str(step.get("prepend"))) > MOST_GROWTH:
        _refuse(f"{section}.prepend", f"has more than {MOST_GROWTH} characters")
    numbers = {"Strip": {"start": 0, "stop": 0}, "FixedLength": {"length": 1}}
    for name, least in numbers.get(str(kind), {}).items():
        given = step.get(name, 1)
        if type(given) is not int or not least <= given <= LONGEST_TOKEN:
            _refuse(f"{section}.{name}", f"is {given!r:.40}, not a number of characters up to {LONGEST_TOKEN}")
    for pattern in _patterns(step):
        check_pattern(section, pattern)


def _patterns(step: Mapping[str, Any]) -> Iterator[str]:
    pattern = step.get("pattern")
    if isinstance(pattern, Mapping) and isinstance(pattern.get("Regex"), str):
        yield pattern["Regex"]


def _growth(section: str, step: Mapping[str, Any]) -> float:
    """Return by how much a replacement may lengthen a text at most."""
    pattern, content = step.get("pattern"), step.get("content")
    wanted = pattern.get("String") if isinstance(pattern, Mapping) else None
    if not isinstance(content, str) or wanted == "":
        _refuse(f"{section}.pattern", "replaces nothing by something")
    return max(1.0, len(content) / len(wanted) if isinstance(wanted, str) else len(content))


def _check_added(added: Any) -> None:
    if not isinstance(added, list) or len(added) > MOST_ADDED:
        _refuse("added_tokens", f"is no list of at most {MOST_ADDED} tokens")
    characters = 0
    for token in added:
        content = token.get("content") if isinstance(token, Mapping) else None
        if not isinstance(content, str) or type(token.get("id")) is not int or token["id"] < 0:
            _refuse("added_tokens", f"holds {token!r:.60}, which is no token with content and id")
        if type(token.get("special", False)) is not bool:
            _refuse("added_tokens", f"holds {token!r:.60}, whose special is neither true nor false")
        characters += len(content)
        if len(content) > LONGEST_TOKEN or characters > MOST_ADDED_CHARS:
            _refuse("added_tokens", f"has more than {LONGEST_TOKEN} characters in one or {MOST_ADDED_CHARS} in all")


def _check_model(parsed: Mapping[str, Any]) -> None:
    model, added = parsed["model"], parsed["added_tokens"]
    vocab, highest = model["vocab"], max((token["id"] for token in added), default=0)
    if isinstance(vocab, Mapping):
        if not set(map(type, vocab.values())) <= {int}:
            _refuse("model.vocab", "holds an id that is no whole number")
        if min(vocab.values(), default=0) < 0:
            _refuse("model.vocab", f"holds the id {min(vocab.values())}")
        highest = max(highest, max(vocab.values(), default=0))
        longest = max(map(len, vocab), default=0)
    else:
        if not all(type(one) is list and len(one) == 2 and type(one[0]) is str for one in vocab):
            _refuse("model.vocab", "holds what is no piece with a score")
        longest = max((len(piece) for piece, _ in vocab), default=0)
    if longest > LONGEST_TOKEN:
        _refuse("model.vocab", f"holds a token of {longest} characters, more than {LONGEST_TOKEN}")
    most = 2 * (len(vocab) + len(added)) + MOST_GAPS
    if highest > most:
        _refuse("model.vocab", f"holds the id {highest}, where {len(vocab) + len(added)} tokens allow {most}")
    word = model.get("max_input_chars_per_word", LONGEST_WORD)
    if type(word) is not int or not 0 <= word <= LONGEST_WORD:
        _refuse("model.max_input_chars_per_word", f"is {word!r:.40}, not a number up to {LONGEST_WORD}")
    for name in ("continuing_subword_prefix", "end_of_word_suffix", "unk_token"):
        if isinstance(model.get(name), str) and len(model[name]) > LONGEST_TOKEN:
            _refuse(f"model.{name}", f"has more than {LONGEST_TOKEN} characters")


def _refuse(field: str, problem: str) -> NoReturn:
    raise DataError(f"tokenizer.json: {field} {problem}; {_REMEDY}")

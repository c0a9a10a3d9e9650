"""Hostile bodies of a size for every route: what is cheap to send and dear to read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

Make = Callable[[int], bytes]
HELLO = b'{"role":"user","content":"a"}'
_CHAT = b'{"max_tokens":1,"model":"tiny","messages":'


def listed(before: bytes, unit: bytes, after: bytes) -> Make:
    """Return what repeats a value within a list or object."""

    def make(size: int) -> bytes:
        count = max(1, (size - len(before) - len(after)) // (len(unit) + 1))
        return before + (unit + b",") * (count - 1) + unit + after

    return make


def numbered(before: bytes, unit: str, after: bytes) -> Make:
    """Return what repeats a member whose name is a number."""

    def make(size: int) -> bytes:
        count = max(1, (size - len(before) - len(after)) // (len(unit) + 5))
        return before + ",".join([unit % index for index in range(count)]).encode() + after

    return make


def repeated(before: bytes, unit: bytes, after: bytes) -> Make:
    """Return what repeats a piece of a string."""
    return lambda size: before + unit * max(1, (size - len(before) - len(after)) // len(unit)) + after


def nested(before: bytes, opened: bytes, closed: bytes, after: bytes) -> Make:
    def make(size: int) -> bytes:
        depth = max(1, (size - len(before) - len(after)) // (len(opened) + len(closed)))
        return before + opened * depth + closed * depth + after

    return make


TEXTS = {
    "letters": b"a",
    "spaces": b" ",
    "line breaks": b"\\n",
    "escapes": b"\\u00e9",
    "words": b"the river ",
    "combining": "e\u0301".encode(),
    "chinese": "天下大势".encode(),
    "emoji": "😀".encode(),
    "markers": b"<|",
    "digits": b"7",
    "punctuation": b"!?",
    "lone surrogates": b"\\ud800",
    "not UTF-8": b"\xff",
}


def _text(before: bytes, after: bytes) -> Iterator[tuple[str, Make]]:
    for name, unit in TEXTS.items():
        yield f"text of {name}", repeated(before, unit, after)


def _anywhere(before: bytes) -> Iterator[tuple[str, Make]]:
    """Yield what any route may be sent; ``before`` begins its object, without a closing brace."""
    yield "unknown fields", numbered(before + b",", '"k%d":0', b"}")
    yield "one unknown field again and again", listed(before + b",", b'"k":0', b"}")
    yield "a long name", repeated(before + b',"', b"k", b'":0}')
    yield "lists in an unknown field", listed(before + b',"k":[', b"[]", b"]}")
    yield "objects in an unknown field", listed(before + b',"k":[', b'{"a":0}', b"]}")
    yield "nested lists", nested(before + b',"k":', b"[", b"]", b"}")
    yield "nested objects", nested(before + b',"k":', b'{"a":', b"}", b"}")
    yield "a number of many digits", repeated(before + b',"seed":', b"1", b"}")
    yield "a fraction of many digits", repeated(before + b',"temperature":0.', b"1", b"}")
    yield "backslashes", repeated(before + b',"k":"', b"\\\\", b'"}')
    yield "quotes", repeated(before, b'"', b"}")
    yield "brackets", repeated(b"", b"[", b"")
    yield "nothing but spaces", repeated(b"", b" ", b"")


def _chat_like(begin: bytes) -> Iterator[tuple[str, Make]]:
    yield "zeros for messages", listed(begin + b"[", b"0", b"]}")
    yield "messages", listed(begin + b"[", HELLO, b"]}")
    yield "parts", listed(begin + b'[{"role":"user","content":[', b'{"type":"text","text":"a"}', b"]}]}")
    yield "broken parts", listed(begin + b'[{"role":"user","content":[', b'{"type":0}', b"]}]}")
    yield "a text for messages", repeated(begin + b'"', b"a", b'"}')
    yield from _text(begin + b'[{"role":"user","content":"', b'"}]}')
    yield from _anywhere(begin + b"[" + HELLO + b"]")


def _with(begin: bytes, field: bytes) -> bytes:
    return begin + b"[" + HELLO + b'],"' + field + b'":'


def _chat() -> Iterator[tuple[str, Make]]:
    yield from _chat_like(_CHAT)
    tool = b'{"type":"function","function":{"name":"f","parameters":{"type":"object","properties":{"a":{}}}}}'
    yield "tools", listed(_with(_CHAT, b"tools") + b"[", tool, b"]}")
    yield "broken tools", listed(_with(_CHAT, b"tools") + b"[", b'{"type":"function"}', b"]}")
    yield (
        "a schema",
        numbered(
            _with(_CHAT, b"response_format")
            + b'{"type":"json_schema","json_schema":{"name":"a","schema":{"properties":{',
            '"p%d":{}',
            b"}}}}}",
        ),
    )
    yield "template variables", listed(_with(_CHAT, b"chat_template_kwargs") + b'{"a":[', b"0", b"]}}")
    yield "biases", numbered(_with(_CHAT, b"logit_bias") + b"{", '"%d":1', b"}}")
    yield "broken biases", numbered(_with(_CHAT, b"logit_bias") + b"{", '"%d":"a"', b"}}")
    yield "stop strings", listed(_with(_CHAT, b"stop") + b"[", b'"a"', b"]}")
    yield "stop tokens", listed(_with(_CHAT, b"stop_token_ids") + b"[", b"5", b"]}")
    yield "a pattern", repeated(_with(_CHAT, b"guided_regex") + b'"', b"(a|b)*", b'"}')
    yield "a grammar", repeated(_with(_CHAT, b"guided_grammar") + b'"start: ', b"x|", b'x"}')
    yield "choices", listed(_with(_CHAT, b"guided_choice") + b"[", b'"ab"', b"]}")
    yield (
        "an image",
        repeated(
            _CHAT + b'[{"role":"user","content":[{"type":"image_url","image_url":{"url":"data:image/png;base64,',
            b"AAAA",
            b'"}}]}]}',
        ),
    )


def _inputs(begin: bytes) -> Iterator[tuple[str, Make]]:
    yield "token ids", listed(begin + b"[", b"5", b"]}")
    yield "texts", listed(begin + b"[", b'"a"', b"]}")
    yield "lists of token ids", listed(begin + b"[", b"[5]", b"]}")
    yield "mixed input", listed(begin + b"[", b'5,"a"', b"]}")
    yield from _text(begin + b'"', b'"}')
    yield from _anywhere(begin + b'"a"')


def _responses() -> Iterator[tuple[str, Make]]:
    begin = b'{"max_output_tokens":16,"model":"tiny","input":'
    yield from _chat_like(begin)
    yield "metadata", numbered(begin + b'"a","metadata":{', '"%d":0', b"}}")
    yield "lists in metadata", listed(begin + b'"a","stream":true,"metadata":{"a":[', b"[]", b"]}}")
    yield "instructions", repeated(begin + b'"a","stream":true,"instructions":"', b"a ", b'"}')
    yield "references", listed(begin + b"[", b'{"type":"item_reference","id":"a"}', b"]}")


def _tokenize() -> Iterator[tuple[str, Make]]:
    yield from _chat_like(b'{"messages":')
    yield from _text(b'{"return_token_strs":true,"prompt":"', b'"}')


def _detokenize() -> Iterator[tuple[str, Make]]:
    yield "token ids", listed(b'{"tokens":[', b"5", b"]}")
    yield "broken token ids", listed(b'{"tokens":[', b'"a"', b"]}")
    yield from _anywhere(b'{"tokens":[5]')


HOSTILE: Mapping[str, Mapping[str, Make]] = {
    "/v1/chat/completions": dict(_chat()),
    "/v1/completions": dict(_inputs(b'{"max_tokens":1,"model":"tiny","prompt":')),
    "/v1/responses": dict(_responses()),
    "/v1/responses/input_tokens": dict(_chat_like(b'{"model":"tiny","input":')),
    "/v1/messages": dict(_chat_like(_CHAT)),
    "/v1/messages/count_tokens": dict(_chat_like(b'{"model":"tiny","messages":')),
    "/v1/embeddings": dict(_inputs(b'{"model":"tiny","input":')),
    "/tokenize": dict(_tokenize()),
    "/detokenize": dict(_detokenize()),
}
"""Bodies by route and what they hold; each is made for a size in bytes, about."""

"""Strategies for chat templates and conversations: all that a template may use, combined at random.

Most templates render; those that fail must fail in Fathom and in transformers alike.
"""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from tests.chat.conversations import CALL, WEATHER

_LITERALS = (
    "'<|im_start|>'",
    "'<think>'",
    "'a\\nb'",
    '"it\'s"',
    "'é<&>'",
    "''",
    "'user'",
    "' pad '",
    "3",
    "2.5",
    "true",
    "none",
    "[]",
    "{'a': 1}",
    "(1, 2)",
)
_NAMES = (
    "message['role']",
    "message.content",
    "message['content']",
    "message.get('name', 'nobody')",
    "message.reasoning_content",
    "message.thinking",
    "message.tool_calls",
    "message.tool_calls[0].function",
    "message['tool_calls'][0]['function']['arguments']",
    "message.absent",
    "messages",
    "messages[0]['content']",
    "messages[-1].role",
    "messages | length",
    "tools",
    "tools[0].function.parameters.properties",
    "documents",
    "bos_token",
    "eos_token",
    "add_generation_prompt",
    "loop.index",
    "loop.index0",
    "loop.last",
    "loop.previtem.role",
    "ns.a",
    "ns.b",
    "x",
    "absent",
    "strftime_now('%Y-%m-%d')",
    "range(3) | list",
    "range(1, 9, 3)",
    "dict(a=1, b='c')",
    "dict.fromkeys(['k'], 1)",
    "cycler('odd', 'even').next()",
    "joiner(', ')()",
)
_FILTERS = [
    "trim",
    "upper",
    "lower",
    "title",
    "capitalize",
    "length",
    "count",
    "first",
    "last",
    "string",
    "list",
    "reverse",
    "int",
    "float",
    "abs",
    "sort",
    "unique",
    "items",
    "escape",
    "e",
    "forceescape",
    "safe",
    "striptags",
    "urlencode",
    "wordcount",
    "urlize",
    "dictsort",
    "pprint",
    "xmlattr",
    "tojson",
    "sum",
    "min",
    "max",
    "round",
    "filesizeformat",
    "join",
    "d('z')",
    "default('z', true)",
    "replace('a', 'b')",
    "replace('<', '&lt;')",
    "indent(2)",
    "indent(1, true)",
    "truncate(5)",
    "truncate(3, true, '~')",
    "center(9)",
    "wordwrap(5)",
    "join(', ')",
    "join('-', attribute='role')",
    "batch(2)",
    "slice(2)",
    "map('upper')",
    "map(attribute='role')",
    "select('string')",
    "reject('none')",
    "selectattr('role', 'equalto', 'user')",
    "rejectattr('content', 'none')",
    "groupby('role')",
    "attr('upper')",
    "trim('ab')",
    "tojson(indent=2)",
    "tojson(ensure_ascii=true)",
    "tojson(separators=(',', ':'))",
    "tojson(sort_keys=true)",
    "sort(reverse=true)",
    "map('tojson')",
    "format('b')",
    "int(7)",
]
_METHODS = [
    "strip()",
    "lstrip('<')",
    "rstrip()",
    "split('</think>')[-1]",
    "split()",
    "rsplit('a', 1)[0]",
    "startswith('<')",
    "endswith('>')",
    "upper()",
    "title()",
    "find('a')",
    "count('e')",
    "replace('e', 'E')",
    "splitlines()",
    "partition(' ')[2]",
    "isdigit()",
    "join(['a', 'b'])",
    "items()",
    "keys() | list",
    "get('a')",
    "format(1)",
    "removeprefix('a')",
    "removesuffix('d')",
    "encode()",
    "append(1)",
    "zfill(9)",
    "casefold()",
    "copy()",
]
_TESTS = [
    "string",
    "mapping",
    "iterable",
    "sequence",
    "none",
    "defined",
    "undefined",
    "number",
    "integer",
    "float",
    "boolean",
    "true",
    "false",
    "callable",
    "lower",
    "upper",
    "odd",
    "even",
    "divisibleby(2)",
    "sameas(none)",
    "equalto('user')",
    "in(['user', 'tool'])",
    "eq(1)",
    "ne('x')",
    "gt(1)",
    "filter",
    "test",
]
_BINARY = ("+", "~", "-", "*", "/", "//", "%", "**", "==", "!=", "<", ">=", "and", "or", "in", "not in")
_SLICES = ("[0]", "[-1]", "[1:]", "[:-1]", "[::2]", "['role']", "['a']", "[:3]")
_TEXTS = ("\n", "  ", " x ", "\n  ", "<|im_end|>\n", "é\t", "{", "}", "\n\n    y\n", "")
_OPEN, _CLOSE = ("{%", "{%-", "{%+"), ("%}", "-%}")


def _filtered(value: str, name: str) -> str:
    return f"({value} | {name})"


expressions = st.recursive(
    st.sampled_from(_LITERALS + _NAMES + _NAMES),
    lambda inner: st.one_of(
        st.builds(_filtered, inner, st.sampled_from(_FILTERS)),
        st.builds(lambda value, method: f"({value}).{method}", inner, st.sampled_from(_METHODS)),
        st.builds(lambda value, test: f"({value} is {test})", inner, st.sampled_from(_TESTS)),
        st.builds(lambda value, test: f"({value} is not {test})", inner, st.sampled_from(_TESTS)),
        st.builds(lambda one, sign, other: f"({one} {sign} {other})", inner, st.sampled_from(_BINARY), inner),
        st.builds(lambda value, part: f"({value}){part}", inner, st.sampled_from(_SLICES)),
        st.builds(lambda one, test, other: f"({one} if {test} else {other})", inner, inner, inner),
        st.builds(lambda one, other: f"('%s: %s' % ({one}, {other}))", inner, inner),
        st.builds(lambda one, other: f"('{{}}|{{:>5}}'.format({one}, {other}))", inner, inner),
        st.builds(lambda one, other: f"({{'k': {one}, 'a': {other}}} | tojson)", inner, inner),
        st.builds(lambda one, other: f"([{one}, {other}] | join(' '))", inner, inner),
        st.builds(lambda value: f"namespace(a={value}).a", inner),
        st.builds(lambda value: f"(not {value})", inner),
        st.builds(lambda value: f"f({value}, b=1)", inner),
    ),
    max_leaves=5,
)


@st.composite
def _tag(draw: st.DrawFn, words: str) -> str:
    return f"{draw(st.sampled_from(_OPEN))} {words} {draw(st.sampled_from(_CLOSE))}"


@st.composite
def _block(draw: st.DrawFn, body: st.SearchStrategy[str], words: str, end: str) -> str:
    return draw(_tag(words)) + draw(body) + draw(_tag(end))


@st.composite
def _compound(draw: st.DrawFn, body: st.SearchStrategy[str]) -> str:
    value = draw(expressions)
    kind = draw(st.integers(0, 11))
    if kind == 0:
        return draw(_tag(f"if {value}")) + draw(body) + draw(_tag("else")) + draw(body) + draw(_tag("endif"))
    if kind == 1:
        leave = draw(st.sampled_from(["break", "continue"]))
        inner = draw(_tag(f"if loop.index > 1 and {value}")) + draw(_tag(leave)) + draw(_tag("endif"))
        return draw(_tag("for message in messages")) + draw(body) + inner + draw(body) + draw(_tag("endfor"))
    if kind == 2:
        head = draw(_tag(f"for message in messages if {value}"))
        return head + draw(body) + draw(_tag("else")) + draw(body) + draw(_tag("endfor"))
    if kind == 3:
        return draw(_block(body, f"for k, v in ({value}) | items", "endfor"))
    if kind == 4:
        return draw(_block(body, "set x", "endset"))
    if kind == 5:
        return draw(_block(body, "set x | upper", "endset"))
    if kind == 6:
        return draw(_block(body, "generation", "endgeneration"))
    if kind == 7:
        return draw(_block(body, "call(y) f('c', b=2)", "endcall"))
    if kind == 8:
        return draw(_block(body, "filter upper", "endfilter"))
    if kind == 9:
        return draw(_block(body, f"with x = {value}", "endwith"))
    if kind == 10:
        return draw(_block(body, f"for x in ({value}) recursive", "endfor"))
    return draw(_block(body, f"if {value}", "endif"))


_simple = st.one_of(
    st.sampled_from(_TEXTS),
    st.builds(lambda value: f"{{{{ {value} }}}}", expressions),
    st.builds(lambda value: f"{{{{- {value} -}}}}", expressions),
    expressions.flatmap(lambda value: _tag(f"set x = {value}")),
    expressions.flatmap(lambda value: _tag(f"set ns.a = {value}")),
    st.just("{# a remark #}"),
    st.just("{% raw %}{{ x }}{% endraw %}"),
    st.just("{% if message.role == 'critic' %}{{ raise_exception('unknown role') }}{% endif %}"),
)
_bodies = st.recursive(
    st.lists(_simple, min_size=1, max_size=3).map("".join),
    lambda inner: st.one_of(
        _compound(inner), st.lists(st.one_of(_simple, _compound(inner)), min_size=1, max_size=3).map("".join)
    ),
    max_leaves=4,
)
_MACRO = (
    "{% macro f(a, b='d') %}[{{ a }}{{ b }}{% if caller is defined %}{{ caller(1) }}{% endif %}]{% endmacro %}"
    "{% set ns = namespace(a='n', b=0) %}{% set x = 'x' %}{% set message = messages[0] %}\n"
)


@st.composite
def templates(draw: st.DrawFn) -> str:
    """A template that goes over the messages, or does anything else."""
    body = draw(_bodies)
    if draw(st.integers(0, 4)):
        body = "{% for message in messages %}" + body + "{% endfor %}" + draw(_bodies)
    return _MACRO + body


_texts = st.one_of(
    st.sampled_from(["", "hello", " pad ", "<think>\na\n</think>\n\nb", "<|im_end|>", "1", "é\nU", "a</think>b"]),
    st.text(max_size=6),
)
_parts = st.lists(_texts.map(lambda text: {"type": "text", "text": text}), min_size=1, max_size=2)
_arguments: st.SearchStrategy[Any] = st.dictionaries(
    st.sampled_from(["city", "a", "days"]),
    st.one_of(_texts, st.integers(-9, 9), st.none(), st.booleans(), st.lists(st.floats(-1, 1), max_size=2)),
    max_size=2,
)
_calls = st.lists(
    _arguments.map(lambda a: {**CALL, "function": {"name": "weather", "arguments": a}}), min_size=1, max_size=2
)
_extra = st.fixed_dictionaries(
    {},
    optional={
        "reasoning_content": _texts,
        "thinking": _texts,
        "reasoning": st.none(),
        "name": _texts,
        "meta": _arguments,
    },
)
messages = st.one_of(
    st.builds(lambda text, more: {"role": "user", "content": text, **more}, _texts, _extra),
    st.builds(lambda text: {"role": "system", "content": text}, _texts),
    st.builds(lambda text, more: {"role": "assistant", "content": text, **more}, _texts, _extra),
    st.builds(
        lambda text, calls, more: {"role": "assistant", "content": text, "tool_calls": calls, **more},
        _texts,
        _calls,
        _extra,
    ),
    st.builds(lambda text: {"role": "tool", "content": text, "tool_call_id": "abcdefgh1"}, _texts),
    st.builds(lambda text: {"role": "critic", "content": text}, _texts),
)
conversations = st.lists(messages, min_size=1, max_size=4)
parted = st.lists(
    st.builds(lambda role, content: {"role": role, "content": content}, st.sampled_from(["user", "assistant"]), _parts),
    min_size=1,
    max_size=3,
)
variables = st.fixed_dictionaries(
    {"add_generation_prompt": st.booleans()},
    optional={"tools": st.sampled_from([[WEATHER], [WEATHER, WEATHER]]), "enable_thinking": st.booleans(), "x": _texts},
)

"""Run untrusted chat templates with restricted attributes and bounded work, memory and output."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from functools import lru_cache
from types import CodeType
from typing import Any, NoReturn, cast

import jinja2
from jinja2 import nodes
from jinja2.runtime import LoopContext
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

from fathom.errors import DataError

MAX_TEMPLATE_CHARS = 65_536
MAX_STEPS = 200_000
MAX_RANGE = 10_000
MAX_INDENT = 8

_FILTERS = (
    "trim first last length count join tojson upper lower default d list map select selectattr reject rejectattr "
    "string int float items replace title capitalize reverse sort unique"
)
_STRING_METHODS = (
    "strip lstrip rstrip split rsplit startswith endswith upper lower title capitalize find rfind count replace "
    "removeprefix removesuffix splitlines partition rpartition isdigit isspace"
)
_MAPPING_METHODS = frozenset({"items", "keys", "values", "get"})


class _Meter:
    """Counts the steps and output of one rendering, and bounds the size of its values."""

    def __init__(self, max_chars: int) -> None:
        self.max_chars = max_chars
        self._steps = 0
        self._written = 0

    def step(self) -> str:
        self._steps += 1
        if self._steps > MAX_STEPS:
            raise DataError(f"chat template: more than {MAX_STEPS} steps; simplify its loops")
        return ""

    def bounded(self, value: Any) -> Any:
        if isinstance(value, str | list | tuple | dict) and len(value) > self.max_chars:
            raise DataError(f"chat template: a value exceeds {self.max_chars} characters; shorten the messages")
        return value

    def write(self, chars: int) -> str:
        self._written += chars
        if self._written > 4 * self.max_chars:
            raise DataError(f"chat template: writes over {4 * self.max_chars} characters; shorten the messages")
        return ""

    def written(self, value: Any) -> str:
        text = str(self.bounded(value))
        self.write(len(text))
        return text


class _Environment(ImmutableSandboxedEnvironment):
    """Jinja with a short list of filters and methods, no arithmetic that multiplies text, and metered loops."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self, meter: _Meter) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
        self.meter = meter
        self.step = meter.step
        self.bounded = meter.bounded
        self.write = meter.write
        self.written = meter.written
        self.filters = {name: call for name, call in self.filters.items() if name in _FILTERS.split()}
        self.filters |= {"replace": self._replace, "join": self._join, "tojson": self._tojson}
        self.globals.clear()
        self.globals |= {"range": _short_range, "namespace": jinja2.utils.Namespace, "raise_exception": _raise}

    def _replace(self, text: Any, old: str, new: str) -> str:
        source = str(text)
        if len(source) + source.count(old) * len(new) > self.meter.max_chars:
            raise DataError(f"chat template: replace() exceeds {self.meter.max_chars} characters; shorten the messages")
        return source.replace(old, new)

    def _join(self, values: Iterable[Any], separator: str = "") -> str:
        texts: list[str] = []
        for value in values:
            self.meter.step()
            self.meter.write(len(separator))
            texts.append(self.meter.written(value))
        return separator.join(texts)

    def _tojson(
        self, value: Any, indent: int | None = None, ensure_ascii: bool = False, sort_keys: bool = False
    ) -> str:
        """Write JSON as it is, where jinja's own filter escapes for HTML."""
        if indent is not None and not 0 <= indent <= MAX_INDENT:
            raise DataError(f"chat template: tojson with indent {indent}; use at most {MAX_INDENT}")
        text = json.dumps(value, indent=indent, ensure_ascii=ensure_ascii, sort_keys=sort_keys)
        return str(self.meter.bounded(text))

    def wrap_str_format(self, value: Any) -> None:
        """Disable ``str.format``: its widths allocate without bound."""

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        if isinstance(obj, str):
            return attr in _STRING_METHODS.split()
        if isinstance(obj, Mapping):
            return attr in _MAPPING_METHODS
        return super().is_safe_attribute(obj, attr, value) and (isinstance(obj, LoopContext) or not callable(value))

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        __self.meter.step()
        owner = getattr(__obj, "__self__", None)
        if isinstance(owner, str) and __obj.__name__ == "replace":
            return __self._replace(owner, *args, **kwargs)
        return super().call(__context, __obj, *args, **kwargs)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "+":
            return self.meter.bounded(super().call_binop(context, operator, left, right))
        if not all(isinstance(side, int | float) and abs(side) < 1e9 for side in (left, right)) or operator == "**":
            raise DataError(f"chat template: {operator!r} is allowed between small numbers only; write text with ~")
        return super().call_binop(context, operator, left, right)


class _Metering(NodeTransformer):
    """Inserts a step into every loop, a count around all output and a bound around every assigned value."""

    def visit_For(self, node: nodes.For) -> nodes.For:
        self.generic_visit(node)
        step: list[nodes.Expr] = [_call("step", [])]
        node.body.insert(0, nodes.Output(list(step)))
        if node.test is not None:  # it runs for every item, whether selected or not
            node.test = nodes.And(nodes.Not(_call("step", [])), node.test)
        return node

    def visit_Output(self, node: nodes.Output) -> nodes.Output:
        self.generic_visit(node)
        fixed = sum(len(part.data) for part in node.nodes if isinstance(part, nodes.TemplateData))
        parts = [p if isinstance(p, nodes.TemplateData) else _call("written", [p]) for p in node.nodes]
        node.nodes = [_call("write", [nodes.Const(fixed)]), *parts]
        return node

    def visit_Assign(self, node: nodes.Assign) -> nodes.Assign:
        self.generic_visit(node)
        node.node = _call("bounded", [cast(nodes.Expr, node.node)])
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Call:
        self.generic_visit(node)
        return _call("bounded", [node])


def render_sandboxed(template: str, variables: Mapping[str, Any], *, max_chars: int) -> str:
    """Render an untrusted jinja2 template.

    The template may be at most ``MAX_TEMPLATE_CHARS`` long, take ``MAX_STEPS`` loop steps and calls, and write
    ``max_chars`` characters. Only the attributes, filters and globals that chat templates need are available. Any
    failure raises ``DataError``.
    """
    if len(template) > MAX_TEMPLATE_CHARS:
        raise DataError(f"chat template: {len(template)} characters exceed {MAX_TEMPLATE_CHARS}; use a shorter one")
    environment = _Environment(_Meter(max_chars))
    pieces: list[str] = []
    written = 0
    try:
        program = jinja2.Template.from_code(environment, _compiled(template), environment.make_globals(None))
        for piece in program.generate(**variables):
            written += len(piece)
            if written > max_chars:
                raise DataError(f"chat template: output exceeds {max_chars} characters; shorten the messages")
            pieces.append(piece)
    except DataError:
        raise
    except Exception as error:  # a template may fail in any way
        reason = " ".join(str(error).split())
        raise DataError(f"chat template: {type(error).__name__}: {reason}; fix the template or the messages") from None
    return "".join(pieces)


@lru_cache(maxsize=8)
def _compiled(template: str) -> CodeType:
    """Return a metered template's code, for any environment; cached, since compiling is slower than running."""
    environment = _Environment(_Meter(MAX_TEMPLATE_CHARS))
    tree = _Metering().visit(environment.parse(template))
    tree.set_environment(environment)
    return environment.compile(tree)


def _call(name: str, arguments: list[nodes.Expr]) -> nodes.Call:
    return nodes.Call(nodes.EnvironmentAttribute(name), arguments, [], None, None)


def _short_range(*bounds: int) -> range:
    steps = range(*bounds)
    if len(steps) > MAX_RANGE:
        raise DataError(f"chat template: range of {len(steps)} exceeds {MAX_RANGE}; use a shorter one")
    return steps


def _raise(message: str) -> NoReturn:
    raise DataError(f"chat template: {message}; fix the messages")

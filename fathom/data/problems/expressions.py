"""The expressions of word-problem templates: a small part of Python's grammar, evaluated by walking its syntax tree."""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable, Mapping
from fractions import Fraction
from types import MappingProxyType
from typing import Any

from fathom.errors import DataError

Values = Mapping[str, Any]
Expression = Callable[[Values], Any]
"""Computes from names' values; a name that is called must have a function for its value."""

_TOLERANCE = 1e-6
_MAX_EXPONENT = 16
_WHOLE = re.compile(r"-?[0-9]+")
_DECIMAL = re.compile(r"-?[0-9]*\.[0-9]+")
_FRACTION = re.compile(r"-?[0-9]+/[1-9][0-9]*")


def _power(base: Any, exponent: Any) -> Any:
    if abs(exponent) > _MAX_EXPONENT:
        raise DataError(f"template: the exponent {exponent} is above {_MAX_EXPONENT}; update Fathom")
    return base**exponent


_BINARY: Mapping[type[ast.operator], Callable[[Any, Any], Any]] = MappingProxyType(
    {
        ast.Add: operator.add,
        ast.Sub: operator.sub,
        ast.Mult: operator.mul,
        ast.Div: operator.truediv,
        ast.FloorDiv: operator.floordiv,
        ast.Mod: operator.mod,
        ast.Pow: _power,
    }
)
_UNARY: Mapping[type[ast.unaryop], Callable[[Any], Any]] = MappingProxyType(
    {ast.USub: operator.neg, ast.UAdd: operator.pos, ast.Not: operator.not_}
)
_COMPARE: Mapping[type[ast.cmpop], Callable[[Any, Any], bool]] = MappingProxyType(
    {
        ast.Eq: operator.eq,
        ast.NotEq: operator.ne,
        ast.Lt: operator.lt,
        ast.LtE: operator.le,
        ast.Gt: operator.gt,
        ast.GtE: operator.ge,
    }
)


def number(value: Any) -> Any:
    """Return the number a text spells (``3``, ``0.25``, ``1/3``), a whole float as an integer, else the value."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if not isinstance(value, str):
        return value
    if _WHOLE.fullmatch(value):
        return int(value)
    if _DECIMAL.fullmatch(value):
        return number(float(value))
    return Fraction(value) if _FRACTION.fullmatch(value) else value


def spelled(value: Any) -> str:
    """Spell a value in a text: without a rounding error's digits, whole numbers without a point."""
    if isinstance(value, float):
        return str(round(value)) if is_int(value) else f"{value:.10g}"
    return str(value)


def is_int(value: Any) -> bool:
    """Whether a number is whole, up to rounding."""
    if not isinstance(value, int | float | Fraction):
        return False
    return abs(float(value) - round(value)) < _TOLERANCE


def _divides(number: Any, divisor: Any) -> bool:
    return bool(divisor) and number % divisor == 0


def _ensure_int(value: Any) -> int:
    if not is_int(value):
        raise DataError(f"template: {value} is not a whole number; update Fathom")
    whole: int = round(value)
    return whole


def _as_fraction(value: Any) -> str:
    return str(Fraction(value).limit_denominator()) if isinstance(value, float) else str(value)


FUNCTIONS: Mapping[str, Callable[..., Any]] = MappingProxyType(
    {
        "Fraction": _as_fraction,
        "divides": _divides,
        "ensure_int": _ensure_int,
        "float": float,
        "int": int,
        "is_int": is_int,
        "len": len,
        "range_list": lambda *bounds: list(range(*bounds)),
        "round": round,
        "str": str,
    }
)
"""What expressions may call, besides what draws."""


def parse(source: str) -> Expression:
    """Compile an expression; one that is malformed or uses anything else of Python raises ``DataError``."""
    try:
        tree = ast.parse(source.strip(), mode="eval").body
    except (SyntaxError, ValueError) as error:
        raise DataError(f"template: {source!r} is no expression ({error}); update Fathom") from None
    return _compiled(tree)


def names(source: str) -> frozenset[str]:
    """Return the names an expression uses, those it calls included."""
    return frozenset(node.id for node in ast.walk(ast.parse(source.strip(), mode="eval")) if isinstance(node, ast.Name))


def _compiled(node: ast.expr) -> Expression:
    match node:
        case ast.Constant(value=str() | int() | float() as constant):
            return lambda values: constant
        case ast.Name(id=name):
            return lambda values: values[name]
        case ast.List(elts=elements) | ast.Tuple(elts=elements):
            items = [_compiled(element) for element in elements]
            return lambda values: [item(values) for item in items]
        case ast.BinOp(left=left, op=operation, right=right) if type(operation) in _BINARY:
            compute, first, second = _BINARY[type(operation)], _compiled(left), _compiled(right)
            return lambda values: compute(first(values), second(values))
        case ast.UnaryOp(op=sign, operand=operand) if type(sign) in _UNARY:
            change, inner = _UNARY[type(sign)], _compiled(operand)
            return lambda values: change(inner(values))
        case ast.IfExp(test=test, body=body, orelse=other):
            condition, chosen, rest = _compiled(test), _compiled(body), _compiled(other)
            return lambda values: chosen(values) if condition(values) else rest(values)
        case ast.BoolOp(op=junction, values=operands):
            return _junction([_compiled(operand) for operand in operands], every=isinstance(junction, ast.And))
        case ast.Call(func=ast.Name(id=name), args=arguments, keywords=[]):
            given = [_compiled(argument) for argument in arguments]
            return lambda values: values[name](*(argument(values) for argument in given))
        case ast.Compare(left=left, ops=relations, comparators=others):
            return _comparison(left, relations, others)
    raise DataError(f"template: {ast.unparse(node)!r} is not allowed; update Fathom")


def _junction(parts: list[Expression], *, every: bool) -> Expression:
    """Return the first value that decides ``and`` or ``or``, else the last."""

    def decided(values: Values) -> Any:
        found = None
        for part in parts:
            found = part(values)
            if bool(found) != every:
                break
        return found

    return decided


def _comparison(left: ast.expr, relations: list[ast.cmpop], others: list[ast.expr]) -> Expression:
    unknown = [relation for relation in relations if type(relation) not in _COMPARE]
    if unknown:
        raise DataError(f"template: {type(unknown[0]).__name__} is not allowed; update Fathom")
    tests = [_COMPARE[type(relation)] for relation in relations]
    operands = [_compiled(operand) for operand in (left, *others)]

    def holds(values: Values) -> bool:
        found = [operand(values) for operand in operands]
        return all(test(a, b) for test, a, b in zip(tests, found, found[1:], strict=False))

    return holds

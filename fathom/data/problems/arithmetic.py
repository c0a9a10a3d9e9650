"""Arithmetic written out, an expression one operation at a time or an equation with one unknown; and checked."""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable, Mapping
from fractions import Fraction
from types import MappingProxyType

_OPERATIONS: Mapping[type[ast.operator], tuple[str, Callable[[Fraction, Fraction], Fraction]]] = MappingProxyType(
    {
        ast.Add: ("+", operator.add),
        ast.Sub: ("-", operator.sub),
        ast.Mult: ("*", operator.mul),
        ast.Div: ("/", operator.truediv),
    }
)

MAX_EXPRESSION_CHARS = 200
_MAX_BITS = 256
_MAX_EXPONENT = 64
_WRITTEN = re.compile(r"[0-9+\-*/%() ]+")
_NUMBER = re.compile(r"[ (+-]*[0-9]+[ )]*")
_SPELLED = str.maketrans({"−": "-", "–": "-", "×": "*", "·": "*", "⋅": "*", "÷": "/", "^": "**", "\t": " "})


def tree_steps(expression: str) -> str | None:
    """Return the operations of an expression of whole numbers, in the order they are done; None where one is not whole.

    ``( 2 + 3 ) * 4`` gives ``2 + 3 = 5; 5 * 4 = 20``.
    """
    steps: list[str] = []
    value = _evaluate(ast.parse(expression.strip(), mode="eval").body, steps)
    if value is None:
        return None
    return "; ".join(steps) if steps and steps[-1].endswith(f"= {value}") else "; ".join([*steps, f"{value}"])


def _evaluate(node: ast.expr, steps: list[str]) -> int | None:
    match node:
        case ast.Constant(value=int(number)):
            return number
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            value = _evaluate(operand, steps)
            return None if value is None else -value
        case ast.BinOp(left=left, op=operation, right=right) if type(operation) in _OPERATIONS:
            first, second = _evaluate(left, steps), _evaluate(right, steps)
            sign, compute = _OPERATIONS[type(operation)]
            if first is None or second is None or (sign == "/" and second == 0):
                return None
            result = compute(Fraction(first), Fraction(second))
            steps.append(f"{first} {sign} {second} = {result}")
            return int(result) if result.denominator == 1 else None
    return None


def linear_steps(equation: str, variable: str) -> str | None:
    """Solve an equation that is linear in one variable and has a whole solution; None for any other.

    What is done to the numbers is written, without the variable: ``3*x - 4 = 11`` gives ``11 + 4 = 15; 15 / 3 = 5``.
    """
    left, _, right = equation.partition("=")
    first, second = (_linear(ast.parse(side.strip(), mode="eval").body, variable) for side in (left, right))
    if first is None or second is None or second[0] != 0:
        return None
    (slope, constant), (_, total) = first, second
    if slope == 0 or (total - constant) % slope:
        return None
    moved, steps = total - constant, []
    if constant:
        steps.append(f"{total} {'-' if constant > 0 else '+'} {abs(constant)} = {moved}")
    if slope != 1:
        steps.append(f"{moved} / {slope} = {moved // slope}")
    return "; ".join(steps) or f"{moved}"


def _linear(node: ast.expr, variable: str) -> tuple[int, int] | None:
    """Return slope and constant of an expression."""
    match node:
        case ast.Constant(value=int(number)):
            return 0, number
        case ast.Name(id=name) if name == variable:
            return 1, 0
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            inner = _linear(operand, variable)
            return None if inner is None else (-inner[0], -inner[1])
        case ast.BinOp(left=left, op=operation, right=right):
            first, second = _linear(left, variable), _linear(right, variable)
            if first is None or second is None:
                return None
            if isinstance(operation, ast.Add):
                return first[0] + second[0], first[1] + second[1]
            if isinstance(operation, ast.Sub):
                return first[0] - second[0], first[1] - second[1]
            if isinstance(operation, ast.Mult) and 0 in (first[0], second[0]):
                return first[0] * second[1] + second[0] * first[1], first[1] * second[1]
    return None


def exact_value(expression: str) -> Fraction | None:
    """Return what an expression of whole numbers is; None for anything else, and for what has no value.

    Signs are ``+ - * / // % ** ^`` and brackets. The time is bounded whatever stands there: an expression of more than
    200 characters has no value here, and neither has one in which a number of more than 256 bits or an exponent above
    64 comes up.
    """
    if len(expression) > MAX_EXPRESSION_CHARS:
        return None
    written = expression.translate(_SPELLED).strip()
    if not _WRITTEN.fullmatch(written):
        return None
    try:
        return _exact(ast.parse(written, mode="eval").body)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _exact(node: ast.expr) -> Fraction | None:
    match node:
        case ast.Constant(value=int(number)):
            return _bounded(Fraction(number))
        case ast.UnaryOp(op=ast.USub() | ast.UAdd() as sign, operand=operand):
            value = _exact(operand)
            return None if value is None else -value if isinstance(sign, ast.USub) else value
        case ast.BinOp(left=left, op=operation, right=right):
            first, second = _exact(left), _exact(right)
            return None if first is None or second is None else _bounded(_combined(operation, first, second))
    return None


def _combined(operation: ast.operator, first: Fraction, second: Fraction) -> Fraction | None:
    if isinstance(operation, ast.Pow):
        whole = second.denominator == 1 and 0 <= second <= _MAX_EXPONENT
        return Fraction(first ** int(second)) if whole else None
    if isinstance(operation, ast.Div | ast.FloorDiv | ast.Mod) and second == 0:
        return None
    if isinstance(operation, ast.FloorDiv):
        return Fraction(first // second)
    if isinstance(operation, ast.Mod):
        return first % second
    return _OPERATIONS[type(operation)][1](first, second) if type(operation) in _OPERATIONS else None


def _bounded(value: Fraction | None) -> Fraction | None:
    if value is None or max(value.numerator.bit_length(), value.denominator.bit_length()) > _MAX_BITS:
        return None
    return value


def equation_holds(text: str) -> bool | None:
    """Say whether an equation, or a chain of them, of whole numbers is true; None where it says nothing to check.

    Sides that are no such expression, a name for one, are left out, so ``x = 15 / 3 = 5`` is true. Two numbers that are
    alike without any operation, as in ``5 = 5``, say nothing.
    """
    sides = [(side, exact_value(side)) for side in text.split("=")]
    found = [(side, value) for side, value in sides if value is not None]
    if len(found) < 2:
        return None
    if any(value != found[0][1] for _, value in found):
        return False
    return True if any(not _NUMBER.fullmatch(side.translate(_SPELLED)) for side, _ in found) else None

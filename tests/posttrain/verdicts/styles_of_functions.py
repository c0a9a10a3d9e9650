"""Ways in which tests judge functions: a right program, what to write otherwise for a wrong one, and the tests."""

from __future__ import annotations

from tests.posttrain.verdicts.conftest import Style

STYLES = {
    "equality": Style(
        """
def f(x):
    return x + 1
""",
        (" + 1", ""),
        """
assert f(1) == 2
assert f(-1) == 0, 'minus'
""",
    ),
    "human_eval": Style(
        """
def f(x):
    return sum(x)
""",
        ("sum", "max"),
        """
METADATA = {}

def check(candidate):
    assert candidate([1, 2]) == 3
    assert candidate([4]) == 4

check(f)
""",
    ),
    "import_star": Style(
        """
def f(x):
    return x * 2
""",
        (" * 2", ""),
        """
from answer import *
assert f(2) == 4
""",
    ),
    "import_name": Style(
        """
def f(x):
    return x * 2
""",
        (" * 2", ""),
        """
from answer import f as g
import answer
assert g(2) == answer.f(2) == 4
""",
    ),
    "close": Style(
        """
def f(x):
    return x / 3
""",
        ("3", "3.1"),
        """
import math
assert math.isclose(f(1), 1 / 3)
assert abs(f(1.0) - 0.3333) < 1e-3
""",
    ),
    "nan": Style(
        """
def f(x):
    return float('nan')
""",
        ("float('nan')", "0.0"),
        """
v = f(0)
assert v != v
""",
    ),
    "minus_zero": Style(
        """
def f(x):
    return -0.0
""",
        ("-", ""),
        """
import math
assert math.copysign(1, f(0)) == -1
""",
    ),
    "big_integer": Style(
        """
def f(x):
    return x ** 5000
""",
        ("5000", "4999"),
        """
assert f(7) == 7 ** 5000
""",
    ),
    "text": Style(
        """
def f(x):
    return x[::-1]
""",
        ("[::-1]", ""),
        r"""
assert f('h\u00e9\ud800') == '\ud800\u00e9h'
""",
    ),
    "bytes": Style(
        """
def f(x):
    return bytes(x) + b'!'
""",
        ("bytes(x) + b'!'", "bytearray(x)"),
        """
assert f(b'a') == b'a!' and type(f(b'')) is bytes
""",
    ),
    "types": Style(
        """
def f(x):
    return (x, [x], {x})
""",
        ("(x, [x], {x})", "[x, (x,), {x}]"),
        """
r = f(1)
assert isinstance(r, tuple) and type(r[1]) is list
""",
    ),
    "nested": Style(
        """
def f(x):
    return {'a': [(x, {x: None})]}
""",
        ("(x, {x: None})", "[x, {x: None}]"),
        """
assert f(1) == {'a': [(1, {1: None})]}
""",
    ),
    "counter": Style(
        """
from collections import Counter
def f(x): return Counter(x)
""",
        ("Counter(x", "Counter(x[1:]"),
        """
assert f('aab') == {'a': 2, 'b': 1}
assert f('aab').most_common(1) == [('a', 2)]
""",
    ),
    "defaultdict": Style(
        """
import collections
def f(x):
    d = collections.defaultdict(list)
    d[x].append(x)
    return d
""",
        """
def f(x): return {x: []}
""",
        """
r = f(1)
assert r == {1: [1]} and r[5] == []
""",
    ),
    "decimals": Style(
        """
from decimal import Decimal
from fractions import Fraction
def f(x): return Decimal(x) / 4, Fraction(x, 4)
""",
        (", 4", ", 8"),
        """
from decimal import Decimal
from fractions import Fraction
assert f(1) == (Decimal('0.25'), Fraction(1, 4))
""",
    ),
    "dates": Style(
        """
import datetime
def f(d): return d + datetime.timedelta(days=1, hours=2)
""",
        (", hours=2", ""),
        """
import datetime as dt
assert f(dt.datetime(2024, 2, 28, 23)) == dt.datetime(2024, 3, 1, 1)
z = dt.datetime(2024, 1, 1, tzinfo=dt.timezone.utc)
assert f(z).tzinfo == dt.timezone.utc
""",
    ),
    "sorts_in_place": Style(
        """
def f(x): x.sort()
""",
        ("x.sort(", "return sorted(x"),
        """
a = [3, 1, 2]
f(a)
assert a == [1, 2, 3]
""",
    ),
    "changes_nested": Style(
        """
def f(g):
    for row in g: row.append(0)
    g.append([9])
    return g
""",
        """
def f(g): return [row + [0] for row in g] + [[9]]
""",
        """
row = [1]
g = [row, row]
r = f(g)
assert r is g and row == [1, 0, 0] and g[0] is row and g == [[1, 0, 0]] * 2 + [[9]]
""",
    ),
    "changes_dict": Style(
        """
def f(d, s): d['k'] = s; s.add(1); d.pop('o', None)
""",
        ("; s.add(1); d.pop('o', None", "et(s"),
        """
d, s = {'o': 1}, set()
f(d, s)
assert d == {'k': {1}} and d['k'] is s
""",
    ),
    "does_not_change": Style(
        """
def f(x):
    return x + [1]
""",
        (" + [1]", ".append(1) or x"),
        """
a = [0]
assert f(a) == [0, 1]
assert a == [0]
""",
    ),
    "cycle": Style(
        """
def f(x): x.append(x); return x
""",
        ("append(x", "append([]"),
        """
r = f([1])
assert r[1] is r and r[0] == 1
""",
    ),
}

"""Ways in which tests judge classes: a right program, what to write otherwise for a wrong one, and the tests."""

from __future__ import annotations

from tests.posttrain.verdicts.conftest import Style

STYLES = {
    "namedtuple": Style(
        """
from collections import namedtuple
P = namedtuple('P', 'x y')
def f(x): return P(x, y=2)
""",
        ("x, y=2", "2, y=x"),
        """
p = f(1)
assert p == (1, 2) and p.x == 1 and p[1] == 2
a, b = p
assert b == 2 and p._replace(x=3) == P(3, 2)
""",
    ),
    "enum": Style(
        """
from enum import Enum, IntEnum
class C(Enum): RED = 1; BLUE = 2
class N(IntEnum): ONE = 1
def f(x): return C(x)
""",
        ("1; BLUE = 2", "2; BLUE = 1"),
        """
assert f(1) is C.RED and f(2) == C.BLUE and f(2).name == 'BLUE' and C['RED'].value == 1
assert [c.name for c in C] == ['RED', 'BLUE'] and len(C) == 2 and N.ONE == 1 and isinstance(f(1), C)
""",
    ),
    "dataclass": Style(
        """
from dataclasses import dataclass
@dataclass(order=True)
class P:
    x: int
    y: int = 0
""",
        """
from dataclasses import dataclass
@dataclass(order=True)
class P:
    y: int
    x: int = 0
""",
        """
p = P(1, y=2)
assert p == P(1, 2) != P(1, 3) and p < P(2, 0) and p.x == 1
p.x = 5
assert repr(p) == 'P(x=5, y=2)'
""",
    ),
    "raises": Style(
        """
class BankError(Exception):
    def __init__(self, message, code): super().__init__(message, code); self.code = code
class Overdrawn(BankError, ValueError): pass
def withdraw(amount):
    if amount > 10: raise Overdrawn("too much", 7)
    if amount < 0: raise ValueError("negative: %d" % amount)
    if amount == 0: raise KeyError("zero")
    return 10 - amount
""",
        ("negative", "below"),
        """
for amount, kind in ((11, ValueError), (-1, ValueError), (0, KeyError), (11, BankError), (11, Overdrawn)):
    try:
        withdraw(amount)
    except kind as error:
        assert amount != -1 or str(error) == 'negative: -1'
    else:
        raise AssertionError(amount)
assert withdraw(4) == 6
""",
    ),
    "error_attributes": Style(
        """
class BankError(Exception):
    def __init__(self, message, code): super().__init__(message, code); self.code = code
class Overdrawn(BankError, ValueError): pass
def withdraw(amount):
    if amount > 10: raise Overdrawn("too much", 7)
    if amount < 0: raise ValueError("negative: %d" % amount)
    if amount == 0: raise KeyError("zero")
    return 10 - amount
""",
        ("7", "8"),
        """
try:
    withdraw(12)
    assert False
except Overdrawn as error:
    assert error.args == ('too much', 7) and error.code == 7 and issubclass(Overdrawn, (BankError, ValueError))
""",
    ),
    "unittest_raises": Style(
        """
class BankError(Exception):
    def __init__(self, message, code): super().__init__(message, code); self.code = code
class Overdrawn(BankError, ValueError): pass
def withdraw(amount):
    if amount > 10: raise Overdrawn("too much", 7)
    if amount < 0: raise ValueError("negative: %d" % amount)
    if amount == 0: raise KeyError("zero")
    return 10 - amount
""",
        ("< 0", "< -5"),
        """
import unittest
class T(unittest.TestCase):
    limit = withdraw(10)
    def test(self):
        with self.assertRaises(ValueError): withdraw(-1)
        with self.assertRaisesRegex(Overdrawn, 'too much'): withdraw(11)
        self.assertEqual(withdraw(1), 9); self.assertRaises(KeyError, withdraw, 0)
r = unittest.TestResult()
unittest.defaultTestLoader.loadTestsFromTestCase(T).run(r)
assert r.wasSuccessful(), len(r.failures + r.errors)
""",
    ),
    "class": Style(
        """
class Stack:
    limit = 3
    def __init__(self, *items): self.items = list(items)
    def push(self, item):
        if len(self.items) >= self.limit: raise OverflowError("full")
        self.items.append(item)
        return self
    def pop(self): return self.items.pop()
    def __len__(self): return len(self.items)
    def __bool__(self): return bool(self.items)
    def __contains__(self, item): return item in self.items
    def __iter__(self): return iter(self.items)
""",
        (".pop(", ".pop(0"),
        """
s = Stack(1)
assert s.push(2) is s and s.push(3).pop() == 3
assert len(s) == 2 and list(s) == [1, 2] and 2 in s and 9 not in s
assert s and not Stack() and Stack.limit == 3 and isinstance(s, Stack)
s.items = []
assert len(s) == 0 and vars(s) == {'items': []}
assert hasattr(s, 'push') and not hasattr(s, 'peek') and type(s).__name__ == 'Stack'
try:
    Stack(1, 2, 3).push(4)
    assert False
except OverflowError: pass
""",
    ),
    "operators": Style(
        """
class Vector:
    def __init__(self, x, y): self.x, self.y = x, y
    def __add__(self, other): return Vector(self.x + other.x, self.y + other.y)
    def __mul__(self, factor): return Vector(self.x * factor, self.y * factor)
    __rmul__ = __mul__
    def __eq__(self, other): return isinstance(other, Vector) and (self.x, self.y) == (other.x, other.y)
    def __hash__(self): return hash((self.x, self.y))
    def __lt__(self, other): return abs(self) < abs(other)
    def __abs__(self): return (self.x ** 2 + self.y ** 2) ** 0.5
    def __getitem__(self, place): return (self.x, self.y)[place]
    def __len__(self): return 2
    def __iter__(self): return iter((self.x, self.y))
    def __repr__(self): return f"Vector({self.x}, {self.y})"
    def __iadd__(self, other): self.x += other.x; self.y += other.y; return self
    def __neg__(self): return Vector(-self.x, -self.y)
    @property
    def norm(self): return abs(self)
    @classmethod
    def zero(cls): return cls(0, 0)
    @staticmethod
    def dot(a, b): return a.x * b.x + a.y * b.y
""",
        ("(-", "("),
        """
a, b = Vector(3, 4), Vector(1, 2)
assert a + b == Vector(4, 6) and a * 2 == 2 * a == Vector(6, 8)
assert abs(a) == 5 == a.norm and a[0] == 3 and len(a) == 2 and [*a] == [3, 4] and -a == Vector(-3, -4)
assert repr(a) == str(a) == f'{a}' == 'Vector(3, 4)' and b < a and sorted([a, b])[0] is b and max(a, b) is a
assert {a: 1}[Vector(3, 4)] == 1 and len({a, Vector(3, 4)}) == 1 and a in [b, Vector(3, 4)] and a != b
c = a
a += b
assert c is a and a.x == 4
assert Vector.zero() == Vector(0, 0) and Vector.dot(b, Vector(3, 1)) == 5
assert sum([Vector(1, 1), Vector(2, 2)], Vector.zero()).y == 3
""",
    ),
    "inheritance": Style(
        """
from abc import ABC, abstractmethod
class Shape(ABC):
    @abstractmethod
    def area(self): ...
class Square(Shape):
    def __init__(self, a): self.a = a
    def area(self): return self.a ** 2
""",
        """
class Shape: pass
class Square(Shape):
    def __init__(self, a): self.a = a
    def area(self): return self.a * 2
""",
        """
s = Square(3)
assert isinstance(s, Shape) and issubclass(Square, Shape) and s.area() == 9 and type(s) is Square
try:
    Shape()
    assert False, 'made'
except TypeError: pass
""",
    ),
    "list_subclass": Style(
        """
class Bag(list):
    def total(self): return sum(self)
def f(x): return Bag(x)
""",
        """
class Bag(list):
    def total(self): return sum(self) + 1
def f(x): return Bag(x[1:])
""",
        """
b = f([1, 2])
assert b == [1, 2] and isinstance(b, list) and b.total() == 3 and len(b) == 2 and b + [3] == [1, 2, 3]
b.append(5)
assert b[-1] == 5 and 5 in b and b != [1, 2] and [1, 2, 5] == b
""",
    ),
    "async_with": Style(
        """
class R:
    async def __aenter__(self): return 5
    async def __aexit__(self, *a): return True
    async def __aiter__(self):
        yield 1
        yield 2
""",
        ("True", "False"),
        """
import asyncio
async def main():
    async with R() as x:
        assert x == 5 and [i async for i in R()] == [1, 2]
        raise ValueError
asyncio.run(main())
""",
    ),
    "copies": Style(
        """
class C:
    def __init__(self): self.a = [1]
""",
        ("def __init__(self): self.", ""),
        """
import copy
c = C()
d = copy.deepcopy(c)
d.a.append(2)
e = copy.copy(c)
assert e is not c and isinstance(e, C)
assert C().a == [1] and d.a == [1, 2]
""",
    ),
    "shared_lists": Style(
        """
class C:
    def __init__(self, xs): self.xs = xs
    def all(self): return self.xs
    def add(self, x): self.xs.append(x)
""",
        ("= xs", "= list(xs)"),
        """
xs = [1]
c = C(xs)
c.add(2)
assert xs == [1, 2]
xs.append(3)
assert c.all() == [1, 2, 3] and c.all() is c.xs is xs
ys = c.all()
c.add(4)
assert ys == [1, 2, 3, 4]
c.xs.clear()
assert c.all() == [] == xs
""",
    ),
    "returns_a_copy": Style(
        """
class C:
    def __init__(self): self._xs = [[1]]
    def all(self): return [list(x) for x in self._xs]
""",
        ("[list(x) for x in self._xs]", "list(self._xs)"),
        """
c = C()
c.all()[0].append(2)
assert c.all() == [[1]]
""",
    ),
}

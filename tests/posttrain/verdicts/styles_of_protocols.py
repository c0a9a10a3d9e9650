"""Ways in which tests judge iterators, functions of functions, modules and coroutines."""

from __future__ import annotations

from tests.posttrain.verdicts.conftest import Style

STYLES = {
    "generator": Style(
        """
def f(n):
    for i in range(n): yield i * i
""",
        (" * i", ""),
        """
import types
g = f(4)
assert isinstance(g, types.GeneratorType) and next(g) == 0 and list(g) == [1, 4, 9] and list(g) == []
assert sum(f(4)) == 14 and next(iter(f(0)), None) is None and hasattr(g, '__next__')
""",
    ),
    "infinite_generator": Style(
        """
def f():
    a, b = 0, 1
    while True:
        yield a
        a, b = b, a + b
""",
        ("0", "1"),
        """
from itertools import islice
assert list(islice(f(), 6)) == [0, 1, 1, 2, 3, 5]
g = f(); next(g); g.close()
assert not list(g)
""",
    ),
    "lazy": Style(
        """
def f(x):
    return map(str, x)
""",
        ("str", "repr"),
        """
assert list(f([1, 'a'])) == ['1', 'a']
assert dict(zip(f('ab'), f('cd'))) == {'a': 'c', 'b': 'd'}
""",
    ),
    "views": Style(
        """
def f(x):
    return x.keys()
""",
        ("keys", "values"),
        """
assert f({'a': 1}) == {'a'} and sorted(f({'b': 1, 'a': 2})) == ['a', 'b']
""",
    ),
    "callback": Style(
        """
def f(g, xs): return [g(x) for x in xs if g(x) is not None]
""",
        (" if g(x) is not None", ""),
        """
seen = []
def half(x):
    seen.append(x)
    return x / 2 if x else None
assert f(half, [2, 0]) == [1.0] and seen == [2, 2, 0]
assert f(str, [1]) == ['1'] and f(len, ['ab']) == [2]
""",
    ),
    "callback_raises": Style(
        """
def f(g):
    try: return g()
    except ZeroDivisionError as e: return str(e)
""",
        """
def f(g): return g()
""",
        """
assert f(lambda: 1 / 0) == 'division by zero'
assert f(lambda: 3) == 3
""",
    ),
    "decorator": Style(
        """
import functools
def twice(g):
    @functools.wraps(g)
    def inner(*a, **k): return g(*a, **k) * 2
    return inner
""",
        """
def twice(g):
    def inner(*a, **k): return g(*a, **k)
    return inner
""",
        """
@twice
def add(a, b=1):
    return a + b

assert add(1) == 4 and add(1, b=2) == 6 and add.__name__ == 'add'
""",
    ),
    "closure": Style(
        """
def f():
    n = 0
    def g(by=1):
        nonlocal n
        n += by
        return n
    return g
""",
        """
def f():
    return lambda by=1: by
""",
        """
g, h = f(), f()
assert g() == 1 and g(by=2) == 3 and h() == 1 and callable(g)
""",
    ),
    "their_objects": Style(
        """
def f(node):
    total = 0
    while node:
        total += node.value
        node.value = 0
        node = node.next
    return total
""",
        """
def f(node): return node.value
""",
        """
class Node:
    def __init__(self, value, next=None): self.value, self.next = value, next
n = Node(1, Node(2))
assert f(n) == 3 and n.next.value == 0 and n.value == 0
""",
    ),
    "builds_their_objects": Style(
        """
def f(cls, xs):
    head = None
    for x in reversed(xs): head = cls(x, head)
    return head
""",
        """
def f(cls, xs): return cls(xs[0], None)
""",
        """
class Node:
    def __init__(self, value, next=None): self.value, self.next = value, next
n = f(Node, [1, 2])
assert type(n) is Node and n.value == 1 and n.next.value == 2 and n.next.next is None
""",
    ),
    "async": Style(
        """
import asyncio
async def f(x):
    await asyncio.sleep(0)
    return x + 1
""",
        """
async def f(x): return x
""",
        """
import asyncio
assert asyncio.run(f(1)) == 2
async def both(): return await asyncio.gather(f(1), f(2))
assert asyncio.run(both()) == [2, 3]
""",
    ),
    "async_callback": Style(
        """
async def f(g): return [await g(i) for i in range(2)]
""",
        ("2", "3"),
        """
import asyncio
async def g(i):
    await asyncio.sleep(0)
    return i * 2
assert asyncio.run(f(g)) == [0, 2]
""",
    ),
    "context_manager": Style(
        """
from contextlib import contextmanager
log = []
@contextmanager
def f(x):
    log.append('in')
    try: yield x
    except ValueError: log.append('bad')
    finally: log.append('out')
""",
        """
from contextlib import contextmanager
log = []
@contextmanager
def f(x):
    yield x
    log.append('out')
""",
        """
with f(3) as x:
    assert x == 3
    raise ValueError
assert log == ['in', 'bad', 'out']
""",
    ),
    "globals": Style(
        """
count = 0
def f():
    global count
    count += 1
""",
        """
count = 0
def f(): return 1
""",
        """
assert count == 0
f()
f()
assert count == 2 and 'f' in globals() and globals()['count'] == 2
""",
    ),
    "modules_of_the_program": Style(
        """
import math, collections as c
from typing import List
def f(x): return math.floor(x)
""",
        ("floor", "ceil"),
        """
assert f(1.5) == math.floor(1.5) and c.Counter('a') == {'a': 1}
""",
    ),
    "signature": Style(
        """
def f(a, b=2, *c, d=4): 'Doc.'
""",
        ("2", "3"),
        """
import inspect
assert str(inspect.signature(f)) == '(a, b=2, *c, d=4)' and f.__name__ == 'f' and f.__doc__ == 'Doc.'
""",
    ),
    "cached": Style(
        """
import functools
calls = []
@functools.lru_cache
def f(x):
    calls.append(x)
    return x
""",
        """
calls = []
def f(x):
    calls.append(x)
    return x
""",
        """
f(1); f(1)
assert calls == [1] and f.cache_info().hits == 1
""",
    ),
    "regular_expression": Style(
        """
def f(x):
    return __import__('re').match('(a)(b)?', x)
""",
        ("match('(a)(b)?", "search('a"),
        """
m = f('ab')
assert m and m.group(2) == 'b' and not f('x')
""",
    ),
    "returns_function": Style(
        """
def f(x):
    return lambda y: x + y
""",
        ("x + ", ""),
        """
assert f(1)(2) == 3
""",
    ),
    "prints": Style(
        """
def f(x): print(x)
""",
        ("print(x)", "return x"),
        """
assert f(1) is None
""",
    ),
    "exit": Style(
        """
import sys
def f(): sys.exit(3)
""",
        """
def f(): pass
""",
        """
try:
    f()
except SystemExit as e:
    assert e.code == 3
else:
    raise AssertionError
""",
    ),
    "named_arguments": Style(
        """
def f(a, b=0, **kw):
    return (a, b, kw)
""",
        (" (a, b", " (b, a"),
        """
assert f(1, b=2, function=3, name=4) == (1, 2, {'function': 3, 'name': 4})
""",
    ),
    "clears_a_cache": Style(
        """
cache = {}
def f(x): return cache.setdefault(x, len(cache))
""",
        ("cache.setdefault(x, len(cache)", "len(cache"),
        """
assert f('a') == 0 and f('b') == 1 and f('a') == 0
cache.clear()
assert f('b') == 0
cache['z'] = 7
assert f('z') == 7
""",
    ),
    "many_lists": Style(
        """
def f(grid):
    for row in grid: row[0] += 1
    return sum(map(sum, grid))
""",
        """
def f(grid): return sum(map(sum, grid)) + len(grid)
""",
        """
grid = [[0] * 300 for _ in range(300)]
assert f(grid) == 300
grid[7][7] = 5
assert f(grid) == 605 and grid[9][0] == 2
""",
    ),
}

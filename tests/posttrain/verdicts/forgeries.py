"""Programs that try to pass tests without the right values; their tests call ``f``."""

from __future__ import annotations

ALWAYS = """
class Always{base}:
    def __eq__(self, other): return True
    def __ne__(self, other): return False
    def __lt__(self, other): return True
    __le__ = __gt__ = __ge__ = __contains__ = __lt__
    def __hash__(self): return 0
    def __sub__(self, other): return self
    __rsub__ = __add__ = __radd__ = __mul__ = __mod__ = __sub__
    def __abs__(self): return 0.0
    def __float__(self): return 0.0
    def __index__(self): return 0
    def __round__(self, n=0): return self
    def __bool__(self): return {truth}
    def __len__(self): return 2
    def __iter__(self): return iter(())
    def __getattr__(self, name): return self
    def __call__(self, *a, **k): return self
    def __instancecheck__(self, other): return True
"""
"""An object that agrees with everything; its class derives from ``base``."""

FORGERIES = {
    "exits": """
import os
def f(x): os._exit(0)
""",
    "exits_at_once": """
import os; os._exit(0)
""",
    "raises_exit": """
import sys
def f(x): sys.exit(0)
""",
    "atexit": """
import atexit, os
atexit.register(os._exit, 0)
def f(x): return 0
""",
    "patched_builtins": """
import builtins
for n in ('all', 'any', 'abs', 'len', 'isinstance', 'compile', 'exec'):
    setattr(builtins, n, lambda *a: True)
builtins.AssertionError = Exception
def f(x): return 0
""",
    "shadowed_builtins": """
def abs(x): return 0
def len(x): return 2
def AssertionError(*a): pass
def f(x): return x and 4
""",
    "redefined_check": """
def check(candidate): pass
def f(x): return 0
candidate = check
""",
    "traced": """
import sys
def trace(frame, event, arg): return None if frame.f_lineno else trace
sys.settrace(trace); sys.setprofile(trace)
def f(x): return 0
""",
    "frames": """
import inspect, gc, types
def f(x):
    for s in inspect.stack():
        s.frame.f_locals.clear(); s.frame.f_globals['check'] = print
    for o in gc.get_objects():
        if isinstance(o, types.FunctionType) and o.__name__ in ('check', 'run_tests', 'fail'):
            o.__code__ = (lambda *a, **k: None).__code__
    return 0
""",
    "descriptors": r"""
import os
for text in (b'+', b'0' * 32, b'+' + b'0' * 32, b'\0\0\0\2{}'):
    for fd in range(256):
        try: os.write(fd, text)
        except OSError: pass
def f(x): return 0
""",
    "reads_codes": """
import os
found = []
for fd in range(3, 64):
    try:
        os.set_blocking(fd, False); found.append(os.read(fd, 32))
    except OSError: pass
for fd in range(64):
    for code in found:
        try: os.write(fd, code)
        except OSError: pass
def f(x): return 0
""",
    "main_module": """
import sys
for name, m in list(sys.modules.items()):
    if 'fathom' in name or name == '__main__':
        for n in dir(m):
            if callable(getattr(m, n)) and not n.startswith('__'):
                try: setattr(m, n, lambda *a, **k: True)
                except Exception: pass
def f(x): return 0
""",
    "patched_json": """
import json, os, marshal, builtins
d = json.dumps
json.dumps = lambda o, **k: d({'n': o.get('n'), 'v': True, 't': []} if isinstance(o, dict) else o, **k)
def f(x): return 0
""",
    "signals": """
import signal, os
for s in range(1, 65):
    try: signal.signal(s, lambda *a: os._exit(0))
    except (OSError, ValueError): pass
def f(x):
    for p in (1, 2, 3, 4, os.getppid(), -1):
        try: os.kill(p, 10)
        except OSError: pass
    return 0
""",
    "replaced_answer": """
import sys, types
m = types.ModuleType('answer'); m.f = lambda x: 0
sys.modules['answer'] = sys.modules['unittest'] = m
def f(x): return 0
""",
    "fork_writes_twice": """
import os
def f(x):
    os.fork()
    return 0
""",
    "fork_bomb": """
import os
def f(x):
    while True:
        try: os.fork()
        except OSError: pass
""",
    "hangs": """
import time
def f(x): time.sleep(60)
""",
    "giant": """
def f(x): return 'x' * (1 << 26)
""",
    "endless_iterator": """
import itertools
def f(x): return itertools.repeat(4)
""",
    "deep": """
def f(x):
    r = ()
    for _ in range(100_000): r = (r,)
    return r
""",
    "deep_lists": """
def f(x):
    r = []
    for _ in range(100_000): r = [r]
    return r
""",
    "cyclic": """
def f(x):
    r = [x]
    r.append(r)
    return r
""",
    "long_integer": """
def f(x): return 10 ** 1_000_000
""",
    "surrogates": r"""
def f(x): return '\ud83d\ude00'
""",
    "error_that_hangs": """
import time
class E(AssertionError):
    def __str__(self): time.sleep(60)
    __repr__ = __str__
def f(x): raise E
""",
    "error_that_lies": """
class E(BaseException):
    __module__ = 'builtins'
    __name__ = 'PeerLost'
E.__name__ = 'PeerLost'
def f(x): raise E('ended')
""",
    "stops": """
def f(x): raise StopIteration
""",
    "generator_exit": """
def f(x): raise GeneratorExit
""",
    "class_is_a_lie": """
class L:
    __class__ = int
    def __eq__(self, o): return True
def f(x): return L()
""",
    "meta": """
class M(type):
    def __eq__(c, o): return True
    def __instancecheck__(c, o): return True
    __hash__ = type.__hash__
class f(metaclass=M):
    def __new__(cls, x): return f
""",
    "not_implemented": """
def f(x): return NotImplemented
""",
    "named_tuple": """
from collections import namedtuple
class T(namedtuple('T', 'x')):
    def __eq__(self, o): return True
    __hash__ = None
def f(x): return T(x)
""",
}

_THE_PEER = """
import sys
def request(*parts):
    frame = sys._getframe()
    while type(frame.f_locals.get('self')).__name__ != 'Peer': frame = frame.f_back
    return frame.f_locals['self'].request(*parts)
"""

REACHING = {
    "special_of_a_builtin": """
def f(x):
    builtins = request('special', '__getattribute__', abs, '__self__')
    return request('special', '__getattribute__', builtins, 'exec')
""",
    "special_of_a_class": "def f(x): return request('special', 'mro', int)\n",
    "special_of_an_object": "def f(x): return request('special', '__reduce_ex__', int, 2)\n",
    "subclasses": "def f(x): return request('special', '__subclasses__', object)\n",
    "signature_of_its_own": """
class C:
    __text_signature__ = '($self, x=sys.modules)'
    def __call__(self): pass
def f(x): return request('signature', C())
""",
    "attributes_of_its_own": "class C: a = 1\ndef f(x): return request('getattr', C, 'a')\n",
    "names_of_the_tests": "def f(x): return request('global', 'check')\n",
    "an_unknown_function": "def f(x): return request('serve_all', 1)\n",
}
"""Ask the tests' process, while it waits, for what would reach all of it; each request must be refused."""
REACHING = {name: _THE_PEER + program for name, program in REACHING.items()}

OPERATIONS = {
    "subtracts_in_place": ("x = f(1)\nx -= 2\nassert abs(x) < 1e-6", 2.0),
    "divides_in_place": ("x = f(1)\nx /= 2\nassert round(x) == 1", 2.0),
    "adds_in_place": ("x = f(1)\nx += -2\nassert not x", 2),
    "subtracts_a_set_in_place": ("x = f(1)\nx -= {2}\nassert not x", {2}),
    "negates": ("assert 0 <= -(f(1) - 2) < 1e-6", 2.0),
    "negates_and_takes_the_size": ("assert abs(-(f(1) - 2)) < 1e-6", 2.0),
    "copies": ("import copy\nassert abs(copy.copy(f(1) - 2)) < 1e-6", 2.0),
    "squares": ("assert (f(1) - 2) ** 2 < 1e-6", 2.0),
    "adds_two_squares": ("import math\nassert math.sqrt((f(1) - 2) ** 2 + (f(1) - 2) ** 2) < 1e-6", 2.0),
    "lies_between": ("assert -1e-6 < f(1) - 2 < 1e-6", 2.0),
    "equals_nothing": ("assert f(1) - 2 == 0", 2.0),
    "equals_nothing_from_the_right": ("assert 0 == 2 - f(1)", 2.0),
    "is_true": ("assert {2} & f(1)", {2}),
    "is_in_a_range": ("assert 1.9 < f(1) < 2.1", 2.0),
    "is_in_a_range_twice": ("x = f(1)\nassert x > 1.9\nassert x < 2.1", 2.0),
    "squares_around": ("x = f(1)\nassert x * x <= 5 < (x + 1) * (x + 1)", 2),
    "is_mapped": ("assert all(map(lambda x: f(x) == 2, [1, 2]))", 2),
    "is_zipped": ("for a, b in zip(map(f, [1, 2]), [2, 2]): assert a == b", 2),
    "comes_with_all": ("import math\nfrom answer import *\nassert math.isclose(f(1), 2) and abs(f(1) - 2) < 1", 2.0),
}
"""Tests that no object passes, whatever its methods do with what they are told, and the value that passes each."""

ANY_METHODS = """
class Held({base}):
    pass
class Own({base}):
    def __sub__(self, other): return {made}
    __rsub__ = __isub__ = __pow__ = __add__ = __iadd__ = __itruediv__ = __truediv__ = __mul__ = __neg__ = __sub__
    __and__ = __rand__ = __copy__ = __sub__
    def __abs__(self): return 0
    __float__ = lambda self: 0.0
    __round__ = __int__ = __index__ = __abs__
    def __len__(self): return 0
    def __bool__(self): return False
def f(x): return Own()
def abs(x): return 0
class math:
    isclose = staticmethod(lambda *a, **k: True)
"""
"""A program whose operations with a plain value give ``made``."""

CHANGING = """
from fathom.posttrain.verdicts import names
class Own(float): pass
class I(int): pass
told = []
def plain_copy(item):
    told.append(item)
    return type(item).__base__(10 ** 9 if len(told) % 2 else -10 ** 9)
names.plain_copy = plain_copy
def f(x): return {kind}(1)
"""
"""A program whose objects hold another plain value at every look."""

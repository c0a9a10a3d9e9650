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

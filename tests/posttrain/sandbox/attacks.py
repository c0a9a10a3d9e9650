"""Programs that attack the sandbox, by name.

Those of ``EXHAUSTING`` try to hold as much as they can and never end by themselves; a sandbox that gives way to one
either passes its memory limit or lets it live. Those of ``REFUSED`` raise if anything that they try succeeds.
"""

from __future__ import annotations

_SYSCALL = """
import ctypes, errno
libc = ctypes.CDLL(None, use_errno=True)
def syscall(number, *arguments):
    ctypes.set_errno(0)
    return libc.syscall(ctypes.c_long(number), *map(ctypes.c_long, arguments)), ctypes.get_errno()
"""

_HOLD = """
import time
while True: time.sleep(1)
"""

_IN_CHILDREN = """
import os, time
def everywhere(work):
    for _ in range(40):
        try:
            child = os.fork()
        except OSError:
            break
        if child == 0:
            try:
                work()
            finally:
                while True: time.sleep(1)
"""

EXHAUSTING = {
    "sixteen processes with memory": _IN_CHILDREN + "everywhere(lambda: bytearray(64 << 20).find(1))" + _HOLD,
    "shared anonymous memory": _IN_CHILDREN
    + """
import mmap
def work():
    held = mmap.mmap(-1, 64 << 20)
    for at in range(0, len(held), 4096): held[at] = 1
    while True: time.sleep(1)
everywhere(work)"""
    + _HOLD,
    "private pages of a forked parent": _IN_CHILDREN
    + """
held = bytearray(48 << 20)
def work():
    for at in range(0, len(held), 4096): held[at] = 1
everywhere(work)"""
    + _HOLD,
    "files in memory": """
import os
for folder in ("/tmp", "/dev/shm"):
    for index in range(1000):
        try:
            with open(f"{folder}/{index}", "wb") as file: file.write(bytes(1 << 20))
        except OSError: break
"""
    + _HOLD,
    "inodes": """
import os
index = 0
while True:
    try:
        os.mkdir(f"/tmp/{index:0200}")
    except OSError: pass
    index += 1
""",
    "full pipes": _IN_CHILDREN
    + """
def work():
    held = []
    while True:
        try: read, write = os.pipe()
        except OSError: break
        held.append(read)
        os.set_blocking(write, False)
        try:
            while True: os.write(write, bytes(65536))
        except BlockingIOError: pass
everywhere(work)
work()"""
    + _HOLD,
    "full sockets": _IN_CHILDREN
    + """
import socket
held = []
def work():
    while True:
        try: pair = socket.socketpair()
        except OSError: break
        held.extend(pair)
        for end in pair:
            end.setblocking(False)
            try:
                while True: end.send(bytes(65536))
            except BlockingIOError: pass
everywhere(work)
work()"""
    + _HOLD,
    "sockets in flight": """
import array, os, socket
held = []
try:
    while True:
        a, b = socket.socketpair()
        held.append((a, b))
        filled, other = socket.socketpair()
        filled.setblocking(False)
        try:
            while True: filled.send(bytes(65536))
        except BlockingIOError: pass
        socket.send_fds(a, [b"x"], [filled.fileno(), other.fileno()])
        filled.close(); other.close()
except OSError: pass
"""
    + _HOLD,
    "fork bomb": """
import os
while True:
    try: os.fork()
    except OSError: pass
""",
    "thread bomb": """
import threading, time
while True:
    try: threading.Thread(target=time.sleep, args=(100,)).start()
    except RuntimeError: time.sleep(0.01)
""",
    "processor time of many": _IN_CHILDREN
    + """
def work():
    while True: pass
everywhere(work)
work()""",
    "processor time of children nobody waits for": """
import os, signal
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
while True:
    try:
        if os.fork() == 0:
            for _ in range(2_000_000): pass
            os._exit(0)
    except OSError: pass
""",
    "stopping itself": "import os, signal\nos.kill(os.getpid(), signal.SIGSTOP)",
    "a closed output and a loop": "import os\nos.closerange(0, 64)\nwhile True: pass",
    "endless output": "import os\nwhile True: os.write(1, b'x' * 65536)",
    "endless errors": "import os\nwhile True: os.write(2, b'x' * 65536)",
    "arguments and environment": _IN_CHILDREN
    + """
import sys
def work():
    text = "x" * 100_000
    line = [sys.executable, "-I", "-S", "-c", "import time; time.sleep(100)"]
    os.execve(sys.executable, line + [text] * 9, {"A": text})
everywhere(work)"""
    + _HOLD,
    "deep recursion": "import sys\nsys.setrecursionlimit(10**9)\ndef f(x): return f((x, f))\nf(0)",
    "a deep repr": "x = []\nfor _ in range(10**6): x = [x]\nimport sys\nsys.setrecursionlimit(10**9)\nrepr(x)",
    "killing all": "import os, signal\nos.kill(-1, signal.SIGKILL)\nos.kill(os.getpid(), signal.SIGKILL)",
    "a big integer": "x = 1 << (10**9)\nwhile True: x = x << 1000",
    "page tables": """
import mmap
held = []
try:
    while True:
        held.append(mmap.mmap(-1, 4 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))
        held[-1][0] = 1
except OSError: pass
"""
    + _HOLD,
    "record locks": """
import fcntl
file = open("/tmp/lock", "wb")
at = 0
while True:
    fcntl.lockf(file, fcntl.LOCK_EX, 1, at)
    at += 2
""",
    "pending signals": _SYSCALL
    + """
import os, signal
signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))
libc.sigqueue.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_void_p]
while True: libc.sigqueue(os.getpid(), 40, None)
""",
}
"""What holds memory, processes or time."""

LINGERING = {
    "a daemon": """
import os, time
for _ in range(2):
    if os.fork() > 0:
        time.sleep(0.1)
        os._exit(0)
    os.setsid()
while True: time.sleep(1)
""",
    "a daemon that holds the pipes": """
import os, time
if os.fork() == 0:
    os.setsid()
    while True: time.sleep(1)
time.sleep(0.1)
""",
    "one that ignores every signal": """
import os, signal, time
if os.fork() == 0:
    os.setsid()
    for number in range(1, 65):
        try: signal.signal(number, signal.SIG_IGN)
        except (OSError, ValueError): pass
    while True: time.sleep(1)
time.sleep(0.1)
""",
}
"""What tries to outlive its sandbox."""

REFUSED = {
    "sockets that are not local": """
import socket
made = []
for family in (1 << 10, *range(2, 46)):
    for kind in (1, 2, 3, 5):
        try: socket.socket(family, kind, 0); made.append((family, kind))
        except OSError: pass
        try: socket.socketpair(family, kind, 0); made.append((family, kind, "pair"))
        except (OSError, ValueError): pass
if made: raise SystemExit(str(made))
""",
    "larger buffers": """
import fcntl, os, socket
made = []
a, b = socket.socketpair()
for option in (socket.SO_SNDBUF, socket.SO_RCVBUF, 32, 33):
    try: a.setsockopt(socket.SOL_SOCKET, option, 1 << 20); made.append(option)
    except OSError: pass
read, write = os.pipe()
try: fcntl.fcntl(write, 1031, 1 << 20); made.append("pipe")
except OSError: pass
if made: raise SystemExit(str(made))
""",
    "huge pages": """
import mmap
try: mmap.mmap(-1, 2 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x40000)
except OSError: pass
else: raise SystemExit("made")
""",
    "reading the host's files": """
import os
paths = ("/etc/passwd", "/etc/shadow", "/proc/self/environ", "/proc/1", "/sys/fs/cgroup", "/var", "/run", "/srv",
         "/dev/sda", "/dev/kmsg", "/dev/mem", "/dev/tty", "/dev/fuse", "/dev/kvm")
seen = [path for path in paths if os.path.exists(path)]
if seen: raise SystemExit(str(seen))
""",
    "writing where it may not": """
import os, sys
written = []
for path in ("/x", "/usr/x", "/dev/x", "/etc/x", sys.base_prefix + "/x"):
    try: open(path, "w"); written.append(path)
    except OSError: pass
if written: raise SystemExit(str(written))
""",
    "becoming another user": """
import os
made = []
for call in (os.setuid, os.seteuid, os.setgid, os.setegid):
    try: call(0); made.append(call.__name__)
    except OSError: pass
try: os.setgroups([0]); made.append("setgroups")
except OSError: pass
if made: raise SystemExit(str(made))
""",
    "raising its limits": """
import resource
made = []
for name in dir(resource):
    if name.startswith("RLIMIT_"):
        kind = getattr(resource, name)
        soft, hard = resource.getrlimit(kind)
        if hard == resource.RLIM_INFINITY: continue
        try: resource.setrlimit(kind, (hard + 1, hard + 1)); made.append(name)
        except (OSError, ValueError): pass
if made: raise SystemExit(str(made))
""",
}
"""What must fail with an error."""

"""What programs that solve problems use works in the sandbox, whatever bounds it."""

from __future__ import annotations

import pytest

from tests.posttrain.sandbox.conftest import Attack

SOLUTIONS = {
    "the standard library": """
import array, bisect, calendar, collections, contextlib, copy, csv, ctypes, dataclasses, datetime, decimal, enum
import fractions, functools, glob, hashlib, heapq, inspect, io, itertools, json, locale, logging, math, operator, os
import pathlib, pickle, queue, random, re, secrets, select, shutil, signal, socket, sqlite3, statistics, string, struct
import sys, tempfile, textwrap, time, timeit, traceback, typing, urllib.request, uuid, weakref, xml.etree.ElementTree
print(random.random(), datetime.datetime.now(), uuid.uuid4(), secrets.token_hex(), time.process_time())
""",
    "threads": """
import threading
found = []
threads = [threading.Thread(target=found.append, args=(i,)) for i in range(8)]
for thread in threads: thread.start()
for thread in threads: thread.join()
assert sorted(found) == list(range(8))
""",
    "pools": """
import multiprocessing
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
with ThreadPoolExecutor(4) as pool: assert list(pool.map(abs, [-1, -2])) == [1, 2]
with ProcessPoolExecutor(2) as pool: assert list(pool.map(abs, [-1, -2])) == [1, 2]
with multiprocessing.Pool(3) as pool: assert pool.map(abs, [-1, -2, -3]) == [1, 2, 3]
""",
    "what processes share": """
import multiprocessing
from multiprocessing import shared_memory
def put(queue, value): queue.put(5); value.value = 7
queue, value = multiprocessing.Queue(), multiprocessing.Value("i", 3)
process = multiprocessing.Process(target=put, args=(queue, value))
process.start()
assert queue.get() == 5
process.join()
assert value.value == 7
memory = shared_memory.SharedMemory(create=True, size=1000)
memory.buf[0] = 1
memory.close(); memory.unlink()
with multiprocessing.Manager() as manager: assert list(manager.list([1])) == [1]
""",
    "spawned processes": """
import multiprocessing
for method in ("spawn", "forkserver"):
    process = multiprocessing.get_context(method).Process(target=print)
    process.start(); process.join()
    assert process.exitcode == 0
""",
    "subprocesses": """
import subprocess, sys
assert subprocess.run([sys.executable, "-c", "print(1)"], capture_output=True, text=True).stdout == "1\\n"
piped = subprocess.run("echo hi|cat", shell=True, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL)
assert piped.stdout == b"hi\\n"
""",
    "asyncio": """
import asyncio
async def answer(reader, writer):
    writer.write(await reader.readline())
    await writer.drain()
    writer.close()
async def main():
    await asyncio.sleep(0.01)
    process = await asyncio.create_subprocess_exec("/bin/echo", "x", stdout=asyncio.subprocess.PIPE)
    assert (await process.communicate())[0] == b"x\\n"
    assert await asyncio.to_thread(lambda: 1) == 1
    server = await asyncio.start_unix_server(answer, "/tmp/socket")
    reader, writer = await asyncio.open_unix_connection("/tmp/socket")
    writer.write(b"x\\n")
    assert await reader.readline() == b"x\\n"
    server.close()
asyncio.run(main())
""",
    "a database": """
import sqlite3
database = sqlite3.connect("/tmp/a.db")
database.execute("create table t(x)")
database.executemany("insert into t values(?)", [(i,) for i in range(100)])
database.commit()
assert database.execute("select count(*) from t").fetchone() == (100,)
""",
    "files": """
import os, pathlib, shutil, tempfile
folder = tempfile.mkdtemp()
path = pathlib.Path(folder, "a")
path.write_text("x")
os.chmod(path, 0o600); os.utime(path, (1, 1)); os.symlink(path, folder + "/l"); os.link(path, folder + "/h")
shutil.copy2(path, folder + "/b"); shutil.copytree(folder, folder + "2"); shutil.move(folder + "/b", folder + "/c")
os.truncate(path, 0); os.statvfs("/"); shutil.disk_usage("/tmp")
assert sorted(entry.name for entry in os.scandir(folder)) == ["a", "c", "h", "l"]
shutil.rmtree(folder)
tempfile.NamedTemporaryFile().close(); tempfile.TemporaryFile().close()
""",
    "memory maps": """
import mmap
memory = mmap.mmap(-1, 4096)
memory[0] = 1
memory.flush()
with open("/tmp/x", "w+b") as file:
    file.truncate(4096)
    mmap.mmap(file.fileno(), 0)[:2] = b"ab"
""",
    "signals": """
import os, signal, time
heard = []
signal.signal(signal.SIGALRM, lambda *_: heard.append(1))
signal.setitimer(signal.ITIMER_REAL, 0.01)
while not heard: time.sleep(0.01)
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
os.kill(os.getpid(), signal.SIGUSR1)
assert signal.sigwait([signal.SIGUSR1]) == signal.SIGUSR1
for code in range(5):
    child = os.fork()
    if child == 0: os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == code
""",
    "deep recursion in a thread": """
import sys, threading
sys.setrecursionlimit(10**6)
threading.stack_size(64 << 20)
def depth(n): return 0 if n == 0 else 1 + depth(n - 1)
found = []
thread = threading.Thread(target=lambda: found.append(depth(20_000)))
thread.start(); thread.join()
assert found == [20_000]
""",
    "questions about itself": """
import os, platform, resource
resource.getrusage(resource.RUSAGE_SELF); os.times(); platform.platform(); os.cpu_count(); os.sched_getaffinity(0)
os.nice(1); os.getpgrp(); os.getsid(0); os.uname(); os.isatty(1)
resource.setrlimit(resource.RLIMIT_NOFILE, (32, 32))
""",
    "local sockets": """
import select, socket
a, b = socket.socketpair()
a.sendall(b"x")
assert b.recv(1) == b"x"
a.setblocking(False)
select.select([b], [], [], 0)
select.epoll().register(b, 1)
select.poll().register(a)
socket.send_fds(a, [b"x"], [1])
socket.recv_fds(b, 10, 1)
""",
}


@pytest.mark.parametrize("name", SOLUTIONS)
def test_a_solution_may_use(attacker: Attack, name: str) -> None:
    found = attacker(SOLUTIONS[name], seconds=20.0, memory_mib=512, file_mib=16)
    assert (found["reason"], found["detail"]) == ("passed", ""), found
    assert found["left"] == []

"""Templates of strangers run in a process of their own: what ends them, and what is left afterwards."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest

from fathom.chat import render, template_process
from fathom.chat.template_process import MAX_TEMPLATE_CHARS, PROCESS, TemplateProcess
from fathom.errors import DataError

DOUBLED = "{% set n = namespace(x='ab') %}{% for i in range(99) %}{% set n.x = "
NESTED = "{% for i in range(9999) %}"
TIME, MEMORY, OUTPUT, DEPTH = "processor time", "of memory", "output exceeds", "too deeply"
HOSTILE = {
    "loops without end": (NESTED * 4 + "{% endfor %}" * 4, TIME),
    "loops with a condition": (
        NESTED * 3 + "{% for j in range(9999) if false %}{% endfor %}" + "{% endfor %}" * 3,
        TIME,
    ),
    "a long range": ("{% for i in range(999999999) %}{% endfor %}", "Range too big"),
    "long text": ("{{ 'a' * 1000000000 }}", MEMORY),
    "long text by a variable": ("{% set n = 10000000000 %}{{ ('a' * n) | length }}", MEMORY),
    "a huge power": ("{{ (10 ** (10 ** 10)) % 7 }}", TIME),
    "a huge power by a variable": ("{% set n = 10 ** 9 %}{{ (7 ** n) % 3 }}", TIME),
    "a product that grows": (
        "{% set n = namespace(x=9**99) %}" + NESTED + "{% set n.x = n.x * n.x %}{% endfor %}",
        TIME,
    ),
    "doubling with ~": (DOUBLED + "n.x ~ n.x %}{% endfor %}", f"{TIME}|{MEMORY}"),
    "doubling with +": (DOUBLED + "n.x + n.x %}{% endfor %}", f"{TIME}|{MEMORY}"),
    "doubling by replace": (DOUBLED + "n.x.replace('a', n.x) %}{% endfor %}", f"{TIME}|{MEMORY}"),
    "doubling by a block": (
        "{% set n = namespace(x='ab') %}{% for i in range(99) %}{% set y %}{{ n.x }}{{ n.x }}{% endset %}"
        "{% set n.x = y %}{% endfor %}",
        f"{TIME}|{MEMORY}",
    ),
    "doubling by tojson": (DOUBLED + "[n.x, n.x] | tojson %}{% endfor %}", f"{TIME}|{MEMORY}"),
    "doubling a list": (
        "{% set n = namespace(x=[0]) %}{% for i in range(99) %}{% set n.x = n.x + n.x %}{% endfor %}",
        f"{TIME}|{MEMORY}",
    ),
    "much output": ("{% for i in range(99999) %}" + "x" * 100 + "{% endfor %}", OUTPUT),
    "a long join": ("{% set x = 'a' * 99999 %}{{ range(99999) | join(x) }}", f"{MEMORY}|{OUTPUT}"),
    "a macro that doubles": ("{% macro f(x) %}{{ f(x ~ x) }}{% endmacro %}{{ f('abc') }}", f"{MEMORY}|{TIME}|{DEPTH}"),
    "a macro that calls itself": ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", DEPTH),
    "a macro that branches": (
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(90) }}",
        TIME,
    ),
    "deep parentheses": ("{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}", f"{DEPTH}|Error"),
    "deep blocks": ("{% if 1 %}" * 3000 + "{% endif %}" * 3000, f"{DEPTH}|Error"),
    "a wide format": ("{{ '%09999999999d' % 1 }}", f"{MEMORY}|Error"),
    "a wide str.format": ("{{ '{:9999999999}'.format(1) }}", f"{MEMORY}|Error"),
    "a wide centre": ("{{ 'a' | center(9999999999) }}", MEMORY),
    "a huge indent": ("{{ [1] | tojson(indent=9999999999) }}", f"{MEMORY}|Error"),
    "a long lorem ipsum": ("{{ lipsum(n=999999) }}", f"{TIME}|{MEMORY}"),
    "batches filled up": ("{{ [1] | batch(999999999, 0) | list }}", f"{TIME}|{MEMORY}"),
    "classes": ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "SecurityError"),
    "globals of a function": ("{{ cycler.__init__.__globals__ }}", "SecurityError"),
    "globals of lipsum": ("{{ lipsum.__globals__['os'].popen('id') }}", "SecurityError|UndefinedError"),
    "globals of a macro": ("{% macro f() %}{% endmacro %}{{ f.__call__.__globals__.os }}", "Error"),
    "the template itself": ("{{ self.__init__.__globals__ }}", "Error"),
    "attributes by format": ("{{ '{0.__class__.__init__.__globals__}'.format(namespace) }}", "Error"),
    "attributes by a filter": ("{{ (messages | attr('__class__')).mro() }}", "Error"),
    "attributes by map": ("{{ messages | map(attribute='__class__') | list | first | string ~ x.y }}", "Error"),
    "private names in a namespace": ("{{ namespace(__class__=1) }}", "SecurityError"),
    "a list changed": ("{{ messages.append(1) }}", "SecurityError"),
    "include": ("{% include 'other' %}", "Error"),
    "import": ("{% import '/etc/passwd' as x %}{{ x }}", "Error"),
    "extends": ("{% extends 'base' %}", "Error"),
    "nothing that can be read": ("{% if %}", "TemplateSyntaxError"),
    "something absent": ("{{ absent.field }}", "UndefinedError"),
    "a refusal": ("{{ raise_exception('no such role') }}", "chat template: no such role; fix"),
    "too long": ("x" * (MAX_TEMPLATE_CHARS + 1), "exceed 1048576"),
}
MESSAGES = [{"role": "user", "content": "hi"}]


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_template_ends_in_one_clear_line_and_the_next_rendering_works(kind: str) -> None:
    template, words = HOSTILE[kind]
    with pytest.raises(DataError, match=words) as caught:
        render(MESSAGES, template)
    said = str(caught.value)
    assert said.startswith("chat template: ")
    assert "\n" not in said
    assert len(said) < 600
    assert "; " in said  # the remedy
    assert render(MESSAGES, "{{ messages[0].content }}") == "hi"


def test_output_is_limited_by_characters() -> None:
    assert render(MESSAGES, "{{ 'x' * 50 }}", max_chars=50) == "x" * 50
    with pytest.raises(DataError, match="output exceeds 50 characters; use another template or shorten the messages"):
        render(MESSAGES, "{{ 'x' * 51 }}", max_chars=50)


def test_a_template_sees_no_environment_and_opens_no_file() -> None:
    process = TemplateProcess()
    process.render("", [{}], max_chars=9)
    child = process._process
    assert child is not None
    try:
        assert set(psutil.Process(child.pid).environ()) <= {"TZ", "LC_CTYPE"}
        assert psutil.Process(child.pid).num_fds() <= 4
    finally:
        process.close()
    assert process._process is None


def test_many_threads_get_their_own_text() -> None:
    def one(number: int) -> str:
        return render([{"role": "user", "content": str(number)}], "{{ messages[0].content }}")

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(one, range(200))) == [str(number) for number in range(200)]


def test_a_worker_that_was_killed_is_replaced() -> None:
    render(MESSAGES, "a")
    assert PROCESS._process is not None
    PROCESS._process.kill()
    assert render(MESSAGES, "b") == "b"
    PROCESS.close()
    assert render(MESSAGES, "c") == "c"


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGSTOP")
def test_a_worker_that_does_not_answer_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    render(MESSAGES, "a")
    monkeypatch.setattr(template_process, "WALL_SECONDS", 0.0)
    assert PROCESS._process is not None
    PROCESS._process.send_signal(signal.SIGSTOP)
    with pytest.raises(DataError, match=r"chat template: gives no text within 0\.4 s; use another template or retry"):
        render(MESSAGES, "b")
    monkeypatch.undo()
    assert render(MESSAGES, "c") == "c"


@pytest.mark.skipif(sys.platform == "win32", reason="there is no fork")
def test_a_fork_renders_by_itself_and_leaves_the_parents_process_alone() -> None:
    render(MESSAGES, "a")
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            text = "".join(render(MESSAGES, "{{ messages[0].content }}" + str(number)) for number in range(3))
            PROCESS.close()
            os.write(writing, text.encode())
        finally:
            os._exit(0)
    os.close(writing)
    os.waitpid(child, 0)
    said = os.read(reading, 100)
    os.close(reading)
    assert said == b"hi0hi1hi2"
    assert render(MESSAGES, "b") == "b"


def test_a_program_that_rendered_ends_without_leaving_a_process() -> None:
    program = (
        "import psutil\nfrom fathom.chat import render\n"
        "render([{'role': 'user', 'content': ''}], 'x')\n"
        "print(*(child.pid for child in psutil.Process().children()))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=120)
    (pid,) = done.stdout.split()
    assert not psutil.pid_exists(int(pid))
    assert done.stderr == ""

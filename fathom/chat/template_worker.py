"""The program that renders chat templates in a process of its own; ``template_process`` starts it by its path.

It needs the standard library and jinja2 only. A message on standard input or output is its length (4 bytes, big
endian) and JSON. A request names a template by its hash, and brings its source when it was asked to::

    {"hash": ..., "source"?: ..., "variables": [{...}, ...], "max_chars": N, "seconds": S, "mark": null}

``mark`` may be [STARTS, MARK, SCOPE], the arguments of ``compile_template``. The answer is ``{"needs": "source"}``, or
one ``{"text": ...}`` or ``{"error": [KIND, MESSAGE]}`` for each set of variables. Jinja is set up as in transformers
(utils/chat_template_utils.py): the same sandbox, extensions, filters and globals. A rendering that takes more processor
time than ``seconds`` ends the process by a signal's default action, so that nothing the template calls can delay it;
its address space is limited from the start.
"""

from __future__ import annotations

import json
import signal
import sys
from collections import OrderedDict
from datetime import datetime
from typing import TYPE_CHECKING, Any, BinaryIO, NoReturn

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

READY = b"ready"
"""What the process writes once it waits for requests."""
KEPT_TEMPLATES = 64
_MESSAGE_CHARS = 400


class TooLong(Exception):
    """A rendering writes more than it may."""


def serve(requests: BinaryIO, answers: BinaryIO) -> None:
    """Answer requests until the input ends, or until memory ran out."""
    renderer = Renderer()
    while (request := _read(requests)) is not None:
        answer = renderer.answer(request)
        data = json.dumps(answer).encode()
        answers.write(len(data).to_bytes(4, "big") + data)
        answers.flush()
        if ran_out_of_memory(answer):
            return


def ran_out_of_memory(answer: Any) -> bool:
    """Whether an answer is the last one of its process."""
    return isinstance(answer, list) and any(one.get("error", ("",))[0] == "memory" for one in answer)


def _read(stream: BinaryIO) -> Any:
    head = stream.read(4)
    return json.loads(stream.read(int.from_bytes(head, "big"))) if len(head) == 4 else None


class Renderer:
    """Compiles templates, keeps the last ones, and renders them."""

    def __init__(self) -> None:
        self._compiled: OrderedDict[str, Any] = OrderedDict()

    def answer(self, request: Mapping[str, Any]) -> Any:
        """Return the answer to one request."""
        key = json.dumps([request["hash"], request.get("mark")])
        if key not in self._compiled and "source" not in request:
            return {"needs": "source"}
        return [self._one(key, request, variables) for variables in request["variables"]]

    def _one(self, key: str, request: Mapping[str, Any], variables: Mapping[str, Any]) -> dict[str, Any]:
        _limit_time(request["seconds"])
        try:
            template = self._template(key, request)
            _limit_time(request["seconds"])  # compiling does not count, but has the same limit
            return {"text": _render(template, variables, request["max_chars"])}
        except TooLong:
            return {"error": ["output", f"more than {request['max_chars']} characters"]}
        except MemoryError:
            return {"error": ["memory", ""]}
        except RecursionError:
            return {"error": ["recursion", "calls itself, or is nested, too deeply"]}
        except Exception as error:  # a template may fail in any way
            return {"error": [type(error).__name__, " ".join(str(error).split())[:_MESSAGE_CHARS]]}
        finally:
            _limit_time(0)

    def _template(self, key: str, request: Mapping[str, Any]) -> Any:
        template = self._compiled.pop(key, None)
        if template is None:
            template = compile_template(request["source"], request.get("mark"))
        self._compiled[key] = template
        while len(self._compiled) > KEPT_TEMPLATES:
            self._compiled.popitem(last=False)
        return template


def _render(template: Any, variables: Mapping[str, Any], max_chars: int) -> str:
    pieces, written = [], 0
    for piece in template.generate(dict(variables)):  # as keywords, a variable named self would not be one
        written += len(piece)
        if written > max_chars:
            raise TooLong
        pieces.append(piece)
    return "".join(pieces)


def compile_template(source: str, mark: tuple[str, str, str] | None = None) -> Any:
    """Compile a template; with ``mark``, every character of its literals that may start a special token gets a mark.

    ``mark`` is the characters, what is put after each, and which literals: "all", or those of the "output". Those that
    a template compares with or searches for stay.
    """
    import jinja2

    environment = _environment()
    tree = environment.parse(source)
    if mark is not None:
        _mark_literals(tree, *mark)
    return jinja2.Template.from_code(environment, environment.compile(tree), environment.make_globals(None))


def _environment() -> Any:
    from jinja2 import nodes
    from jinja2.exceptions import SecurityError, TemplateError
    from jinja2.ext import Extension
    from jinja2.sandbox import ImmutableSandboxedEnvironment
    from jinja2.utils import Namespace

    class Generation(Extension):
        """``{% generation %}``: its body, which transformers can tell apart when it makes loss masks."""

        tags = {"generation"}  # noqa: RUF012  as jinja2 declares it

        def parse(self, parser: Any) -> nodes.Node:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.CallBlock(self.call_method("_body"), [], [], body).set_lineno(line)

        def _body(self, caller: Callable[[], str]) -> str:
            return caller()

    class PlainNamespace(Namespace):
        """``namespace()`` without names that begin with an underscore."""

        def __init__(*args: Any, **kwargs: Any) -> None:  # so that self may be an attribute
            values = dict(*args[1:], **kwargs)
            for name in values:
                _refuse_private(name)
            Namespace.__init__(args[0], values)

        def __setitem__(self, name: str, value: Any) -> None:
            _refuse_private(name)
            super().__setitem__(name, value)

    def _refuse_private(name: Any) -> None:
        if isinstance(name, str) and name.startswith("_"):
            raise SecurityError(f"a namespace holds no attribute {name!r}, which begins with an underscore")

    def raise_exception(message: str) -> NoReturn:
        raise TemplateError(message)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _to_json
    environment.globals |= {
        "raise_exception": raise_exception,
        "strftime_now": _strftime_now,
        "dict": _Dict(),
        "namespace": PlainNamespace,
    }
    return environment


class _Dict:
    """The global ``dict``, without the attributes of the class."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args, **kwargs)


def _to_json(
    x: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """Write JSON as it is, where jinja's own filter escapes for HTML."""
    return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _strftime_now(format: str) -> str:
    return datetime.now().strftime(format)


def _mark_literals(tree: Any, starts: str, mark: str, scope: str) -> None:
    """Put a mark after characters of literals, except where the template looks for them."""
    from jinja2 import nodes

    table = {ord(char): char + mark for char in starts}
    searched: set[int] = set()
    for node in tree.find_all((nodes.Compare, nodes.Test, nodes.Getitem)):
        if isinstance(node, nodes.Getitem):
            looked_for: list[nodes.Node] = [node.arg]
        elif isinstance(node, nodes.Test):
            looked_for = list(node.args or [])
        else:
            looked_for = [node.expr, *(operand.expr for operand in node.ops)]
        for part in looked_for:
            searched |= {id(const) for const in (part, *part.find_all(nodes.Const))}
    for node in tree.find_all((nodes.Call, nodes.Filter)):
        method = node.node.attr if isinstance(node, nodes.Call) and isinstance(node.node, nodes.Getattr) else None
        replaces = method == "replace" or (isinstance(node, nodes.Filter) and node.name == "replace")
        if method is not None or replaces:
            searched |= {id(part) for part in ((node.args or [])[:1] if replaces or method == "join" else node.args)}
    written = {id(const) for output in tree.find_all(nodes.Output) for const in output.find_all(nodes.Const)}
    for node in tree.find_all((nodes.Const, nodes.TemplateData)):
        if scope == "output" and isinstance(node, nodes.Const) and id(node) not in written:
            continue
        if isinstance(node, nodes.TemplateData):
            node.data = node.data.translate(table)
        elif isinstance(node.value, str) and id(node) not in searched:
            node.value = node.value.translate(table)


if sys.platform == "win32":

    def _limit_time(seconds: float) -> None:
        """Nothing: the other process ends this one."""

    def limit_process(memory_bytes: int) -> None:
        """Nothing: the system has no such limits."""

else:
    import resource

    def _limit_time(seconds: float) -> None:
        """End the process once it has used so much processor time; 0 takes the limit away."""
        signal.setitimer(signal.ITIMER_PROF, seconds)

    def limit_process(memory_bytes: int) -> None:
        """Limit address space, and let the process open, write and start nothing."""
        limits = ((resource.RLIMIT_AS, memory_bytes), (resource.RLIMIT_CORE, 0), (resource.RLIMIT_FSIZE, 0))
        for kind, most in (*limits, (resource.RLIMIT_NOFILE, 16), (resource.RLIMIT_NPROC, 0)):
            hard = resource.getrlimit(kind)[1]
            try:
                resource.setrlimit(kind, (most if hard == resource.RLIM_INFINITY else min(most, hard),) * 2)
            except (ValueError, OSError):  # macOS knows some of them by name only
                continue


def main(memory_bytes: int, *folders: str) -> None:
    """Serve on standard input and output; ``folders`` are where jinja2 and markupsafe lie."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of the terminal: the process that started this one ends it
    sys.path += folders
    import jinja2.debug
    import jinja2.ext
    import jinja2.sandbox  # noqa: F401  before files cannot be opened any more

    limit_process(memory_bytes)
    sys.stdout.buffer.write(READY)
    sys.stdout.buffer.flush()
    serve(sys.stdin.buffer, sys.stdout.buffer)


if __name__ == "__main__":
    main(int(sys.argv[1]), *sys.argv[2:])

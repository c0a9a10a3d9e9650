"""Chat templates made of pieces that loop, grow, recurse or reach for what they may not, rendered by the process."""

from __future__ import annotations

import random
import time

from fathom.chat.template_process import TemplateProcess
from tests.fuzz.driver import Target

_MAX_CHARS = 200_000
_MESSAGES = [{"role": "user", "content": "a" * 200}, {"role": "assistant", "content": ["x", 1, None, {"k": "v"}]}]
_BLOCKS = (
    ("{% for i in range(N) %}", "{% endfor %}"),
    ("{% for m in messages %}", "{% endfor %}"),
    ("{% if x is defined %}", "{% else %}b{% endif %}"),
    ("{% set x %}", "{% endset %}"),
    ("{% macro f(y) %}", "{{ f(y) }}{% endmacro %}{{ f(1) }}"),
    ("{% filter upper %}", "{% endfilter %}"),
    ("{% generation %}", "{% endgeneration %}"),
)
_PARTS = (
    *("text", "{{ messages }}", "{{ messages | tojson }}", "{{ x }}", "{% set x = 'ab' %}", "{% set x = [x, x] %}"),
    *("{% set x = x ~ x %}", "{% set n = namespace(v=x) %}", "{% set n.v = [n.v, n.v] | tojson %}", "{{ n.v }}"),
    *("{{ x * N }}", "{{ (x | string) * N }}", "{{ 9 ** N }}", "{{ range(N) | list }}", "{{ x | join('a' * N) }}"),
    *("{{ ''.__class__.__mro__ }}", "{{ x.__init__.__globals__ }}", "{{ cycler.__init__ }}", "{{ self }}"),
    *("{{ raise_exception(x) }}", "{{ strftime_now('%Y' * N) }}", "{{ x | center(N) }}", "{{ '%Ns' | format(1) }}"),
    *(
        "{{ x.append(x) }}",
        "{{ dict(a=x) }}",
        "{{ lipsum(N) }}",
        "{% include 'x' %}",
        "{{ messages[0][",
        "{% endfor %}",
    ),
    *("{{ (x | string).replace('a', x | string) }}", "{{ x | wordwrap(1) }}", "{{ x | urlize }}", "{{ [x] | sum }}"),
)
_NUMBERS = ("0", "-1", "3", "99", "9999", "999999999", "10**9", "1.5")


class ChatTemplates(Target):
    """An input is a template; after each, another one must still be rendered."""

    name = "chat_templates"
    suffix = ".jinja"
    seconds = 60.0
    short_executions = 30
    memory_bytes = 0  # the process has limits of its own, and so has this one's part

    def start(self) -> None:
        self.process = TemplateProcess()
        assert self.process.render("{{ 1 }}", [{}], max_chars=9)[0].text == "1"

    def stop(self) -> None:
        self.process.close()

    def make(self, rng: random.Random) -> bytes:
        return self._block(rng, 0).encode()

    def _block(self, rng: random.Random, depth: int) -> str:
        pieces = []
        for _ in range(rng.choice((1, 2, 3, 6))):
            if depth < 5 and rng.random() < 0.4:
                begin, end = rng.choice(_BLOCKS)
                pieces.append(begin + self._block(rng, depth + 1) + end)
            else:
                pieces.append(rng.choice(_PARTS))
        return "".join(pieces).replace("N", rng.choice(_NUMBERS))

    def check(self, data: bytes) -> None:
        begin = time.monotonic()
        variables = {"messages": _MESSAGES, "add_generation_prompt": True}
        (found,) = self.process.render(data.decode(), [variables], max_chars=_MAX_CHARS)
        assert time.monotonic() - begin < 30
        if found.text is None:
            self.refusals["limit" if found.limit else "problem"] += 1
            assert "\n" not in found.problem
            assert "; " in found.problem
            assert len(found.problem) < 2000
        else:
            assert len(found.text) <= _MAX_CHARS
        (after,) = self.process.render("{{ messages[0].role }}", [variables], max_chars=_MAX_CHARS)
        assert after.text == "user"


TARGETS = (ChatTemplates,)

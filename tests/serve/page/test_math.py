"""Formulas of an answer: which texts are some, that all are laid out, and that none can do more than be one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.serve.page.scripted import Script, delta, end

pytest.importorskip("playwright.sync_api", reason="playwright drives the browser")

from playwright.sync_api import Browser, Page, expect

from tests.serve.page.pages import Visit, answered, ask, watched

RENDER = """async (texts) => {
    const { renderMarkdown } = await import("/page/markdown.js");
    const { settled } = await import("/page/math.js");
    const roots = texts.map((text) => renderMarkdown(text));
    await settled();
    return roots.map((root) => ({
        tex: [...root.querySelectorAll("math")].map((node) => node.dataset.tex),
        source: [...root.querySelectorAll(".math > code")].map((node) => node.textContent),
        names: [...root.querySelectorAll("math *")].map((node) => node.localName),
        text: root.textContent,
        displayed: root.querySelectorAll("math[display=block]").length,
        html: root.innerHTML,
    }));
}"""


@pytest.fixture(scope="module")
def shared(browser: Browser, scripted: tuple[Script, str]) -> Iterator[Page]:
    """One page that only renders; its policy and console are watched."""
    with watched(browser, scripted[1]) as page:
        yield page


def rendered(page: Page, texts: list[str]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = page.evaluate(RENDER, texts)
    return found


FORMULAS = {
    "$x^2$, \\(y\\) and $2x + 1$": ["x^2", "y", "2x + 1"],
    "the $n$th of two $x$s, $k$-means": ["n", "x", "k"],
    "因此$E = mc^2$，其中$c$是光速。": ["E = mc^2", "c"],
    "before\n$$a = b$$\nafter \\[c\\] end": ["a = b", "c"],
    "$$\na\n+ b\n$$\n\n\\[\nc\n\\].": ["a\n+ b", "c"],
    "- $$\n  a\n  $$\n\n> \\[\n> b\n> \\]": ["a", "b"],
    "\\begin{align*}\na &= b \\\\\n&= c\n\\end{align*}": ["\\begin{align*}\na &= b \\\\\n&= c\n\\end{align*}"],
    "| a |\n|---|\n| $\\frac12$ |": ["\\frac12"],
    "**$a_1$ and $b_1$**": ["a_1", "b_1"],
}
PROSE = [
    "$5 and $10",
    "between US$5 and HK$6, or $7-$8, $9/month, A$10",
    "It costs $5, not 10$ or $ 5 $.",
    "$3 million and 4 million US$",
    "价格是$5元和10$。",
    "echo $HOME:$PATH, $FOO and $BAR",
    "`$x$` and \\$x\\$ and \\$5$",
    "$a\nb$",
    "```\n$x$ \\(y\\)\n```",
]


def test_formulas_are_told_from_prices_variables_and_code(shared: Page) -> None:
    found = dict(zip([*FORMULAS, *PROSE], rendered(shared, [*FORMULAS, *PROSE]), strict=True))
    assert {text: each["tex"] for text, each in found.items()} == {**FORMULAS, **{text: [] for text in PROSE}}
    assert [each["source"] for each in found.values() if each["source"]] == []
    assert found["before\n$$a = b$$\nafter \\[c\\] end"]["displayed"] == 2
    assert found["$5 and $10"]["text"] == "$5 and $10"


WRITTEN = {
    r"\frac{1}{2} + \dfrac{a}{b}": {"mfrac"},
    r"\sqrt{x} + \sqrt[3]{y}": {"msqrt", "mroot"},
    r"x_i^2 + a^{b^{c}}": {"msubsup", "msup"},
    r"\sum_{i=1}^{n} i + \prod_{j} j": {"munderover", "munder"},
    r"\int_0^\infty e^{-x^2}\,dx + \oint f": {"msubsup"},
    r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}": {"mtable", "mtr", "mtd"},
    r"\begin{array}{c|c} a & b \\ \hline c & d \end{array}": {"mtable"},
    r"\begin{aligned} a &= b \\ &= c \end{aligned}": {"mtable"},
    r"f(x) = \begin{cases} x & \text{if } x > 0 \\ 0 & \text{otherwise} \end{cases}": {"mtable", "mtext"},
    r"\alpha\beta\Gamma\Omega\varepsilon\partial\nabla\infty": {"mi"},
    r"a \le b \ne c \approx d \in \mathbb{R} \to \mathcal{L} \cup \emptyset \implies \forall x \exists y": {"mo"},
    r"\boxed{x = 5} \quad \fbox{done}": {"mrow"},
    r"\hat{x} + \tilde{y} + \bar{z} + \vec{v} + \dot{q} + \overline{ab} + \widehat{abc}": {"mover"},
    r"\left( \frac{a}{b} \right) + \left. x \right|_{0}^{1} + \bigl[ y \bigr]": {"mo"},
    r"\underbrace{a + b}_{n} + \overset{!}{=} + \stackrel{d}{\to}": {"munder", "mover"},
    r"\operatorname{softmax}(x) + \sin x + \log_2 n + \lim_{n \to \infty} a_n + \max_i a_i": {"munder"},
    r"\binom{n}{k} \pmod{p} \bmod q": {"mfrac"},
    r"\mathbf{x} + \boldsymbol{\theta} + \mathrm{d}x + \mathit{ab}": {"mi"},
    r"\text{速度} = 3\,\text{m/s} = 50\% \$5": {"mtext"},
    r"\cancel{x} + \lfloor x \rfloor + \lVert v \rVert + \langle a, b \rangle": {"mo"},
    r"a \tag{1}": {"mtext"},
    r"\mathop{\arg\max}_{\theta} \; \ell(\theta)": {"mo"},
    r"\Pr[X = x \mid Y] + \mathbb{E}_{q \sim \pi}[r] + D_{\mathrm{KL}}(p \,\|\, q)": {"mi"},
    r"\ce{2 H2 + O2 -> 2 H2O}": {"msub"},
}


def test_what_models_write_is_laid_out(shared: Page) -> None:
    found = rendered(shared, [f"$${each}$$" for each in WRITTEN])
    for (source, names), each in zip(WRITTEN.items(), found, strict=True):
        assert each["tex"] == [source]
        assert names <= set(each["names"]), source
    assert "(1)" in found[list(WRITTEN).index(r"a \tag{1}")]["text"]


NOT_LAID_OUT = [
    r"\unknown{x}",
    r"\frac{1",
    r"\def\a{\a\a}\a",
    r"\newcommand{\b}{bbbb}\b\b",
    r"\gdef\c{x}",
    r"\let\frac\sqrt",
    r"\href{javascript:alert(1)}{x}",
    r"\includegraphics{https://evil.example/x.png}",
    "{" * 1400 + "}" * 1400,
    r"\sqrt{" * 400 + "}" * 400,
    "^" * 50,
    "x+" * 1501,
]
TRICKS = [
    r"\color{red} x \textcolor{blue}{y} \colorbox{red}{z}",
    r"\class{banner}{x} \id{send}{x} \style{position:fixed}{x} \data{x=1}{y}",
    r"\rule{99999em}{99999em} \hspace{-9999em} \kern-9999em \raisebox{-999em}{x} \llap{x}",
    r"\text{<img src=x onerror=window.owned=1>} \verb|<script>window.owned=1</script>|",
]


def test_what_is_no_formula_is_shown_as_written_and_none_reaches_beyond_itself(shared: Page) -> None:
    found = rendered(shared, [f"$${each}$$" for each in NOT_LAID_OUT])
    assert [each["source"] for each in found] == [[source] for source in NOT_LAID_OUT]
    for each in rendered(shared, [f"$${each}$$" for each in TRICKS]):
        assert "color:" not in each["html"]
        assert not {"script", "img", "a", "span"} & set(each["names"])
    reach = shared.evaluate(
        r"""async ([text]) => {
            const { renderMarkdown } = await import("/page/markdown.js");
            const root = renderMarkdown(text);
            document.getElementById("turns").replaceChildren(root);
            const nodes = [...root.querySelectorAll("math, math *")];
            const boxes = nodes.map((node) => node.getBoundingClientRect());
            const found = nodes.flatMap((node) => node.getAttributeNames());
            document.getElementById("turns").replaceChildren();
            return [[...new Set(found)], Math.max(...boxes.map((box) => Math.max(box.width, box.height)))];
        }""",
        ["\n\n".join(f"$${each}$$" for each in TRICKS)],
    )
    assert not {"id", "href", "mathcolor", "mathbackground", "data-x", "onerror"} & set(reach[0])
    assert reach[1] < 1000
    assert shared.evaluate("window.owned") is None


@pytest.mark.slow
def test_formulas_stream_in_and_many_keep_the_page_free(visit: Visit, script: Script) -> None:
    page = visit()
    script.answers.append([delta(content="So $$\\frac{1}"), None, delta(content="{2}$$ it is."), *end()])
    ask(page, "Half?")
    expect(page.locator(".answer > .prose")).to_contain_text("\\frac{1}")
    assert page.locator("math").count() == 0
    script.go.set()
    answered(page, "it is.")
    expect(page.locator(".answer mfrac")).to_have_count(1)
    turns = page.evaluate(
        """async () => {
            const { renderMarkdown } = await import("/page/markdown.js");
            const { settled } = await import("/page/math.js");
            let [turns, done] = [0, false];
            const turn = () => { turns += 1; if (!done) setTimeout(turn); };
            setTimeout(turn);
            renderMarkdown(Array.from({ length: 3000 }, (_, i) => `$x_{${i}}+1$`).join(" "));
            await settled();
            done = true;
            return turns;
        }"""
    )
    assert turns > 5  # of the page, in between


def test_without_the_converter_the_source_is_shown(visit: Visit, script: Script) -> None:
    page = visit(expected="net::ERR_FAILED|status of 404")
    page.route("**/vendor/**", lambda route: route.abort())
    script.text("Thus $x^2$.")
    ask(page, "Go")
    answered(page, "Thus x^2.")
    page.evaluate("async () => (await import('/page/math.js')).settled()")
    expect(page.locator(".math > code")).to_have_text("x^2")

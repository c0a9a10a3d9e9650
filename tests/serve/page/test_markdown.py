"""Markdown as the chat page renders it: against markdown-it where both mean the same, and inert where it is hostile."""

from __future__ import annotations

import re
from collections.abc import Iterator
from html.parser import HTMLParser

import pytest
from markdown_it import MarkdownIt

from tests.serve.page.scripted import Script

pytest.importorskip("playwright.sync_api", reason="playwright drives the browser")

from playwright.sync_api import Browser, Page

from tests.serve.page.pages import answered, ask, watched


@pytest.fixture(scope="module")
def shared(browser: Browser, scripted: tuple[Script, str]) -> Iterator[tuple[Page, Script]]:
    """One page for all: rendering has no state."""
    with watched(browser, scripted[1]) as page:
        yield page, scripted[0]


def rendered(page: Page, texts: list[str]) -> list[str]:
    return page.evaluate(
        """async (texts) => {
            const { renderMarkdown } = await import("/page/markdown.js");
            return texts.map((text) => renderMarkdown(text).innerHTML);
        }""",
        texts,
    )


class Tree(HTMLParser):
    """The elements and texts that matter, in order; what the page adds (classes, the bar above code) is left out."""

    KEPT = frozenset({"href", "start"})
    LEFT_OUT = frozenset({"figure", "div", "span", "svg", "path", "button"})

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.inside = 0  # of a caption

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.inside += tag == "figcaption"
        if self.inside or tag in self.LEFT_OUT:
            return
        kept = [f"{name}={value}" for name, value in attributes if name in self.KEPT]
        self.found.append(" ".join([f"<{tag}", *kept]))

    def handle_endtag(self, tag: str) -> None:
        if not self.inside and tag not in self.LEFT_OUT and tag not in ("br", "hr"):
            self.found.append(f"</{tag}")
        self.inside -= tag == "figcaption"

    def handle_data(self, data: str) -> None:
        text = re.sub(r"\s+", " ", data).strip()
        if text and not self.inside:
            if self.found and not self.found[-1].startswith("<"):
                self.found[-1] += " " + text
            else:
                self.found.append(text)


def tree(html: str) -> list[str]:
    reader = Tree()
    reader.feed(html)
    reader.close()
    return reader.found


SAME = [
    "One *two* **three** ***four*** `five` ~~six~~ _seven_ __eight__",
    "a*b*c a_b_c 2*3*4 ** not ** * nor * snake_case_name __init__ *a **b** c* **a *b***",
    '*open **both* end**  and *(a)* **(b)**. "*c*"',
    "line one\nline two\n\nnew paragraph\\\nbroken",
    "`` a ` b `` and ` `` ` and `unclosed and ``no",
    r"\*not\* \`code\` \\ \q &amp; &lt;b&gt; &copy;".replace("&copy;", ""),
    '[a](https://a.org) [b *c* `d`](<https://b.org/x> "title") [e](mailto:f@g.org) [no] [no](not here) ![i](https://i.org/x.png)x'.replace(
        "![i](https://i.org/x.png)", ""
    ),
    "[a [b] c](https://a.org/(x)) [nested [x](https://x.org)](mailto:y)",
    "<https://a.org/b?c=d> <b>bold</b> <!-- no --> a < b > c",
    "- a\n- b\n  - c\n  - d\n    - e\n- f",
    "* a\n\n* b\n\n  more b\n\n* c",
    "1. one\n2. two\n   - inner\n3. three\n\ntext\n\n7) seven\n8) eight",
    "- a\n+ b\n1. c",
    "text\n- list\n- more\n\ntext\n1. one",
    "- a\n\n  ```py\n  x = 1\n\n  y = 2\n  ```\n- b\n  > quote\n  > more\n- # head",
    "- lazy\ncontinued\n\nafter",
    "> quote\n> *more*\nlazy\n>\n> second\n>> nested\n\nafter",
    "> - a\n> - b\n>\n> ```\n> code\n> ```",
    "```python\ndef f():\n    return '<b>'\n```\n\n~~~\n```\n~~~\n\n````\n```\n````",
    "```\nunclosed\n\n# code",
    "    indented\n    code\n\ntext",
    "***\n\n* * *\n\n_ _ _",
    "| a | b |\n|---|:-:|\n| *1* | `2` |\n| 3 \\| 4 |\n\nafter",
    "a | b\n--|--\n1 | 2\n\n| one |\n|---|\n| 1 |",
    "not | a table\nstill not",
    "1986\\. A year\n\n-not a list\n\n#not a heading",
]


@pytest.mark.parametrize("text", SAME)
def test_renders_as_markdown_it_does(shared: tuple[Page, Script], text: str) -> None:
    oracle = MarkdownIt("commonmark", {"html": False, "breaks": True}).enable(["table", "strikethrough"])
    wanted = oracle.render(text).replace("<s>", "<del>").replace("</s>", "</del>")
    wanted = re.sub(r"(</?h)([1-6])", lambda found: found[1] + str(min(int(found[2]) + 2, 6)), wanted)
    assert tree(rendered(shared[0], [text])[0]) == tree(wanted)


def test_headings_stand_below_the_pages_own(shared: tuple[Page, Script]) -> None:
    (html,) = rendered(shared[0], ["# A #\n## B\n###### F\ntext\n---\n# "])
    assert tree(html) == [
        "<h3",
        "A",
        "</h3",
        "<h4",
        "B",
        "</h4",
        "<h6",
        "F",
        "</h6",
        "<p",
        "text",
        "</p",
        "<hr",
        "<h3",
        "</h3",
    ]


def test_what_models_write_beyond_the_standard_is_understood(shared: tuple[Page, Script]) -> None:
    cases = {
        "1. a\n  - two spaces nest": "<ol><li>a<ul><li>two spaces nest</li></ul></li></ol>",
        "**注意：**内容和**“引号”**后": "<p><strong>注意：</strong>内容和<strong>“引号”</strong>后</p>",
        "x<br>y": "<p>x<br>y</p>",
        r"\(a_1 * b_2 * c\) and $x_i^2$ but $5 and $10": '<p><span class="math"><code>a_1 * b_2 * c</code></span>'
        ' and <span class="math"><code>x_i^2</code></span>'
        " but $5 and $10</p>",
        "\\[\nx\n- y\n\\].": '<div class="formula"><span class="math display"><code>x\n- y</code></span>'
        '<span class="after">.</span></div>',
        "- [x] done\n- [ ] open": '<ul><li class="task"><input type="checkbox" disabled="" checked="">done</li>'
        '<li class="task"><input type="checkbox" disabled="">open</li></ul>',
    }
    assert rendered(shared[0], list(cases)) == list(cases.values())
    links = {
        "see https://a.org/b_c_d, or (https://e.org/f(g)).": ["https://a.org/b_c_d", "https://e.org/f(g)"],
        "见https://a.org/x。然后": ["https://a.org/x"],
        "![photo](https://a.org/p.png)": ["https://a.org/p.png"],
    }
    assert [re.findall(r'href="([^"]*)"', html) for html in rendered(shared[0], list(links))] == list(links.values())


HOSTILE = [
    '<img src=x onerror="window.owned = 1"><script>window.owned = 1</script><svg onload=window.owned=1>',
    "[x](javascript:window.owned=1) [y](JaVaScRiPt:1) [z](java\tscript:1) [w](<java\nscript:1>) [d](data:text/html,1)",
    "[v](vbscript:1) [f](file:///etc/passwd) [r](/relative) [p](//host) [b](blob:x) <javascript:1> ![i](javascript:1)",
    '```html" onclick="window.owned=1\n<script>window.owned = 1</script>\n```',
    "| <img onerror=1> |\n|---|\n| [x](javascript:1) |\n\n# <iframe src=//x>\n\n- <a href=javascript:1>x</a>",
    '[x](https://a.org/"onmouseover="window.owned=1) [y](https://a.org "t\\" onclick=1")',
]


def test_hostile_text_stays_text(shared: tuple[Page, Script]) -> None:
    page, script = shared
    script.text(*HOSTILE[0], "\n\n", "\n\n".join(HOSTILE[1:]), "\n\nEnd.")
    ask(page, "<img src=x onerror=window.owned=1>")
    answered(page, "End.")
    found = page.evaluate(
        """() => [...document.querySelectorAll("#turns *")].flatMap((node) => [
            ...[node.tagName].filter((tag) => /^(script|iframe|object|embed|style|link|meta|base|img)$/i.test(tag)),
            ...[...node.attributes].filter(({ name, value }) => /^on|^src|^style|^srcdoc/.test(name) ||
                (name === "href" && !/^(https?|mailto):/.test(value))).map(({ name }) => `${node.tagName} ${name}`),
        ])"""
    )
    assert found == []
    assert page.evaluate("window.owned") is None
    assert page.locator("#turns .prose a").evaluate_all(
        "links => links.every((link) => link.rel === 'noopener noreferrer')"
    )
    assert page.locator(".bubble").text_content() == "<img src=x onerror=window.owned=1>"
    assert "<script>window.owned = 1</script>" in (page.locator(".answer > .prose").text_content() or "")


def test_a_growing_text_ends_as_the_whole_and_settled_blocks_stay_put(shared: tuple[Page, Script]) -> None:
    texts = [
        *SAME,
        *HOSTILE,
        "\r\n".join(["para", "#", "- a", "  ", "  b", "", "$$", "x", "$$", "| a |", "|-|", "| b |"]),
    ]
    whole = "\n\n".join(texts)
    differing = shared[0].evaluate(
        """async (texts) => {
            const { MarkdownView, renderMarkdown } = await import("/page/markdown.js");
            const differs = (text, step) => {
                const root = document.createElement("div");
                const view = new MarkdownView(root);
                for (let at = 0; at < text.length; at += step()) view.update(text.slice(0, at));
                view.update(text);
                return root.innerHTML !== renderMarkdown(text).innerHTML;
            };
            let seed = 1;
            const random = () => 1 + ((seed = (seed * 48271) % 2147483647) % 9);
            return texts.filter((text) => differs(text, () => 1) || differs(text, random));
        }""",
        [*texts, whole],
    )
    assert differing == []
    kept = shared[0].evaluate(
        """async () => {
            const { MarkdownView } = await import("/page/markdown.js");
            const root = document.createElement("div");
            const view = new MarkdownView(root);
            view.update("# One\\n\\nTwo\\n\\n```js\\nlet a;\\n");
            const [one, two, code] = root.children;
            const line = code.querySelector("button");
            view.update("# One\\n\\nTwo\\n\\n```js\\nlet a;\\nlet b;\\n```\\n\\nThree");
            const [first, second] = root.children;
            return [one === first, two === second, line === root.querySelector("button"), root.children.length];
        }"""
    )
    assert kept == [True, True, True, 4]


def test_absurd_text_takes_no_absurd_time(shared: tuple[Page, Script]) -> None:
    """Each of these takes hours where a step is quadratic in a pattern, or overflows the stack where it recurses."""
    absurd = ["*a " * 20_000, "[" * 50_000, "`" * 30_000 + "a", "> " * 20_000 + "x", "- " * 5_000 + "x", "\\(" * 30_000]
    absurd += [
        "a**b" * 10_000,
        "<" * 50_000,
        "[a](" * 10_000,
        "| " * 20_000 + "\n" + "|-" * 20_000,
        "_*" * 10_000,
        "#" * 50_000 + "x",
    ]
    assert len(rendered(shared[0], absurd)) == len(absurd)


def test_code_is_coloured_without_changing_it(shared: tuple[Page, Script]) -> None:
    codes = {
        "python": 'def f(x):  # note\n    """doc "quoted" here"""\n    return f"{x}" + \'a\\\'b\' * 0x1F',
        "js": "const a = `x ${b}`; // note\n/* more */ let c = 'unclosed\nreturn 1.5e3",
        "json": '{"key": [1, -2.5, true, null]}',
        "bash": 'for f in *.txt; do echo "$f" # note\ndone; echo ${#f}',
        "cpp": "#include <a>\nint main() { return 'x'; } // é深",
        "sql": "SELECT a FROM b -- note\nWHERE c = 'd'",
        "unknown": "<&> nothing",
    }
    page = shared[0]
    found = page.evaluate(
        """async (codes) => {
            const { colour } = await import("/page/highlight.js");
            return Object.entries(codes).map(([language, code]) => {
                const root = document.createElement("code");
                root.append(...colour(code, language));
                const spans = [...root.children].map((node) => `${node.className.slice(5)} ${node.textContent}`);
                return [root.textContent, spans];
            });
        }""",
        codes,
    )
    assert [text for text, _ in found] == list(codes.values())
    marks = {language: spans for language, (_, spans) in zip(codes, found, strict=True)}
    assert marks["python"][:4] == ["keyword def", "comment # note", 'string """doc "quoted" here"""', "keyword return"]
    assert marks["json"] == ['string "key"', "number 1", "number 2.5", "keyword true", "keyword null"]
    assert "comment # note" in marks["bash"]
    assert not any(mark.startswith("comment #f}") for mark in marks["bash"])
    assert "keyword SELECT" in marks["sql"]
    assert marks["unknown"] == []

"""The page with any answer and any storage: it starts, stays inert under its own policy, in linearly many steps."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from typing import Any

import pytest

from tests.serve.page.hostile_answers import CHECK, check_arguments, make_answer
from tests.serve.page.scripted import Script, delta, end
from tests.slow_cases import fast

pytest.importorskip("playwright.sync_api", reason="playwright drives the browser")

from playwright.sync_api import Browser, Page, expect

from tests.serve.page.pages import Visit, answered, ask, imported, watched

ANSWERS = 300


@pytest.fixture(scope="module")
def shared(browser: Browser, scripted: tuple[Script, str]) -> Iterator[Page]:
    """One page for all that only renders."""
    with watched(browser, scripted[1]) as page:
        dialogs: list[str] = []
        page.on("dialog", lambda dialog: (dialogs.append(dialog.message), dialog.dismiss()))
        yield page
        assert dialogs == []


def test_hundreds_of_hostile_answers_stay_inert_and_whole(shared: Page) -> None:
    rng = random.Random(16)
    faulty = {}
    for _ in range(ANSWERS):
        answer = make_answer(rng)
        if faults := shared.evaluate(CHECK, check_arguments(answer)):
            faulty[answer] = faults
    assert faulty == {}
    assert shared.evaluate("window.violations") == []


def test_hostile_answers_stream_in_as_they_end(page: Page, script: Script) -> None:
    rng = random.Random(5)
    for index in range(6):
        answer = make_answer(rng)
        cuts = sorted(rng.choices(range(len(answer) + 1), k=30))
        pieces = [answer[a:b] for a, b in zip([0, *cuts], [*cuts, len(answer)], strict=True)]
        script.answers.append([*(delta(content=piece) for piece in pieces), *end()])
        ask(page, f"Question {index}")
        expect(page.locator(".answer")).to_have_count(index + 1)
        expect(page.locator(".answer").last).to_have_attribute("aria-busy", "false")
        same = page.evaluate(
            """async (text) => {
                const { renderMarkdown } = await import("/page/markdown.js");
                const shown = [...document.querySelectorAll(".answer > .prose")].at(-1);
                return shown.innerHTML === renderMarkdown(text).innerHTML;
            }""",
            answer.lstrip(),
        )
        assert same, answer


GROWING = {
    "stars": "'*a '.repeat(n / 3)",
    "emphasis": "'*a* '.repeat(n / 4)",
    "nested emphasis": "'*_'.repeat(n / 4) + 'a' + '_*'.repeat(n / 4)",
    "underscores": "'_a'.repeat(n / 2)",
    "tildes": "'a' + '~'.repeat(n)",
    "backticks": "'a' + '`'.repeat(n)",
    "a fence with a backtick": "'```' + 'a'.repeat(n) + '`'",
    "brackets": "'['.repeat(n)",
    "open links": "'[a]('.repeat(n / 4)",
    "spaces in a link": "'[a](' + ' '.repeat(n)",
    "parentheses in a link": "'[a](' + '(b)'.repeat(n / 3)",
    "nested links": "'['.repeat(n / 12) + 'a' + '](http://x)'.repeat(n / 12)",
    "nested images": "'!['.repeat(n / 13) + 'a' + '](http://x)'.repeat(n / 13)",
    "an address that ends in parentheses": "'https://a.org/' + ')'.repeat(n)",
    "addresses that are none": "'https://a:b:'.repeat(n / 12)",
    "angles": "'<a:'.repeat(n / 3)",
    "HTML": "'<b x=y>'.repeat(n / 8)",
    "formulas": "'$$\\n'.repeat(n / 3)",
    "dollars": "'$a '.repeat(n / 3)",
    "quotes": "'> '.repeat(n / 2) + 'x'",
    "quoted lines": "'> a\\n'.repeat(n / 4)",
    "items": "'- a\\n'.repeat(n / 4)",
    "items in one line": "'- '.repeat(n / 2) + 'x'",
    "headings": "'# a\\n'.repeat(n / 4)",
    "lines": "'a\\n'.repeat(n / 2)",
    "columns": "'|a'.repeat(n / 4) + '|\\n' + '|-'.repeat(n / 4) + '|\\n'",
    "short rows": "'|a'.repeat(150) + '|\\n' + '|-'.repeat(150) + '|\\n' + '|\\n'.repeat(n / 2)",
    "one word": "'x'.repeat(n)",
    "entities": "'&amp;'.repeat(n / 5)",
}


def grown(case: str, n: int) -> str:
    """Return the text of a case at a size; the expressions are JavaScript's, and few."""
    total = []
    for part in case.split(" + "):
        literal, _, times = part.partition(".repeat(")
        text = json.loads('"' + literal.strip("'") + '"')
        count = times.rstrip(")")
        divisor = int(count.partition("/ ")[2] or 1) if count.startswith("n") else None
        total.append(text if not times else text * (n // divisor if divisor else int(count)))
    return "".join(total)


def test_steps_grow_as_the_text_does(shared: Page) -> None:
    """Eight times the text takes about eight times the steps; with a quadratic one 64 times.

    A step is one run of a block of the page's JavaScript, as V8 counts them; what is within a regular expression or a
    method of the language is none.
    """
    profiler = shared.context.new_cdp_session(shared)
    profiler.send("Profiler.enable")
    profiler.send("Profiler.startPreciseCoverage", {"callCount": True, "detailed": True})
    shared.reload()  # V8 counts blocks only in what it compiles from here on
    shared.evaluate('async () => { window.rendered = (await import("/page/markdown.js")).renderMarkdown; }')

    def steps(text: str) -> int:
        profiler.send("Profiler.takePreciseCoverage")
        shared.evaluate("(text) => { rendered(text); }", text)
        scripts = profiler.send("Profiler.takePreciseCoverage")["result"]
        functions = [each for script in scripts if "/page/" in script["url"] for each in script["functions"]]
        return sum(block["count"] for function in functions for block in function["ranges"])

    counted = {name: (steps(grown(case, 10_000)), steps(grown(case, 80_000))) for name, case in GROWING.items()}
    profiler.detach()
    assert min(small for small, _ in counted.values()) > 0
    assert {name: (small, large) for name, (small, large) in counted.items() if large > 12 * small} == {}


def test_a_text_beyond_any_size_is_shown_as_it_is(shared: Page) -> None:
    for text in ("x" * 1_000_000, "*a* " * 250_000, "\n# a" * 200_000):
        shown = shared.evaluate(
            """async (text) => {
                const { renderMarkdown } = await import("/page/markdown.js");
                const root = renderMarkdown(text);
                return [root.textContent === text, root.querySelectorAll("*").length];
            }""",
            text,
        )
        assert shown == [True, 1]


def test_an_answer_that_cannot_be_rendered_is_shown_as_text(page: Page, script: Script) -> None:
    page.evaluate(
        """() => {
            const real = document.createElement.bind(document);
            document.createElement = (tag) => { if (tag === "strong") throw new Error("broken"); return real(tag); };
        }"""
    )
    script.text("One **two**", " three\n\n", "# four")
    ask(page, "Go")
    answered(page, "three")
    assert page.locator(".answer > .prose").text_content() == "One **two** three\n\n# four"
    script.text("Fine *again*.")
    ask(page, "Go on")
    answered(page, "Fine again.")
    expect(page.locator(".answer").last.locator("em")).to_have_text("again")


def test_words_of_a_link_cannot_hide_where_it_goes(shared: Page) -> None:
    cases = {
        "[https://bank.example](https://evil.example/x)": "evil.example",
        "[a \u202eknil\u2066](https://evil.example)": "evil.example",
        "https://bank.example@evil.example/": "evil.example",
        "https://\u0430pple.example/": "xn--pple-43d.example",
        "[write](mailto:a@b.example)": "a@b.example",
        "https://plain.example/a": None,
        "<https://plain.example/a>": None,
    }
    found = shared.evaluate(
        """async (texts) => {
            const { renderMarkdown } = await import("/page/markdown.js");
            return texts.map((text) => renderMarkdown(text).querySelector("a").getAttribute("data-to"));
        }""",
        list(cases),
    )
    assert dict(zip(cases, found, strict=True)) == cases


GOOD = {"id": "good", "title": "Good", "updated": 5, "messages": [{"role": "user", "content": "hi", "images": []}]}
POLLUTED = '{"id": "bad", "title": "Bad", "__proto__": {"owned": 1}, "constructor": 1, "messages": %s}'
BROKEN: list[Any] = [
    '{"messages": [null]}',
    '{"messages": [{"role": "system", "content": "x"}]}',
    '{"messages": [{"role": "user", "content": {"a": 1}}]}',
    '{"messages": [[[]]]}',
    '{"messages": {"length": 3}}',
    "[]",
    '"text"',
    "{",
    "null",
    "17",
    "[" * 50_000,
    POLLUTED % "[3]",
]


@pytest.mark.parametrize("stored", fast(BROKEN, "036", ids=list(map(str, range(len(BROKEN))))))
def test_a_broken_conversation_is_set_aside_and_named(visit: Visit, script: Script, stored: str) -> None:
    page = visit()
    index = [{"id": "bad", "title": "The bad one", "updated": 9}, {"id": "good", "title": "Good", "updated": 5}]
    store(page, {"fathom.chat.bad": stored, "fathom.chat.good": json.dumps(GOOD), "fathom.chats": json.dumps(index)})
    store(page, {"fathom.current": '"bad"'})
    page.reload()
    expect(page.locator("#composer-error")).to_contain_text("“The bad one” cannot be read and was set aside")
    expect(page.locator("#chats .chat")).to_have_text(["Good"])
    assert page.evaluate("localStorage.getItem('fathom.aside.bad')") == stored
    page.get_by_role("button", name="Good", exact=True).click()
    expect(page.locator(".bubble")).to_have_text("hi")
    script.text("Works.")
    ask(page, "And now?")
    answered(page, "Works.")
    assert page.evaluate("({}).owned") is None
    page.once("dialog", lambda dialog: dialog.accept())
    page.click("#delete-all")
    kept = "Object.keys(localStorage).filter((key) => /^fathom\\.(chat|aside)/.test(key))"
    assert page.evaluate(kept) == []


def store(page: Page, items: dict[str, str]) -> None:
    page.evaluate("(items) => Object.entries(items).forEach(([key, value]) => localStorage.setItem(key, value))", items)


GARBAGE = [
    "{",
    "null",
    "[]",
    '["x"]',
    "{}",
    '"constructor"',
    '"__proto__"',
    "12345",
    "true",
    '{"__proto__": {"owned": 1}}',
    '{"temperature": "x", "seed": 1e300, "system": {}, "thinking": "constructor", "top_k": -5}',
    '[null, {}, {"id": {}, "title": 3, "updated": "x"}, {"id": "x"}]',
]


@pytest.mark.parametrize("garbage", fast(GARBAGE, GARBAGE[::5]))
def test_the_page_starts_whatever_the_storage_holds(visit: Visit, script: Script, garbage: str) -> None:
    page = visit()
    names = ("chats", "current", "settings", "draft", "language", "theme", "model")
    store(page, {f"fathom.{name}": garbage for name in names} | {"fathom.chat.good": json.dumps(GOOD)})
    page.evaluate("(garbage) => sessionStorage.setItem('fathom.key', garbage)", garbage)
    page.reload()
    expect(page.locator("#model-name")).to_have_text("sounder-1b")
    page.fill("#input", "")
    script.text("Works.")
    ask(page, "Go")
    answered(page, "Works.")
    assert not {"seed", "temperature", "top_k"} & set(script.asked[-1])
    assert page.evaluate("({}).owned") is None


def test_parts_of_a_message_that_are_not_of_their_type_are_left_out(visit: Visit) -> None:
    page = visit()
    answer = {
        "role": "assistant",
        "content": "**kept**",
        "thinking": 3,
        "firstMs": "x",
        "tokens": {},
        "usage": {"total_tokens": "many"},
        "finish": "constructor",
        "error": {"kind": "__proto__", "detail": {}, "retryAt": "never"},
    }
    asked = {"role": "user", "content": "q", "images": [{"url": "https://x.example/a.png"}, {"url": 3}, None]}
    chat = {"id": "old", "title": 7, "messages": [asked, answer, {"role": "assistant", "content": "first version"}]}
    store(page, {"fathom.chat.old": json.dumps(chat), "fathom.current": '"old"'})
    page.evaluate("localStorage.removeItem('fathom.chats')")
    page.reload()
    expect(page.locator(".answer strong")).to_have_text("kept")
    expect(page.locator(".answer").last.locator("> .prose")).to_have_text("first version")
    assert page.locator("#turns img").count() == 0


def test_the_page_works_without_storage_and_with_a_full_one(visit: Visit, script: Script) -> None:
    page = visit()
    for broken in (
        "Storage.prototype.setItem = () => { throw new DOMException('full', 'QuotaExceededError'); }",
        "Object.defineProperty(window, 'localStorage', { get() { throw new DOMException('no', 'SecurityError'); } })",
    ):
        page.add_init_script(broken)
        page.reload()
        script.text("Works.")
        ask(page, "Go")
        answered(page, "Works.")
        expect(page.locator("#composer-error")).to_contain_text("storage is full")


def test_a_strangers_file_brings_text_and_nothing_else(visit: Visit) -> None:
    page = visit()
    hostile: dict[str, Any] = {
        "id": "../../fathom.settings",
        "title": "<img src=x onerror=window.owned=1>" + "t" * 500,
        "updated": 1e12,
        "summary": "<script>window.owned=1</script>",
        "__proto__": {"owned": 1},
        "messages": [
            {"role": "user", "content": "<b>hi</b>", "images": [{"url": "https://evil.example/x.png", "name": "x"}]},
            {"role": "assistant", "content": "[x](javascript:window.owned=1)", "others": [], "place": -7},
        ],
    }
    deep = '[{"role": "user", "content": "deep", "others": [' * 600 + "[]" + "]}]" * 600
    none = [{"messages": [{"role": "system", "content": "x"}]}, {"messages": "DEEP"}, None, 3, {"messages": {}}]
    file = json.dumps({"format": "fathom-conversations", "version": 1, "conversations": [hostile, *none]})
    imported(page, file.replace('"DEEP"', deep))
    expect(page.locator("#composer-error")).to_contain_text("conversations: 1. Here already: 0. Not readable: 5.")
    page.locator("#chats .chat").click()
    expect(page.locator(".bubble")).to_have_text("<b>hi</b>")
    expect(page.locator("#summary .prose")).to_have_text("<script>window.owned=1</script>")
    assert page.locator("#thread img:not([src='page/favicon.svg'])").count() == 0
    assert page.locator("#turns a").count() == 0
    assert (
        page.evaluate("[window.owned, ({}).owned, localStorage.getItem('fathom.chat.../../fathom.settings')]")
        == [None] * 3
    )
    for text, sentence in (
        ("{", "not JSON"),
        ("[]", "holds no conversations"),
        ('{"format": "fathom-conversations", "version": 2, "conversations": []}', "another version"),
    ):
        imported(page, text)
        expect(page.locator("#composer-error")).to_contain_text(sentence)
        expect(page.locator("#composer-error")).to_have_class("wrong")
    assert page.locator("#chats .chat").count() == 1

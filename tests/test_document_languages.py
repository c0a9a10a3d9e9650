"""Every page is in English and in Chinese, and both say the same."""

from __future__ import annotations

import re
import runpy
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
CHINESE = ".zh-CN.md"
FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", re.DOTALL | re.MULTILINE)
SWITCH = re.compile(r"^\*English \| \[中文\]\((.+)\)\*$|^\*\[English\]\((.+)\) \| 中文\*$", re.MULTILINE)
LINK = re.compile(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]+))?\)")
OPENS_A_BLOCK = re.compile(r"[-#|>*<!]|\d+\. ")
OUTDATED = (
    *("基础模型", "潜在缓存", "取来", "提前猜测", "中间填充的", "各算各的", "整座房子", "更少的比特"),
    *("系统提示（", "总取最可能", "最多词元数", "没有接受这个", "即被遗忘", "看不到图片", "回到最新", "水池题"),
)
"""Wordings that a native reader corrected."""
ENGLISH_PAGES = sorted(
    path
    for path in [*(ROOT / "docs").glob("*.md"), ROOT / "README.md", ROOT / "SECURITY.md", ROOT / "CONTRIBUTING.md"]
    if not path.name.endswith(CHINESE)
)
MADE_TOGETHER = {"compatibility.md", "recipes.md"}
"""Both languages are written by one program from one list, and quote or translate what others set as code."""
CHINESE_PAGES = sorted([*(ROOT / "docs").glob(f"*{CHINESE}"), *ROOT.glob(f"*{CHINESE}")])


def translation(path: Path) -> Path:
    return path.with_name(f"{path.stem}{CHINESE}")


def read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def prose(path: Path) -> str:
    """The page without its fenced blocks."""
    return FENCE.sub("", read(path))


def code(path: Path) -> list[tuple[str, str]]:
    return [(kind, re.sub(r" *#.*", "", text)) for _, kind, text in FENCE.findall(read(path))]


def table_numbers(path: Path) -> list[Counter[str]]:
    """The numbers of each row of all tables, code left out: an option's name may hold a digit."""
    rows = [line for line in prose(path).splitlines() if line.lstrip().startswith("|")]
    return [Counter(re.findall(r"(?<![\w.-])\d+(?:[.,]\d+)*", re.sub(r"`[^`]*`", "", row))) for row in rows]


def anchors(path: Path) -> set[str]:
    """What a link may name in a page: its headings in lower case, with hyphens for spaces and no punctuation."""
    headings = re.findall(r"^#+ (.+)$", prose(path), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def terms(path: Path) -> set[str]:
    """What a page sets as code: fields, options, files, commands."""
    text = re.sub(r"<!--.*?-->", "", prose(path))
    spans = re.findall(r"`([^`]+)`", text)
    return {" ".join(span.split()).replace(CHINESE, ".md") for span in spans}


def identifier(path: Path) -> str:
    return path.name


@pytest.mark.parametrize("page", ENGLISH_PAGES, ids=identifier)
def test_both_languages_hold_the_same(page: Path) -> None:
    chinese = translation(page)
    assert chinese.is_file(), f"{page.name} has no Chinese page"
    headings = [[len(mark) for mark in re.findall(r"^(#+) ", prose(path), re.MULTILINE)] for path in (page, chinese)]
    assert headings[0] == headings[1]
    assert code(page) == code(chinese)
    markers = [re.findall(r"<!-- (?:run: )?.+? -->", read(path)) for path in (page, chinese)]
    assert markers[0] == markers[1]
    if page.name not in MADE_TOGETHER:
        assert terms(page) == terms(chinese)
    numbers = [table_numbers(path) for path in (page, chinese)]
    assert len(numbers[0]) == len(numbers[1])
    different = [row for row in zip(*numbers, strict=True) if row[0] != row[1]]
    assert not different


@pytest.mark.parametrize("page", ENGLISH_PAGES, ids=identifier)
def test_a_page_leads_to_its_other_language(page: Path) -> None:
    for path, other in ((page, translation(page)), (translation(page), page)):
        match = SWITCH.search("\n".join(read(path).splitlines()[:4]))
        assert match is not None, f"{path.name} names no other language below its title"
        assert (match[1] or match[2]) == other.name


@pytest.mark.parametrize("page", CHINESE_PAGES, ids=identifier)
def test_a_chinese_paragraph_is_one_line(page: Path) -> None:
    """A break inside a paragraph is shown as a space, which Chinese does not have."""
    lines = prose(page).splitlines()
    wrapped = [
        f"{above!r} / {below!r}"
        for above, below in pairwise(lines)
        if above.strip() and below.strip() and not above.startswith(("#", "|", "<!--"))
        if not OPENS_A_BLOCK.match(below.lstrip())
    ]
    assert not wrapped, "\n".join(wrapped)


@pytest.mark.parametrize("page", [*ENGLISH_PAGES, *CHINESE_PAGES], ids=identifier)
def test_links_lead_somewhere_in_the_same_language(page: Path) -> None:
    for target, anchor in LINK.findall(SWITCH.sub("", prose(page))):
        path = page.parent / target if target else page
        assert path.exists(), target
        assert not anchor or anchor in anchors(path), f"{target}#{anchor}"
        if path.suffix == ".md":
            chinese = path.name.endswith(CHINESE)
            assert chinese == page.name.endswith(CHINESE) or not translation(path).exists(), target


def test_corrected_wordings_do_not_come_back() -> None:
    messages = [*(ROOT / "fathom/locale/zh_CN").glob("*.toml"), ROOT / "fathom/serve/page/i18n-zh.js"]
    assert len(messages) >= 3
    texts = {path.name: read(path) for path in [*CHINESE_PAGES, *messages]}
    assert [(name, word) for name, text in texts.items() for word in OUTDATED if word in text] == []


def block(command: str, printed: str) -> str:
    return f"<!-- run: {command} -->\n```console\n{printed}```\n"


def test_a_chinese_page_gets_the_blocks_of_its_english_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "docs"))  # where a script's own modules are found
    with_blocks_of = runpy.run_path(str(ROOT / "docs/generate.py"))["with_blocks_of"]
    english = f"One\n\n{block('fathom a', 'first')}\nTwo\n\n{block('fathom a', 'second')}"
    chinese = f"一\n\n{block('fathom a', '')}\n二\n\n{block('fathom a', 'old')}"
    expected = english.replace("One", "一").replace("Two", "二")
    assert with_blocks_of(chinese, english, "page") == expected
    with pytest.raises(SystemExit, match="page: other commands than in the English page: 'fathom b' for 'fathom a'"):
        with_blocks_of(chinese.replace("fathom a", "fathom b", 1), english, "page")

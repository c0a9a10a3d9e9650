"""The compatibility page in both languages, written from the outcomes of the cases."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.compatibility.case import Area, Outcome, Status

ROOT = Path(__file__).resolve().parent.parent.parent
_THREAD = re.compile(r"(?P<repository>[\w.-]+/[\w.-]+)#(?P<number>\d+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Language:
    """The page's words in one language."""

    file: str
    head: str
    columns: str
    statuses: dict[Status, str]
    chinese: bool = False


ENGLISH = Language(
    file="docs/compatibility.md",
    head=(
        "# Compatibility\n\n"
        "*English | [中文](compatibility.zh-CN.md)*\n\n"
        "What other people's models, data, clients and machines bring, and what Fathom does with it. Every row is a\n"
        "case that `python -m tests.compatibility` has run; its last column quotes Fathom, or gives what came out.\n"
        "The test suite runs the same cases. A thread is a place where people met the case, not always in Fathom.\n\n"
        "- **works**: as in the software it comes from\n"
        "- **ignored**: has no effect, and Fathom names it\n"
        "- **refused**: ends in one line that says why; its remedy may be left out here\n"
    ),
    columns="| what | thread | Fathom | in its words |\n|---|---|---|---|",
    statuses={"works": "works", "ignored": "ignored", "refused": "refused"},
)
CHINESE = Language(
    file="docs/compatibility.zh-CN.md",
    head=(
        "# 兼容性\n\n"
        "*[English](compatibility.md) | 中文*\n\n"
        "其他项目的模型、数据、客户端和机器带来的各种情况，以及 Fathom 的处理方式。"
        "每一行都由 `python -m tests.compatibility` 实际运行得出，最后一列是 Fathom 输出的原文或得到的结果；"
        "测试套件运行同样的用例。“讨论”一列是人们遇到该情况的公开讨论，未必发生在 Fathom 中。\n\n"
        "- **支持**：与其来源软件的行为一致\n"
        "- **忽略**：不起作用，Fathom 会指出其名称\n"
        "- **拒绝**：以一行说明原因的错误信息结束，此处可能略去解决办法\n"
    ),
    columns="| 情况 | 讨论 | Fathom | 输出原文 |\n|---|---|---|---|",
    statuses={"works": "支持", "ignored": "忽略", "refused": "拒绝"},
    chinese=True,
)


def render(language: Language, areas: Sequence[Area], outcomes: Sequence[Sequence[Outcome]]) -> str:
    """Return the page; ``outcomes`` are those of each area's cases, in their order."""
    parts = [language.head]
    for area, found in zip(areas, outcomes, strict=True):
        rows = [f"## {area.title_zh if language.chinese else area.title}\n", language.columns]
        for case, outcome in zip(area.cases, found, strict=True):
            what = case.zh if language.chinese else case.what
            status = language.statuses[outcome.status]
            rows.append(f"| {_cell(what)} | {_thread(case.source)} | {status} | {_code(outcome.detail)} |")
        parts.append("\n".join(rows) + "\n")
    return "\n".join(parts)


def _thread(source: str) -> str:
    found = _THREAD.fullmatch(source)
    if found is None:
        return _cell(source)
    return f"[{source}](https://github.com/{found['repository']}/issues/{found['number']})"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _code(text: str) -> str:
    """Return text as a code span that a table cell can hold."""
    if not text:
        return ""
    fence = "``" if "`" in text else "`"
    pad = " " if "`" in text else ""
    return f"{fence}{pad}{_cell(text)}{pad}{fence}"

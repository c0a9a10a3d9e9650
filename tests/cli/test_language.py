"""The command line in the language of the locale, where the console can write it; English for programs."""

from __future__ import annotations

import io
import json
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from fathom.cli.main import main, make_app
from fathom.locale import ENGLISH, speak, tr
from fathom.spec.step_results import STATE_FILE
from tests.command_line import Outcome

CHINESE = re.compile(r"[\u4e00-\u9fff]")
Speaking = Callable[..., Outcome]


@pytest.fixture
def speaking(monkeypatch: pytest.MonkeyPatch) -> Iterator[Speaking]:
    """Return a function that runs ``fathom ARGUMENTS`` with a locale, on a console of an encoding."""
    monkeypatch.delenv("FATHOM_LANG")
    monkeypatch.delenv("LC_ALL", raising=False)
    monkeypatch.delenv("LC_MESSAGES", raising=False)

    def run(*arguments: object, encoding: str = "utf-8", **environment: str) -> Outcome:
        for name, value in ({"LANG": "zh_CN.UTF-8"} | environment).items():
            monkeypatch.setenv(name, value)
        buffers = {name: io.BytesIO() for name in ("stdout", "stderr")}
        for name, buffer in buffers.items():
            monkeypatch.setattr(sys, name, io.TextIOWrapper(buffer, encoding=encoding, write_through=True))
        monkeypatch.setattr(sys, "argv", ["fathom", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        code = ended.value.code
        out, err = (buffer.getvalue().decode(encoding) for buffer in buffers.values())
        return Outcome(code if isinstance(code, int) else 0, out, err)

    yield run
    speak(ENGLISH)


def verbs(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    yield path, command
    for name, each in getattr(command, "commands", {}).items():
        yield from verbs(each, (*path, name))


def bare(text: str) -> str:
    """Return a text without white space, frames and ranges of numbers beside them, as lines are broken anywhere."""
    return re.sub(r"[\s│]|\[[\d<=>x]+\]", "", text)


def test_help_shows_every_text_whole_in_the_language_of_the_locale(speaking: Speaking) -> None:
    for path, command in verbs(typer.main.get_command(make_app())):
        shown = bare(speaking(*path, "--help", COLUMNS="80").out)
        for described in (command, *command.params):
            if getattr(described, "help", None):
                assert bare(tr(described.help)) in shown, (path, described.help)
        assert "用法：" in shown
        assert "显示此帮助并退出。" in shown
        assert not re.search("Usage|Options─|Arguments─|Commands─|required|default:", shown)


@pytest.mark.parametrize(
    "environment",
    [{"LANG": "C"}, {"LC_ALL": "C"}, {"FATHOM_LANG": "en"}, {"LC_MESSAGES": "en_US.UTF-8"}, {"LANG": "zh_TW.UTF-8"}],
)
def test_locales_of_other_languages_and_an_own_choice_speak_english(
    speaking: Speaking, environment: dict[str, str]
) -> None:
    assert not CHINESE.search(speaking("--help", **environment).out)


def test_fathom_lang_comes_before_the_locale(speaking: Speaking) -> None:
    assert "选项" in speaking("--help", FATHOM_LANG="zh_CN", LC_ALL="C").out


def test_a_language_without_a_translation_is_refused_with_those_there_are(speaking: Speaking) -> None:
    speaking("--help", FATHOM_LANG="tlh").refused("FATHOM_LANG", "'tlh'", "en or zh_CN")


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "big5"])
def test_a_console_without_the_characters_speaks_english(speaking: Speaking, encoding: str) -> None:
    ended = speaking("--nothing", encoding=encoding)
    assert ended.err.startswith("error: ")


@pytest.mark.parametrize("encoding", ["utf-8", "gbk"])
def test_a_console_of_china_speaks_chinese(speaking: Speaking, encoding: str) -> None:
    ended = speaking("--nothing", encoding=encoding)
    assert (ended.code, ended.err[:3]) == (2, "错误：")


def test_what_programs_read_is_english(speaking: Speaking) -> None:
    ended = speaking("models", "--json", "--family", "deepseek_v2")
    assert json.loads(ended.out)
    assert not CHINESE.search(ended.out)


def test_a_run_and_its_report_are_in_the_language_of_the_locale(
    speaking: Speaking, finished: Path, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    for name in ("report.html", "report.json"):
        (run / name).unlink()
    state = json.loads((run / STATE_FILE).read_text())
    del state["steps"]["report"]
    (run / STATE_FILE).write_text(json.dumps(state))
    shown = speaking("train", "--resume", "--out", run, "--device", "cpu").out
    assert "report：完成，用时 " in shown
    assert f"报告：{run / 'report.html'}" in shown
    page = (run / "report.html").read_text(encoding="utf-8")
    english = (finished / "report.html").read_text(encoding="utf-8")
    assert '<html lang="zh-CN">' in page
    assert '<html lang="en">' in english
    headings = [re.findall("<(?:h2|dt|th)[^>]*>(.*?)<", text) for text in (page, english)]
    assert len(headings[0]) == len(headings[1])
    assert all(CHINESE.search(heading) for heading in headings[0])
    assert not any(CHINESE.search(heading) for heading in headings[1])
    assert ">千词元</text>" in page
    assert ">thousand tokens</text>" in english
    assert (run / "report.json").read_text() == (finished / "report.json").read_text()


def test_fields_are_explained_in_chinese_and_their_json_in_english(speaking: Speaking) -> None:
    told = speaking("recipe", "fields", "steps.sft.train.batch.size")
    assert all(word in told.out for word in ("含义", "整数", "steps.sft.train.batch.size"))
    assert "whole number" not in told.out
    assert CHINESE.search(speaking("recipe", "fields", "model.attention.mla").out)
    assert not CHINESE.search(speaking("recipe", "fields", "steps.sft.train.batch.size", "--json").out)

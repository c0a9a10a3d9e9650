"""The filter of text from outside: nothing that a terminal obeys passes, whatever else does, however a text is cut."""

from __future__ import annotations

import json
import logging
import random
import sys
import unicodedata

import pytest

from fathom.errors import DataError, SpecError
from fathom.logs import RecordFormatter, warn_once
from fathom.terminal import MAX_MARKS, TerminalFilter, one_line, visible

OBEYED = [
    *map(chr, range(0x20)),
    *map(chr, range(0x7F, 0xA0)),
    *(chr(code) for code in range(0x202A, 0x202F)),
    *(chr(code) for code in range(0x2066, 0x2070)),
    *"\u2028\u2029\ufeff\ufff9\ufffa\ufffb\u180e",
    *(chr(code) for code in range(0xE0000, 0xE0080)),
    *map(chr, (0xD800, 0xDBFF, 0xDC80, 0xDFFF)),
]
TEXTS = [
    "é 模型 🌊 ─│┌█ “quoted” ≥ \t tab\nline",
    "👩‍👩‍👧‍👦 🏳️‍🌈 ❤️",
    "می‌خواهم عربي שָׁלוֹם",
    "नमस्ते ภาษาไทย བོད་སྐད་ Việt Nam e\u0301",
    "a\u200eb\u200fc",
    "C:\\new\\table \\u001b",
]


@pytest.mark.parametrize("text", TEXTS)
def test_text_of_every_script_passes(text: str) -> None:
    assert visible(text) == text


@pytest.mark.parametrize("character", [c for c in OBEYED if c not in "\n\t\r"], ids=ascii)
def test_what_a_terminal_obeys_or_hides_is_written_as_json_escapes_it(character: str) -> None:
    shown = visible(f"a{character}b")
    assert shown.isprintable()
    assert json.loads(f'"{shown}"') == f"a{character}b"


def test_no_character_of_unicode_but_newline_and_tab_is_a_control_once_filtered() -> None:
    passed = [chr(code) for code in range(sys.maxunicode + 1) if visible(chr(code)) == chr(code)]
    assert [c for c in passed if unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp")] == ["\t", "\n"]
    overriding = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}
    assert [c for c in passed if unicodedata.bidirectional(c) in overriding] == []


def test_a_carriage_return_never_writes_over_a_line() -> None:
    assert visible("paid 1\rpaid 9\r\nnext\r\r\n\n") == "paid 1\npaid 9\nnext\n\n\n"


def test_marks_above_one_another_are_bounded() -> None:
    flood = "a" + "\u0301\u200d\ufe0f" * 1000 + "b\u0301"
    shown = visible(flood)
    assert shown.startswith("a" + ("\u0301\u200d\ufe0f" * 3)[:MAX_MARKS] + "\\u")
    assert shown.endswith("b\u0301")
    assert json.loads(f'"{shown}"') == flood


def test_however_a_text_is_cut_the_pieces_add_up_to_the_same() -> None:
    rng = random.Random(7)
    letters = [
        *"ab\r\n\t\\",
        *rng.sample(OBEYED, 40),
        *"é模🌊",
        "\r\n",
        "\u0301" * 3,
        "\u200d",
        "\ufe0f",
        "\x1b]52;c;YQ==\x07",
    ]
    for _ in range(400):
        text = "".join(rng.choices(letters, k=rng.randrange(60)))
        whole, filtering = visible(text), TerminalFilter()
        cuts = sorted(rng.choices(range(len(text) + 1), k=rng.randrange(8)))
        pieces = [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
        assert "".join(map(filtering.feed, pieces)) == whole
        assert visible(whole) == whole
        assert set(whole) & (set(OBEYED) - set("\n\t")) == set()


def test_a_message_is_one_line() -> None:
    assert one_line("a\r\nb\x1b[2J\n\n c\x85d\u2028e") == "a b\\u001b[2J c d e"


def test_errors_and_warnings_show_the_controls_of_what_they_quote(caplog: pytest.LogCaptureFixture) -> None:
    for error in (DataError("a\x1b[31m\u202e"), SpecError("name", "is 'a\x1b[31m\u202e'", "rename it")):
        assert "a\\u001b[31m\\u202e" in str(error)
        assert str(error).isprintable()
    warn_once("tokens.json: names \x1b]0;x\x07\nerror: forged")
    assert [record.getMessage() for record in caplog.records] == ["tokens.json: names \\u001b]0;x\\u0007 error: forged"]


def test_no_text_in_a_log_line_looks_like_another_line() -> None:
    def record(message: str, **more: object) -> logging.LogRecord:
        return logging.makeLogRecord({"msg": "%s", "args": (message,)} | more)

    formatter = RecordFormatter()
    assert formatter.format(record('{"path": "/v1"}')) == '{"path": "/v1"}'
    assert formatter.format(record("a\n{}\r{}\x9b2J")) == "a\n    {}\n    {}\\u009b2J"
    try:
        raise RuntimeError('x\n{"status": 200}')
    except RuntimeError:
        lines = formatter.format(record("failed", exc_info=sys.exc_info())).split("\n")
    assert [line for line in lines if not line.startswith("    ")] == ["failed"]

from __future__ import annotations

import unicodedata

from hypothesis import given, settings
from hypothesis import strategies as st

from fathom.data.clean import clean

noise = st.text(alphabet=st.one_of(st.sampled_from("\r\n \t\u200b\ufeff\u0301e각\u2028\x00a"), st.characters()))


@given(text=noise)
@settings(max_examples=300, deadline=None)
def test_cleaning_twice_changes_nothing_and_leaves_regular_text(text: str) -> None:
    once = clean(text)
    if once is None:
        assert text.count("\ufffd") * 1000 > len(text)
        return
    assert clean(once) == once
    assert unicodedata.is_normalized("NFC", once)
    assert not any(unicodedata.category(c) in ("Cc", "Cs") and c not in "\t\n" for c in once)
    assert "\n\n\n\n" not in once
    assert not any(line.endswith((" ", "\t")) for line in once.split("\n"))
    once.encode()


def test_what_is_removed_and_what_stays() -> None:
    assert clean("\ufeffa\r\nb\rc\u2028d  \n") == "a\nb\nc\nd"
    assert clean("e\u0301\u200bx\x00y") == "éxy"
    assert clean("a\n\n\n\n\n\nb") == "a\n\n\nb"
    assert clean("  if x:\n\treturn") == "  if x:\n\treturn"
    assert clean("👩\u200d👧 क्\u200dष") == "👩\u200d👧 क्\u200dष"
    assert clean("ok" * 600 + "\ufffd") is not None
    assert clean("broken \ufffd") is None

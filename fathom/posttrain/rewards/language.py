"""The language reward: the share of the thinking's words that are in the problem's language (R1 §2.3.2).

R1 does not say how it counts. Here a word is a run of Latin letters, two or more (accents, hyphens and apostrophes
included), or one Chinese character, or a run of letters of any other script, of neither language. Not counted:
single Latin letters (variables), digits, punctuation, code in backticks, mathematics between dollar signs or in
``\\( \\)`` and ``\\[ \\]``, LaTeX commands, and tags. A Chinese text is thus counted by its characters, and one
English word weighs as much as one of them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from fathom.posttrain.rewards.base import RewardInput
from fathom.posttrain.rewards.extract import TAGS, split_reasoning
from fathom.spec.problem import ProblemLanguage

_SPAN = 2000
_UNCOUNTED = re.compile(  # every span stops at what would open another of its kind: the time stays linear
    rf"```.{{0,{_SPAN * 10}}}?(?:```|\Z)|`[^`\n]{{0,{_SPAN}}}`|\$\$[^$]{{0,{_SPAN}}}\$\$|\$[^$\n]{{0,{_SPAN}}}\$"
    rf"|\\\((?:[^\\\n]|\\(?![()])){{0,{_SPAN}}}\\\)|\\\[(?:[^\\]|\\(?![\[\]])){{0,{_SPAN}}}\\\]"
    r"|\\[A-Za-z]+|" + "|".join(map(re.escape, TAGS)),
    re.DOTALL,
)
_LATIN = "A-Za-z\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u024f"
_CHINESE = "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_WORD = re.compile(
    rf"(?P<zh>[{_CHINESE}])|(?P<en>[{_LATIN}](?:[{_LATIN}]|['’-](?=[{_LATIN}]))*)"
    rf"|(?:(?![{_LATIN}{_CHINESE}])[^\W\d_])+"
)


class LanguageScorer:
    """A share between 0 and 1."""

    def prepare(self, answers: Sequence[RewardInput]) -> None:
        """Need nothing."""

    def score(self, answered: RewardInput) -> float:
        """Judge the thinking; a text without think tags is all thinking. No thinking at all scores 0."""
        split = split_reasoning(answered.answer)
        return consistency(split.thinking or split.answer, answered.problem.language)


def consistency(text: str, language: ProblemLanguage) -> float:
    """The share of ``text``'s words in ``language``: 1 for figures without words, 0 for nothing."""
    counts = {"en": 0, "zh": 0, "other": 0}
    for word in _WORD.finditer(_UNCOUNTED.sub(" ", text)):
        kind = word.lastgroup or "other"
        counts[kind] += kind != "en" or len(word[0]) > 1
    total = sum(counts.values())
    return counts[language] / total if total else float(bool(text.strip()))

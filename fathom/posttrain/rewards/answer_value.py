"""The exact value of an answer that is one number: decimals, fractions, mixed numbers, with or without a unit."""

from __future__ import annotations

import re
from fractions import Fraction

_MAX_CHARS = 200
_MAX_EXPONENT = 60
_DECIMAL = r"(?:\d{1,3}(?:,\d{3})+|\d{1,3}(?: \d{3})+(?![\d/])|\d+)(?:\.\d+)?|\.\d+"
_NUMBER = re.compile(
    rf"(?P<sign>[-+]?)\s*(?:(?P<whole>\d+)\s+)?(?P<over>\d[\d,]*)\s*/\s*(?P<under>\d[\d,]*)"
    rf"|(?P<sign2>[-+]?)\s*(?P<decimal>{_DECIMAL})(?:\s*(?:\*\s*10\s*\^|[eE])\s*(?P<exponent>[-+]?\d+))?"
)
_SCALES = {
    **{"hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12, "dozen": 12},
    **{"万": 10**4, "亿": 10**8, "万亿": 10**12},
}
_SCALE = re.compile(r"\s*(hundred|thousand|million|billion|trillion|dozen|万亿|万|亿)(?![A-Za-z])", re.IGNORECASE)
_CURRENCY = re.compile(r"(?:\\?[$€£¥]\s*|(?:USD|EUR|GBP|CNY|RMB|US\$)\s*)")
_APPROXIMATE = re.compile(r"(?:about|approximately|roughly|around|约|大约)\s*", re.IGNORECASE)
_SHORT_UNIT = (
    r"(?:mm|cm|dm|km|mi|ft|yd|mg|kg|lbs?|oz|ml|mL|cl|ms|ns|min|hrs?|sec|[kMG]?Hz|[kM]W|kWh|kJ|k?Pa|[KMGT]B|mph|kph"
    r"|USD|EUR|[ap]m|[mgshLltAVWNJKC])"
)
_UNIT = re.compile(
    rf"(?:{_SHORT_UNIT}|%|°C?F?|[\u4e00-\u9fff]{{1,8}})(?:\^\{{?[23]\}}?|[²³])?"
    r"(?:\s*/\s*(?:[A-Za-z]{1,8}|[\u4e00-\u9fff]{1,4})(?:\^\{?[23]\}?|[²³])?)?"
)
_POWER = r"(?:\^\{?[23]\}?)?"
_WORDS = re.compile(
    rf"(?:[A-Za-z][A-Za-z'-]{{2,}}|{_SHORT_UNIT}|of|in|an?|per|at|on){_POWER}(?:[ /][A-Za-z][A-Za-z'-]*{_POWER}){{0,7}}"
)
_REMARK = re.compile(
    r"(?:[A-Za-z]{3,} )?\((?![^()]*\bmod)(?=[^()]*(?:[A-Za-z]{3}|[\u4e00-\u9fff]|=))[^()]*\)"
    r"|,\s*(?:which|so|because|since|as|where|that)\b[^\d]*",
)
_CHANGING = re.compile(
    r"\b(?:and|or|to|not|no|never|through|plus|minus|times|over|mod|modulo|divided|multiplied|root|power|factorial|e|i|pi"
    r"|half|halves|thirds?|quarters?|fifths?|tens|tenths|squared|cubed|square|point|base|remainder|more|less|than"
    r"|dozen|hundred\w*|thousand\w*|million\w*|billion\w*|trillion\w*)\b",
    re.IGNORECASE,
)
_CHANGING_CHINESE = re.compile("[或至到不非没加减乘除分半余又多十百千万亿]")
_UNITS_OF_CHANGING = re.compile("千[米克瓦卡焦帕赫]|百分点|分[钟米]?(?!之)|加仑")
_VULGAR = {"½": "1/2", "⅓": "1/3", "⅔": "2/3", "¼": "1/4", "¾": "3/4", "⅕": "1/5", "⅛": "1/8", "⅜": "3/8", "⅝": "5/8"}
_LATEX_FRACTION = re.compile(r"\\[dtc]?frac\s*(?:\{\s*(-?)\s*([\d.,]+)\s*\}|(\d))\s*(?:\{\s*([\d.,]+)\s*\}|(\d))")
_LATEX_TEXT = re.compile(r"\\(?:text|textbf|textrm|textit|mathrm|mathbf|mbox|operatorname|boxed)\s*\{([^{}]*)\}")
_LATEX_SPACE = re.compile(r"\\[,;:! ]|\\(?:quad|displaystyle|left|right)\b|~")
_COPULA = re.compile(r".*(?<!不)(?:等于|[为是得=])(?=.*\d)", re.DOTALL)
_ENGLISH_COPULA = re.compile(r".*\b(?:is|are|equals|be|makes|gives)\s+", re.DOTALL | re.IGNORECASE)
_SENTENCE_END = re.compile(r"[.!?](?=\s|$|[\u4e00-\u9fff])")
_NEGATING_CHINESE = re.compile("[或至到不非没负又根乘除半]")
_CHINESE = re.compile(r"[\u4e00-\u9fff]")
_LATIN = re.compile(r"[A-Za-z\\^√]")
_ANY_NUMBER = re.compile(r"[-+]?\d[\d,./]*")


def number_value(text: str) -> Fraction | None:
    """Return the value of a bare text that is one number, or None.

    Thousands separators, a currency sign, a percent sign and a unit do not change it; "million" and 万 do. What might
    be more than one number, or a product such as ``15x``, has no value here. The last side of an equation counts.
    """
    if len(text) > _MAX_CHARS:
        return None
    plain = _last_side(_without_latex(text))
    if plain is None:
        return None
    plain = _without_start(_CURRENCY, _without_start(_APPROXIMATE, plain.strip()))
    negative = plain.startswith("-") and _CURRENCY.match(plain, 1)
    if negative:
        plain = _without_start(_CURRENCY, plain[1:])
    found = _NUMBER.match(plain)
    value = None if found is None else _value(found)
    if found is None or value is None:
        return None
    scaled = _SCALE.match(plain, found.end())
    rest = plain[(scaled or found).end() :]
    if not _is_unit(rest):
        return None
    value *= _SCALES[scaled[1].lower()] if scaled else 1
    return -value if negative else value


def is_decimal(value: Fraction) -> bool:
    """Whether a value can be written as a decimal that ends."""
    left = value.denominator
    for factor in (2, 5):
        while left % factor == 0:
            left //= factor
    return left == 1


def is_part_of_more(text: str) -> bool:
    """Whether a bare text begins with a number that what follows makes another one: ``15x``, ``12 or 15``, ``3万``."""
    plain = _without_start(_CURRENCY, _without_latex(text[:_MAX_CHARS]))
    found = _NUMBER.match(plain)
    rest = plain[found.end() :] if found else ""
    return bool(rest) and not _is_unit(rest) and bool(rest[0].isalpha() or _CHANGING.match(rest.strip()))


def concluded_value(text: str) -> Fraction | None:
    """Return the value of a bare text that is one number, with a sentence behind it perhaps, or None.

    Of a sentence it is what follows the last "is" or "equals" (为, 是, 等于), or a Chinese one's only number.
    """
    value = number_value(text)
    if value is None and len(text) <= _MAX_CHARS:
        first = _SENTENCE_END.split(text, maxsplit=1)[0]
        value = number_value(first)
        if value is None and _CHINESE.search(first):
            value = _chinese_value(_without_latex(first))
        elif value is None and (copula := _ENGLISH_COPULA.match(first)):
            value = number_value(first[copula.end() :])
    return value


def _chinese_value(sentence: str) -> Fraction | None:
    copula = _COPULA.match(sentence)
    if copula:
        return number_value(sentence[copula.end() :])
    numbers = list(_ANY_NUMBER.finditer(sentence))
    if len(numbers) != 1 or _LATIN.search(sentence) or _NEGATING_CHINESE.search(sentence[: numbers[0].start()]):
        return None
    return number_value(sentence[numbers[0].start() :])


def _without_start(pattern: re.Pattern[str], text: str) -> str:
    found = pattern.match(text)
    return text[found.end() :] if found else text


def _without_latex(text: str) -> str:
    text = (
        text.replace("{,}", ",").replace("\\!", "").replace("\\%", "%").replace("\\times", "*").replace("\\cdot", "*")
    )
    text = re.sub(r"\^\s*(?:\{\s*\\circ\s*\}|\\circ)|\\degree", "°", text)
    text = re.sub(r"10\s*\^\s*\{\s*([-+]?\d+)\s*\}", r"10^\1", text)
    text = re.sub(r"(?<=\d)\\[,;: ](?=\d{3}(?!\d))", ",", text)
    text = _LATEX_TEXT.sub(r" \1 ", _LATEX_SPACE.sub(" ", text))
    text = _LATEX_FRACTION.sub(lambda m: f" {m[1] or ''}{m[2] or m[3]}/{m[4] or m[5]} ", text)
    for character, fraction in _VULGAR.items():
        text = text.replace(character, f" {fraction} ")
    return re.sub(r"^\s*-\s+(?=[\d.])", "-", " ".join(text.replace("⁄", "/").split()))


def _last_side(text: str) -> str | None:
    """Return what is right of the last equals sign; None where a text has several equations."""
    before, equals, after = text.rpartition("=")
    if equals and (re.search(r"[,;](?!\d{3})|\b(?:and|or)\b|[<>≠!]\s*$", before) or not after.strip()):
        return None
    return after


def _value(found: re.Match[str]) -> Fraction | None:
    if found["over"] is not None:
        under = Fraction(found["under"].replace(",", ""))
        if not under:
            return None
        value = Fraction(found["whole"] or 0) + Fraction(found["over"].replace(",", "")) / under
        return -value if found["sign"] == "-" else value
    exponent = int(found["exponent"] or 0) if len(found["exponent"] or "") < 5 else _MAX_EXPONENT + 1
    if abs(exponent) > _MAX_EXPONENT:
        return None
    value = Fraction(found["decimal"].replace(",", "").replace(" ", "")) * Fraction(10) ** exponent
    return -value if found["sign2"] == "-" else value


def _is_unit(rest: str) -> bool:
    """Whether what follows a number leaves its value: nothing, a unit, or words that are no arithmetic."""
    words = rest.strip().rstrip(".")
    if not words:
        return True
    if _CHINESE.search(words):
        return _UNIT.fullmatch(words) is not None and not _CHANGING_CHINESE.search(_UNITS_OF_CHANGING.sub("", words))
    if _UNIT.fullmatch(words) or _REMARK.fullmatch(words):
        return True
    return rest[0].isspace() and _WORDS.fullmatch(words) is not None and not _CHANGING.search(words)

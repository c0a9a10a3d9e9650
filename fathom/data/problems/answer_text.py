"""Where a text says its answer, and the answer without the words, Markdown and LaTeX around it.

The forms are those that chat models and data sets write: "Answer: 15", "**Final Answer**", "The answer is $15$. I hope
it is correct." (Minerva), and the Chinese ones.
"""

from __future__ import annotations

import re

_FULL_WIDTH = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)} | {0x3000: " ", 0x3002: ".", 0x2212: "-"}

_MAX_BARE_CHARS = 2000
"""A longer text is more than an answer."""
_NOT = r"(?!\s*(?:not\b|n't|isn't|unknown\b|不|非|没))"
_ENGLISH = r"(?:\b(?:final\s+|correct\s+|numerical\s+)?answer|\bfinal\s+result)\b(?:\s+(?:to|for|of)\s[^.:=\n]{0,80}?)?"
_CHINESE = r"(?:最终|最后|正确|标准)?(?:的)?(?:答案|最终结果)"
_MARKER = re.compile(
    rf"{_ENGLISH}\s*(?:(?:is|are|=|would\s+be|should\s+be)(?=[\s:$\\(\[\d*`-])\s*:?|:){_NOT}\s*"
    rf"|{_CHINESE}\s*(?:应?该?[是为]|等于|=)?\s*(?:(?<=[是为于=])|:){_NOT}\s*:?\s*"
    r"|【\s*答案\s*】"
    rf"|(?:^|(?<=[\s,.;。，；]))答\s*:{_NOT}\s*"
    r"|(?:故|因此|所以|应该?|正确|答案|^)\s*,?\s*(?:答案)?选[择项]?[是为]?\s*:?\s*(?=\(?[A-J])"
    r"|\b(?:correct|best|right)\s+(?:option|choice)\s*(?:is|:)\s*",
    re.IGNORECASE,
)
_HEADING = re.compile(
    rf"(?:(?:(?:so|therefore|thus|hence),?\s+)?(?:the\s+)?(?:{_ENGLISH})(?:\s+is)?|{_CHINESE}[是为]?|答)", re.IGNORECASE
)
_LABEL = re.compile(rf"(?:the\s+)?(?:{_MARKER.pattern})", re.IGNORECASE)
_CONCLUSION = re.compile(
    r"[*_\s]*(?:so|therefore|thus|hence|in\s+total|altogether|因此|所以|故|综上|于是|答\s*:)[\s,:]?.*\d", re.IGNORECASE
)
_SECTION = re.compile(
    r"(?:step|part|method|approach|solution|explanation|verification|check|case|note|calculation|步骤|第|解|分析|验证)"
    r"|.*:$|.*\bstep\b",
    re.IGNORECASE,
)
_DISPLAY = re.compile(r"\\\[(.{0,1000}?)\\\]|\$\$(.{0,1000}?)\$\$", re.DOTALL)
_FENCE = re.compile(r"\s*(?:```|~~~)[\w-]*\s*")
_LINE_START = re.compile(r"(?:#+\s*|>\s*(?![\d\s])|[-*•+]\s+(?!\d))+")
_BOLD = re.compile(r"\*\*(?=\S)(.{1,400}?)(?<=\S)\*\*|__(?=\S)(.{1,400}?)(?<=\S)__")
_CODE = re.compile(r"`([^`\n]+)`")
_MATH = re.compile(r"\$\$(.{1,1000}?)\$\$|\$([^$]+)\$|\\\((.{1,1000}?)\\\)|\\\[(.{1,1000}?)\\\]", re.DOTALL)
_LETTER = re.compile(
    r"(?:(?:[Oo]ption|[Cc]hoice)\s+|选项\s*)?\(?([A-J])\)?(?:\s*选?项|[.:,)]\s.*)?",
    re.DOTALL,
)
_STYLED = re.compile(r"\\(?:text|math)[a-z]*\s*\{([^{}]*)\}")
_COMMAND = re.compile(r"\\(?:boxed|fbox|text|textbf|textit|textrm|mathrm|mathbf|mbox|operatorname)\s*\{")
_WRAPPERS = (
    *(("**", "**"), ("__", "__"), ("$$", "$$"), ("\\(", "\\)"), ("\\[", "\\]"), ("```", "```"), ("`", "`")),
    *(("$", "$"), ("*", "*"), ("_", "_"), ("{", "}"), ('"', '"'), ("'", "'"), ("“", "”"), ("「", "」"), ("【", "】")),
)


def half_width(text: str) -> str:
    """Return the text with full-width digits, letters and punctuation as ASCII has them."""
    return text.translate(_FULL_WIDTH)


def after_hashes(text: str) -> str | None:
    """Return what follows the last ``####`` on its line, as GSM8K ends; None where that is a Markdown heading."""
    _, marker, rest = text.rpartition("####")
    line = rest.partition("\n")[0].strip()
    if not marker or not line:
        return line if marker else None
    plain = _heading_text(line)
    return None if _HEADING.fullmatch(plain) or _SECTION.match(half_width(line)) else line


def concluding_line(text: str) -> str | None:
    """Return the line that says the answer although it is not the last: "Answer: 15" with an explanation behind it.

    None where there is no such line, or the last one is an answer alone or a conclusion. Mathematics over several
    lines is one line, and the line after a heading such as "Final Answer" is the one that counts. Words within a
    sentence ("the answer is 12") count only where no number comes after them.
    """
    lines = _lines(text)
    if not lines or stands_alone(lines[-1]) or _CONCLUSION.match(half_width(lines[-1])):
        return None
    numbers_after = False
    for place in reversed(range(len(lines))):
        marked, heading = after_marker(lines[place]), _HEADING.fullmatch(_heading_text(lines[place]))
        if (marked == "" or heading) and place + 1 < len(lines):
            return lines[place + 1]
        if marked and (_LABEL.match(_heading_text(lines[place])) or not numbers_after):
            return lines[place]
        numbers_after = numbers_after or bool(re.search(r"\d", lines[place]))
    return None


def last_line(text: str) -> str:
    """Return the last line with text, mathematics over several lines being one."""
    lines = _lines(text)
    return lines[-1] if lines else ""


def _lines(text: str) -> list[str]:
    joined = _DISPLAY.sub(lambda found: " ".join(found[0].split()), text) if "\n" in text else text
    return [line.strip() for line in joined.split("\n") if line.strip() and not _FENCE.fullmatch(line)]


def _heading_text(line: str) -> str:
    return half_width(line).strip("#*_>-: \t.")


def stands_alone(line: str) -> bool:
    """Whether a line is nothing but mathematics, a bold or quoted value, a number or a letter."""
    start = _LINE_START.match(line)
    bare = line[start.end() if start else 0 :].strip().rstrip(".。 ")
    if any(whole.fullmatch(bare) for whole in (_MATH, _BOLD, _CODE)):
        return not _HEADING.fullmatch(_heading_text(bare))
    return bool(re.fullmatch(r"[-+$€£¥￥]?[\d.,０-９]+\s*(?:%|％|\\%)?|\(?[A-J]\)?", half_width(bare)))


def after_marker(line: str) -> str | None:
    """Return what follows the last words that announce an answer; empty where nothing does, None without such words."""
    plain = half_width(_BOLD.sub(lambda found: found[1] or found[2], line))
    marks = list(_MARKER.finditer(plain))
    return plain[marks[-1].end() :].strip(" \t*_:") if marks else None


def bare_text(text: str) -> str:
    """Return an answer without what announces it, Markdown, dollar signs, ``\\boxed``, ``\\text`` and a final stop.

    A sentence with one bold, quoted or mathematical part is that part.
    """
    current = half_width(text).strip()
    if len(current) > _MAX_BARE_CHARS:
        return current
    if "$" not in current.replace("\\$", ""):
        current = current.replace("\\$", "$")  # a currency sign, as Markdown escapes it
    for _ in range(8):
        before = current
        current = current[start.end() :] if (start := _LINE_START.match(current)) else current
        current = _unwrapped(current.strip().rstrip(".。,;").strip())
        marked = after_marker(current)
        if marked:
            current = marked
        if current == before:
            break
    return _only_part(current)


def choice_letter(text: str) -> str | None:
    """Return the letter of a choice where a bare text begins with one: ``B``, ``(B)``, ``B. Paris``, ``option B``."""
    found = _LETTER.fullmatch(_STYLED.sub(r"\1", text))
    return found[1] if found else None


def _unwrapped(text: str) -> str:
    for begin, end in _WRAPPERS:
        inside = text[len(begin) : len(text) - len(end)]
        if len(text) > len(begin) + len(end) and text.startswith(begin) and text.endswith(end):
            if begin == "{" and not _balanced(inside):
                continue
            if begin != "{" and begin in inside:
                continue
            return inside.strip()
    command = _COMMAND.match(text)
    if command and text.endswith("}") and _balanced(text[command.end() : -1]):
        return text[command.end() : -1].strip()
    return text


def _balanced(text: str) -> bool:
    depth = 0
    for character in text:
        depth += {"{": 1, "}": -1}.get(character, 0)
        if depth < 0:
            return False
    return depth == 0


def _only_part(text: str) -> str:
    for pattern in (_BOLD, _CODE, _MATH):
        parts = pattern.findall(text)
        if len(parts) == 1 and pattern.fullmatch(text) is None:
            part = parts[0] if isinstance(parts[0], str) else "".join(parts[0])
            return bare_text(part)
        if parts:
            return text
    return text

"""llama.cpp's pre-tokenizer names, and the patterns each stands for in a tokenizer.json.

A GGUF file gives such a name and no patterns. Each name stands for regular expressions applied one after another,
every one of them to the pieces that those before it left; so does a tokenizer.json, in Oniguruma's notation.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from fathom.errors import CheckpointError


@dataclass(frozen=True, slots=True)
class PreTokenizerRules:
    """What a name stands for.

    ``ignore_merges`` takes a piece that is a token as that token, without merging; ``adds_bos`` begins a text with the
    beginning-of-sentence token where the file does not say.
    """

    patterns: tuple[str, ...]
    ignore_merges: bool = False
    adds_bos: bool = False


def _between(ranges: str) -> str:
    """Return the inside of a character class: ranges of code points in hexadecimal, as characters."""
    return "".join("-".join(chr(int(end, 16)) for end in part.split("-")) for part in ranges.split())


_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = _WORDS + r"\p{N}{1,3}" + _REST
_QWEN2 = _WORDS + r"\p{N}" + _REST
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_DEEPSEEK_CJK = f"[{_between('4E00-9FA5 0800-4E00 AC00-D7FF')}]+"
_DEEPSEEK_LETTERS = _between(
    "41-5A 61-7A B5 C0-D6 D8-F6 F8-1BA 1BC-1BF 1C4-293 295-2AF 370-373 376 377 37B-37D 37F 386 388-38A 38C 38E-3A1"
    " 3A3-3F5 3F7-481 48A-52F 531-556 10A0-10C5 13A0-13F5 13F8-13FD 1C90-1CBA 1CBD-1CBF 1D00-1D2B 1D6B-1D77"
    " 1D79-1D9A 1E00-1F15 1F18-1F1D 1F20-1F45 1F48-1F4D 1F50-1F57 1F59 1F5B 1F5D 1F5F-1F7D 1F80-1FB4 1FB6-1FBC"
    " 1FBE 1FC2-1FC4 1FC6-1FCC 1FD0-1FD3 1FD6-1FDB 1FE0-1FEC 1FF2-1FF4 1FF6-1FFC 2102 2107 210A-2113 2115"
    " 2119-211D 2124 2126 2128 212A-212D 212F-2134 2139 213C-213F 2145-2149 214E 2183 2184 2C00-2C7B 2C7E-2CE4"
    " 2CEB-2CEE 2CF2 2CF3 A640-A66D A680-A69B A722-A76F A771-A787 A78B-A78E AB70-ABBF FB00-FB06 FB13-FB17"
    " FF21-FF3A FF41-FF5A 10400-1044F 104B0-104D3 104D8-104FB 10C80-10CB2 10CC0-10CF2 118A0-118DF 1E900-1E943"
)
_DEEPSEEK_SIGNS = _between("21-2F 3A-7E FF01-FF0F FF1A-FF5E 2018-201F 3000-3002")
_DEEPSEEK_V3 = (
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"""
    r"""| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"""
)
_SPLITS = {
    "default": PreTokenizerRules((r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]")),
    "gpt-2": PreTokenizerRules((_GPT2,)),
    "smollm": PreTokenizerRules((r"\p{N}", _GPT2)),
    "llama-bpe": PreTokenizerRules((_LLAMA3,), ignore_merges=True, adds_bos=True),
    "dbrx": PreTokenizerRules((_LLAMA3,)),
    "qwen2": PreTokenizerRules((_QWEN2,)),
    "tekken": PreTokenizerRules((_TEKKEN,), ignore_merges=True, adds_bos=True),
    "deepseek-llm": PreTokenizerRules(
        (
            r"[\r\n]",
            rf"\s?[{_DEEPSEEK_LETTERS}]+",
            rf"\s?[{_DEEPSEEK_SIGNS}]+",
            r"\s+$",
            _DEEPSEEK_CJK,
            r"\p{N}+",
        )
    ),
    "deepseek-coder": PreTokenizerRules((r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _DEEPSEEK_CJK, r"\p{N}")),
    "deepseek-v3": PreTokenizerRules((r"\p{N}{1,3}", f"[{_between('4E00-9FA5 3040-309F 30A0-30FF')}]+", _DEEPSEEK_V3)),
}
_SAME = {
    "gpt-2": "phi-2 mpt olmo jais trillion granite-docling exaone4 gigachat a.x-4.0 mellum",
    "smollm": "starcoder refact command-r codeshell exaone minerva-7b mellum2",
    "llama-bpe": "llama3 llama-v3 falcon3 falcon-h1 pixtral midm-2.0 lfm2",
    "dbrx": "smaug-bpe glm4 chatglm-bpe",
    "qwen2": "deepseek-r1-qwen kormo f2llmv2 stablelm2 megrez hunyuan solar-open grok-2",
    "deepseek-v3": "hunyuan-dense joyai-llm",
}
PRE_TOKENIZERS: Mapping[str, PreTokenizerRules] = MappingProxyType(
    _SPLITS | {alias: _SPLITS[name] for name, aliases in _SAME.items() for alias in aliases.split()}
)
"""All names that are read; llama.cpp distinguishes those of equal patterns for other reasons."""
_DIGITS = {r"\p{N}+": r"\p{N}"}
"""Published DeepSeek LLM splits digits singly where llama.cpp's name takes runs: no merge joins digits there."""


def pre_tokenizer_by_name(name: str) -> PreTokenizerRules:
    """Return what a name stands for; an unknown one raises ``CheckpointError`` with those known."""
    if name not in PRE_TOKENIZERS:
        known = ", ".join(_SPLITS)
        raise CheckpointError(
            f"tokenizer.ggml.pre: {name!r} is not known; use a model of {known}, or a name that stands for the same"
        )
    return PRE_TOKENIZERS[name]


def pre_tokenizer(split: PreTokenizerRules) -> dict[str, Any]:
    """Return the part of a tokenizer.json that splits so, over bytes."""
    parts: list[dict[str, Any]] = [
        {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
        for pattern in split.patterns
    ]
    bytes_ = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    return {"type": "Sequence", "pretokenizers": [*parts, bytes_]}


def pre_tokenizer_name(tokenizer_json: Mapping[str, Any]) -> str | None:
    """Return llama.cpp's name for how a byte-level tokenizer.json splits, or None where it has none."""
    patterns = tuple(_patterns(tokenizer_json.get("pre_tokenizer") or {}))
    ignores = bool(tokenizer_json["model"].get("ignore_merges", False))
    for name, split in _SPLITS.items():
        singly = tuple(_DIGITS.get(pattern, pattern) for pattern in split.patterns)
        if patterns in (split.patterns, singly) and ignores == split.ignore_merges:
            return name
    return None


def _patterns(part: Mapping[str, Any]) -> Iterator[str]:
    """Yield what a pre-tokenizer splits by; anything unlike llama.cpp's way yields a pattern that no name has."""
    match part:
        case {"type": "Sequence", "pretokenizers": parts}:
            for inner in parts:
                yield from _patterns(inner)
        case {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}:
            yield pattern.replace("\r", r"\r").replace("\n", r"\n")
        case {"type": "Digits", "individual_digits": single}:
            yield r"\p{N}" if single else r"\p{N}+"
        case {"type": "ByteLevel", "add_prefix_space": False}:
            if part.get("use_regex", True):
                yield _GPT2
        case _:
            yield ""

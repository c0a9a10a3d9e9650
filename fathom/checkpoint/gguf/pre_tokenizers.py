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
from fathom.tokenizer import patterns


@dataclass(frozen=True, slots=True)
class PreTokenizerRules:
    """What a name stands for.

    ``ignore_merges`` takes a piece that is a token as that token, without merging; ``adds_bos`` begins a text with the
    beginning-of-sentence token where the file does not say.
    """

    patterns: tuple[str, ...]
    ignore_merges: bool = False
    adds_bos: bool = False


_SPLITS = {
    "default": PreTokenizerRules(patterns.LLAMA_CPP_DEFAULT),
    "gpt-2": PreTokenizerRules((patterns.GPT2,)),
    "smollm": PreTokenizerRules((r"\p{N}", patterns.GPT2)),
    "llama-bpe": PreTokenizerRules((patterns.LLAMA3,), ignore_merges=True, adds_bos=True),
    "dbrx": PreTokenizerRules((patterns.LLAMA3,)),
    "qwen2": PreTokenizerRules((patterns.QWEN2,)),
    "tekken": PreTokenizerRules((patterns.TEKKEN,), ignore_merges=True, adds_bos=True),
    "deepseek-llm": PreTokenizerRules(patterns.DEEPSEEK_LLM),
    "deepseek-coder": PreTokenizerRules(patterns.DEEPSEEK_CODER),
    "deepseek-v3": PreTokenizerRules(patterns.DEEPSEEK_V3_SPLITS),
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
    found = tuple(_patterns(tokenizer_json.get("pre_tokenizer") or {}))
    ignores = bool(tokenizer_json["model"].get("ignore_merges", False))
    for name, split in _SPLITS.items():
        singly = tuple(_DIGITS.get(pattern, pattern) for pattern in split.patterns)
        if found in (split.patterns, singly) and ignores == split.ignore_merges:
            return name
    return None


def _patterns(part: Mapping[str, Any]) -> Iterator[str]:
    """Yield what a pre-tokenizer splits by; anything unlike llama.cpp's way yields a pattern that no name has."""
    match part:
        case {"type": "Sequence", "pretokenizers": parts}:
            for inner in parts:
                yield from _patterns(inner)
        case {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}:
            yield patterns.escaped(pattern)
        case {"type": "Digits", "individual_digits": single}:
            yield r"\p{N}" if single else r"\p{N}+"
        case {"type": "ByteLevel", "add_prefix_space": False}:
            if part.get("use_regex", True):
                yield patterns.GPT2
        case _:
            yield ""

"""config.json files and tokenizers as others publish them."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, decoders, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as Library

from fathom.checkpoint.hf import save_hf
from fathom.errors import FathomError
from fathom.inference.loading import open_source
from fathom.model.build import build
from fathom.tokenizer import Tokenizer
from tests.checkpoint.test_sentencepiece import publish
from tests.compatibility.case import Case, Outcome, Status
from tests.compatibility.modelfiles import SPEC

ALPHABET = {character: index for index, character in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
END = {"content": "</s>", "lstrip": False, "rstrip": False, "normalized": False, "single_word": False}
YARN = {"factor": 4.0, "original_max_position_embeddings": 16}


class _Lines(logging.Handler):
    """Keeps what is logged."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def _told(folder: Path, do: Callable[[], str]) -> Outcome:
    """Do something and return its figure, or the line that was logged, or the one that refused it, without paths."""
    handler, logger = _Lines(), logging.getLogger("fathom")
    logger.addHandler(handler)
    try:
        found = do()
    except FathomError as error:
        return Outcome("refused", _short(str(error), folder))
    finally:
        logger.removeHandler(handler)
    return Outcome("ignored", _short(handler.lines[0], folder)) if handler.lines else Outcome("works", found)


def _short(line: str, folder: Path) -> str:
    for place in (f"{folder}/model/", f"{folder}/model: ", f"{folder}/", f"{folder}: "):
        line = line.replace(place, "")
    return line


@dataclass(frozen=True, slots=True)
class Config:
    """Opens a model whose config.json has these fields."""

    changes: dict[str, Any]

    def __call__(self, folder: Path) -> Outcome:
        path = save_hf(folder / "model", SPEC, build(SPEC, seed=1).state_dict()) / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | self.changes))
        return _told(folder, lambda: f"{len(open_source(path.parent).dtypes)} tensors")


@dataclass(frozen=True, slots=True)
class Text:
    """Encodes a text with special tokens allowed, by a tokenizer beside these files."""

    library: Callable[[], Library]
    text: str
    files: dict[str, Any]

    def __call__(self, folder: Path) -> Outcome:
        self.library().save(str(folder / "tokenizer.json"))
        for name, content in self.files.items():
            (folder / f"{name}.json").write_text(json.dumps(content))
        return _told(folder, lambda: self._encoded(folder))

    def _encoded(self, folder: Path) -> str:
        tokenizer = Tokenizer.load(folder)
        ids = tokenizer.encode(self.text, allow_special=True)
        names = ", ".join(tokenizer.id_to_token(i) for i in ids)
        return f"ends at {tokenizer.id_to_token(tokenizer.eos_id)}; {names}"


def _bytes(*added: AddedToken, truncated: bool = False) -> Library:
    library = Library(models.BPE(ALPHABET | {"<s>": 256, "</s>": 257}, []))
    library.pre_tokenizer, library.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    library.add_tokens(list(added))
    if truncated:
        library.enable_truncation(2)
    return library


def _trained(model: Any, trainer: Any) -> Library:
    library = Library(model)
    if isinstance(model, models.Unigram):
        library.pre_tokenizer, library.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    else:
        library.pre_tokenizer = pre_tokenizers.Whitespace()
        library.decoder = decoders.WordPiece() if isinstance(model, models.WordPiece) else None
    library.train_from_iterator(["the quick fox and the lazy dog"] * 5, trainer)
    return library


def _unigram() -> Library:
    names = ["<unk>", "</s>"]
    trainer = trainers.UnigramTrainer(vocab_size=60, special_tokens=names, unk_token="<unk>", show_progress=False)
    return _trained(models.Unigram(), trainer)


def _words() -> Library:
    trainer = trainers.WordLevelTrainer(special_tokens=["<unk>", "</s>"], show_progress=False)
    return _trained(models.WordLevel(unk_token="<unk>"), trainer)


def _word_pieces() -> Library:
    trainer = trainers.WordPieceTrainer(vocab_size=60, special_tokens=["<unk>", "</s>"], show_progress=False)
    return _trained(models.WordPiece(unk_token="<unk>"), trainer)


def _sentencepiece(folder: Path) -> Outcome:
    """Open a model whose tokenizer is a SentencePiece file only; the same one that transformers' classes read."""
    publish(folder / "model")
    tokenizer = open_source(folder / "model").tokenizer()
    names = [] if tokenizer is None else [tokenizer.id_to_token(i) for i in tokenizer.encode("the quick fox")]
    return Outcome("works" if names else "refused", ", ".join(names))


def _no_json(folder: Path) -> Outcome:
    (folder / "model").mkdir()
    (folder / "model/config.json").write_text("[1]")
    return _told(folder, lambda: open_source(folder / "model").form)


def _config(what: str, zh: str, expected: Status, changes: dict[str, Any], source: str = "") -> Case:
    return Case(what=what, zh=zh, expected=expected, run=Config(changes), source=source)


def _text(what: str, zh: str, library: Callable[[], Library], text: str, source: str = "", **files: Any) -> Case:
    given = files or {"tokenizer_config": {"eos_token": "</s>"}}
    return Case(what=what, zh=zh, expected="works", run=Text(library, text, given), source=source)


def _refused(what: str, zh: str, **files: Any) -> Case:
    return Case(what=what, zh=zh, expected="refused", run=Text(_bytes, "a", files))


CONFIGS = (
    _config(
        "config.json: fields of other tools",
        "config.json 含其他工具写入的字段",
        "ignored",
        {"unsloth_fixed": True, "model_max_length": 64, "use_flash_attn": True},
    ),
    _config("config.json: a whole number as 32.0", "config.json 把整数写成 32.0", "works", {"hidden_size": 32.0}),
    _config(
        "config.json: rope_scaling with type",
        "rope_scaling 使用 type 字段",
        "works",
        {"rope_scaling": {"type": "yarn", **YARN}},
    ),
    _config(
        "config.json: rope_parameters of transformers 5",
        "transformers 5 的 rope_parameters",
        "works",
        {"rope_scaling": None, "rope_parameters": {"rope_type": "yarn", "rope_theta": 10000.0, **YARN}},
    ),
    _config(
        "config.json: dynamic NTK scaling",
        "动态 NTK 缩放（dynamic）",
        "refused",
        {"rope_scaling": {"type": "dynamic", "factor": 2.0}},
    ),
    _config(
        "config.json: LongRoPE",
        "LongRoPE 缩放",
        "refused",
        {"rope_scaling": {"type": "longrope", "short_factor": [1.0], "long_factor": [2.0]}},
    ),
    _config("config.json: logit soft caps", "logits 软上限", "refused", {"final_logit_softcapping": 30.0}),
    _config("config.json: Granite's multipliers", "Granite 的乘数字段", "refused", {"residual_multiplier": 0.22}),
    _config("config.json: partly rotated heads", "注意力头只旋转一部分", "refused", {"partial_rotary_factor": 0.5}),
    _config("config.json: windows on some layers", "部分层使用滑动窗口", "refused", {"sliding_window": 16}),
    _config(
        "config.json: a window as wide as the context", "滑动窗口不小于上下文长度", "works", {"sliding_window": 64}
    ),
    _config("config.json: GELU", "激活函数为 GELU", "refused", {"hidden_act": "gelu"}),
    _config("config.json: an unknown model_type", "未知的 model_type", "refused", {"model_type": "gpt_neox"}),
    *(
        _config(
            f"config.json: weights quantised by {name}",
            f"{name} 量化的权重",
            "refused",
            {"quantization_config": {"quant_method": name}},
        )
        for name in ("gptq", "awq", "bitsandbytes", "compressed-tensors", "mxfp4")
    ),
    Case(what="config.json that is no object", zh="config.json 不是 JSON 对象", expected="refused", run=_no_json),
)

TOKENIZERS = (
    _text(
        "end of sequence only in special_tokens_map.json",
        "结束符只写在 special_tokens_map.json 中",
        _bytes,
        "a</s>",
        "pytorch/executorch#15215",
        tokenizer_config={"model_max_length": 64},
        special_tokens_map={"eos_token": END},
    ),
    _text(
        "end of sequence only as an id in generation_config.json",
        "结束符只在 generation_config.json 中以编号给出",
        _bytes,
        "a",
        generation_config={"eos_token_id": [257]},
    ),
    Case(
        what="special tokens that contradict each other",
        zh="各文件中的特殊词元互相矛盾",
        expected="ignored",
        run=Text(_bytes, "a", {"tokenizer_config": {"eos_token": "<s>"}, "special_tokens_map": {"eos_token": "</s>"}}),
    ),
    _text(
        "a special token that takes the spaces around it (lstrip, rstrip)",
        "带 lstrip、rstrip 的特殊词元",
        lambda: _bytes(AddedToken("<x>", lstrip=True, rstrip=True, special=True)),
        "a <x> b",
    ),
    _text(
        "an added token for whole words only (single_word)",
        "带 single_word 的添加词元",
        lambda: _bytes(AddedToken("ab", single_word=True)),
        "abc ab",
    ),
    _text(
        "tokenizer.json with a saved truncation",
        "tokenizer.json 中保存了截断设置",
        lambda: _bytes(truncated=True),
        "abcd",
    ),
    _text("SentencePiece Unigram", "SentencePiece Unigram 分词器", _unigram, "the fox</s>"),
    Case(
        what="tokenizer.model (SentencePiece BPE) without tokenizer.json",
        zh="只有 tokenizer.model（SentencePiece BPE），没有 tokenizer.json",
        expected="works",
        run=_sentencepiece,
    ),
    _text("WordLevel", "WordLevel 分词器", _words, "the fox </s>"),
    _text("WordPiece", "WordPiece 分词器", _word_pieces, "the fox </s>"),
    _refused(
        "a named end of sequence that the vocabulary lacks",
        "指定的结束符不在词表中",
        special_tokens_map={"eos_token": "<|absent|>"},
    ),
    _refused(
        "tokenizer.json of an unknown model",
        "tokenizer.json 的模型类型未知",
        tokenizer={"model": {"type": "Trie", "vocab": {}}},
    ),
)

CASES = CONFIGS + TOKENIZERS

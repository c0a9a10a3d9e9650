"""Damaged tokenizer.json files: each is read, or refused; encoding and decoding some text takes little."""

from __future__ import annotations

import json
import random
from typing import Any

from fathom.tokenizer import Tokenizer, train_bpe
from tests.fuzz.driver import Target
from tests.fuzz.json_damage import damage

TEXT = "the <|end|> ab AB 12  \n天!" * 20


def _model(kind: str, **fields: Any) -> dict[str, Any]:
    return {"type": kind, **fields}


class TokenizerJson(Target):
    """An input is a whole tokenizer.json."""

    name = "tokenizer_json"
    suffix = ".json"
    short_executions = 150
    memory_bytes = 1 << 30

    def start(self) -> None:
        trained = json.loads(train_bpe(["the river sees the road"], vocab_size=300).tokenizer_json)
        token = {"content": "<|end|>", "single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
        words = {"▁": 0, "a": 1, "b": 2, "ab": 3, "<0x41>": 4, "[UNK]": 5}
        base = {
            "version": "1.0",
            "truncation": {"direction": "Right", "max_length": 64, "strategy": "LongestFirst", "stride": 0},
            "padding": {
                "strategy": {"Fixed": 8},
                "direction": "Right",
                "pad_to_multiple_of": None,
                "pad_id": 0,
                "pad_type_id": 0,
                "pad_token": "▁",
            },
            "added_tokens": [{**token, "id": 6, "special": True}],
            "normalizer": {
                "type": "Sequence",
                "normalizers": [
                    {"type": "Prepend", "prepend": "▁"},
                    {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
                    {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "},
                ],
            },
            "pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": True},
            "post_processor": {
                "type": "TemplateProcessing",
                "single": [{"SpecialToken": {"id": "<|end|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
                "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
                "special_tokens": {"<|end|>": {"id": "<|end|>", "ids": [6], "tokens": ["<|end|>"]}},
            },
            "decoder": {
                "type": "Sequence",
                "decoders": [
                    {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                    {"type": "ByteFallback"},
                    {"type": "Fuse"},
                    {"type": "Strip", "content": " ", "start": 1, "stop": 0},
                ],
            },
        }
        fallback = {"unk_token": "[UNK]", "byte_fallback": True, "fuse_unk": True}
        models = (
            _model("BPE", vocab=words, merges=[["a", "b"]], **fallback),
            _model("Unigram", unk_id=5, vocab=[[word, -float(index)] for index, word in enumerate(words)]),
            _model("WordLevel", vocab=words, unk_token="[UNK]"),
            _model(
                "WordPiece",
                vocab=words,
                unk_token="[UNK]",
                continuing_subword_prefix="##",
                max_input_chars_per_word=100,
            ),
        )
        self.config = {"eos_token": "<|end|>", "bos_token": None}
        self.known = [*({**base, "model": model} for model in models), self._shared(trained)]
        for one in self.known:
            self._use(json.dumps(one))

    @staticmethod
    def _shared(trained: dict[str, Any]) -> dict[str, Any]:
        last = {**trained["added_tokens"][-1], "content": "<|end|>", "id": 300}
        return {**trained, "added_tokens": [*trained["added_tokens"], last]}

    def make(self, rng: random.Random) -> bytes:
        return json.dumps(damage(rng.choice(self.known), rng)).encode()

    def check(self, data: bytes) -> None:
        with self.tolerated():
            self._use(data.decode())

    def _use(self, text: str) -> None:
        (self.folder / "tokenizer.json").write_text(text)
        (self.folder / "tokenizer_config.json").write_text(json.dumps(self.config))
        tokenizer = Tokenizer.load(self.folder)
        for special in (False, True):
            ids = tokenizer.encode(TEXT, allow_special=special)
            assert len(ids) < 100 * len(TEXT)
            assert len(tokenizer.decode(ids, skip_special=not special)) < 10_000 * len(TEXT)
        tokenizer.decode([*tokenizer.prefix_ids, 0, 10**9])
        assert tokenizer.unused_ids(64) is not None


TARGETS = (TokenizerJson,)

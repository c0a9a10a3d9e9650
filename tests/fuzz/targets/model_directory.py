"""Model directories with a damaged config.json, or with damaged files beside it, opened as every verb opens them."""

from __future__ import annotations

import json
import random
import resource
from pathlib import Path
from typing import Any

import torch

from fathom.checkpoint.weights import load_weights
from fathom.inference.inspection import inspect_source
from fathom.inference.loading import open_source
from fathom.model.build import build
from tests.fuzz.driver import Target
from tests.fuzz.json_damage import damage
from tests.published import SPECS, train_tokenizer, write_published

_BESIDE = ("tokenizer_config.json", "generation_config.json", "special_tokens_map.json", "added_tokens.json")
_CPU_SECONDS = 3.0


class ModelConfig(Target):
    """An input is {"model": one of ``SPECS``, "config": the damaged config.json}."""

    name = "model_config"
    suffix = ".json"
    short_executions = 250
    memory_bytes = 400 * 2**20

    def start(self) -> None:
        train_tokenizer(self.folder / "tokenizer")
        self.configs: dict[str, Any] = {}
        for name, spec in SPECS.items():
            write_published(self.folder / name, spec, self.folder / "tokenizer")
            self.configs[name] = json.loads((self.folder / name / "config.json").read_text())
            exercise(self.folder / name)

    def make(self, rng: random.Random) -> bytes:
        name = rng.choice(list(self.configs))
        return json.dumps({"model": name, "config": damage(self.configs[name], rng)}).encode()

    def check(self, data: bytes) -> None:
        given = json.loads(data)
        folder = self.folder / given["model"]
        (folder / "config.json").write_text(json.dumps(given["config"]))
        begin = resource.getrusage(resource.RUSAGE_SELF)
        with self.tolerated():
            exercise(folder)
        end = resource.getrusage(resource.RUSAGE_SELF)
        used = end.ru_utime + end.ru_stime - begin.ru_utime - begin.ru_stime
        assert used < _CPU_SECONDS, f"took {used:.1f} s of processor time"


def exercise(folder: Path) -> None:
    """Inspect a model, load it and run it over a few tokens."""
    source = open_source(folder)
    json.dumps(inspect_source(source))
    model = build(source.spec, dtype=torch.float32, seed=None)
    load_weights(model, source)
    length = min(3, source.spec.max_position_embeddings)
    with torch.inference_mode():
        hidden_BTD = model(torch.zeros((1, length), dtype=torch.int64)).hidden_BTD
    assert hidden_BTD.shape == (1, length, source.spec.hidden_size)


class ModelDescriptions(Target):
    """An input is {name: the damaged content} of one file beside a whole model."""

    name = "model_descriptions"
    suffix = ".json"
    short_executions = 150

    def start(self) -> None:
        train_tokenizer(self.folder / "tokenizer")
        self.model = self.folder / "model"
        write_published(self.model, SPECS["tiny-llama"], self.folder / "tokenizer")
        (self.model / "generation_config.json").write_text('{"eos_token_id": [1, 2], "temperature": 0.7}')
        own = json.loads((self.model / "tokenizer_config.json").read_text())
        token = {"content": own["eos_token"], "lstrip": False, "special": True}
        named = {"eos_token": token, "pad_token": own["pad_token"], "additional_special_tokens": [own["bos_token"]]}
        (self.model / "special_tokens_map.json").write_text(json.dumps(named))
        (self.model / "added_tokens.json").write_text('{"<extra>": 320}')
        self.contents = {name: (self.model / name).read_text() for name in _BESIDE}
        exercise(self.model)

    def make(self, rng: random.Random) -> bytes:
        name = rng.choice(_BESIDE)
        return json.dumps({name: damage(json.loads(self.contents[name]), rng)}).encode()

    def check(self, data: bytes) -> None:
        given = json.loads(data)
        for name, content in self.contents.items():
            (self.model / name).write_text(json.dumps(given[name]) if name in given else content)
        with self.tolerated():
            source = open_source(self.model)
            json.dumps(inspect_source(source))
            tokenizer = source.tokenizer()
            assert tokenizer is not None
            tokenizer.decode(tokenizer.encode("the river <|end|> 12", allow_special=True))
            assert source.eos_ids is not None


TARGETS = (ModelConfig, ModelDescriptions)

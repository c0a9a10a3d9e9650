"""Fathom's own checkpoints with one file damaged, opened as weights and as the state that training continues from."""

from __future__ import annotations

import hashlib
import json
import random

import numpy as np
import torch

from fathom.checkpoint.fathom_checkpoint import FathomCheckpoint
from fathom.checkpoint.weights import load_weights
from fathom.checkpoint.writer import MANIFEST
from fathom.data.loader import PackedLoader
from fathom.data.shards import TokenShards
from fathom.errors import FathomError
from fathom.inference.inspection import inspect_source
from fathom.inference.loading import open_source
from fathom.model.build import build
from fathom.spec.train import AdamWSpec, BatchSpec, Constant, TrainSpec
from fathom.train.optimizer import make_optimizer
from fathom.train.state import Position, load_state, save_state
from tests.fuzz.driver import Target
from tests.fuzz.json_damage import damage
from tests.published import SPECS, train_tokenizer

TRAIN = TrainSpec(
    sequence_length=8,
    total_tokens=64,
    batch=BatchSpec(size=2, micro_batch_size=1),
    optimizer=AdamWSpec(lr=0.1),
    schedule=Constant(),
)
_HEADERS = ("model.safetensors", "optimizer.safetensors")
_DOCUMENTS = (MANIFEST, "spec.json", "state.json")


class Checkpoints(Target):
    """An input is the name of a file of the checkpoint, a newline, and its damaged content.

    The manifest is made to agree with the file, as whoever hands a checkpoint over can.
    """

    name = "checkpoints"
    suffix = ".file"
    short_executions = 50
    memory_bytes = 400 * 2**20

    def start(self) -> None:
        self._saved = self.folder / "run" / "step-00000003"
        train_tokenizer(self.folder / "tokenizer")
        self._loader = PackedLoader({"x": self._shards()}, {"x": 1.0}, TRAIN.sequence_length, 1)
        self._spec = SPECS["tiny-deepseek_v3"]
        self._model = build(self._spec, dtype=torch.float32, seed=1)
        self._optimizer = make_optimizer(self._model, TRAIN.optimizer)
        hidden_BTD = self._model(torch.zeros((1, 3), dtype=torch.int64)).hidden_BTD
        hidden_BTD.sum().backward()
        self._optimizer.step()
        save_state(
            self._saved,
            model=self._model,
            optimizer=self._optimizer,
            loader=self._loader,
            spec=TRAIN,
            position=Position(3, 48, 1.5, 2.5),
            files=sorted((self.folder / "tokenizer").iterdir()),
        )
        self._files = {name: (self._saved / name).read_bytes() for name in (*_HEADERS, *_DOCUMENTS)}
        self._use()

    def make(self, rng: random.Random) -> bytes:
        name = rng.choice((*_HEADERS, *_DOCUMENTS, *_DOCUMENTS))
        content = self._files[name]
        if name in _HEADERS:
            length = int.from_bytes(content[:8], "little")
            header = json.dumps(damage(json.loads(content[8 : 8 + length]), rng)).encode()
            damaged = len(header).to_bytes(8, "little") + header + content[8 + length :]
        elif rng.random() < 0.95:
            damaged = json.dumps(damage(json.loads(content), rng)).encode()
        else:
            at = rng.randrange(len(content))
            damaged = content[:at] + rng.randbytes(2) + content[at + rng.randrange(9) :]
        return name.encode() + b"\n" + damaged

    def check(self, data: bytes) -> None:
        name, _, content = data.partition(b"\n")
        self._replace(name.decode(), content)
        try:
            self._use()
        finally:
            for each in {name.decode(), MANIFEST}:
                (self._saved / each).write_bytes(self._files[each])

    def _replace(self, name: str, content: bytes) -> None:
        (self._saved / name).write_bytes(content)
        if name != MANIFEST:
            manifest = json.loads(self._files[MANIFEST])
            manifest["files"][name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
            (self._saved / MANIFEST).write_text(json.dumps(manifest))

    def _use(self) -> None:
        """Open the checkpoint both ways; what one refuses the other may still take."""
        refused = None
        for use in (self._resume, self._open):
            try:
                use()
            except FathomError as error:
                refused = error
        if refused is not None:
            with self.tolerated():
                raise refused

    def _resume(self) -> None:
        position, _ = load_state(
            self._saved, model=self._model, optimizer=self._optimizer, loader=self._loader, spec=TRAIN
        )
        assert min(position.step, position.tokens, position.seconds) >= 0
        self._loader.next(2)

    def _open(self) -> None:
        source = open_source(self._saved)
        assert isinstance(source, FathomCheckpoint)
        json.dumps(inspect_source(source))
        model = build(source.spec, dtype=torch.float32, seed=None)
        load_weights(model, source)
        assert source.eos_ids is not None

    def _shards(self) -> TokenShards:
        folder = self.folder / "shards"
        folder.mkdir()
        tokens = np.arange(90, dtype="<u2").tobytes()
        (folder / "00000.bin").write_bytes(tokens)
        shard = {"file": "00000.bin", "tokens": 90, "documents": 1, "text_bytes": 9, "sha256": "0" * 64}
        index = {"source": "x", "split": "train", "dtype": "<u2", "vocab_size": 99, "tokenizer": "t", "format": 1}
        (folder / "index.json").write_text(json.dumps(index | {"shards": [shard]}))
        return TokenShards.open(folder)


TARGETS = (Checkpoints,)

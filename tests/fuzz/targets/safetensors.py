"""Damaged safetensors files: headers that lie, are cut, or describe what no memory holds."""

from __future__ import annotations

import json
import random
from typing import Any

import torch
from safetensors.torch import save

from fathom.checkpoint.tensorfile import TensorFile
from tests.fuzz.driver import Target
from tests.fuzz.json_damage import damage


class Safetensors(Target):
    """Whole files."""

    name = "safetensors"
    suffix = ".safetensors"
    short_executions = 1500
    memory_bytes = 256 * 2**20

    def start(self) -> None:
        tensors = {
            "a": torch.arange(6, dtype=torch.float32).view(2, 3),
            "layers.0.b": torch.zeros(4, dtype=torch.bfloat16),
            "empty": torch.zeros(0, 3),
            "scalar": torch.tensor(1, dtype=torch.int64),
            "天": torch.ones(3, dtype=torch.uint8),
        }
        self.whole = save(tensors, metadata={"format": "pt"})
        self.path = self.folder / "fuzzed.safetensors"
        self.check(self.whole)

    def make(self, rng: random.Random) -> bytes:
        length = int.from_bytes(self.whole[:8], "little")
        header: Any = json.loads(self.whole[8 : 8 + length])
        body = bytearray(self.whole[8 + length :])
        if rng.random() < 0.7:
            text = bytearray(json.dumps(damage(header, rng)).encode())
            if rng.random() < 0.05:
                text = text.replace(b"layers.0.b", b"a")
        else:
            text = bytearray(self.whole[8 : 8 + length])
            text[rng.randrange(length)] = rng.randrange(256)
        said = len(text) if rng.random() < 0.85 else rng.choice((0, 1, length, 2**31, 2**62, 2**64 - 1))
        if rng.random() < 0.1:
            del body[rng.randrange(len(body)) :]
        data = said.to_bytes(8, "little") + text + body
        return data[: rng.randrange(len(data))] if rng.random() < 0.05 else data

    def check(self, data: bytes) -> None:
        self.path.write_bytes(data)
        with self.tolerated():
            file = TensorFile.open(self.path)
            for name, entry in file.entries.items():
                assert tuple(file.read(name).shape) == entry.shape


TARGETS = (Safetensors,)

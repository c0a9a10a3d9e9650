"""Recipes of one step that learns, on a tiny model with a tokenizer of its own."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from fathom.checkpoint import store
from fathom.checkpoint.hf import save_hf
from fathom.model import build
from fathom.pipeline.context import RunPlan
from fathom.pipeline.run import run
from fathom.pipeline.trust import Trust
from fathom.spec import GroupedQueryAttention, ModelSpec
from fathom.spec.alignment import EpochsSpec, OpenStep
from fathom.spec.epochs import EpochBatch
from fathom.spec.recipe import Recipe, Step
from fathom.spec.train import AdamWSpec, Checkpointing
from fathom.tokenizer import Tokenizer, train_bpe
from tests.recording_progress import RecordingProgress, Update

SPEC = ModelSpec(
    name="tiny",
    family="llama",
    vocab_size=340,
    hidden_size=48,
    num_hidden_layers=2,
    attention=GroupedQueryAttention(num_heads=4, num_kv_heads=2, head_dim=16),
    max_position_embeddings=512,
    intermediate_size=96,
    initializer_range=0.1,
    bos_token_id=0,
    eos_token_id=1,
    pad_token_id=2,
)


def epochs(count: float, **fields: Any) -> EpochsSpec:
    """Return passes with settings that a tiny model learns with."""
    given: dict[str, Any] = {
        "sequence_length": 64,
        "batch": EpochBatch(size=2, micro_batch_size=1),
        "optimizer": AdamWSpec(lr=4e-3, weight_decay=0.0),
        "log_every_steps": 1,
        "checkpoint": Checkpointing(every_steps=5, every_seconds=None, keep_optimizer=True),
    }
    return EpochsSpec(epochs=count, **(given | fields))


@dataclass
class Bench:
    """Runs steps after one that opens the tiny model; ``base`` is the recipe's folder."""

    base: Path
    published: Path
    tokenizer: Tokenizer
    watching: RecordingProgress = field(default_factory=RecordingProgress)

    def run(
        self, out: str, *steps: Step, resume: bool = False, stop_at: int | None = None, allow_changes: bool = False
    ) -> Path:
        torch.set_num_threads(1)
        recipe = Recipe(name="bench", steps=(OpenStep(model=str(self.published)), *steps))

        def stop(update: Update) -> None:
            """Stop the run as a user would, once a step has come so far."""
            if stop_at is not None and "step" in update.metrics and update.step == stop_at:
                os.kill(os.getpid(), signal.SIGTERM)

        self.watching = RecordingProgress(stop)
        run(
            RunPlan(recipe=recipe, manifests={}, base=self.base),
            self.base / out,
            cache_dir=self.base / "cache",
            resume=resume,
            allow_changes=allow_changes,
            progress=self.watching,
            trust=Trust(code=True),
        )
        return self.base / out

    def write(self, name: str, rows: Iterable[Any]) -> str:
        """Write a JSONL file beside the recipe; texts are lines as they are."""
        lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
        path = self.base / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return name


def same_model(one: Path, other: Path) -> bool:
    """Whether the last checkpoints of two steps hold the same weights, optimizer and position."""
    found = [store.latest(step / "checkpoints") for step in (one, other)]
    assert found[0] is not None
    assert found[1] is not None
    first, second = (store.Checkpoint.open(path) for path in found if path is not None)
    states = [opened.document("state") for opened in (first, second)]
    for state in states:
        state.pop("seconds")
    return states[0] == states[1] and all(
        torch.equal(tensor, second.tensors(stem)[name])
        for stem in ("model", "adapter", "optimizer")
        if f"{stem}.safetensors" in first.manifest["files"]
        for name, tensor in first.tensors(stem).items()
    )


@pytest.fixture(scope="session")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("published")
    text = "What is two plus three? It is five, since three follows two. A user asks and the assistant answers.\n"
    train_bpe([text * 4], vocab_size=SPEC.vocab_size).save(root / "tokenizer")
    save_hf(root / "model", SPEC, build(SPEC, seed=6).state_dict(), tokenizer=root / "tokenizer")
    return root / "model"


@pytest.fixture
def bench(tmp_path: Path, published: Path) -> Bench:
    return Bench(tmp_path, published, Tokenizer.load(published))


@pytest.fixture
def passes() -> Callable[..., EpochsSpec]:
    return epochs


@pytest.fixture
def same() -> Callable[[Path, Path], bool]:
    return same_model

"""Steps that train an adapter, and the steps and readers that take their models."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import fathom
from fathom.checkpoint import store
from fathom.data.conversations import loss_mask as mask
from fathom.errors import CheckpointError, Interrupted
from fathom.files import remove_directory
from fathom.pipeline.steps.dpo import DpoStep, PairFile
from fathom.spec.adapter import LoraSpec
from fathom.spec.alignment import ConversationFile, RewardModelStep, SftStep
from fathom.spec.posttrain import PairwiseLoss
from tests.pipeline.steps.test_sft_step import ANSWERS, ASKED, losses, talk

Passes = Callable[..., Any]
TOKENS = [0, 5, 9, 17, 33]


def sft(bench: Any, passes: Passes, **fields: Any) -> SftStep:
    rows = [talk(*each) for each in zip(ASKED, ANSWERS, strict=True)]
    lora = fields.pop("adapter", LoraSpec(rank=8, alpha=32.0))
    data = (ConversationFile(path=bench.write("talks.jsonl", rows)),)
    return SftStep(train=passes(fields.pop("epochs", 10), sequence_length=32, adapter=lora), data=data, **fields)


@pytest.mark.parametrize("form", ["none", "int8"])
def test_an_adapter_learns_and_opens_as_the_model_it_makes(bench: Any, passes: Passes, form: Any) -> None:
    out = bench.run("out", sft(bench, passes, epochs=60, adapter=LoraSpec(rank=8, alpha=32.0, quantize_base=form)))
    base, model = (fathom.load(out / place, device="cpu", dtype="float32") for place in ("base", "."))
    sample = mask.encode_with_loss_mask(bench.tokenizer, talk(ASKED[0], ANSWERS[0])["messages"])
    learned = torch.tensor(sample.learned[1:])
    assert losses(model, sample.tokens)[learned].mean() < 0.5 * losses(base, sample.tokens)[learned].mean()
    saved = store.latest(out / "sft" / "checkpoints")
    assert saved is not None
    weights = {path.name: path.stat().st_size for path in saved.glob("*.safetensors")}
    assert weights.keys() == {"adapter.safetensors", "optimizer.safetensors"}
    opened = store.latest(out / "base" / "checkpoints")
    assert opened is not None
    assert sum(weights.values()) < (opened / "model.safetensors").stat().st_size


def test_a_stopped_step_ends_as_one_that_was_not(bench: Any, passes: Passes, same: Callable[..., bool]) -> None:
    step = sft(bench, passes, adapter=LoraSpec(rank=4, dropout=0.1))
    whole = bench.run("whole", step)
    with pytest.raises(Interrupted):
        bench.run("cut", step, stop_at=8)
    bench.run("cut", step, resume=True)
    assert same(whole / "sft", bench.base / "cut" / "sft")


def test_later_steps_start_from_the_adapted_model_and_may_adapt_it_again(bench: Any, passes: Passes) -> None:
    pair = {"prompt": "two?", "chosen": "five", "rejected": "six"}
    pairs = (PairFile(path=bench.write("pairs.jsonl", [pair, pair | {"prompt": "three?"}])),)
    train = passes(8, sequence_length=64, adapter=LoraSpec(rank=2))
    dpo, scores = DpoStep(train=train, pairs=pairs), RewardModelStep(train=train, loss=PairwiseLoss(), pairs=pairs)
    out = bench.run("out", sft(bench, passes), dpo, scores)
    first = store.Checkpoint.open(store.latest(out / "sft" / "checkpoints") or Path())
    second = store.Checkpoint.open(store.latest(out / "dpo" / "checkpoints") or Path())
    assert first.document("spec")["base"]["step"] == "base"
    assert second.document("spec")["base"]["step"] == "sft"
    base, tuned, preferred, judge = (
        fathom.load(out / place, device="cpu", dtype="float32") for place in ("base", "sft", "dpo", "reward-model")
    )
    expected = dict(base.model.state_dict())
    for saved, lora in ((first, LoraSpec(rank=8, alpha=32.0)), (second, LoraSpec(rank=2))):
        tensors = saved.tensors("adapter")
        for name in (n for n in tensors if n.endswith(".A")):
            place = name.removesuffix(".lora.A") + ".weight"
            update = torch.einsum("...nr,...rk->...nk", tensors[name.removesuffix("A") + "B"], tensors[name])
            expected[place] = expected[place] + lora.scaling * update
        found = (tuned if saved is first else preferred).model.state_dict()
        for name, tensor in expected.items():
            torch.testing.assert_close(found[name], tensor, atol=1e-5, rtol=1e-5)
    assert not torch.equal(preferred.logits(TOKENS), tuned.logits(TOKENS))
    changed = judge.model.lm_head.weight_VD != preferred.model.lm_head.weight_VD
    assert changed.any()


def test_an_adapter_without_its_base_says_what_is_missing(bench: Any, passes: Passes) -> None:
    out = bench.run("out", sft(bench, passes, epochs=2))
    saved = store.latest(out / "sft" / "checkpoints")
    assert saved is not None
    away = bench.base / "away"
    saved.rename(away)
    with pytest.raises(CheckpointError, match="is an adapter outside the run it was trained in; name its base model"):
        fathom.load(away)
    away.rename(saved)
    remove_directory(next((out / "base" / "checkpoints").iterdir()))
    with pytest.raises(CheckpointError, match="the adapter's base model is missing"):
        fathom.load(out / "sft")

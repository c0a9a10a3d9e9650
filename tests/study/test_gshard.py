"""GShard's study: the task, the routers in the encoder-decoder, and what a run leaves."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fathom.errors import SpecError
from fathom.model.moe.balance import expert_balance_loss
from fathom.progress import NULL_PROGRESS
from fathom.spec import Capacity
from fathom.study.gshard import PUBLISHED, run
from fathom.study.gshard_task import EOS, PAD, Languages
from fathom.study.gshard_train import (
    QUICK,
    StudyConfig,
    auxiliary,
    flops_per_token,
    routings,
    target_cross_entropy,
    train,
    variants,
)
from fathom.study.switch_t5 import build, generate
from fathom.study.switch_t5.names import check_names, from_hf, to_hf
from tests.recording_progress import RecordingProgress

TASK = Languages(languages=4, parts=3, words=5, seed=3)


def test_targets_are_the_sources_in_each_languages_words_and_order() -> None:
    batch = TASK.draw(64, torch.Generator().manual_seed(0))
    found_result, orders = TASK.dictionaries()
    first_word = 2 + TASK.languages
    for source, target, labels, language in zip(
        batch.source_BS.tolist(),
        batch.target_BT.tolist(),
        batch.labels_BT.tolist(),
        batch.language_B.tolist(),
        strict=True,
    ):
        assert source[0] == 2 + language
        assert source[-1] == labels[-1] == EOS
        assert target == [PAD, *labels[:-1]]
        words = [token - first_word for token in source[1:-1]]
        assert [word // TASK.words for word in words] == [0, 1, 2]
        expected = [5 * part + int(found_result[language, part, word % 5]) for part, word in enumerate(words)]
        assert [token - first_word for token in labels[:-1]] == [expected[i] for i in orders[language].tolist()]
    assert orders[0].tolist() == [0, 1, 2]
    assert orders[1].tolist() == [2, 1, 0]
    assert int(batch.labels_BT.max()) < TASK.vocab_size
    assert all(sorted(row) == list(range(5)) for row in found_result.flatten(0, 1).tolist())


def test_the_same_generator_draws_the_same_sentences() -> None:
    one, two = (TASK.draw(8, torch.Generator().manual_seed(7)) for _ in range(2))
    assert torch.equal(one.source_BS, two.source_BS)
    assert torch.equal(one.labels_BT, two.labels_BT)


def test_variants_agree_in_flops_but_for_the_router() -> None:
    sizes = StudyConfig()
    specs = variants(sizes)
    flops = {name: flops_per_token(spec) for name, spec in specs.items()}
    routers = 2 * 2 * sizes.d_model * sizes.experts  # two mixtures, two operations a multiply-add
    assert flops["gshard"] - flops["dense"] == routers
    assert flops["switch"] - flops["dense"] == routers // 2
    stored = {name: sum(p.numel() for p in build(spec).parameters()) for name, spec in specs.items()}
    assert stored["gshard"] - stored["switch"] == 2 * sizes.d_model * sizes.experts // 2


def test_two_routers_run_in_one_encoder_decoder() -> None:
    specs = variants(replace(QUICK, experts=4))
    moe = specs["gshard"].moe
    assert moe is not None
    assert moe.router.select == Capacity(capacity_factor=2.0, second="random", group="batch")
    batch = QUICK.task.draw(16, torch.Generator().manual_seed(0))
    for name, chosen in (("gshard", 2), ("switch", 1)):
        model = build(specs[name], scale=1.0).train()
        output = model(batch.source_BS, batch.target_BT, seeds_B=torch.arange(16))
        assert [routed.indices_BTK.shape[-1] for routed in routings(output)] == [chosen, chosen]
        (target_cross_entropy(output.logits_BTV, batch.labels_BT) + auxiliary(output, specs[name])).backward()
        for mixture in model.routers():
            assert mixture.router.weight.grad.abs().sum() > 0


def test_the_auxiliary_loss_is_that_of_first_choices_over_the_batch() -> None:
    spec = variants(QUICK)["gshard"]
    batch = QUICK.task.draw(16, torch.Generator().manual_seed(0))
    output = build(spec)(batch.source_BS, batch.target_BT)
    by_hand = 0.0
    for routed in routings(output):
        scores, first = routed.scores_BTE.flatten(0, 1).detach(), routed.indices_BTK[..., 0].flatten().tolist()
        experts = scores.shape[1]
        l_aux = sum(first.count(e) / len(first) * float(scores[:, e].mean()) for e in range(experts)) / experts
        by_hand += 0.01 * experts**2 * l_aux
        assert float(expert_balance_loss(routed, scope="batch", counted="first").detach()) == pytest.approx(
            experts**2 * l_aux
        )
    assert float(auxiliary(output, spec).detach()) == pytest.approx(by_hand)


def test_experts_of_another_width_than_dense_layers_are_named_too() -> None:
    spec = variants(QUICK)["gshard"]
    model = build(spec)
    published = to_hf(spec, model.state_dict())
    check_names(spec, {name: tuple(tensor.shape) for name, tensor in published.items()}, "here")
    back = from_hf(spec, published)
    assert all(torch.equal(back[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("fields", [{"languages": 0}, {"words": -1}])
def test_a_task_without_words_is_refused(fields: dict[str, int]) -> None:
    with pytest.raises(SpecError):
        Languages(**fields)


def test_a_small_model_learns_to_translate() -> None:
    sizes = StudyConfig(
        task=Languages(languages=2, parts=2, words=4),
        d_model=32,
        d_ff=32,
        heads=2,
        experts=4,
        steps=120,
        warmup=10,
        batch=32,
        rate=1e-2,
        points=2,
        held_out=64,
    )
    outcome = train(variants(sizes)["gshard"], sizes, seed=0, tick=lambda: None)
    assert outcome.words_right > 0.9
    assert outcome.loss < 0.5


def test_generation_stops_at_the_end_of_the_sentence() -> None:
    model = build(variants(QUICK)["gshard"]).eval()
    batch = QUICK.task.draw(3, torch.Generator().manual_seed(0))
    answers = generate(model, batch.source_BS, max_new_tokens=6)
    assert all(1 <= len(answer) <= 6 and EOS not in answer[:-1] for answer in answers)


@pytest.mark.slow
def test_a_quick_run_leaves_its_three_files_and_is_reproducible(tmp_path: Path) -> None:
    progress = RecordingProgress()
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    result = run(tmp_path / "one", seed=1, quick=True, progress=progress)
    run(tmp_path / "two", seed=1, quick=True, progress=NULL_PROGRESS)
    assert {path.name for path in (tmp_path / "one").iterdir()} == {"result.json", "table.md", "picture.png"}
    assert json.loads((tmp_path / "one" / "result.json").read_text())["outcomes"].keys() == result["outcomes"].keys()
    assert (progress.updates[-1].phase, progress.updates[-1].done) == ("switch", 4 * QUICK.steps)
    table = (tmp_path / "one" / "table.md").read_text()
    measured, published = table.split("## Published")
    assert all(bleu in published and bleu not in measured for *_, bleu in PUBLISHED)
    for file in ("result.json", "table.md", "picture.png"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()

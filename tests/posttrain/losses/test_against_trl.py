"""Loss and gradient against those of TRL's trainers on the same tensors, where the option exists there."""

from __future__ import annotations

from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from fathom.posttrain.losses import (
    answer_logprobs,
    divergence,
    dpo_loss,
    group_advantages,
    policy_loss,
    token_weights,
)
from fathom.spec.posttrain import AdvantageSpec, DistillationLoss, DpoLoss, KlPenalty, PolicyLoss

pytestmark = pytest.mark.slow

LENGTHS = (5, 2, 7, 1, 4, 3)
LONGEST = 7
BUDGET = 9  # the constant of dr_grpo
MASK_BT = torch.arange(LONGEST)[None] < torch.tensor(LENGTHS)[:, None]
REWARDS = torch.tensor([1.0, 0.0, 0.5, 2.0, -1.0, 0.0], dtype=torch.float64)
GROUPS = torch.tensor([0, 0, 0, 1, 1, 1])


def make() -> dict[str, Tensor]:
    noise = torch.randn(3, len(LENGTHS), LONGEST, generator=torch.Generator().manual_seed(8), dtype=torch.float64)
    old_BT = -noise[0].abs() - 0.1
    reference_BT = old_BT + 0.5 * noise[2]
    return {"logprobs": (old_BT + 0.6 * noise[1]).requires_grad_(), "old": old_BT, "reference": reference_BT}


class Alone:
    """An accelerator of one process."""

    num_processes = 1
    device = torch.device("cpu")

    def gather(self, value: Tensor) -> Tensor:
        return value

    def gather_for_metrics(self, value: Tensor) -> Tensor:
        return value

    def reduce(self, value: Tensor, reduction: str) -> Tensor:
        return value


def grpo_trainer(**options: Any) -> Any:
    trl = pytest.importorskip("trl")
    trainer: Any = trl.GRPOTrainer.__new__(trl.GRPOTrainer)
    settings = {
        "loss_type": "grpo",
        "importance_sampling_level": "token",
        "epsilon_low": 0.2,
        "epsilon_high": 0.2,
        "beta": 0.0,
        "max_completion_length": BUDGET,
        "top_entropy_quantile": 1.0,
        "off_policy_mask_threshold": None,
        "aux_loss_enabled": False,
        "use_vllm": False,
        "_entropy_bonus_enabled": False,
        "current_gradient_accumulation_steps": 1,
        "args": SimpleNamespace(delta=None, use_bias_correction_kl=False, steps_per_generation=1),
        "model": SimpleNamespace(training=True),
        "accelerator": Alone(),
        "_metrics": {"train": defaultdict(list)},
    }
    for name, value in {**settings, **options}.items():
        setattr(trainer, name, value)
    return trainer


def trl_policy_loss(data: dict[str, Tensor], advantages_B: Tensor, trainer: Any) -> Tensor:
    trainer._get_per_token_logps_and_entropies = lambda *_, **__: (
        data["logprobs"],
        torch.zeros_like(data["old"]),
        None,
    )
    prompt_BP = torch.zeros(len(LENGTHS), 1, dtype=torch.long)
    loss: Tensor = trainer._compute_loss(
        None,
        {
            "prompt_ids": prompt_BP,
            "prompt_mask": torch.ones_like(prompt_BP),
            "completion_ids": torch.zeros_like(MASK_BT, dtype=torch.long),
            "completion_mask": MASK_BT.double(),
            "advantages": advantages_B,
            "old_per_token_logps": data["old"],
            "ref_per_token_logps": data["reference"],
            "num_items_in_batch": MASK_BT.sum(),
        },
    )
    return loss


LOSSES = {"grpo": "sequence", "bnpo": "token", "dapo": "token", "dr_grpo": "constant"}


@pytest.mark.parametrize("penalty", [None, KlPenalty(beta=0.3), KlPenalty(beta=0.3, corrected=True)], ids=str)
@pytest.mark.parametrize("clip_high", [0.2, 0.28])
@pytest.mark.parametrize("dual_clip", [None, 1.5])
@pytest.mark.parametrize(("level", "ratio"), [("token", "token"), ("sequence", "sequence_mean")])
@pytest.mark.parametrize("loss_type", LOSSES)
def test_policy_loss_and_gradient_equal_grpo_trainer(
    loss_type: str, level: str, ratio: str, dual_clip: float | None, clip_high: float, penalty: KlPenalty | None
) -> None:
    data = make()
    row_BT = torch.arange(len(LENGTHS))[:, None].expand_as(MASK_BT)
    spec = PolicyLoss(
        clip_high=clip_high,
        dual_clip=dual_clip,
        ratio=ratio,  # type: ignore[arg-type]
        normalize=LOSSES[loss_type],  # type: ignore[arg-type]
        constant_length=BUDGET if loss_type == "dr_grpo" else None,
        kl=penalty,
        advantage=AdvantageSpec(std="sample", eps=1e-4),
    )
    advantages_B = group_advantages(REWARDS, GROUPS, spec.advantage).values_B
    trainer = grpo_trainer(
        loss_type=loss_type,
        importance_sampling_level=level,
        epsilon_high=clip_high,
        beta=0.0 if penalty is None else penalty.beta,
        args=SimpleNamespace(
            delta=dual_clip,
            use_bias_correction_kl=penalty is not None and penalty.corrected,
            steps_per_generation=1,
        ),
    )
    expected = trl_policy_loss(data, advantages_B, trainer)

    row_N = row_BT[MASK_BT]
    weights_N = token_weights(row_N, len(LENGTHS), torch.tensor(LENGTHS), spec, dtype=torch.float64)
    logprobs_N, old_N, reference_N = (data[name][MASK_BT] for name in ("logprobs", "old", "reference"))
    terms = policy_loss(logprobs_N, old_N, advantages_B[row_N], row_N, weights_N, spec, reference_N)
    torch.testing.assert_close(terms.loss, expected, rtol=0, atol=1e-10)
    wanted = torch.autograd.grad(expected, data["logprobs"])[0]
    torch.testing.assert_close(torch.autograd.grad(terms.loss, data["logprobs"])[0], wanted, rtol=0, atol=1e-10)
    assert wanted.any()
    if dual_clip is None and level == "token":
        metrics, tokens = trainer._metrics["train"], float(terms.tokens)
        assert float(terms.clipped_low) / tokens == pytest.approx(metrics["clip_ratio/low_mean"][0])
        assert float(terms.clipped_high) / tokens == pytest.approx(metrics["clip_ratio/high_mean"][0])
        assert terms.clipped_low + terms.clipped_high > 0


def trl_dpo_loss(logprobs_BT: Tensor, reference_BT: Tensor, kind: str, spec: DpoLoss) -> Tensor:
    """TRL lays all chosen answers first; its log-probabilities are those of all tokens but the first."""
    trl = pytest.importorskip("trl")
    order = [0, 2, 4, 1, 3, 5]
    mask_BT = torch.cat((torch.zeros(len(LENGTHS), 1), MASK_BT[order]), dim=1).long()
    zeros = torch.zeros_like(reference_BT)

    def model(logprobs_BT: Tensor) -> Any:
        outputs = SimpleNamespace(
            log_probs=(logprobs_BT * MASK_BT)[order],
            entropy=zeros,
            mean_logits=zeros,
            is_top1=zeros.bool(),
            logits=None,
        )
        return lambda **_: outputs

    trainer: Any = trl.DPOTrainer.__new__(trl.DPOTrainer)
    settings = {
        "model": SimpleNamespace(training=False, is_gradient_checkpointing=False),
        "ref_model": model(reference_BT),
        "accelerator": Alone(),
        "args": SimpleNamespace(gradient_checkpointing_kwargs=None),
        "aux_loss_enabled": False,
        "ld_alpha": None,
        "precompute_ref_logps": False,
        "f_divergence_type": "reverse_kl",
        "loss_types": [kind],
        "loss_weights": [1.0],
        "label_smoothing": spec.label_smoothing,
        "use_weighting": False,
        "beta": spec.beta,
        "_total_train_tokens": 0,
        "_metrics": {"eval": defaultdict(list)},
    }
    for name, value in settings.items():
        setattr(trainer, name, value)
    inputs = {"input_ids": torch.zeros_like(mask_BT), "attention_mask": mask_BT, "completion_mask": mask_BT}
    loss: Tensor = trainer._compute_loss(model(logprobs_BT), inputs, False)
    return loss


@pytest.mark.parametrize(("kind", "average"), [("sigmoid", False), ("sigmoid_norm", True)])
@pytest.mark.parametrize("beta", [0.1, 0.5])
def test_dpo_loss_and_gradient_equal_dpo_trainer(beta: float, kind: str, average: bool) -> None:
    data = make()
    spec = DpoLoss(beta=beta, average=average)
    expected = trl_dpo_loss(data["logprobs"], data["reference"], kind, spec)
    row_N = torch.arange(len(LENGTHS))[:, None].expand_as(MASK_BT)[MASK_BT]
    policy_B, reference_B = (
        answer_logprobs(data[name][MASK_BT], row_N, len(LENGTHS), average=average) for name in ("logprobs", "reference")
    )
    actual = dpo_loss(policy_B, reference_B, spec).loss_X.mean()
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-10)
    wanted = torch.autograd.grad(expected, data["logprobs"])[0]
    torch.testing.assert_close(torch.autograd.grad(actual, data["logprobs"])[0], wanted, rtol=0, atol=1e-10)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize(
    ("name", "mix", "beta"), [("forward_kl", 0.5, 0.0), ("reverse_kl", 0.5, 1.0), ("jensen_shannon", 0.3, 0.3)]
)
def test_divergence_and_gradient_equal_distillation_trainer(
    name: str, mix: float, beta: float, temperature: float
) -> None:
    pytest.importorskip("trl")
    from trl.trainer.distillation_trainer import _chunked_divergence_loss

    generator = torch.Generator().manual_seed(9)
    shapes = ((9, 6), (17, 6), (9, 4), (17, 4))
    h, w, th, tw = (torch.randn(*shape, generator=generator) for shape in shapes)
    h.requires_grad_()
    w.requires_grad_()
    spec = DistillationLoss(divergence=name, mix=mix, temperature=temperature)  # type: ignore[arg-type]
    expected, _, _ = _chunked_divergence_loss(
        h[None], th[None], w, tw, torch.ones(1, 9), beta=beta, temperature=temperature
    )
    actual = divergence(h, w, th, tw, spec, chunk_tokens=4).mean()
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5)
    for got, wanted in zip(torch.autograd.grad(actual, (h, w)), torch.autograd.grad(expected, (h, w)), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-6)

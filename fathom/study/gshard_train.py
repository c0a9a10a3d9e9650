"""One encoder-decoder of GShard's shape, trained and measured on the languages.

B batch, T target tokens, E experts.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fathom.families.moe_history import gshard_router, switch_router
from fathom.model.eval_mode import eval_mode
from fathom.model.moe import Routing
from fathom.model.moe.balance import balance_loss, expert_counts, load_entropy, max_load, num_dropped_pairs
from fathom.spec import BalanceSpec, MixtureOfExperts, RouterSpec
from fathom.spec.train import AdamWSpec
from fathom.study.gshard_task import EOS, PAD, Batch, Languages
from fathom.study.switch_t5 import EncoderDecoder, EncoderDecoderOutput, EncoderDecoderSpec, build
from fathom.train.optimizer import clip_gradients, gradient_norm, make_optimizer, set_learning_rate
from fathom.train.step import counter_seed


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyConfig:
    """Sizes of the study. Experts are ``d_ff / 2`` wide where a token meets two of them, so that FLOPs agree."""

    task: Languages = field(default_factory=Languages)
    d_model: int = 64
    d_ff: int = 256
    layers: int = 2
    heads: int = 4
    experts: int = 16
    steps: int = 600
    warmup: int = 50
    batch: int = 64
    rate: float = 3e-3
    points: int = 12
    held_out: int = 512


QUICK = StudyConfig(
    task=Languages(languages=3, words=6, parts=4), experts=4, steps=8, warmup=2, batch=8, points=2, held_out=16
)
_CLIP = 1.0
_HELD_OUT_SEED = 10**6


def variants(sizes: StudyConfig) -> dict[str, EncoderDecoderSpec]:
    """Dense, GShard with and without its auxiliary loss, and Switch, at equal FLOPs per token."""
    dense = EncoderDecoderSpec(
        name="dense",
        vocab_size=sizes.task.vocab_size,
        d_model=sizes.d_model,
        d_kv=sizes.d_model // sizes.heads,
        d_ff=sizes.d_ff,
        num_layers=sizes.layers,
        num_decoder_layers=sizes.layers,
        num_heads=sizes.heads,
        pad_token_id=PAD,
        eos_token_id=EOS,
        decoder_start_token_id=PAD,
    )

    def with_router(chosen: int, router: RouterSpec) -> EncoderDecoderSpec:
        width = sizes.d_ff // chosen
        moe = MixtureOfExperts(
            n_routed_experts=sizes.experts * chosen // 2,
            num_experts_per_tok=chosen,
            moe_intermediate_size=width,
            router=router,
        )
        return replace(dense, moe=moe)

    gshard = gshard_router(group="batch")
    return {
        "dense": dense,
        "gshard": with_router(2, gshard),
        "gshard, no aux loss": with_router(2, replace(gshard, balance=BalanceSpec())),
        "switch": with_router(1, switch_router(group="batch")),
    }


@dataclass(frozen=True, slots=True)
class TrainingResult:
    """Metrics of one model. Loads are of the held-out sentences; ``dropped`` is the share of pairs in training."""

    parameters: int
    flops_per_token: int
    curve: list[tuple[int, float]]
    loss: float
    words_right: float
    sentences_right: float
    load_entropy: float | None
    load_peak: float | None
    dropped: float | None
    shares: list[list[float]]
    languages_per_expert: list[list[float]]

    def plain(self) -> dict[str, Any]:
        """As JSON holds it."""
        return asdict(self)


def train(spec: EncoderDecoderSpec, sizes: StudyConfig, *, seed: int, tick: Callable[[], None]) -> TrainingResult:
    """Train one model from its seed; every variant of a seed sees the same sentences."""
    model = build(spec, seed=seed, scale=1.0).train()
    optimizer = make_optimizer(model, AdamWSpec(lr=sizes.rate, weight_decay=0.0))
    parameters = list(model.parameters())
    held_out = sizes.task.draw(sizes.held_out, torch.Generator().manual_seed(_HELD_OUT_SEED))
    every = max(1, sizes.steps // sizes.points)
    curve: list[tuple[int, float]] = []
    lost = pairs = 0
    for step in range(1, sizes.steps + 1):
        generator = torch.Generator().manual_seed(counter_seed(seed, step))
        batch = sizes.task.draw(sizes.batch, generator)
        seeds_B = torch.randint(2**62, (sizes.batch,), generator=generator)
        output = model(batch.source_BS, batch.target_BT, seeds_B=seeds_B)
        loss = target_cross_entropy(output.logits_BTV, batch.labels_BT) + auxiliary(output, spec)
        loss.backward()  # type: ignore[no-untyped-call]
        for routed in routings(output):
            lost, pairs = lost + int(num_dropped_pairs(routed)), pairs + routed.indices_BTK.numel()
        clip_gradients(parameters, _CLIP, gradient_norm(parameters))
        set_learning_rate(optimizer, _rate(sizes, step))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if step % every == 0 or step == sizes.steps:
            curve.append((step, _held_out_loss(model, held_out)))
        tick()
    return _measured(model, held_out, curve, lost / pairs if pairs else None)


def target_cross_entropy(logits_BTV: Tensor, labels_BT: Tensor) -> Tensor:
    """Mean cross-entropy of a target token."""
    return F.cross_entropy(logits_BTV.flatten(0, 1), labels_BT.flatten())


def auxiliary(output: EncoderDecoderOutput, spec: EncoderDecoderSpec) -> Tensor:
    """The balance losses of all mixtures of experts, weighed as the spec says."""
    if spec.moe is None:
        return output.logits_BTV.new_zeros(())
    return torch.stack([balance_loss(routed, spec.moe) for routed in routings(output)]).sum()


def routings(output: EncoderDecoderOutput) -> tuple[Routing, ...]:
    """The encoder's routings, then the decoder's."""
    return (*output.encoder_routing, *output.decoder_routing)


def _rate(sizes: StudyConfig, step: int) -> float:
    progress = step / sizes.steps
    return sizes.rate * min(1.0, step / sizes.warmup) * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * progress)))


def _held_out_loss(model: EncoderDecoder, held_out: Batch) -> float:
    with eval_mode(model), torch.no_grad():
        logits_BTV = model(held_out.source_BS, held_out.target_BT).logits_BTV
        return target_cross_entropy(logits_BTV, held_out.labels_BT).item()


def _measured(
    model: EncoderDecoder, held_out: Batch, curve: list[tuple[int, float]], dropped_share: float | None
) -> TrainingResult:
    model.eval()
    with torch.no_grad():
        output = model(held_out.source_BS, held_out.target_BT)
    right_BT = output.logits_BTV.argmax(-1) == held_out.labels_BT
    moe = model.spec.moe
    counts = [expert_counts(routed, moe.n_routed_experts) for routed in routings(output)] if moe is not None else []
    return TrainingResult(
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        flops_per_token=flops_per_token(model.spec),
        curve=curve,
        loss=curve[-1][1],
        words_right=right_BT[:, :-1].float().mean().item(),
        sentences_right=right_BT.all(1).float().mean().item(),
        load_entropy=sum(load_entropy(c).item() for c in counts) / len(counts) if counts else None,
        load_peak=max(max_load(c).item() for c in counts) if counts else None,
        dropped=dropped_share,
        shares=[(c / c.sum()).tolist() for c in counts],
        languages_per_expert=_by_language(output, held_out, moe) if moe is not None else [],
    )


def _by_language(output: EncoderDecoderOutput, held_out: Batch, moe: MixtureOfExperts) -> list[list[float]]:
    """For the decoder's last MoE layer: the share of each language's tokens whose first choice is each expert."""
    first_BT = output.decoder_routing[-1].indices_BTK[..., 0]
    rows = []
    for language in range(int(held_out.language_B.max()) + 1):
        chosen = first_BT[held_out.language_B == language].flatten()
        rows.append((torch.bincount(chosen, minlength=moe.n_routed_experts) / max(1, chosen.numel())).tolist())
    return rows


def flops_per_token(spec: EncoderDecoderSpec) -> int:
    """Multiply-adds times two of the matrices one source and one target token meet, routers and head included."""
    width, inner = spec.d_model, spec.num_heads * spec.d_kv
    total = spec.vocab_size * width
    for decoder, depth in ((False, spec.num_layers), (True, spec.num_decoder_layers)):
        for index in range(depth):
            total += (8 if decoder else 4) * width * inner
            if spec.moe is not None and spec.is_sparse(index, decoder=decoder):
                experts = spec.moe.num_experts_per_tok * spec.moe.moe_intermediate_size
                total += width * (2 * experts + spec.moe.n_routed_experts)
            else:
                total += 2 * width * spec.d_ff
    return 2 * total

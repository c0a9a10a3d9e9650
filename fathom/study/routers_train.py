"""One small decoder of the router study, trained by the ordinary trainer and measured on held-out text."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fathom.families import preset
from fathom.families.moe_history import switch_router
from fathom.model.build import build
from fathom.model.decoder import Decoder
from fathom.model.moe import MoELayer, Router
from fathom.plan import count_parameters
from fathom.progress import NO_METRICS, NullProgress
from fathom.spec import ModelSpec
from fathom.spec.train import AdamWSpec, BatchSpec, Checkpointing, CosineDecay, Precision, TrainSpec
from fathom.study.routers_data import ByteCorpus, RandomWindows, even_windows
from fathom.train import Trainer
from fathom.train.loss import language_model_loss


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyConfig:
    """Sizes of the study; the models are the ``tiny-*`` presets with ``layers`` layers."""

    layers: int = 2
    steps: int = 200
    warmup: int = 20
    batch: int = 16
    length: int = 128
    rate: float = 3e-3
    text_bytes: int = 4_000_000
    held_out: int = 192
    points: int = 15
    repeats: int = 2


QUICK = StudyConfig(layers=1, steps=4, warmup=1, batch=2, length=16, text_bytes=60_000, held_out=4, points=2, repeats=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """A model of the study. ``bfloat16_router`` computes router logits in bfloat16 (no selective precision)."""

    name: str
    spec: ModelSpec
    precision: Precision = "float32"
    bfloat16_router: bool = False


def variants(sizes: StudyConfig) -> tuple[Variant, ...]:
    """The routers at equal active parameters, then Switch's three precisions (Switch §2.4, Table 2)."""
    layers, switch = sizes.layers, "tiny-switch"
    routed: list[tuple[str, str, float | None]] = [("dense", "tiny-dense", None), ("hash", "tiny-hash", None)]
    routed += [(f"switch, capacity {factor:g}", switch, factor) for factor in (1.0, 1.25, 2.0)]
    routed += [("gshard", "tiny-gshard", None), ("deepseek-moe", "tiny-deepseek-moe", None)]
    found = [Variant(name=name, spec=_sized(base, layers, factor)) for name, base, factor in routed]
    spec = _sized(switch, layers, 1.25)
    return (
        *found,
        Variant(name="switch, selective precision", spec=spec, precision="bfloat16"),
        Variant(name="switch, bfloat16 router", spec=spec, precision="bfloat16", bfloat16_router=True),
    )


def _sized(name: str, layers: int, factor: float | None) -> ModelSpec:
    spec = replace(preset(name), num_hidden_layers=layers, initializer_range=0.02)
    if factor is None or spec.moe is None:
        return spec
    return replace(spec, moe=replace(spec.moe, router=switch_router(capacity_factor=factor)))


class BFloat16Router(Router):
    """A router whose weights and logits are rounded to bfloat16: what selective precision avoids."""

    def project(self, x_BTD: Tensor, weight_ED: Tensor) -> Tensor:
        """Logits with bfloat16's eight bits."""
        return F.linear(x_BTD.bfloat16(), weight_ED.bfloat16()).float()


def round_routers(model: Decoder) -> None:
    """Replace every router of the model by one in bfloat16, with the same weights."""
    moe = model.spec.moe
    for layer in model.layers:
        feed_forward = layer.mlp
        if isinstance(feed_forward, MoELayer) and moe is not None:
            rounded = BFloat16Router(model.spec.hidden_size, moe)
            rounded.load_state_dict(feed_forward.gate.state_dict())
            feed_forward.gate = rounded


@dataclass(frozen=True, slots=True)
class TrainingResult:
    """Metrics of one training. Load and drops are means over the second half of the logged steps, in training."""

    total: int
    active: int
    curve: list[tuple[int, float]]
    held_out: float
    load_entropy: float | None
    load_peak: float | None
    dropped: float | None
    tokens_per_second: float

    def plain(self) -> dict[str, Any]:
        """As JSON holds it."""
        return asdict(self)


class _StepCallback(NullProgress):
    """Calls ``tick`` after every step of a trainer; its warnings are dropped, for the table shows a collapse."""

    def __init__(self, tick: Callable[[], None]) -> None:
        self._tick = tick

    def update(
        self, done: float, total: float | None, unit: str, *, phase: str = "", metrics: Mapping[str, str] = NO_METRICS
    ) -> None:
        self._tick()


def train(
    variant: Variant, sizes: StudyConfig, text: ByteCorpus, *, seed: int, tick: Callable[[], None]
) -> TrainingResult:
    """Train one model; all variants of a seed see the same windows in the same order."""
    model = build(variant.spec, seed=seed)
    if variant.bfloat16_router:
        round_routers(model)
    tokens = sizes.steps * sizes.batch * sizes.length
    spec = TrainSpec(
        sequence_length=sizes.length,
        total_tokens=tokens,
        batch=BatchSpec(size=sizes.batch, micro_batch_size=sizes.batch),
        optimizer=AdamWSpec(lr=sizes.rate),
        schedule=CosineDecay(warmup_steps=sizes.warmup),
        precision=variant.precision,
        log_every_steps=max(1, sizes.steps // sizes.points),
        checkpoint=Checkpointing(every_seconds=None),
        seed=seed,
    )
    with tempfile.TemporaryDirectory() as temporary:
        loader = RandomWindows(text.train_N, sizes.length, seed)
        summary = Trainer(model, spec, loader, Path(temporary), progress=_StepCallback(tick)).run()
        lines = [json.loads(line) for line in (Path(temporary) / "metrics.jsonl").read_text().splitlines()]
    later = lines[len(lines) // 2 :]
    count = count_parameters(variant.spec)
    return TrainingResult(
        total=count.total,
        active=count.active_with_embedding,
        curve=[(line["step"], line["lm_loss"]) for line in lines],
        held_out=held_out_loss(model, even_windows(text.held_out_N, sizes.length, sizes.held_out), sizes.batch),
        load_entropy=_mean([line.get("load_entropy") for line in later]),
        load_peak=_mean([line.get("load_max_over_mean") for line in later]),
        dropped=_mean([line.get("dropped_fraction") for line in later]),
        tokens_per_second=summary.tokens_per_second,
    )


def held_out_loss(model: Decoder, windows_NT1: Tensor, batch: int) -> float:
    """Nats per byte in float32, where nothing is dropped."""
    model.eval()
    total = 0.0
    with torch.no_grad():
        for part_BT1 in torch.split(windows_NT1, batch):
            hidden_BTD = model(part_BT1[:, :-1]).hidden_BTD
            loss = partial(language_model_loss, targets_BT=part_BT1[:, 1:], chunk_tokens=4096)
            mean, _ = model.apply_head(hidden_BTD, loss)
            total += mean.item() * part_BT1.shape[0]
    return total / windows_NT1.shape[0]


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None

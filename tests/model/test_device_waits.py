"""Training passes of every family never make the host wait for the device; the meta device has shapes only."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from fathom.families import PRESETS
from fathom.model.decoder import Decoder, DecoderOutput
from fathom.model.forward_options import PackedSequences, RoutingOptions
from fathom.model.moe.balance import SequenceIndex, balance_loss, expert_counts, num_dropped_pairs
from fathom.model.vision import ImageBatch
from fathom.spec import ModelSpec
from tests.device_waits import DeviceWait, NoDeviceWaits

META = torch.device("meta")

KINDS = (
    "deepseek-llm-67b",
    "deepseek-moe-2b",
    "deepseek-v2",
    "deepseek-v3",
    "gshard-2b",
    "hash-2b",
    "switch-2b",
)
"""One preset of every kind of attention and router; all others are slow cases."""


def on_meta(spec: ModelSpec) -> Decoder:
    """The model's first layers at full width, in bfloat16, which is what grouped products take."""
    layers = 2 if spec.moe is None else (spec.first_k_dense_replace or 0) + 1
    with META:
        return Decoder(replace(spec, num_hidden_layers=min(layers, spec.num_hidden_layers))).to(torch.bfloat16).train()


def learn(model: Decoder, output: DecoderOutput, packed: PackedSequences | None) -> None:
    loss = sum((hidden.float().sum() for hidden in output.mtp_hidden), output.hidden_BTD.float().sum())
    moe = model.spec.moe
    for routing in output.routing:
        assert moe is not None
        expert_counts(routing, moe.n_routed_experts)
        num_dropped_pairs(routing)
        index = None if packed is None else SequenceIndex.of(packed, META)
        loss = loss + balance_loss(routing, moe, sequences=index)
    loss.backward()  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "name", [*KINDS, *(pytest.param(name, marks=pytest.mark.slow) for name in sorted(set(PRESETS) - set(KINDS)))]
)
def test_forward_and_backward(name: str) -> None:
    model = on_meta(PRESETS[name].spec)
    rows = torch.empty(2, 24, dtype=torch.int64, device=META)
    routing = RoutingOptions(
        drop_exempt_B=torch.empty(2, dtype=torch.bool, device=META),
        seeds_B=torch.empty(2, dtype=torch.int64, device=META),
    )
    with NoDeviceWaits():
        learn(model, model(rows, routing=routing, mtp=True, checkpoint_activations=True), None)
        packed = PackedSequences((32, 16, 16, 8), (0, 8, 8, 0))
        learn(model, model(rows.new_empty(1, 72), packed=packed), packed)


def test_windows_and_replayed_experts() -> None:
    window = on_meta(PRESETS["mistral-7b"].spec)
    tokens = torch.empty(1, 6000, dtype=torch.int64, device=META)
    mixture = on_meta(PRESETS["deepseek-v2-lite"].spec)
    experts = torch.zeros(1, 6000, 1, 6, dtype=torch.int64)
    with NoDeviceWaits():
        learn(window, window(tokens), None)  # longer than the window
        learn(window, window(tokens, packed=PackedSequences((5000, 1000))), PackedSequences((5000, 1000)))
        learn(mixture, mixture(tokens, routing=RoutingOptions(replayed_experts_BTLK=experts)), None)


def test_images() -> None:
    spec = PRESETS["deepseek-vl-1.3b"].spec
    assert spec.vision is not None
    model = on_meta(spec)
    assert model.vision is not None
    size = spec.vision.low.image_size
    with NoDeviceWaits():
        images = ImageBatch(torch.zeros(1, 3, size, size, dtype=torch.bfloat16)).part(slice(0, 1), META)
        features_IND = model.vision(images)
        tokens = torch.empty(1, 700, dtype=torch.int64, device=META)
        learn(model, model(tokens, features_ND=features_IND.flatten(0, 1)), None)


@pytest.mark.parametrize(
    "wait",
    [
        lambda x: x.sum().item(),
        lambda x: x.tolist(),
        lambda x: x.cpu(),
        lambda x: bool((x > 0).all()),
        lambda x: x[x > 0],
        lambda x: x.nonzero(),
        lambda x: torch.zeros(3).to(x.device),
        lambda x: torch.tensor([1], device=x.device),
        lambda x: x.long().bincount(minlength=3),
        lambda x: torch.zeros(4).copy_(x),
    ],
)
def test_what_the_mode_finds(wait: object) -> None:
    x = torch.empty(4, device=META)
    with NoDeviceWaits(), pytest.raises(DeviceWait):
        wait(x)  # type: ignore[operator]

"""Rotary frequencies against the papers' formulas and printed numbers."""

from __future__ import annotations

import math

import pytest
import torch

from fathom import kernels
from fathom.families import preset
from fathom.model.rope import Rope, frequencies
from fathom.spec import LinearScaling, Llama3Scaling, RopeSpec, YarnScaling


def test_plain_frequencies_are_powers_of_theta() -> None:
    expected = [10_000.0 ** (-2 * i / 64) for i in range(32)]
    assert frequencies(RopeSpec(), 64).tolist() == pytest.approx(expected, rel=1e-6)


def test_linear_scaling_divides_every_angle() -> None:
    plain = frequencies(RopeSpec(theta=100_000.0), 32)
    scaled = frequencies(RopeSpec(theta=100_000.0, scaling=LinearScaling(factor=4.0)), 32)
    torch.testing.assert_close(scaled, plain / 4)


def test_yarn_keeps_pairs_below_10_and_divides_pairs_above_23_at_the_published_shape() -> None:
    scaling = YarnScaling(factor=40.0, original_max_position_embeddings=4096)
    plain, stretched = frequencies(RopeSpec(), 64), frequencies(RopeSpec(scaling=scaling), 64)
    torch.testing.assert_close(stretched[:11], plain[:11])
    torch.testing.assert_close(stretched[23:], plain[23:] / 40)
    for pair in range(11, 23):
        ramp = (pair - 10) / 13
        expected = plain[pair] * (1 - ramp) + plain[pair] / 40 * ramp
        assert stretched[pair].item() == pytest.approx(expected.item(), rel=1e-5)
        assert plain[pair] / 40 < stretched[pair] < plain[pair]


def test_llama3_scaling_keeps_short_waves_and_divides_long_ones() -> None:
    scaling = Llama3Scaling(factor=8.0, original_max_position_embeddings=8192)
    plain, scaled = frequencies(RopeSpec(theta=5e5), 128), frequencies(RopeSpec(theta=5e5, scaling=scaling), 128)
    for before, after in zip(plain.tolist(), scaled.tolist(), strict=True):
        wavelength = 2 * math.pi / before
        if wavelength < 8192 / 4:
            assert after == pytest.approx(before, rel=1e-6)
        elif wavelength > 8192:
            assert after == pytest.approx(before / 8, rel=1e-6)
        else:
            assert before / 8 <= after <= before


@pytest.mark.parametrize(
    ("name", "rotation", "softmax"),
    [("deepseek-v2", 1.0, 1.2608**2), ("deepseek-v2.5", 1.0, 1.3689**2), ("deepseek-v3", 1.0, 1.3689**2)],
)
def test_published_yarn_factors(name: str, rotation: float, softmax: float) -> None:
    scaling = preset(name).rope.scaling
    assert isinstance(scaling, YarnScaling)
    assert scaling.rotation_scale == pytest.approx(rotation)
    assert scaling.softmax_multiplier == pytest.approx(softmax, rel=1e-4)


def test_rotation_scale_is_on_both_tables() -> None:
    scaling = YarnScaling(factor=40.0, original_max_position_embeddings=64, attention_factor=1.5)
    cos, sin = Rope(RopeSpec(scaling=scaling), 16).table(torch.arange(100)[None])
    torch.testing.assert_close(cos.square() + sin.square(), torch.full_like(cos, 2.25))


@pytest.mark.parametrize("layout", ["half", "interleaved"])
def test_scores_depend_on_distance_only(layout: str) -> None:
    spec = RopeSpec(layout=layout)  # type: ignore[arg-type]
    rope = Rope(spec, 8)
    query, key = torch.randn(1, 1, 1, 8, dtype=torch.float64), torch.randn(1, 1, 1, 8, dtype=torch.float64)

    def score(at_query: int, at_key: int) -> float:
        rotated_q = kernels.rotate(query, *rope.table(torch.tensor([[at_query]])), spec.layout)
        rotated_k = kernels.rotate(key, *rope.table(torch.tensor([[at_key]])), spec.layout)
        return float((rotated_q * rotated_k).sum())

    assert score(17, 4) == pytest.approx(score(113, 100), abs=1e-4)
    assert score(17, 4) != pytest.approx(score(17, 5), abs=1e-4)


def test_interleaved_layout_turns_neighbouring_columns_as_a_complex_number() -> None:
    spec = RopeSpec(layout="interleaved")
    x = torch.randn(2, 5, 3, 8)
    positions = torch.arange(5)[None]
    turned = kernels.rotate(x, *Rope(spec, 8).table(positions), spec.layout)
    angles = positions[0, :, None].double() * torch.tensor([10_000.0 ** (-2 * i / 8) for i in range(4)])
    expected = (
        torch.view_as_complex(x.double().unflatten(-1, (4, 2))) * torch.polar(torch.ones_like(angles), angles)[:, None]
    )
    torch.testing.assert_close(turned, torch.view_as_real(expected).flatten(-2).float(), atol=1e-5, rtol=1e-5)

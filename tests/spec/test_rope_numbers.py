import math

import pytest

from fathom.errors import SpecError
from fathom.families import preset
from fathom.spec import LinearScaling, Llama3Scaling, RopeSpec, YarnScaling


@pytest.mark.parametrize(("name", "m", "squared"), [("deepseek-v2", 1.2608, 1.5896), ("deepseek-v3", 1.3689, 1.8739)])
def test_yarn_temperature_of_the_released_models(name: str, m: float, squared: float) -> None:
    scaling = preset(name).rope.scaling
    assert isinstance(scaling, YarnScaling)
    assert scaling.mscale_all_dim is not None
    assert scaling.temperature(40, scaling.mscale_all_dim) == pytest.approx(m, abs=5e-5)
    assert scaling.softmax_multiplier == pytest.approx(squared, abs=5e-5)
    assert scaling.rotation_scale == 1.0


def test_v2s_temperature_is_the_papers_0_0707_ln_s_plus_1() -> None:
    scaling = preset("deepseek-v2").rope.scaling
    assert isinstance(scaling, YarnScaling)
    assert math.sqrt(scaling.softmax_multiplier) == pytest.approx(0.0707 * math.log(40) + 1)


def yarn(**fields: float) -> YarnScaling:
    return YarnScaling(original_max_position_embeddings=4096, **{"factor": 40.0, **fields})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("scaling", "rotation", "softmax"),
    [
        (yarn(), 0.1 * math.log(40) + 1, 1.0),
        (yarn(attention_factor=1.5, mscale=1.0, mscale_all_dim=1.0), 1.5, (0.1 * math.log(40) + 1) ** 2),
        (yarn(mscale=1.0, mscale_all_dim=0.5), (0.1 * math.log(40) + 1) / (0.05 * math.log(40) + 1), None),
        (yarn(mscale=1.0), 0.1 * math.log(40) + 1, 1.0),
        (yarn(factor=1.0, mscale=1.0, mscale_all_dim=1.0), 1.0, 1.0),
        (yarn(factor=0.5), 1.0, 1.0),
    ],
)
def test_rotation_and_softmax_scales(scaling: YarnScaling, rotation: float, softmax: float | None) -> None:
    assert scaling.rotation_scale == pytest.approx(rotation)
    if softmax is not None:
        assert scaling.softmax_multiplier == pytest.approx(softmax)


def test_original_context_is_what_came_before_stretching() -> None:
    assert preset("deepseek-v2").original_context == 4096
    assert preset("deepseek-v2").max_position_embeddings == 40 * 4096
    assert preset("deepseek-r1-distill-llama-8b").original_context == 8192
    assert preset("deepseek-coder-1.3b").original_context == 16384
    assert preset("bench-t").original_context == 4096


def test_scalings_refuse_what_cannot_be_scaled_by() -> None:
    with pytest.raises(SpecError, match="factor: must be above 0, got 0"):
        LinearScaling(factor=0)
    with pytest.raises(SpecError, match="high_freq_factor"):
        Llama3Scaling(factor=8, original_max_position_embeddings=8192, low_freq_factor=4, high_freq_factor=4)
    with pytest.raises(SpecError, match="factor: must be above 0, got nan"):
        yarn(factor=math.nan)
    with pytest.raises(SpecError, match="layout: unknown value 'quarter'; use one of half, interleaved"):
        RopeSpec(layout="quarter")  # type: ignore[arg-type]

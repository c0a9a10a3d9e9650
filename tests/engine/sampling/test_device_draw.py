"""Drawing all rows together, as on a GPU, against drawing row by row; and that it reads once."""

from __future__ import annotations

import pytest
import torch

from fathom.engine.sampling import device_draw
from fathom.engine.sampling.device_draw import draw_on_device
from fathom.engine.sampling.draw import SamplingFailure, SamplingMetadata, try_draw
from fathom.spec.sampling import SamplingParams, TokenLogprob
from tests.device_waits import NoDeviceWaits
from tests.engine.sampling.test_draw import Only

PARAMS = [
    SamplingParams(temperature=0),
    SamplingParams(),
    SamplingParams(temperature=0.7),
    SamplingParams(temperature=1e-3, top_p=0.5),
    SamplingParams(top_p=0.9),
    SamplingParams(top_p=0.05),
    SamplingParams(top_k=3),
    SamplingParams(top_k=40, top_p=0.6, min_p=0.01),
    SamplingParams(min_p=0.2, temperature=2.0),
    SamplingParams(top_k=1, logprobs=2),
    SamplingParams(repetition_penalty=1.5, presence_penalty=0.5, logit_bias=((7, 4.0),), logprobs=3),
]
VOCAB = 700


def rows_of(params: list[SamplingParams], seed: int) -> list[SamplingMetadata]:
    return [
        SamplingMetadata(params=each, prompt=(1, 2, 3), drawn=[5] * (index % 3), seed=seed + index)
        for index, each in enumerate(params)
    ]


@pytest.mark.parametrize("trials", [1, 4])
def test_every_row_draws_what_it_draws_alone(trials: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_draw, "_TRIALS", trials)
    for seed in range(12):
        generator = torch.Generator().manual_seed(seed)
        logits = torch.randn(len(PARAMS), VOCAB, generator=generator) * (1 + seed % 4)
        logits[:, 20:24] = logits[:, 30:34]  # equal ones
        unused = torch.tensor([3, 9]) if seed % 2 else None
        expected = try_draw(logits, rows_of(PARAMS, 100 * seed), unused_ids_N=unused)
        actual = draw_on_device(logits, rows_of(PARAMS, 100 * seed), unused)
        for got, wanted in zip(actual, expected, strict=True):
            assert isinstance(got, TokenLogprob)
            assert isinstance(wanted, TokenLogprob)
            assert got.token_id == wanted.token_id
            assert got.logprob == pytest.approx(wanted.logprob, abs=1e-6)
            assert [token for token, _ in got.top] == [token for token, _ in wanted.top]


def test_rows_that_have_no_token_say_why_and_leave_the_others() -> None:
    logits = torch.randn(4, VOCAB, generator=torch.Generator().manual_seed(0))
    logits[1, 4] = torch.nan
    rows = rows_of([SamplingParams()] * 4, 0)
    rows[2].constraint = Only()
    rows[2]._never_modified = False
    rows[3].params = SamplingParams(logit_bias=((VOCAB, 1.0),))
    rows[3]._never_modified = False
    expected, actual = try_draw(logits, rows), draw_on_device(logits, rows, None)
    assert actual == expected
    assert [type(each) for each in actual] == [TokenLogprob, *[SamplingFailure] * 3]


def test_a_gpu_is_read_once() -> None:
    logits = torch.empty(8, VOCAB, device="meta")
    params = [each for each in PARAMS[:9] if not each.logprobs][:8]
    with NoDeviceWaits(reads=1) as waits:
        drawn = try_draw(logits, rows_of(params, 0))
    assert waits.count == 1
    assert len(drawn) == 8

"""How fast this machine samples answers: by a few steps of the engine, or arithmetic where those would take long."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from statistics import median

import torch

from fathom.engine.engine import Engine
from fathom.engine.request import Request
from fathom.model.build import build
from fathom.pipeline.forecast.pace import MOST_SECONDS
from fathom.pipeline.forecast.totals import free_memory
from fathom.plan.cache import cache_bytes_per_token
from fathom.plan.count import count_parameters
from fathom.plan.flops import decoding_flops_per_token
from fathom.spec.engine import EngineSpec
from fathom.spec.model import ModelSpec
from fathom.spec.sampling import SamplingParams

ANSWER_SHARE = 0.6
"""Of max_tokens, what answers are taken to have on average."""
_UTILISATION = 0.1
"""Share of the peak of matrix products that sampling reaches where nothing was measured, within a factor of three."""
_PROMPT, _STEPS, _FEWEST_STEPS, _CONTEXT = 2, 16, 3, 128
_READING = 0.25  # what reading a token of a prompt takes, in steps of drawing one


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingPace:
    """Seconds that sampling takes for each token of an answer, while ``max_batch`` answers are drawn at once."""

    token: float
    measured: bool


def sampling_pace(
    spec: ModelSpec, engine: EngineSpec, *, device: torch.device, peak: float | None, measure: bool = True
) -> SamplingPace | None:
    """Time steps of an engine over a model with random weights; estimate where they would take long or memory.

    ``peak`` is ``training_peak`` of the device; without ``measure`` no step is taken. None where the peak is unknown
    and nothing could be measured.
    """
    cached = 2 * engine.max_batch * max(engine.page_size, _PROMPT + _STEPS)
    engine = replace(engine, cache_tokens=cached)
    needed = 4 * count_parameters(spec).total + cached * cache_bytes_per_token(spec, bits=32)
    fits = needed < free_memory(device) // 2
    if peak is None:
        return _measured(spec, engine, device) if fits and measure else None
    estimate = decoding_flops_per_token(spec, _CONTEXT) / (_UTILISATION * peak)
    steps = _READING * _PROMPT + _FEWEST_STEPS
    if not (fits and measure) or estimate * engine.max_batch * steps > 2 * MOST_SECONDS:
        return SamplingPace(token=estimate, measured=False)
    return _measured(spec, engine, device)


def _measured(spec: ModelSpec, engine: EngineSpec, device: torch.device) -> SamplingPace:
    running = Engine(build(spec, device=device, seed=0), spec=engine)
    generator = torch.Generator().manual_seed(0)
    for seed in range(engine.max_batch):
        prompt = torch.randint(spec.vocab_size, (_PROMPT,), generator=generator).tolist()
        params = SamplingParams(max_tokens=_STEPS, temperature=1.0, ignore_eos=True, seed=seed)
        running.submit(Request(prompt=tuple(prompt), params=params))
    whole: list[float] = []  # steps in which every answer grew; the first of them read prompts too
    begun = time.perf_counter()
    while running.has_work and (len(whole) < _FEWEST_STEPS or time.perf_counter() - begun < MOST_SECONDS):
        started = time.perf_counter()
        if sum(len(output.tokens) for output in running.step()) == engine.max_batch:
            whole.append(time.perf_counter() - started)
    return SamplingPace(token=median(whole[1:]) / engine.max_batch, measured=True)

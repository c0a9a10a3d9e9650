"""What the MTP module drafts in the engine, against the pass over the whole sequence that training runs."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from fathom.engine.drafting.mtp import MtpDrafter
from fathom.engine.engine import Engine
from fathom.engine.forward_pass import ForwardPass
from fathom.engine.request import Request
from fathom.engine.scheduler import ScheduledRequest
from fathom.engine.state import RequestState
from fathom.model.decoder import Decoder
from fathom.spec import EngineSpec, SamplingParams
from tests.engine.drafting import with_mtp
from tests.engine.reference import finish
from tests.engine.test_engine_mixtures import random_request, run_mixture

SPEC = EngineSpec(page_size=4, cache_tokens=100, max_batch=6, step_tokens=20, drafting="mtp")
GREEDY = SamplingParams(max_tokens=12, temperature=0)


@torch.inference_mode()
def drafts_of(model: Decoder, tokens: Sequence[int], count: int) -> list[Tensor]:
    """Run everything anew for each draft; the module's outputs stand in for hidden states there are none of."""
    hidden_TD = model(torch.tensor([tokens])).hidden_BTD[0, :-1]  # the last token's is not there yet
    said, logits = list(tokens), []
    for _ in range(count):
        later_1T = torch.tensor([said[1:]])
        context = model._context(model.embed_tokens(later_1T), None, None, "expanded")
        further_1TD, _ = model.mtp[0](model.embed_tokens(later_1T), hidden_TD[None], context, None)
        logits.append(model.logits(further_1TD[0, -1]))
        said.append(int(logits[-1].argmax()))
        hidden_TD = torch.cat((hidden_TD, further_1TD[0, -1:]))
    return logits


class Recorded:
    """The passes of a model, with the logits they were asked for."""

    def __init__(self, forward: ForwardPass) -> None:
        self.forward_mtp, self._logits = forward.forward_mtp, forward.logits
        self.rows: list[Tensor] = []

    def logits(self, hidden_BD: Tensor) -> Tensor:
        logits_BV = self._logits(hidden_BD)
        self.rows += logits_BV
        return logits_BV


class Checked:
    """Compares everything a drafter proposes, and the numbers it was taken from."""

    observes = True

    def __init__(self, drafter: MtpDrafter, forward: ForwardPass) -> None:
        self.drafter, self.model, self.proposed = drafter, forward.model, 0
        drafter._forward = self.recorded = Recorded(forward)  # type: ignore[assignment]

    def propose(self, works: Sequence[ScheduledRequest]) -> Mapping[int, Sequence[int]]:
        self.recorded.rows = []
        drafts = self.drafter.propose(works)
        for work in works:
            got = list(drafts.get(work.state.id, ()))
            expected = drafts_of(self.model, work.state.tokens, work.num_draft_slots)
            assert got == [int(logits_V.argmax()) for logits_V in expected]
            for logits_V in expected:
                assert min(float((row_V - logits_V).abs().max()) for row_V in self.recorded.rows) < 1e-6
            self.proposed += len(got)
        return drafts

    def observe(self, states: Sequence[RequestState], hidden_ND: Sequence[Tensor]) -> None:
        self.drafter.observe(states, hidden_ND)


@pytest.fixture
def checked(monkeypatch: pytest.MonkeyPatch) -> list[Checked]:
    """Let engines check what their drafters propose."""
    made: list[Checked] = []
    from fathom.engine import engine as module

    make = module.make_drafter

    def make_checked(kind, forward, pool, spec, **options):  # type: ignore[no-untyped-def]
        made.append(Checked(make(kind, forward, pool, spec, **options), forward))
        return made[-1]

    monkeypatch.setattr(module, "make_drafter", make_checked)
    return made


@pytest.mark.parametrize(("weight", "draft_tokens"), [(1.0, 1), (0.05, 2)])
def test_drafts_are_the_modules_whatever_chunks_shared_pages_and_preemptions_there_were(
    weight: float, draft_tokens: int, checked: list[Checked]
) -> None:
    draw = random.Random(3)
    requests = [random_request(draw) for _ in range(20)]
    stats = run_mixture(with_mtp(weight), replace(SPEC, draft_tokens=draft_tokens), requests, draw).stats
    assert min(stats.preemptions, stats.cached_tokens, stats.accepted) > 0
    assert checked[0].proposed >= stats.drafted > 20


@pytest.mark.parametrize("length", range(1, 14))
def test_a_shared_beginning_is_drafted_behind_as_if_it_were_ones_own(length: int, checked: list[Checked]) -> None:
    engine = Engine(with_mtp(0.05), spec=replace(SPEC, cache_tokens=400))
    draw = random.Random(length)
    common = [draw.randrange(48) for _ in range(length)]
    engine.sample([common], replace(GREEDY, max_tokens=1))  # leaves its pages behind before anything was drafted
    (said,) = engine.sample([common], replace(GREEDY, max_tokens=8))
    engine.sample([[*common, 7], [*common, 7, 8, 9, 10, 11], [*common, *said.token_ids, 1]], GREEDY)
    assert engine.stats.cached_tokens > length // 4 * 4
    assert checked[0].proposed > 15


def test_one_after_another_is_read_in_chunks_of_any_size(checked: list[Checked]) -> None:
    for step_tokens in (1, 2, 3, 7):
        spec = replace(SPEC, max_batch=1, step_tokens=step_tokens, draft_tokens=3)
        engine = Engine(with_mtp(0.05), spec=spec)
        for prompt in ((1,), tuple(range(9)), tuple(range(18))):
            engine.submit(Request(prompt=prompt, params=GREEDY))
        finish(engine)
    assert checked[0].proposed == 0  # no room in such steps
    assert all(each.proposed > 0 for each in checked[1:])


def test_an_engine_forgets_what_the_module_had_not_read_when_a_request_is_put_back(checked: list[Checked]) -> None:
    engine = Engine(with_mtp(0.05), spec=replace(SPEC, cache_tokens=60, prefix_cache=False))
    low = engine.submit(Request(prompt=tuple(range(20)), params=replace(GREEDY, max_tokens=20)))
    for _ in range(6):
        engine.step()
    engine.submit(Request(prompt=tuple(range(40)), params=GREEDY, priority=1))
    outputs = finish(engine)
    assert engine.stats.preemptions == 1
    assert (outputs[low][-1].finish_reason, outputs[low][-1].error) == ("length", None)

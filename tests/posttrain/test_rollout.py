from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fathom.engine.engine import Engine
from fathom.engine.sampling.draw import SamplingMetadata, distribution
from fathom.errors import SpecError
from fathom.model.build import build
from fathom.posttrain.problem_stream import ProblemStream
from fathom.posttrain.prompts import R1_ZERO, PromptFormatter
from fathom.posttrain.rollout import Rollout, pack_rollouts, sample_rollouts
from fathom.posttrain.scoring import rollout_logprobs
from fathom.spec.engine import Drafting, EngineSpec
from fathom.spec.problem import Problem
from fathom.spec.rollout import ChatPrompt, RolloutSpec, TextPrompt
from fathom.spec.sampling import Completion, SamplingParams, StopChecker, TokenLogprob
from fathom.spec.train import AdamWSpec, UpdateSpec
from fathom.tokenizer import Tokenizer, special
from tests.posttrain.conftest import DENSE, MODEL, Endless

SPEC = RolloutSpec(questions=2, group_size=3, max_tokens=8, prompt=TextPrompt(text="Q {question} A"))


def problem(question: str = "What is 1 + 2?") -> Problem:
    return Problem(id="p", task="t", question=question, answer="3")


class Scripted:
    """A sampler of twenty lines: returns given texts, token by token."""

    def __init__(self, answer: Sequence[int], stop_token: int | None) -> None:
        self.answer, self.stop_token = tuple(answer), stop_token
        self.seeds: list[int | None] = []

    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        params: SamplingParams | Sequence[SamplingParams],
        *,
        stop_checkers: Sequence[StopChecker | None] | None = None,
    ) -> list[Completion]:
        assert not isinstance(params, SamplingParams)
        self.seeds += [each.seed for each in params]
        return [self._completion(checker) for checker in stop_checkers or [None] * len(prompts)]

    def _completion(self, checker: StopChecker | None) -> Completion:
        answer, ended = self.answer, None if self.stop_token is None else TokenLogprob(self.stop_token, -0.5)
        stops = [index for index, token in enumerate(answer) if checker is not None and checker.append(token)]
        if stops:
            answer, ended = answer[: stops[0] + 1], None
        return Completion(
            token_ids=answer,
            logprobs=(-1.0,) * len(answer),
            finish_reason="stop" if ended is not None or stops else "length",
            stop_token=ended,
        )

    def stream(self, prompt: Sequence[int], params: SamplingParams) -> Iterator[int]:
        raise NotImplementedError


def test_a_chat_prompt_opens_the_thinking_and_the_answer_is_read_with_it(tokenizer: Tokenizer) -> None:
    prompt_formatter = PromptFormatter(tokenizer, ChatPrompt(system="Be brief."))
    text = prompt_formatter.question(problem())
    assert text == f"{special.BEGIN}Be brief.{special.USER}What is 1 + 2?{special.ASSISTANT}{special.THINK_BEGIN}\n"
    ids = [*tokenizer.encode("1 + 2 = 3\n"), tokenizer.special_tokens[special.THINK_END], *tokenizer.encode("\n\n3")]
    assert prompt_formatter.read([*ids, tokenizer.eos_id]) == "<think>\n1 + 2 = 3\n</think>\n\n3"
    closed = PromptFormatter(tokenizer, ChatPrompt(thinking="closed"))
    assert closed.read(tokenizer.encode("3")) == "3"
    free = PromptFormatter(tokenizer, ChatPrompt(thinking="free"))
    assert free.question(problem()).endswith(special.ASSISTANT)
    assert free.read([tokenizer.special_tokens[special.THINK_BEGIN], *tokenizer.encode("so")]) == "<think>so"


def test_a_text_prompt_holds_the_question_and_no_special_token_but_the_first(tokenizer: Tokenizer) -> None:
    prompt_formatter = PromptFormatter(tokenizer, TextPrompt())
    ids = prompt_formatter.encode(problem(f"What{special.END}?"))
    assert ids[: len(tokenizer.prefix_ids)] == list(tokenizer.prefix_ids)
    assert not set(ids[len(tokenizer.prefix_ids) :]) & tokenizer.special_ids
    assert tokenizer.decode(ids) == R1_ZERO.replace("{question}", f"What{special.END}?")
    assert prompt_formatter.read(tokenizer.encode(" <think> x")) == " <think> x"
    assert PromptFormatter(tokenizer, TextPrompt(text="{question} <think>")).read(tokenizer.encode(" x")) == "<think> x"


def test_answers_end_with_the_token_that_ended_them(tokenizer: Tokenizer) -> None:
    prompt_formatter = PromptFormatter(tokenizer, SPEC.prompt)
    answer = tokenizer.encode("The answer")
    sampler = Scripted(answer, tokenizer.eos_id)
    rollouts = sample_rollouts(
        sampler, prompt_formatter, [problem(), problem("?")], SPEC, seed=5, context=64, first_group=7
    )
    assert [rollout.group for rollout in rollouts] == [7, 7, 7, 8, 8, 8]
    assert rollouts[0].answer_ids == (*answer, tokenizer.eos_id)
    assert rollouts[0].logprobs == (*[-1.0] * len(answer), -0.5)
    assert (rollouts[0].text, rollouts[0].finished) == ("The answer", True)
    assert len(set(sampler.seeds)) == 6
    cut = sample_rollouts(Scripted(answer, None), prompt_formatter, [problem()], SPEC, seed=5, context=64)
    assert (cut[0].answer_ids, cut[0].finished) == (tuple(answer), False)


def test_a_stop_string_cuts_an_answer_at_the_token_that_completes_it(tokenizer: Tokenizer) -> None:
    prompt_formatter = PromptFormatter(tokenizer, TextPrompt(text="{question}", stop=("</answer>",)))
    before, after = tokenizer.encode("3 </answer>"), tokenizer.encode(" and on")
    sampler = Scripted([*before, *after], tokenizer.eos_id)
    (rollout,) = sample_rollouts(
        sampler, prompt_formatter, [problem()], RolloutSpec(questions=1, group_size=1, max_tokens=8), seed=1, context=64
    )
    assert rollout.answer_ids == tuple(before)
    assert rollout.text == "3 </answer>"
    assert rollout.finished
    assert len(rollout.logprobs) == len(before)


@pytest.mark.parametrize("drafting", ["none", "ngram"])
def test_the_engine_ends_answers_at_stop_strings_as_cutting_them_afterwards_would(
    tokenizer: Tokenizer, drafting: Drafting
) -> None:
    model = build(DENSE)
    engine = Engine(model, spec=EngineSpec(record_routing=False, drafting=drafting, draft_tokens=3))
    asked = RolloutSpec(questions=4, group_size=4, max_tokens=30)
    problems = [problem("?"), problem("What is 1 + 2?"), problem("1"), problem("aaaa")]

    def rollouts(*stops: str) -> list[Rollout]:
        formatter = PromptFormatter(tokenizer, TextPrompt(text="{question}", stop=stops))
        return sample_rollouts(engine, formatter, problems, asked, seed=3, context=64)

    whole, before = rollouts(), engine.stats.generated_tokens
    stops = tuple(re.findall(r"[!-~]{2}", rollout.text)[-1] for rollout in whole[::5])
    stopped = rollouts(*stops)
    for full, short in zip(whole, stopped, strict=True):
        ends = [
            count
            for count in range(1, len(full.answer_ids) + 1)
            if any(stop in tokenizer.decode(full.answer_ids[:count], skip_special=False) for stop in stops)
        ]
        count = ends[0] if ends else len(full.answer_ids)
        assert short.answer_ids == full.answer_ids[:count]
        assert short.logprobs == pytest.approx(full.logprobs[:count], abs=1e-4)
        assert (short.finished, any(stop in short.text for stop in stops)) == (bool(ends), bool(ends))
    assert sum(rollout.finished for rollout in stopped) >= 3
    generated = engine.stats.generated_tokens - before
    assert generated == sum(len(rollout.answer_ids) for rollout in stopped) < before


def test_a_problem_that_leaves_no_room_is_left_out(tokenizer: Tokenizer) -> None:
    prompt_formatter = PromptFormatter(tokenizer, SPEC.prompt)
    rollouts = sample_rollouts(
        Scripted([5], None), prompt_formatter, [problem("long " * 40), problem("?")], SPEC, seed=1, context=32
    )
    assert {rollout.group for rollout in rollouts} == {1}


@pytest.mark.parametrize("spec", [MODEL, DENSE], ids=["mla-moe", "gqa"])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_log_probabilities_as_sampled_and_as_trained_agree(
    tokenizer: Tokenizer, spec: object, temperature: float
) -> None:
    model = build(spec)  # type: ignore[arg-type]
    prompt_formatter = PromptFormatter(tokenizer, SPEC.prompt)
    asked = RolloutSpec(questions=4, group_size=4, max_tokens=12, temperature=temperature)
    rollouts = sample_rollouts(
        Engine(model, eos_ids=[tokenizer.eos_id]),
        prompt_formatter,
        [problem("?"), problem("What is 1 + 2?"), problem("1"), problem("3 + 3")],
        asked,
        seed=3,
        context=64,
    )
    update = UpdateSpec(optimizer=AdamWSpec(lr=1.0), loss_chunk_tokens=7)
    recomputed = rollout_logprobs(model, rollouts, update, temperature=1.0, micro_batch_tokens=50)
    warm = rollout_logprobs(model, rollouts, update, temperature=temperature, micro_batch_tokens=1000)
    for rollout, mine, hot in zip(rollouts, recomputed, warm, strict=True):
        assert mine == pytest.approx(list(rollout.logprobs), abs=1e-4)
        ids = [*rollout.prompt_ids, *rollout.answer_ids]
        with torch.no_grad():
            logits = model.logits(model(torch.tensor([ids[:-1]])).hidden_BTD[0]) / temperature
        oracle = logits.log_softmax(-1)[torch.arange(len(ids) - 1), ids[1:]][len(rollout.prompt_ids) - 1 :]
        assert hot == pytest.approx(oracle.tolist(), abs=1e-4)


def test_packing_lays_columns_under_the_answers_only(tokenizer: Tokenizer) -> None:
    prompt_formatter = PromptFormatter(tokenizer, SPEC.prompt)
    rollouts = sample_rollouts(
        Scripted([9, 8], tokenizer.eos_id), prompt_formatter, [problem("?")], SPEC, seed=1, context=64
    )
    batch = pack_rollouts(rollouts[:2], {"x": [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]})
    prompt = list(rollouts[0].prompt_ids)
    assert batch.tokens_N.tolist() == [*prompt, 9, 8] * 2
    ignored = [-100] * (len(prompt) - 1)
    assert batch.targets_N.tolist() == [*ignored, 9, 8, tokenizer.eos_id] * 2
    zeros = [0.0] * (len(prompt) - 1)
    assert batch.columns["x"].tolist() == [*zeros, 1.0, 2.0, 3.0, *zeros, 4.0, 5.0, 6.0]
    assert batch.columns["row"].tolist() == [0] * (len(prompt) + 2) + [1] * (len(prompt) + 2)


@pytest.mark.parametrize("parts", [[10], [1, 2, 3, 4], [5, 5], [4, 1, 5]])
def test_questions_come_from_their_sets_in_turn_however_they_are_asked_for(parts: list[int]) -> None:
    asked = ProblemStream([Endless("a"), Endless("b"), Endless("c")], seed=2)
    drawn = [each.id for part in parts for each in asked.next(part)]
    assert drawn == ["a-0", "b-0", "c-0", "a-1", "b-1", "c-1", "a-2", "b-2", "c-2", "a-3"]
    again = ProblemStream([Endless("a"), Endless("b"), Endless("c")], seed=2)
    again.restore(asked.state())
    assert again.next(2) == asked.next(2)


class Recording:
    """The engine, and what it was asked."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.params: list[SamplingParams] = []

    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        params: SamplingParams | Sequence[SamplingParams],
        *,
        stop_checkers: Sequence[StopChecker | None] | None = None,
    ) -> list[Completion]:
        assert not isinstance(params, SamplingParams)
        self.params += params
        return self.engine.sample(prompts, params, stop_checkers=stop_checkers)

    def stream(self, prompt: Sequence[int], params: SamplingParams) -> Iterator[int]:
        raise NotImplementedError


@settings(max_examples=25)
@given(
    temperature=st.one_of(st.floats(0.05, 3.0), st.sampled_from([1.0, 0.0, -1.0, math.inf])),
    top_p=st.sampled_from([1.0, 1.0, 0.9, 0.0, 1.5, math.nan]),
    questions=st.integers(1, 2),
    group_size=st.integers(1, 3),
    max_tokens=st.integers(0, 8),
    seed=st.integers(0, 2**40),
)
def test_what_a_rollout_spec_accepts_is_drawn_from_the_softmax_that_the_loss_is_of(
    tokenizer: Tokenizer, seed: int, **given: Any
) -> None:
    valid = 0 < given["temperature"] < math.inf and given["top_p"] == 1 and given["max_tokens"] > 0
    if not valid:
        with pytest.raises(SpecError) as refused:
            RolloutSpec(prompt=SPEC.prompt, **given)
        assert refused.value.path in given
        return
    spec = RolloutSpec(prompt=SPEC.prompt, **given)
    model = build(MODEL, seed=3)
    sampler, formatter = Recording(Engine(model, eos_ids=[tokenizer.eos_id])), PromptFormatter(tokenizer, spec.prompt)
    problems = [problem(f"{index}?") for index in range(spec.questions)]
    rollouts = sample_rollouts(sampler, formatter, problems, spec, seed=seed, context=64)
    update = UpdateSpec(optimizer=AdamWSpec(lr=1.0))
    result, ratios_of = (
        rollout_logprobs(model, rollouts, update, temperature=at, micro_batch_tokens=64)
        for at in (1.0, spec.temperature)
    )
    for rollout, params, logprobs, at_temperature in zip(rollouts, sampler.params, result, ratios_of, strict=True):
        assert rollout.logprobs == pytest.approx(logprobs, abs=1e-4)
        ids = torch.tensor([[*rollout.prompt_ids, *rollout.answer_ids]])
        with torch.no_grad():
            logits_TV = model.logits(model(ids[:, :-1]).hidden_BTD[0, len(rollout.prompt_ids) - 1 :])
        for place, (token, logprob) in enumerate(zip(rollout.answer_ids, at_temperature, strict=True)):
            row = SamplingMetadata(params=params, prompt=rollout.prompt_ids, drawn=rollout.answer_ids[:place], seed=0)
            drawn_from_V = distribution(logits_TV[place], row)
            assert drawn_from_V[token].log().item() == pytest.approx(logprob, abs=1e-4 / spec.temperature)


def test_a_truncated_distribution_is_refused_and_the_advice_is_accepted() -> None:
    with pytest.raises(SpecError, match=r"top_p: 0\.9 samples from a part .* leave it at 1, and lower temperature"):
        RolloutSpec(questions=1, group_size=2, max_tokens=4, top_p=0.9)
    assert RolloutSpec(questions=1, group_size=2, max_tokens=4, top_p=1.0, temperature=0.8).temperature == 0.8


def test_log_probabilities_agree_where_ids_without_a_token_have_most_of_the_mass(tokenizer: Tokenizer) -> None:
    spec = replace(MODEL, vocab_size=tokenizer.vocab_size + 40)
    unused = tokenizer.unused_ids(spec.vocab_size)
    assert unused == tuple(range(tokenizer.vocab_size, spec.vocab_size))
    model = build(spec, seed=3)
    with torch.no_grad():
        model.lm_head.weight[list(unused)] *= 4
    formatter, problems = PromptFormatter(tokenizer, SPEC.prompt), [problem(f"{index}?") for index in range(3)]
    engine = Engine(model, eos_ids=[tokenizer.eos_id], unused_ids=unused)
    rollouts = sample_rollouts(engine, formatter, problems, SPEC, seed=1, context=64)
    assert not {token for rollout in rollouts for token in rollout.answer_ids} & set(unused)
    trained = rollout_logprobs(
        model, rollouts, UpdateSpec(optimizer=AdamWSpec(lr=1.0)), temperature=1.0, micro_batch_tokens=50
    )
    for rollout, logprobs in zip(rollouts, trained, strict=True):
        assert logprobs == pytest.approx(list(rollout.logprobs), abs=1e-4)
    assert sum(map(sum, trained)) / sum(map(len, trained)) < -6  # far below what the used ids have among themselves

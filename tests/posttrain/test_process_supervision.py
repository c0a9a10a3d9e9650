"""Process supervision in the trainer, against the formula of DeepSeekMath §4.1.3 written out token by token."""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from fathom.errors import DataError
from fathom.posttrain.grpo import PolicyTrainer
from fathom.posttrain.online import RolloutBatch
from fathom.posttrain.prompts import PromptFormatter
from fathom.posttrain.rewards.base import Judgement, RewardInput, StepScore
from fathom.posttrain.rewards.judge import Judge
from fathom.posttrain.rollout import Rollout
from fathom.spec.posttrain import AdvantageSpec, KlPenalty, KlPlace, PolicyLoss
from fathom.spec.rewards import AccuracyReward, StepsReward
from fathom.spec.rollout import ChatPrompt, PolicySpec, Prompting, TextPrompt
from fathom.spec.sampling import Completion, SamplingParams, StopChecker, TokenLogprob
from fathom.tokenizer import Tokenizer
from fathom.train.metrics import read_json_lines
from fathom.train.state import Position
from tests.posttrain.conftest import SPEC, MakePolicy

Judging = Callable[[Sequence[RewardInput]], Sequence[Judgement]]
PROCESS = AdvantageSpec(supervision="process", eps=0.0)
RIGHT, WRONG = "1 + 2 = 3", "2 + 2 = 3"
GROUPS = [
    [f"{RIGHT}; {WRONG}\nso it is {RIGHT}", f"{RIGHT}\n{RIGHT}; {RIGHT}\n3", f"{WRONG};", "nothing"],
    [f"{RIGHT};{RIGHT}\na", f"{RIGHT};b", "c", f" {RIGHT} \nd"],
    [f"{WRONG}\nb", f"{WRONG};{RIGHT}; €{WRONG}\n", f"{RIGHT}\n\n;x", f"{WRONG};{WRONG};{RIGHT}"],
]
"""Answers to three problems; in the second group no step differs from another. Problems' answers are a, a and b."""


def alone(loss: PolicyLoss | None = None, **fields: object) -> PolicySpec:
    """The spec of tests with process supervision and no reference."""
    given = {"loss": PolicyLoss(advantage=PROCESS) if loss is None else loss, "reference_every": None}
    return replace(SPEC, **(given | fields))  # type: ignore[arg-type]


class Scripted:
    """Gives the answers of each group in turn, the odd ones ended by a token of their own."""

    def __init__(self, tokenizer: Tokenizer, groups: Sequence[Sequence[str]]) -> None:
        self._tokenizer, self._groups = tokenizer, list(groups)

    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        params: SamplingParams | Sequence[SamplingParams],
        *,
        stop_checkers: Sequence[StopChecker | None] | None = None,
    ) -> list[Completion]:
        texts = [text for group in self._groups[: len(prompts) // 4] for text in group]
        del self._groups[: len(prompts) // 4]
        return [self._completion(text, ended=bool(index % 2)) for index, text in enumerate(texts)]

    def _completion(self, text: str, *, ended: bool) -> Completion:
        ids = tuple(self._tokenizer.encode(text, continues=True))
        return Completion(
            token_ids=ids,
            logprobs=tuple(-0.01 * (token % 7) for token in ids),
            finish_reason="stop" if ended else "length",
            stop_token=TokenLogprob(self._tokenizer.eos_id, -0.5) if ended else None,
        )

    def stream(self, prompt: Sequence[int], params: SamplingParams) -> Iterator[int]:
        raise NotImplementedError

    def forget(self) -> None:
        pass


@pytest.fixture
def scripted(tmp_path: Path, make_policy: MakePolicy, tokenizer: Tokenizer) -> Callable[..., PolicyTrainer]:
    def make(spec: PolicySpec, judge: Judging, groups: Sequence[Sequence[str]] = GROUPS) -> PolicyTrainer:
        trainer = make_policy(tmp_path, spec, judge=judge)
        trainer.sampler = Scripted(tokenizer, groups)
        trainer.begin(Position())
        return trainer

    return make


def token_of(prompt_formatter: PromptFormatter, ids: Sequence[int], text: str, end: int) -> int:
    """The first token with which the text is there as far as ``end``, by reading every beginning of the answer."""
    return next(i for i in range(len(ids)) if prompt_formatter.read(ids[: i + 1])[:end] == text[:end])


def steps_by_hand(text: str) -> list[tuple[int, float]]:
    """Where each equation that stands alone ends, and whether it is the right one."""
    found, start = [], 0
    for line in text.replace(";", "\n").split("\n"):
        if line.strip() in (RIGHT, WRONG):
            found.append((start + len(line.rstrip()), float(line.strip() == RIGHT)))
        start += len(line) + 1
    return found


def of_paper(prompt_formatter: PromptFormatter, rollouts: Sequence[Rollout]) -> list[list[float]]:
    """R of §4.1.3 is all step rewards of a group; a token's advantage sums (r - mean R) / std R of later steps."""
    advantages = []
    for rollout in rollouts:
        group = [value for r in rollouts if r.group == rollout.group for _, value in steps_by_hand(r.text)]
        mean, deviation = statistics.fmean(group), statistics.pstdev(group)
        steps = [
            (token_of(prompt_formatter, rollout.answer_ids, rollout.text, end), value)
            for end, value in steps_by_hand(rollout.text)
        ]
        advantages.append(
            [sum((r - mean) / deviation for end, r in steps if end >= t) for t in range(len(rollout.answer_ids))]
        )
    return advantages


def close(found: Sequence[Sequence[float]], expected: Sequence[Sequence[float]]) -> None:
    assert [len(each) for each in found] == [len(each) for each in expected]
    for mine, theirs in zip(found, expected, strict=True):
        assert list(mine) == pytest.approx(list(theirs), abs=1e-12)


def test_advantages_are_those_of_the_paper(scripted: Callable[..., PolicyTrainer]) -> None:
    with Judge([StepsReward(), AccuracyReward(method="exact", weight=0.0)]) as judge:
        trainer = scripted(alone(), judge.judge)
        rollout_batch = trainer.collect_rollouts(1)
    assert [rollout.text for rollout in rollout_batch.rollouts] == [*GROUPS[0], *GROUPS[2]]
    close(rollout_batch.columns["advantage"], of_paper(trainer.prompt_formatter, rollout_batch.rollouts))
    assert rollout_batch.columns["advantage"][3] == [0.0] * len(rollout_batch.rollouts[3].answer_ids)
    assert len(set(rollout_batch.columns["advantage"][1])) == 4
    assert rollout_batch.values["zero_variance"] == pytest.approx(1 / 3)
    counts = [len(steps_by_hand(text)) for group in GROUPS for text in group]
    worth = [value for group in GROUPS for text in group for _, value in steps_by_hand(text)]
    assert rollout_batch.values["scored_steps"] == pytest.approx(sum(counts) / 12)
    assert rollout_batch.values["step_score"] == pytest.approx(sum(worth) / len(worth))


def with_outcomes(
    prompt_formatter: PromptFormatter, rollouts: Sequence[Rollout], outcomes: Sequence[float], weight: float
) -> list[list[float]]:
    """An outcome is one more step at the last token: its own mean, and one deviation of both kinds' variances."""
    advantages = []
    for rollout, outcome in zip(rollouts, outcomes, strict=True):
        mates = [index for index, other in enumerate(rollouts) if other.group == rollout.group]
        steps = [weight * value for index in mates for _, value in steps_by_hand(rollouts[index].text)]
        ends = [outcomes[index] for index in mates]
        deviation = math.sqrt(statistics.pvariance(steps) + statistics.pvariance(ends))
        earned = [
            (
                token_of(prompt_formatter, rollout.answer_ids, rollout.text, end),
                weight * value - statistics.fmean(steps),
            )
            for end, value in steps_by_hand(rollout.text)
        ]
        earned.append((len(rollout.answer_ids) - 1, outcome - statistics.fmean(ends)))
        advantages.append(
            [sum(value / deviation for end, value in earned if end >= t) for t in range(len(rollout.answer_ids))]
        )
    return advantages


def test_an_outcome_is_one_more_step_compared_with_outcomes(scripted: Callable[..., PolicyTrainer]) -> None:
    with Judge([StepsReward(weight=0.5), AccuracyReward(method="exact", weight=3.0)]) as judge:
        trainer = scripted(alone(), judge.judge)
        rollout_batch = trainer.collect_rollouts(1)
    assert rollout_batch.values["zero_variance"] == 0
    outcomes = [3.0 * (rollout.text.split()[-1:] == [rollout.problem.answer]) for rollout in rollout_batch.rollouts]
    assert [sum(outcomes[first : first + 4]) for first in (0, 4, 8)] == [0.0, 3.0, 3.0]
    rollouts, kept = list(rollout_batch.rollouts), [i for i, r in enumerate(rollout_batch.rollouts) if r.group != 0]
    close(rollout_batch.columns["advantage"][:4], of_paper(trainer.prompt_formatter, rollouts[:4]))
    expected = with_outcomes(trainer.prompt_formatter, [rollouts[i] for i in kept], [outcomes[i] for i in kept], 0.5)
    close([rollout_batch.columns["advantage"][i] for i in kept], expected)


def test_outcomes_alone_are_what_outcome_supervision_makes_of_them(scripted: Callable[..., PolicyTrainer]) -> None:
    found = []
    for spec in (alone(), alone(PolicyLoss(advantage=AdvantageSpec(eps=0.0)))):
        with Judge([AccuracyReward(method="exact")]) as judge:
            found.append(scripted(spec, judge.judge).collect_rollouts(1).columns["advantage"])
    close(*found)


def test_under_outcome_supervision_steps_count_as_their_mean(scripted: Callable[..., PolicyTrainer]) -> None:
    with Judge([StepsReward(weight=2.0)]) as judge:
        rollout_batch = scripted(
            alone(PolicyLoss(advantage=AdvantageSpec(scale="none"))), judge.judge
        ).collect_rollouts(1)
    worth = [[value for _, value in steps_by_hand(rollout.text)] for rollout in rollout_batch.rollouts]
    totals = [2.0 * statistics.fmean(values) if values else 0.0 for values in worth]
    for index, rollout in enumerate(rollout_batch.rollouts):
        mates = [t for t, other in zip(totals, rollout_batch.rollouts, strict=True) if other.group == rollout.group]
        expected = [totals[index] - statistics.fmean(mates)] * len(rollout.answer_ids)
        assert rollout_batch.columns["advantage"][index] == pytest.approx(expected)


@pytest.mark.parametrize("place", ["loss", "advantage", "reward"])
def test_a_penalty_works_where_it_is_placed(scripted: Callable[..., PolicyTrainer], place: KlPlace) -> None:
    loss = PolicyLoss(advantage=PROCESS, kl=KlPenalty(estimator="k1", beta=0.5, place=place))
    groups = [GROUPS[0], GROUPS[2], GROUPS[0]]
    with Judge([StepsReward()]) as judge:
        trainer = scripted(alone(loss), judge.judge, groups)
        assert trainer._reference is not None
        for parameter in trainer._reference.model.parameters():
            parameter.data.mul_(0.5)
        rollout_batch = trainer.collect_rollouts(1)
    plain = of_paper(trainer.prompt_formatter, rollout_batch.rollouts)
    if place == "loss":
        close(rollout_batch.columns["advantage"], plain)
        return
    apart = [
        [0.5 * (mine - theirs) for mine, theirs in zip(*pair, strict=True)]
        for pair in zip(rollout_batch.columns["old"], rollout_batch.columns["reference"], strict=True)
    ]
    assert max(abs(value) for each in apart for value in each) > 0.01
    if place == "advantage":
        expected = [[a - b for a, b in zip(*pair, strict=True)] for pair in zip(plain, apart, strict=True)]
    else:
        expected = with_outcomes(trainer.prompt_formatter, rollout_batch.rollouts, [-sum(each) for each in apart], 1.0)
    for mine, theirs in zip(rollout_batch.columns["advantage"], expected, strict=True):
        assert list(mine) == pytest.approx(theirs, abs=1e-5)


def test_groups_whose_steps_are_alike_give_way_to_others(scripted: Callable[..., PolicyTrainer]) -> None:
    spec = alone(rollout=replace(SPEC.rollout, resample=1))
    with Judge([StepsReward()]) as judge:
        trainer = scripted(spec, judge.judge, [*GROUPS, GROUPS[0]])
        rollout_batch = trainer.collect_rollouts(1)
    assert rollout_batch.values["resampled_groups"] == 1
    assert rollout_batch.values["zero_variance"] == 0
    assert [rollout.text for rollout in rollout_batch.rollouts] == [*GROUPS[0], *GROUPS[2], *GROUPS[0]]
    close(rollout_batch.columns["advantage"], of_paper(trainer.prompt_formatter, rollout_batch.rollouts))


def test_nothing_to_judge_is_nothing_to_learn(scripted: Callable[..., PolicyTrainer]) -> None:
    rollout_batch = scripted(alone(), lambda answers: [], [[""] * 0] * 3)._compared([], [])
    assert rollout_batch.advantages.values_N.numel() == 0
    with Judge([StepsReward()]) as judge:
        nothing = scripted(alone(), judge.judge, [["a", "b", "c", "d"]] * 3).collect_rollouts(1)
    assert not nothing.rollouts
    assert nothing.values["scored_steps"] == 0
    assert nothing.values["zero_variance"] == 1


@pytest.mark.parametrize(
    ("step", "message"),
    [(StepScore(5, 1.0), "ends after 5 characters of an answer of 1"), (StepScore(1, math.nan), "step_rewards_Z")],
)
def test_steps_that_cannot_be_are_refused(
    scripted: Callable[..., PolicyTrainer], step: StepScore, message: str
) -> None:
    def judge(answers: Sequence[RewardInput]) -> list[Judgement]:
        return [Judgement(total=0.0, parts={}, correct=None, steps={"mine": (step,)}) for _ in answers]

    with pytest.raises(DataError, match=message):
        scripted(alone(), judge, [["a", "b", "c", "d"]] * 3).collect_rollouts(1)


@pytest.mark.parametrize("prompting", [TextPrompt(text="Q {question}"), ChatPrompt()], ids=["text", "thinking"])
def test_places_are_found_whatever_tokens_an_answer_is_cut_into(tokenizer: Tokenizer, prompting: Prompting) -> None:
    prompt_formatter = PromptFormatter(tokenizer, prompting)
    draw = random.Random(3)
    texts = ["1 + 2 = 3; ", "é€𝄞 ", "The answer is", "\n", "</think>", "漢字"]
    for _ in range(20):
        ids = tokenizer.encode("".join(draw.choices(texts, k=6)), allow_special=True, continues=True)
        ids += [tokenizer.eos_id] * draw.randrange(2)
        text = prompt_formatter.read(ids)
        ends = list(range(len(text) + 1))
        opened = len(text) - len(tokenizer.decode([i for i in ids if i != tokenizer.eos_id], skip_special=False))
        expected = [0 if end <= opened else token_of(prompt_formatter, ids, text, end) for end in ends]
        assert prompt_formatter.token_indices(ids, ends) == expected
        assert prompt_formatter.token_indices(ids, ends[::-1]) == expected[::-1]
    assert prompt_formatter.token_indices([], [0]) == [0]
    with pytest.raises(DataError, match="fix the reward"):
        prompt_formatter.token_indices([], [100])


def test_bytes_that_are_no_text_have_places_too(tokenizer: Tokenizer) -> None:
    prompt_formatter = PromptFormatter(tokenizer, TextPrompt(text="Q {question}"))
    ids = tokenizer.encode("a€b")
    cut = ids[:2]
    assert prompt_formatter.read(cut) == "a\N{REPLACEMENT CHARACTER}"
    assert prompt_formatter.token_indices(cut, [1, 2]) == [0, 1]


def every_character(answers: Sequence[RewardInput]) -> list[Judgement]:
    """Each character is a step, which is right if its code is even."""
    judged = []
    for answered in answers:
        steps = tuple(StepScore(i + 1, float(ord(c) % 2 == 0)) for i, c in enumerate(answered.answer))
        total = statistics.fmean([step.value for step in steps]) if steps else 0.0
        judged.append(Judgement(total=total, parts={"even": total}, correct=total > 0.5, steps={"even": steps}))
    return judged


@pytest.mark.slow
def test_a_policy_learns_from_its_steps_and_resumes(tmp_path: Path, make_policy: MakePolicy) -> None:
    spec = alone(rollouts=20)
    make_policy(tmp_path / "whole", spec, judge=every_character).run()
    lines = read_json_lines(tmp_path / "whole" / "metrics.jsonl")
    start, end = (statistics.fmean(float(x["step_score"]) for x in part) for part in (lines[:5], lines[-5:]))
    assert end > start + 0.15
    assert all(float(line["logprob_difference"]) < 1e-4 for line in lines)
    assert all(line["scored_steps"] > 1 for line in lines)

    first, learned = make_policy(tmp_path / "parts", spec, judge=every_character), 0
    learn = first.collect_rollouts

    def interrupted(number: int) -> RolloutBatch:
        nonlocal learned
        if learned == 5:
            raise KeyboardInterrupt
        learned += 1
        return learn(number)

    first.collect_rollouts = interrupted  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        first.run()
    make_policy(tmp_path / "parts", spec, judge=every_character).run(resume=True)
    again = read_json_lines(tmp_path / "parts" / "metrics.jsonl")
    kept = ("step", "reward", "loss", "step_score", "scored_steps")
    assert [[line[name] for name in kept] for line in lines] == [[line[name] for name in kept] for line in again]


@pytest.mark.parametrize("place", ["loss", "reward", "advantage"])
@pytest.mark.parametrize("ratio", ["token", "sequence_mean"])
def test_every_form_of_the_loss_takes_it(tmp_path: Path, make_policy: MakePolicy, place: KlPlace, ratio: str) -> None:
    loss = PolicyLoss(advantage=PROCESS, kl=KlPenalty(place=place), ratio=ratio)  # type: ignore[arg-type]
    make_policy(tmp_path, alone(loss, rollouts=2, updates=2, reference_every=1), judge=every_character).run()
    lines = read_json_lines(tmp_path / "metrics.jsonl")
    assert all(math.isfinite(line["loss"]) and line["grad_norm"] > 0 for line in lines)

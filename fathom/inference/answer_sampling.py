"""Samples answers to problems with the engine, all in one batch, and yields them as they finish."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from fathom.data.problems.split import derived_seed
from fathom.engine.engine import Engine
from fathom.engine.request import Request
from fathom.errors import ContextError
from fathom.inference.language_model import LanguageModel
from fathom.posttrain.prompts import PromptFormatter
from fathom.spec.problem import Problem
from fathom.spec.recipe import AnswersStep, TasksStep
from fathom.spec.sampling import SamplingParams

MAX_LISTED = 3
"""Problems that an error lists."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SampledAnswer:
    """Answer ``copy`` to problem ``index``: its text as rewards read it, its tokens, whether it ended by itself.

    ``error`` is one line where the engine failed on it.
    """

    index: int
    copy: int
    text: str
    tokens: int
    finished: bool
    error: str | None = None


def sample_answers(
    model: LanguageModel,
    prompt_formatter: PromptFormatter,
    problems: Sequence[Problem],
    asking: TasksStep | AnswersStep,
) -> Iterator[SampledAnswer]:
    """Yield ``samples`` answers to every problem as they finish; the seed is derived from the problem and the copy.

    An answer that reaches the end of the context is cut off there.

    Raises:
        ContextError: a problem leaves no tokens for an answer.
    """
    prompts = [prompt_formatter.encode(problem) for problem in problems]
    check_prompt_lengths(problems, prompts, model.spec.max_position_embeddings)
    engine = model.engine
    waiting: dict[int, _PendingAnswer] = {}
    try:
        for index, (problem, prompt) in enumerate(zip(problems, prompts, strict=True)):
            for copy in range(asking.samples):
                params = SamplingParams(
                    max_tokens=min(asking.max_tokens, model.spec.max_position_embeddings - len(prompt)),
                    temperature=asking.temperature,
                    top_p=asking.top_p,
                    seed=derived_seed(problem.id, copy),
                )
                request = Request(prompt=tuple(prompt), params=params, stop_checker=prompt_formatter.stop_checker())
                waiting[engine.submit(request)] = _PendingAnswer(index, copy)
        while waiting:
            yield from _step_engine(engine, prompt_formatter, waiting)
    finally:
        for request_id in waiting:
            engine.cancel(request_id)


def check_prompt_lengths(problems: Sequence[Problem], prompts: Sequence[Sequence[int]], context: int) -> None:
    """Raise ``ContextError`` with the problems whose prompts leave no tokens for an answer."""
    long = [(p, len(prompt)) for p, prompt in zip(problems, prompts, strict=True) if len(prompt) >= context]
    if long:
        named = ", ".join(f"{problem.id} ({tokens} tokens)" for problem, tokens in long[:MAX_LISTED])
        more = f" and {len(long) - MAX_LISTED} more" if len(long) > MAX_LISTED else ""
        raise ContextError(
            f"{long[0][0].task}: {named}{more} leave no tokens for an answer in the context of {context}; "
            "extend the context or use shorter problems"
        )


@dataclass(slots=True)
class _PendingAnswer:
    """An answer that is being sampled."""

    index: int
    copy: int
    ids: list[int] = field(default_factory=list)

    def result(self, prompt_formatter: PromptFormatter, *, finished: bool, error: str | None = None) -> SampledAnswer:
        return SampledAnswer(
            index=self.index,
            copy=self.copy,
            text=prompt_formatter.read(self.ids),
            tokens=len(self.ids),
            finished=finished,
            error=error,
        )


def _step_engine(
    engine: Engine, prompt_formatter: PromptFormatter, waiting: dict[int, _PendingAnswer]
) -> Iterator[SampledAnswer]:
    """Run one step of the engine and yield the answers that finished in it."""
    outputs = engine.step()
    if engine.last_error is not None:
        raise engine.last_error
    for output in outputs:
        answer = waiting.get(output.request_id)
        if answer is None:
            continue
        answer.ids += [token.token_id for token in output.tokens]
        if output.finish_reason is None:
            continue
        del waiting[output.request_id]
        yield answer.result(prompt_formatter, finished=output.finish_reason == "stop", error=output.error)


def failure_kind(message: str) -> str:
    """Return the kind of failure of a message, without its varying details."""
    return message.partition(":")[0].strip() or "failed"


def count_failures(failures: Sequence[Mapping[str, str]]) -> dict[str, int]:
    """Count failures by part and kind, e.g. ``accuracy: timed out``, the most frequent first."""
    counts: dict[str, int] = {}
    for each in failures:
        for part, message in each.items():
            name = f"{part}: {failure_kind(message)}"
            counts[name] = counts.get(name, 0) + 1
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))

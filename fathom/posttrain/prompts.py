"""Problems put to a model, and its answers as rewards read them."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

from fathom.chat import encode_chat
from fathom.chat.output import StopStringChecker
from fathom.errors import DataError
from fathom.spec.problem import Problem
from fathom.spec.rollout import QUESTION_PLACEHOLDER, ChatPrompt, Prompting, TextPrompt
from fathom.spec.sampling import StopChecker
from fathom.tokenizer import special
from fathom.tokenizer.bpe import Tokenizer

R1_ZERO = (
    "A user asks a question and an assistant solves it. The assistant thinks the question through before it answers. "
    "Its thinking stands between <think> and </think>, and its answer between <answer> and </answer>, like this: "
    "<think> the thinking </think> <answer> the answer </answer>\n"
    "User: {question}\n"
    "Assistant:"
)
"""The form of R1 Table 1 in our own words: structure is asked for, contents are not hinted at."""


class PromptFormatter:
    """Turns problems into token ids after which the answer begins, and answers back into text.

    What a prompt has already opened of the answer, the thinking tag of a chat template for one, belongs to the answer
    as it is read.
    """

    def __init__(self, tokenizer: Tokenizer, prompting: Prompting) -> None:
        self._tokenizer = tokenizer
        self._prompting = prompting
        self.stops: tuple[str, ...] = prompting.stop if isinstance(prompting, TextPrompt) else ()
        probe = self.question(Problem(id="probe", task="probe", question="?", answer=""))
        self._opened = _opened(probe.rpartition("?")[2])

    def encode(self, problem: Problem) -> list[int]:
        """Return the prompt's token ids."""
        if isinstance(self._prompting, ChatPrompt):
            return encode_chat(
                self._tokenizer, self.messages(problem), add_generation_prompt=True, **self._variables(self._prompting)
            )
        return [*self._tokenizer.prefix_ids, *self._tokenizer.encode(self._text(self._prompting, problem))]

    def question(self, problem: Problem) -> str:
        """Return the prompt as text, special tokens spelled."""
        return self._tokenizer.decode(self.encode(problem), skip_special=False)

    def messages(self, problem: Problem) -> list[dict[str, str]]:
        """Return the prompt as the messages of a conversation; a text prompt is the user's one message."""
        if isinstance(self._prompting, TextPrompt):
            return [{"role": "user", "content": self._text(self._prompting, problem)}]
        system = [{"role": "system", "content": self._prompting.system}] if self._prompting.system else []
        return [*system, {"role": "user", "content": problem.question}]

    def read(self, answer_ids: Sequence[int]) -> str:
        """Return an answer's text with special tokens spelled and its end of sequence left out."""
        ids = list(answer_ids)
        if ids and ids[-1] == self._tokenizer.eos_id:
            ids.pop()
        return self._opened + self._tokenizer.decode(ids, skip_special=False, continues=True)

    def token_indices(self, answer_ids: Sequence[int], ends: Sequence[int]) -> list[int]:
        """Return the index of the token that completes each prefix of ``read(answer_ids)``, given in characters.

        Characters that the prompt has opened stand before the first token, and so belong to it.

        Raises:
            DataError: the answer has fewer characters.
        """
        ids = list(answer_ids)
        if ids and ids[-1] == self._tokenizer.eos_id:
            ids.pop()
        stream = self._tokenizer.stream(skip_special=False, continues=True)
        ends_of_tokens = list(accumulate((len(stream.push(token)) for token in ids), initial=len(self._opened)))
        ends_of_tokens[-1] += len(stream.flush())  # bytes that are no character
        if ends and max(ends) > ends_of_tokens[-1]:
            raise DataError(
                f"steps: one ends after {max(ends)} characters of an answer of {ends_of_tokens[-1]}; fix the reward"
            )
        return [max(0, bisect_left(ends_of_tokens, end) - 1) for end in ends]

    def stop_checker(self) -> StopChecker | None:
        """Return what ends one answer at the prompt's stop strings; None where it has none."""
        return StopStringChecker(self._tokenizer, self.stops) if self.stops else None

    @staticmethod
    def _text(prompting: TextPrompt, problem: Problem) -> str:
        return (prompting.text or R1_ZERO).replace(QUESTION_PLACEHOLDER, problem.question)

    @staticmethod
    def _variables(prompting: ChatPrompt) -> dict[str, Any]:
        return {} if prompting.thinking == "free" else {"thinking": prompting.thinking == "open"}


def _opened(tail: str) -> str:
    """Return what the end of a prompt has opened of the answer: from an unclosed thinking tag on."""
    start = tail.rfind(special.THINK_BEGIN)
    return "" if start < 0 or special.THINK_END in tail[start:] else tail[start:]

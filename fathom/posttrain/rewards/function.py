"""A reward of the user's own: a function of prompt, answer and reference."""

from __future__ import annotations

import importlib
import inspect
import operator
import sys
from collections.abc import Sequence
from typing import Any

from fathom.errors import SpecError
from fathom.posttrain.rewards.base import RewardInput, StepScore


class FunctionScorer:
    """Imports ``package.module:function`` and calls it; the process around it bears what it does.

    ``folders`` come before the process's path, for this import and those of the function.
    """

    def __init__(self, target: str, *, steps: bool = False, folders: Sequence[str] = ()) -> None:
        self._steps = steps
        sys.path[:0] = folders
        module, _, name = target.partition(":")
        try:
            self._function: Any = getattr(importlib.import_module(module), name)
        except Exception as error:  # an import may raise anything
            why = f"{type(error).__name__}: {error}"
            raise SpecError("target", f"{target!r} cannot be imported ({why})", "check its name and path") from None
        if not callable(self._function):
            raise SpecError("target", f"{target!r} is no function", "name one of (prompt, answer, reference)")
        _check_signature(target, self._function)

    def prepare(self, answers: Sequence[RewardInput]) -> None:
        """Need nothing."""

    def score(self, answered: RewardInput) -> Any:
        """Return whatever the function returns; the worker checks it. Of steps, the pairs are taken apart."""
        found = self._function(answered.prompt, answered.answer, answered.problem.answer)
        if not self._steps or found is None:
            return found
        return [StepScore(operator.index(end), float(value)) for end, value in found]


def _check_signature(target: str, function: Any) -> None:
    """Require a function that can be called with prompt, answer and reference."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # one of C, which does not say
        return
    try:
        signature.bind("prompt", "answer", "reference")
    except TypeError:
        name = target.partition(":")[2]
        raise SpecError(
            "target", f"{target!r} takes {signature}", f"write def {name}(prompt, answer, reference)"
        ) from None

"""Token ids in every form that callers have them in, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fathom.errors import SpecError
from fathom.spec.token_ids import to_token_ids

FORMS: dict[str, Callable[[list[int]], Any]] = {
    "list": list,
    "tuple": tuple,
    "array of int64": lambda ids: np.array(ids, np.int64),
    "array of uint16": lambda ids: np.array(ids, np.uint16),
    "big-endian array": lambda ids: np.array(ids, ">i4"),
    "every other of an array": lambda ids: np.repeat(np.array(ids, np.int32), 2)[::2],
    "array of objects": lambda ids: np.array(ids, object),
    "tensor of int64": lambda ids: torch.tensor(ids, dtype=torch.int64),
    "tensor of int32": lambda ids: torch.tensor(ids, dtype=torch.int32),
    "tensor of int16": lambda ids: torch.tensor(ids, dtype=torch.int16),
    "row of a tensor": lambda ids: torch.tensor([ids, ids])[1],
    "list of NumPy integers": lambda ids: [np.int32(token) for token in ids],
    "list of tensors": lambda ids: [torch.tensor(token) for token in ids],
    "mixed list": lambda ids: [token if index % 2 else np.uint16(token) for index, token in enumerate(ids)],
}


@given(ids=st.lists(st.integers(0, 2**15 - 1)), form=st.sampled_from(sorted(FORMS)))
def test_every_form_gives_the_same_python_integers(ids: list[int], form: str) -> None:
    found = to_token_ids("prompt", FORMS[form](ids))
    assert found == tuple(ids)
    assert all(type(token) is int for token in found)


@pytest.mark.parametrize(
    ("value", "problem", "remedy"),
    [
        ("hello", "is text, 'hello'", "m.tokenizer.encode"),
        (b"hello", "is text", "m.tokenizer.encode"),
        ("x" * 500, "is text, 'xxx", "m.tokenizer.encode"),
        (["hello", "you"], "has text, 'hello', at index 0", "m.tokenizer.encode"),
        (np.array(["hello"]), "has text, 'hello', at index 0", "m.tokenizer.encode"),
        ({"input_ids": [1]}, "is a mapping", "input_ids"),
        ({1, 2}, "is a set", "a list"),
        (7, "is 7", "a sequence"),
        (None, "is None", "a sequence"),
        (torch.tensor(7), "is tensor(7)", "a sequence"),
        (np.int64(7), "is np.int64(7)", "a sequence"),
        (torch.ones(1, 5, dtype=torch.int64), "has the shape (1, 5)", "token_ids[0]"),
        (np.ones((2, 3), int), "has the shape (2, 3)", "token_ids[0]"),
        ([[1, 2]], "has a sequence at index 0", "token_ids[0]"),
        ([1, torch.tensor([2, 3])], "has a sequence at index 1", "token_ids[0]"),
        ([1, 2.0], "has 2.0 at index 1", "give integers"),
        ([1, True], "has True at index 1", "give integers"),
        ([1, None], "has None at index 1", "give integers"),
        ([np.bool_(True)], "has True at index 0", "give integers"),
        (torch.tensor([1.0]), "has 1.0 at index 0", "give integers"),
        (np.array([True]), "has True at index 0", "give integers"),
    ],
)
def test_what_is_no_sequence_of_integers_is_refused_with_a_remedy(value: Any, problem: str, remedy: str) -> None:
    with pytest.raises(SpecError) as caught:
        to_token_ids("prompt", value)
    message = str(caught.value)
    assert message.startswith(f"prompt: {problem}")
    assert remedy in message
    assert len(message) < 200

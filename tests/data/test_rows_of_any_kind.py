"""Whatever a row of a data file holds, it is converted or refused with a sentence."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fathom.data.conversations.forms import CONVERSATION_FORMS
from fathom.data.forms import Form
from fathom.data.problems.forms import PROBLEM_FORMS
from fathom.data.row_report import UnusableRow
from fathom.errors import DataError
from fathom.posttrain.preferences import PREFERENCE_FORMS

ROLES = ["user", "assistant", "system", "tool", "function_call", "observation", "human", "gpt", "king"]
KEYS = ["weight", "train", "tool_calls", "function_call", "tool_call_id", "name", "role", "content", "function"]
TEXTS = ["", " ", "x", "[]", "{", "[{}]", "\n\nHuman: a\n\nAssistant: b", "####", "x\n#### 3", "\\boxed{", "\\boxed{}"]
PLAIN = st.none() | st.booleans() | st.integers(-2, 2) | st.floats() | st.sampled_from([*TEXTS, '{"name": "f"}'])
VALUES = st.recursive(
    PLAIN,
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(
            st.sampled_from([*KEYS, "arguments", "messages", "response", "ground_truth"]), inner, max_size=3
        )
    ),
    max_leaves=4,
)
TURN = st.fixed_dictionaries(
    {"role": st.sampled_from(ROLES), "content": VALUES}, optional=dict.fromkeys(KEYS[:6], VALUES)
)
SHAREGPT = st.fixed_dictionaries({"from": st.sampled_from(ROLES), "value": PLAIN})
COLUMNS = VALUES | st.lists(TURN | SHAREGPT, max_size=3)


@settings(max_examples=25)
@pytest.mark.parametrize("form", [*CONVERSATION_FORMS, *PREFERENCE_FORMS, *PROBLEM_FORMS], ids=lambda form: form.name)
@given(data=st.data())
def test_a_row_is_converted_or_refused(form: Form[Any], data: st.DataObject) -> None:
    row = {column.name: data.draw(COLUMNS) for column in form.columns if column.required}
    row |= data.draw(
        st.dictionaries(st.sampled_from([c.name for c in form.columns] + ["label", "choices", "extra"]), COLUMNS)
    )
    form.fits(row)
    if form.missing(row):
        return
    try:
        outcome: Any = form.converted(row)
    except (UnusableRow, DataError) as error:
        outcome = str(error)
    assert outcome

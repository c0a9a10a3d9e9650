"""Sampling parameters are checked when they are made."""

from __future__ import annotations

import pytest

from fathom.errors import SpecError
from fathom.spec.sampling import SamplingParams


@pytest.mark.parametrize("bad", [{"temperature": -1.0}, {"top_p": 1.5}, {"max_tokens": 0}, {"min_p": float("nan")}])
def test_parameters_out_of_range_are_refused(bad: dict[str, float]) -> None:
    with pytest.raises(SpecError, match=next(iter(bad))):
        SamplingParams(**bad)  # type: ignore[arg-type]

from __future__ import annotations

import pytest

from fathom.errors import SpecError
from fathom.spec.mapping import from_mapping, to_mapping
from fathom.spec.renamed import RENAMED_FIELDS
from fathom.spec.train import BatchSpec


def test_a_former_field_name_is_read_as_todays() -> None:
    old = from_mapping(BatchSpec, {"size": 8, "micro_size": 4})
    assert old == from_mapping(BatchSpec, {"size": 8, "micro_batch_size": 4})
    assert "micro_batch_size" in to_mapping(old)


def test_both_names_at_once_are_refused_with_the_new_one() -> None:
    with pytest.raises(SpecError, match=r"micro_size.*micro_batch_size"):
        from_mapping(BatchSpec, {"size": 8, "micro_size": 4, "micro_batch_size": 4})


def test_no_former_name_is_a_name_of_today() -> None:
    assert not RENAMED_FIELDS.keys() & set(RENAMED_FIELDS.values())

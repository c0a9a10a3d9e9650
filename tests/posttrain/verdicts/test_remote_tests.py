"""Every way in which tests judge a program gives the verdict that it gives in one process."""

from __future__ import annotations

import pytest

from tests.posttrain.verdicts import styles_of_classes, styles_of_functions, styles_of_protocols
from tests.posttrain.verdicts.conftest import Judge

STYLES = styles_of_functions.STYLES | styles_of_classes.STYLES | styles_of_protocols.STYLES


@pytest.mark.parametrize("name", STYLES)
def test_a_right_program_passes_and_a_wrong_one_fails_as_in_one_process(
    name: str, apart: Judge, directly: Judge
) -> None:
    style = STYLES[name]
    assert style.wrong != style.right
    assert directly(style.right, style.tests) is None
    assert apart(style.right, style.tests) is None
    expected, found = directly(style.wrong, style.tests), apart(style.wrong, style.tests)
    assert type(found) is type(expected)
    assert str(found) == str(expected)

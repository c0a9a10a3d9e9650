from __future__ import annotations

import pytest

from fathom.model.decoder import Decoder
from tests.engine.reference import KINDS, tiny


@pytest.fixture(params=KINDS)
def model(request: pytest.FixtureRequest) -> Decoder:
    return tiny(request.param)

"""Settings and limits."""

from __future__ import annotations

import pytest

from fathom.errors import SpecError
from fathom.serve.settings import Limits, ServeSettings


def test_settings_are_checked_and_keep_keys_to_themselves() -> None:
    assert "secret-key" not in repr(ServeSettings(api_keys=("secret-key",)))
    for wrong in (
        {"api_keys": ("short",)},
        {"api_keys": ("has a space in it",)},
        {"drain_seconds": -1},
        {"cors_origins": ("page.example",)},
    ):
        with pytest.raises(SpecError):
            ServeSettings(**wrong)  # type: ignore[arg-type]
    with pytest.raises(SpecError, match="max_concurrent_requests"):
        Limits(max_concurrent_requests=0)

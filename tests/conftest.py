"""Tests never depend on time: a busy machine must not fail an example that is right."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

settings.register_profile("fathom", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("fathom")

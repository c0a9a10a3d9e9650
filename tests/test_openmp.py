"""The policy is in place before torch loads libgomp, and a user's own choice is left alone."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fathom.openmp import SPIN_COUNT, limit_spinning

POLICIES = ["OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "KMP_AFFINITY"]
PROGRAM = "import fathom, os, sys; print('torch' in sys.modules, os.environ.get('GOMP_SPINCOUNT'))"


def imported(**chosen: str) -> str:
    """Return what a fresh process sees after ``import fathom``."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("KMP_", "GOMP_", "OMP_"))}
    command = [sys.executable, "-c", PROGRAM]
    return subprocess.run(command, env=clean | chosen, capture_output=True, text=True, check=True).stdout.strip()


def test_importing_fathom_sets_the_spin_count_before_torch_is_loaded() -> None:
    assert imported() == f"False {SPIN_COUNT}"


@pytest.mark.parametrize("name", POLICIES)
def test_a_chosen_policy_is_left_alone(name: str) -> None:
    assert imported(**{name: "7"}) == f"False {'7' if name == 'GOMP_SPINCOUNT' else None}"


@given(st.dictionaries(st.sampled_from([*POLICIES, "HOME", "OMP_NUM_THREADS"]), st.text(max_size=3)))
def test_only_an_environment_without_a_policy_is_changed(environment: dict[str, str]) -> None:
    before = dict(environment)
    changed = limit_spinning(environment)
    assert changed == (not set(before) & set(POLICIES))
    assert environment == (before | {"GOMP_SPINCOUNT": SPIN_COUNT} if changed else before)

"""Programs that attack: memory, processes and time stay within one bound, nothing is reached and nothing is left."""

from __future__ import annotations

import pytest

from tests.posttrain.sandbox.attacks import EXHAUSTING, LINGERING, REFUSED
from tests.posttrain.sandbox.conftest import LIMITS, Attack

MIB = 1 << 20
BETWEEN_LOOKS = 512 * MIB
"""What a watch may see above its limit: memory that was taken since the look before, on a busy machine."""


@pytest.mark.parametrize("name", EXHAUSTING)
def test_what_takes_all_it_can_is_ended_within_the_bound(attacker: Attack, name: str) -> None:
    found = attacker(EXHAUSTING[name])
    assert found["reason"] != "passed", found
    assert found["left"] == []
    assert found["isolated"] == 1
    assert found["usage"]["memory_bytes"] <= LIMITS["memory_mib"] * MIB + BETWEEN_LOOKS
    assert found["usage"]["processes"] <= 16 + 8


@pytest.mark.parametrize(
    "name", ["sixteen processes with memory", "shared anonymous memory", "private pages of a forked parent"]
)
def test_memory_of_all_processes_is_one_bound(attacker: Attack, name: str) -> None:
    found = attacker(EXHAUSTING[name], seconds=20.0)
    assert (found["reason"], found["detail"]) == ("memory", "more than 128 MiB in all")
    assert found["seconds"] < 20.0


@pytest.mark.parametrize(
    "name", ["sixteen processes with memory", "full sockets", "fork bomb", "inodes", "killing all"]
)
@pytest.mark.parametrize("tests", ["assert attack() is None", "assert 1 == 1"])
def test_a_program_beside_its_tests_has_the_same_bound(attacker: Attack, name: str, tests: str) -> None:
    source = EXHAUSTING[name]
    if "attack()" in tests:
        source = f"def attack():\n    exec({source!r}, {{}})"
    found = attacker(source, tests)
    assert found["reason"] != "passed", found
    assert found["left"] == []
    assert found["isolated"] == 2
    assert found["usage"]["memory_bytes"] <= LIMITS["memory_mib"] * MIB + BETWEEN_LOOKS
    assert found["usage"]["processes"] <= 16 + 8


def test_a_program_that_takes_all_before_its_tests_begin_has_failed(attacker: Attack) -> None:
    tests = "assert 1 == 1\n#" + 20_000_000 * "x"  # which their process is long in reading
    found = attacker(EXHAUSTING["sixteen processes with memory"], tests)
    assert found["reason"] != "passed", found
    assert found["left"] == []


def test_processor_time_of_all_processes_is_one_bound(attacker: Attack) -> None:
    found = attacker(EXHAUSTING["processor time of many"], seconds=1.0)
    assert found["reason"] == "time"


@pytest.mark.parametrize("name", LINGERING)
def test_nothing_outlives_its_sandbox(attacker: Attack, name: str) -> None:
    found = attacker(LINGERING[name])
    assert found["left"] == []
    assert found["isolated"] == 1


@pytest.mark.parametrize("name", REFUSED)
def test_what_reaches_beyond_fails(attacker: Attack, name: str) -> None:
    found = attacker(REFUSED[name], seconds=5.0)
    assert (found["reason"], found["detail"], found["left"]) == ("passed", "", []), found

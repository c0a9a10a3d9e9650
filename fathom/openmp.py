"""How long OpenMP's threads spin while they wait for each other; set before torch loads, and free of torch."""

from __future__ import annotations

from collections.abc import MutableMapping

SPIN_COUNT = "2000"
_VARIABLE = "GOMP_SPINCOUNT"
_CHOSEN_BY = ("OMP_WAIT_POLICY", _VARIABLE)


def limit_spinning(environment: MutableMapping[str, str]) -> bool:
    """Let GNU OpenMP's waiting threads sleep after a short spin, unless ``environment`` already chooses a policy.

    libgomp spins for 30 billion turns by default where OMP_WAIT_POLICY is not set and threads do not outnumber the
    processors, and never sleeps while another program holds a core that its own threads wait for. Measured with two
    threads on two cores, training: up to twenty times faster beside a busy third process; on a quiet machine 3 % slower
    on one processor and 17 to 25 % on a virtual one, where waking a thread costs more. OMP_WAIT_POLICY=active gives the
    speed of a quiet machine back.

    Respected choices are OMP_WAIT_POLICY, GOMP_SPINCOUNT and every KMP_* variable. libgomp reads the environment when
    torch loads it: later calls change nothing. Returns whether the variable was set.
    """
    if any(name in environment for name in _CHOSEN_BY) or any(name.startswith("KMP_") for name in environment):
        return False
    environment[_VARIABLE] = SPIN_COUNT
    return True

"""What every process of a sandbox runs first: give up every right, take the limits, then run the given source.

``launch.py`` passes this file's source to an isolated Python, with the settings (JSON), the source to run and that
source's own arguments; it is standard library only and is imported by nobody else.
"""

from __future__ import annotations

import json
import os
import sys


def enter(settings: str) -> None:
    """Take the user and the limits that ``settings`` names."""
    import resource  # of POSIX alone; where this file is read, it need not be there

    chosen = json.loads(settings)
    if chosen["user"] is not None:  # root is bound by no limit of processes
        os.setgroups([])
        os.setresgid(*[chosen["user"]] * 3)
        os.setresuid(*[chosen["user"]] * 3)
    for name, limit in chosen["limits"].items():
        if hasattr(resource, name):  # some are of Linux alone
            kind = getattr(resource, name)
            hard = resource.getrlimit(kind)[1]
            most = [] if hard == resource.RLIM_INFINITY else [hard]
            grace = kind == resource.RLIMIT_CPU  # the soft limit's signal says why, the hard one's cannot be ignored
            resource.setrlimit(kind, (min([limit, *most]), min([limit + grace, *most])))


if __name__ == "__main__":
    enter(sys.argv[1])
    _code = compile(sys.argv[2], "<entry>", "exec")
    sys.argv[1:] = sys.argv[3:]
    exec(_code)

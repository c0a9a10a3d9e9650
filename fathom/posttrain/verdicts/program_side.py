"""The process of the program: it runs the program, then serves what the tests ask of it.

Nothing here decides a verdict: whatever the program does to this module or process, the tests see replies only.
Standard library only: sandboxed processes run this file as it is.
"""

from __future__ import annotations

import sys
import types

from fathom.posttrain.verdicts.peer import Peer


def run_program(program: str, reading: int, writing: int) -> None:
    """Run a program in a module named ``answer``, then serve its tests until they end; raises what it raises."""
    module = types.ModuleType("answer")
    sys.modules["answer"] = module
    exec(compile(program, "<program>", "exec"), module.__dict__)
    peer = Peer(reading, writing, strict=False)
    peer.namespace = module.__dict__
    peer.serve_all()

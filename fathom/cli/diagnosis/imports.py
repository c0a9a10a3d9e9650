"""Imports modules in processes of their own, so that one that fails, crashes or hangs is only reported."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Sequence

from fathom.isolated import isolated_python

DEADLINE_SECONDS = 20.0
_PROGRAM = """
import importlib, json, sys
def say(*what): print(json.dumps(what), flush=True, file=out)
out, sys.stdout = sys.stdout, sys.stderr
for name in sys.argv[1:]:
    say(name, "begun", "")
    try:
        importlib.import_module(name)
    except BaseException as error:
        lines = str(error).strip().splitlines() or [""]
        say(name, "failed", f"{type(error).__name__}: {lines[0]}"[:300])
    else:
        say(name, "done", "")
if "torch" in sys.modules:
    torch, facts = sys.modules["torch"], {}
    facts["version"], facts["cuda"], facts["hip"] = str(torch.__version__), torch.version.cuda, torch.version.hip
    facts["mps"] = torch.backends.mps.is_available()
    try:
        torch.cuda.init()
    except Exception as error:
        facts["reason"] = (str(error).strip().splitlines() or [""])[0][:300]
    if torch.cuda.is_available():
        every = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
        facts["devices"] = [[each.name, each.total_memory] for each in every]
    try:
        from fathom.kernels.native import library
        facts["native"] = library.facts() | {"threads": torch.get_num_threads()}
    except Exception as error:
        facts["native"] = {"broken": str(error)}
    say("torch", "facts", json.dumps(facts))
"""


def start_imports(groups: Sequence[Sequence[str]]) -> list[subprocess.Popen[str]]:
    """Start to import each group of modules in one process; ``finish_imports`` must be called with what is returned."""
    return [
        subprocess.Popen(
            isolated_python(_PROGRAM, *group, options=("-W", "ignore")),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            stdin=subprocess.DEVNULL,
            encoding="utf-8",
        )
        for group in groups
        if group
    ]


def finish_imports(processes: Sequence[subprocess.Popen[str]]) -> tuple[dict[str, str], dict[str, object]]:
    """Wait for the imports; return what failed and why, by module, and what torch and the native library say.

    A module that has not been imported after ``DEADLINE_SECONDS`` is not counted as failed.
    """
    deadline = time.monotonic() + DEADLINE_SECONDS
    failed: dict[str, str] = {}
    facts: dict[str, object] = {}
    for process in processes:
        with process:
            try:
                output, _ = process.communicate(timeout=max(deadline - time.monotonic(), 0.1))
                crashed = process.returncode
            except subprocess.TimeoutExpired:
                process.kill()
                output, _ = process.communicate()
                crashed = 0
        _read(output, crashed, failed, facts)
    return failed, facts


def _read(output: str, crashed: int, failed: dict[str, str], facts: dict[str, object]) -> None:
    begun = ""
    for line in output.splitlines():
        name, what, text = json.loads(line)
        if what == "facts":
            facts.update(json.loads(text))
        elif what == "failed":
            failed[name] = text
        begun = name if what == "begun" else ""
    if crashed and begun:
        failed[begun] = f"its import ends the process with {crashed}"

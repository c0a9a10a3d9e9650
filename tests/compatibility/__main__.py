"""Run every case and write docs/compatibility.md and its Chinese twin: `python -m tests.compatibility`."""

from __future__ import annotations

import tempfile
from pathlib import Path

from tests.compatibility import areas
from tests.compatibility.case import Outcome
from tests.compatibility.page import CHINESE, ENGLISH, ROOT, render


def main() -> int:
    """Return 1 where a case did not come out as promised."""
    found, broken = areas(), 0
    outcomes: list[list[Outcome]] = []
    for area in found:
        outcomes.append([])
        for case in area.cases:
            with tempfile.TemporaryDirectory() as folder:
                outcome = case.run(Path(folder))
            outcomes[-1].append(outcome)
            kept = outcome.status == case.expected
            broken += not kept
            print(f"{'' if kept else 'NOT AS PROMISED  '}{area.title}: {case.what}: {outcome.status}")
    for language in (ENGLISH, CHINESE):
        (ROOT / language.file).write_text(render(language, found, outcomes), encoding="utf-8")
    return 1 if broken else 0


if __name__ == "__main__":
    raise SystemExit(main())

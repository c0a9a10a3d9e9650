"""JSON lines that are whole or absent, TensorBoard beside them."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from fathom.errors import ResourceError
from fathom.train.metrics import JsonLines, read_json_lines


def test_lines_come_back_and_what_is_not_finite_is_null(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "m.jsonl"
    lines = JsonLines(path, after_step=0)
    lines.write(1, {"loss": 1.5, "text": "ü", "nested": {"a": [math.nan, math.inf, 2]}})
    assert read_json_lines(path) == [{"step": 1, "loss": 1.5, "text": "ü", "nested": {"a": [None, None, 2]}}]
    lines.sync()
    lines.close()
    assert read_json_lines(tmp_path / "absent.jsonl") == []


def test_resuming_drops_later_and_torn_lines(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    first = JsonLines(path, after_step=0)
    for step in (2, 4, 6):
        first.write(step, {"run": 1})
    first.close()
    with path.open("ab") as file:
        file.write(b'not json\n{"step":4,"run"')
    assert len(path.read_bytes().splitlines()) == 5
    second = JsonLines(path, after_step=4)
    second.write(6, {"run": 2})
    second.close()
    assert [(line["step"], line["run"]) for line in read_json_lines(path)] == [(2, 1), (4, 1), (6, 2)]
    JsonLines(path, after_step=0).close()
    assert path.read_bytes() == b""
    assert [p.name for p in tmp_path.iterdir()] == ["m.jsonl"]


@pytest.mark.slow
def test_a_full_disk_keeps_lines_waiting_and_never_half_written(tmp_path: Path) -> None:
    script = """
        import resource, signal, sys
        from pathlib import Path
        from fathom.errors import ResourceError
        from fathom.train.metrics import JsonLines
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        lines = JsonLines(Path(sys.argv[1]), after_step=0)
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        lines.write(1, {})
        resource.setrlimit(resource.RLIMIT_FSIZE, (20, hard))
        lines.write(2, {"x": "y" * 50})
        print(Path(sys.argv[1]).read_bytes())
        try:
            lines.sync()
        except ResourceError as error:
            print(error)
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        lines.write(3, {})
        lines.sync()
    """
    path = tmp_path / "m.jsonl"
    command = [sys.executable, "-c", textwrap.dedent(script), str(path)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    while_full, error = done.stdout.splitlines()
    assert while_full == r"""b'{"step":1}\n'"""
    assert "m.jsonl: metrics not written, the file exceeds a size limit" in error
    assert [line["step"] for line in read_json_lines(path)] == [1, 2, 3]


def test_a_place_that_cannot_be_written_is_a_resource_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ResourceError, match="metrics not written, a part of the path is a file"):
        JsonLines(tmp_path / "file" / "m.jsonl", after_step=0)

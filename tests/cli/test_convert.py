"""``fathom convert`` on a finished run: what comes out is opened by others and by us, and bad input is one line."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import transformers

import fathom
from fathom.inference.loading import find_checkpoint, open_source
from fathom.spec import SamplingParams
from tests.slow_cases import fast

PROMPT = "The river sees"
TOKENS = 12


def our_text(path: Path) -> str:
    model = fathom.load(path)
    ids = [*model.tokenizer.prefix_ids, *model.tokenizer.encode(PROMPT)]
    return model.tokenizer.decode(model.generate(ids, SamplingParams(max_tokens=TOKENS, temperature=0.0)))


def test_a_run_becomes_a_model_that_transformers_continues_alike(finished: Path, tmp_path: Path, call) -> None:
    out = tmp_path / "hf"
    done = call("convert", finished, out, "--to", "hf")
    assert done.code == 0, done.err
    assert "note: left out, for only training needs it: optimizer\n" in done.err
    assert done.out.startswith(f"{out}: format hf, ")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    tokenizer = transformers.AutoTokenizer.from_pretrained(out)
    model = transformers.AutoModelForCausalLM.from_pretrained(out)
    given = tokenizer(PROMPT, return_tensors="pt")
    drawn = model.generate(**given, max_new_tokens=TOKENS, do_sample=False)
    theirs = tokenizer.decode(drawn[0, given["input_ids"].shape[1] :], skip_special_tokens=True)
    assert theirs == our_text(finished) == our_text(out)
    messages = [{"role": "user", "content": "hello"}]
    asked = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert "hello" in asked


def test_a_run_becomes_gguf_and_our_own_form(finished: Path, tmp_path: Path, call) -> None:
    expected = our_text(finished)
    for form, name in (("gguf", "model.gguf"), ("fathom", "model")):
        out = tmp_path / name
        assert call("convert", finished, out, "--to", form).code == 0
        assert our_text(out) == expected
        assert call("inspect", out).code == 0
    small = tmp_path / "small.gguf"
    done = call("convert", finished, small, "--to", "gguf", "--dtype", "Q8_0")
    assert "note: matrices are quantized to Q8_0\n" in done.err
    assert done.out.startswith(f"{small}: format gguf, Q8_0, ")
    assert small.stat().st_size < (tmp_path / "model.gguf").stat().st_size * 0.6
    assert open_source(small).tokenizer() is not None
    assert our_text(small)


def test_gguf_is_written_in_parts_above_a_size_and_any_part_or_the_directory_opens(
    finished: Path, tmp_path: Path, call
) -> None:
    done = call("convert", finished, tmp_path / "tiny.gguf", "--to", "gguf", "--split-max-size", "60KB")
    parts = sorted(tmp_path.iterdir())
    assert done.out.startswith(f"{parts[0]}: format gguf, F32, ")
    assert done.out.endswith(f" in {len(parts)} files\n")
    assert len(parts) > 2
    assert [part.name for part in parts] == [f"tiny-{n + 1:05d}-of-{len(parts):05d}.gguf" for n in range(len(parts))]
    assert all(part.stat().st_size <= 60_000 for part in parts)
    expected = our_text(finished)
    assert our_text(parts[1]) == our_text(tmp_path) == expected
    shown = json.loads(call("inspect", parts[-1], "--json").out)
    assert [file["name"] for file in shown["files"]] == [part.name for part in parts]
    assert call("convert", tmp_path, tmp_path / "hf", "--to", "hf").code == 0
    assert our_text(tmp_path / "hf") == expected
    parts[1].unlink()
    call("chat", parts[0]).refused(f"part 2 of {len(parts)}, {parts[1].name}, is missing; download")


def test_a_model_below_the_size_is_one_file(finished: Path, tmp_path: Path, call) -> None:
    out = tmp_path / "tiny.gguf"
    assert call("convert", finished, out, "--to", "gguf", "--split-max-size", "4GiB").out.startswith(f"{out}: format")
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.gguf"]


def test_a_checkpoint_carried_away_from_its_run_brings_its_tokenizer(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(find_checkpoint(finished), tmp_path / "alone")
    assert our_text(tmp_path / "alone") == our_text(finished)


def test_bad_input_is_one_line(finished: Path, tmp_path: Path, call) -> None:
    out = tmp_path / "out"
    call("convert", finished, out, "--to", "fathom", "--dtype", "Q8_0").refused("--dtype", "float32, float16, bfloat16")
    call("convert", finished, out, "--to", "pickle").refused("--to", "hf, gguf, fathom")
    call("convert", finished, out, "--to", "hf", "--split-max-size", "1G").refused("--split-max-size", "--to gguf")
    call("convert", finished, out, "--to", "gguf", "--split-max-size", "big").refused(
        "--split-max-size: 'big' is no size"
    )
    call("convert", finished, out, "--to", "gguf", "--split-max-size", "0").refused("--split-max-size: '0'")
    call("convert", tmp_path / "none", out, "--to", "hf").refused("none")
    call("convert", finished, tmp_path, "--to", "hf").refused("already exists")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_full_disk_is_one_line_and_leaves_nothing(finished: Path, tmp_path: Path) -> None:
    script = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000)); from fathom.cli.main import main; main()"
    )
    for form in (["hf"], ["gguf"], ["gguf", "--split-max-size", "30K"], ["fathom"]):
        command = [sys.executable, "-c", script, "convert", str(finished), str(tmp_path / "out"), "--to", *form]
        done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
        assert done.returncode == 2, done.stderr
        errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
        assert len(errors) == 1
        assert "choose another disk" in errors[0]
        assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "form",
    fast([["hf"], ["gguf"], ["gguf", "--split-max-size", "30K"], ["fathom"]], [["gguf", "--split-max-size", "30K"]]),
)
def test_an_interrupt_leaves_nothing_and_exits_with_130(finished: Path, tmp_path: Path, form: list[str]) -> None:
    """Each checkpoint tensor is read only after a line is answered, so the signal arrives in the middle."""
    script = (
        "import sys; from fathom.checkpoint.tensorfile import TensorFile; plain = TensorFile.read\n"
        "def read(self, name):\n"
        "    print('reading', flush=True); sys.stdin.readline(); return plain(self, name)\n"
        "TensorFile.read = read\n"
        "from fathom.cli.main import main; main()"
    )
    command = [sys.executable, "-c", script, "convert", str(finished), str(tmp_path / "out"), "--to", *form]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, **pipes) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == "reading\n"
        process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGTERM)
        process.stdin.write("\n" * 1000)
        process.stdin.close()
        error = process.stderr.read()
    assert process.returncode == 130, error
    assert "stopped: SIGINT arrived; nothing was written\n" in error.replace("SIGTERM", "SIGINT")
    assert list(tmp_path.iterdir()) == []

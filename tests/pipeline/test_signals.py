"""SIGINT and SIGTERM at any moment of any step: an orderly stop, and a resume with the results of a quiet run.

The moment is a function call of the package, counted within the step, so that it is the same on every machine. Where it
falls into a generator that is being closed, Python reports the exception instead of raising it: the run stops at its
next look at the signal.
"""

from __future__ import annotations

import json
import random
import shutil
import signal
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

import fathom
from fathom.checkpoint import store
from fathom.errors import FathomError, Interrupted
from fathom.inference.run_record import read_state
from fathom.pipeline.context import RunPlan
from fathom.pipeline.recipe import load_run_plan
from fathom.pipeline.run import run
from fathom.pipeline.signals import RunSignals
from fathom.pipeline.trust import Trust
from fathom.progress import NullProgress
from fathom.train.metrics import read_json_lines
from tests.json_lines import write_json_lines

pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
PACKAGE = str(Path(fathom.__file__).parent)
TRUST = Trust(code=True)
TIMED = ("seconds", "per_second", "mfu", "peak_memory_bytes", "date", "machine", "memory")
RECIPE = """
name = "signals"

[problems.sums]
kind = "problems"
path = "sums.jsonl"

[model]
name = "tiny"
family = "llama"
vocab_size = 384
hidden_size = 32
num_hidden_layers = 2
max_position_embeddings = 160
intermediate_size = 48
initializer_range = 0.1

[model.attention]
kind = "gqa"
num_heads = 2
num_kv_heads = 1
head_dim = 16

[[steps]]
kind = "corpus"
manifest = "never-read.toml"
held_out_fraction = 0.2

[[steps]]
kind = "tokenizer"
vocab_size = 384

[[steps]]
kind = "shards"
shard_tokens = 4096

[[steps]]
kind = "train"
name = "train"

[steps.train]
sequence_length = 32
total_tokens = 640
batch = { size = 2, micro_batch_size = 1 }
optimizer = { lr = 3e-3 }
schedule = { kind = "constant" }
log_every_steps = 1
checkpoint = { every_steps = 4, keep = 2, keep_optimizer = true }

[[steps]]
kind = "evaluate"
max_tokens = 256

[[steps]]
kind = "needle"
lengths = [128]
depths = [0.5]
trials = 2

[[steps]]
kind = "sample"
prompts = ["The river", "A quiet"]
sampling = { max_tokens = 6, temperature = 0.8, seed = 1 }

[[steps]]
kind = "sft"
data = [{ kind = "worked", problems = "sums", count = 12 }]

[steps.train]
sequence_length = 96
epochs = 3.0
batch = { size = 2, micro_batch_size = 1 }
optimizer = { lr = 4e-3 }
log_every_steps = 1
checkpoint = { every_steps = 4, keep = 2, keep_optimizer = true }

[[steps]]
kind = "answers"
name = "answers"
problems = ["sums"]
rewards = [{ kind = "function", target = "chars_of_answers:chars" }, { kind = "accuracy", method = "exact" }]
count = 6
samples = 3
max_tokens = 8
prompt = { kind = "chat", thinking = "closed" }

[[steps]]
kind = "dpo"
pairs = [{ kind = "file", path = "pairs.jsonl" }]

[steps.train]
sequence_length = 96
epochs = 1.0
batch = { size = 2, micro_batch_size = 1 }
optimizer = { lr = 1e-3 }
checkpoint = { every_steps = 2 }

[[steps]]
kind = "reward_model"
name = "reward_model"
loss = { kind = "pairwise" }
pairs = [{ kind = "file", path = "pairs.jsonl" }]

[steps.train]
sequence_length = 96
epochs = 1.0
batch = { size = 2, micro_batch_size = 1 }
optimizer = { lr = 1e-3 }
checkpoint = { every_steps = 2, keep_optimizer = true }

[[steps]]
kind = "grpo"
start = "sft"
problems = ["sums"]
rewards = [{ kind = "function", target = "chars_of_answers:chars" }, { kind = "accuracy", method = "exact" }]

[steps.policy]
rollouts = 3
optimizer = { lr = 1e-3 }
loss = { kl = {} }
checkpoint = { every_steps = 1, keep_optimizer = true }

[steps.policy.rollout]
questions = 2
group_size = 2
max_tokens = 6

[[steps]]
kind = "distill"
start = "train"
teacher = "sft"
problems = ["sums"]

[steps.policy]
rollouts = 2
optimizer = { lr = 1e-3 }
checkpoint = { every_steps = 1, keep_optimizer = true }

[steps.policy.rollout]
questions = 2
group_size = 2
max_tokens = 6

[[steps]]
kind = "tasks"
stages = ["sft", "grpo"]
problems = ["sums"]
rewards = [{ kind = "function", target = "chars_of_answers:chars" }, { kind = "accuracy", method = "exact" }]
count = 3
max_tokens = 6

[[steps]]
kind = "report"
"""
Quiet = tuple[Path, Mapping[str, int]]
KINDS = ("corpus", "tokenizer", "shards", "train", "evaluate", "needle", "sample", "sft", "answers", "dpo")
DROPPING = "dpo"
"""The training step whose checkpoints are not kept whole."""
KINDS += ("reward_model", "grpo", "distill", "tasks", "report")


class CallCounter(NullProgress):
    """A progress that counts the package's function calls in the main thread, step by step, and signals at one."""

    def __init__(self, step: str | None = None, at: int | None = None, number: signal.Signals = signal.SIGINT) -> None:
        self.step, self.at, self.number = step, at, number
        self.calls: dict[str, int] = {}
        self.sent = False

    def stage(self, name: str, index: int, total: int) -> None:
        self.calls[name] = 0
        self.current = name
        sys.settrace(self._count if self.step in (None, name) else None)

    def finish(self, seconds: float) -> None:
        sys.settrace(None)

    def _count(self, frame: Any, event: str, argument: Any) -> None:  # called for calls only, as it traces no lines
        if not frame.f_code.co_filename.startswith(PACKAGE):
            return
        self.calls[self.current] += 1
        if self.calls[self.current] == self.at:
            sys.settrace(None)
            self.sent = True
            signal.raise_signal(self.number)


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunPlan]:
    """A recipe of every kind of step, with its texts and problems."""
    torch.set_num_threads(1)
    base = tmp_path_factory.mktemp("signals")
    texts = base / "texts"
    texts.mkdir()
    rng = random.Random(0)
    words = ["river", "garden", "lantern", "user", "tower", "friend", "think", "window", "road", "song", "plus", "two"]
    for index in range(24):
        said = [(rng.choice(words), rng.choice(words), rng.randint(1, 99)) for _ in range(40)]
        (texts / f"{index}.txt").write_text(" ".join(f"The {one} sees the {two} of {n}." for one, two, n in said))
    rows = []
    for a in range(1, 9):
        for b, split in ((1, "train"), (2, "train"), (3, "held_out")):
            asked = {"id": f"{a}-{b}", "question": f"{a} plus {b}?", "answer": str(a + b), "split": split}
            rows.append(asked | {"details": {"solution": f"so {a + b}"}})
    pairs = [
        {"messages": [{"role": "user", "content": row["question"]}], "chosen": row["answer"], "rejected": "What?"}
        for row in rows[:12]
    ]
    for name, found in (("sums", rows), ("pairs", pairs)):
        write_json_lines(base / f"{name}.jsonl", found)
    (base / "chars_of_answers.py").write_text("def chars(prompt, answer, reference):\n    return len(answer) % 7\n")
    (base / "recipe.toml").write_text(RECIPE)
    sys.path.insert(0, str(base))
    yield load_run_plan(base / "recipe.toml", text=[texts])
    sys.path.remove(str(base))


@pytest.fixture(scope="module")
def quiet(plan: RunPlan, tmp_path_factory: pytest.TempPathFactory) -> Quiet:
    """A run that nothing interrupted, and how many calls each of its steps made."""
    directory, counter = tmp_path_factory.mktemp("quiet") / "run", CallCounter()
    run(plan, directory, cache_dir=directory.parent / "cache", progress=counter, trust=TRUST)
    return directory, counter.calls


def before(quiet: Path, plan: RunPlan, step: str, directory: Path) -> Path:
    """Copy a run as it was before a step."""
    names = [each.name for each in plan.recipe.steps]
    later = names[names.index(step) :]
    gone = {*later, *(f"{name}.json" for name in later), "samples.json", "report.html", "report.json"}
    kept = {"samples.json"} if "sample" not in later else set()
    shutil.copytree(quiet, directory, ignore=lambda folder, _: (gone - kept) if folder == str(quiet) else set())
    state = json.loads((directory / "state.json").read_text())
    state["steps"] = {name: entry for name, entry in state["steps"].items() if name not in later}
    (directory / "state.json").write_text(json.dumps(state))
    return directory


def untimed(value: Any) -> Any:
    """Leave out what a clock or the machine's memory says."""
    if isinstance(value, dict):
        return {name: untimed(item) for name, item in value.items() if not any(word in name for word in TIMED)}
    return [untimed(item) for item in value] if isinstance(value, list) else value


def result(directory: Path, step: str) -> dict[str, Any]:
    """Return all that a step left but for times: weights, figures, texts."""
    found: dict[str, Any] = {}
    for top in (step, f"{step}.json", *(("samples.json",) if step == "sample" else ())):
        for path in sorted((directory / top).rglob("*")) if (directory / top).is_dir() else [directory / top]:
            place = str(path.relative_to(directory))
            if not path.is_file() or "checkpoints" in path.parts or "tensorboard" in path.parts:
                continue
            if path.suffix == ".json":
                found[place] = untimed(json.loads(path.read_text()))
            elif path.name in ("metrics.jsonl", "experts.jsonl"):
                found[place] = untimed(read_json_lines(path))
            else:
                found[place] = path.read_bytes()
    last = store.latest(directory / step / "checkpoints")
    if last is not None:
        opened = store.Checkpoint.open(last)
        found["state"] = untimed(opened.document("state"))
        stems = ("model",) if step == DROPPING else ("model", "optimizer")
        assert {path.stem for path in last.glob("*.safetensors")} == set(stems)
        for stem in stems:
            found |= {f"{stem}/{name}": tensor.numpy().tobytes() for name, tensor in opened.tensors(stem).items()}
    return found


def interrupted(plan: RunPlan, directory: Path, step: str, at: int, number: signal.Signals) -> bool:
    """Run one step and signal at a call; returns whether the step lasted that long."""
    counter, message = CallCounter(step, at, number), ""
    try:
        cache = directory.parent / "cache"
        run(plan, directory, cache_dir=cache, resume=True, until=step, progress=counter, trust=TRUST)
    except Interrupted as error:
        message = str(error)
    finally:
        sys.settrace(None)
    assert read_state(directory)[step].status == ("interrupted" if message else "done")
    assert not message or number.name in message
    return counter.sent


def check(plan: RunPlan, quiet: Quiet, step: str, seed: int, tmp_path: Path) -> None:
    whole, calls = quiet
    number, directory = (signal.SIGINT, signal.SIGTERM)[seed % 2], tmp_path / "cut"
    at = random.Random(f"{step}/{seed}").randint(1, calls[step])
    while not interrupted(plan, before(whole, plan, step, directory), step, at, number):
        at //= 2  # what the first run imported is there now, so that there are fewer calls
        shutil.rmtree(directory)
    run(plan, directory, cache_dir=tmp_path / "cache", resume=True, until=step, trust=TRUST)
    assert read_state(directory)[step].status == "done"
    expected, found = result(whole, step), result(directory, step)
    assert found.keys() == expected.keys()
    assert [name for name in expected if found[name] != expected[name]] == []
    assert [path for path in directory.rglob(".*") if path.name != ".lock"] == []


@pytest.mark.parametrize("step", KINDS)
def test_a_signal_stops_every_kind_of_step_in_order(plan: RunPlan, quiet: Quiet, step: str, tmp_path: Path) -> None:
    check(plan, quiet, step, KINDS.index(step), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 112))
@pytest.mark.parametrize("step", KINDS)
def test_signals_at_more_moments(plan: RunPlan, quiet: Quiet, step: str, seed: int, tmp_path: Path) -> None:
    check(plan, quiet, step, seed, tmp_path)


def test_a_signal_between_steps_is_kept_for_the_next() -> None:
    with RunSignals() as signals:
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(Interrupted, match="SIGTERM arrived"):
            signals.check()
        with pytest.raises(Interrupted, match="SIGTERM arrived"), signals.interruptible():
            raise AssertionError("a step began")


def test_a_second_signal_does_not_cut_clean_up_short(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [10.0]
    monkeypatch.setattr("fathom.pipeline.signals.time.monotonic", lambda: now[0])
    cleaned = []

    def step() -> None:
        try:
            signal.raise_signal(signal.SIGINT)
        finally:
            now[0] += 0.5
            signal.raise_signal(signal.SIGINT)
            cleaned.append(True)

    with RunSignals() as signals, signals.interruptible(), pytest.raises(Interrupted):
        step()
    assert cleaned
    now[0] += 5
    with RunSignals() as signals, signals.interruptible():
        with pytest.raises(Interrupted):
            signal.raise_signal(signal.SIGINT)
        now[0] += 5
        with pytest.raises(Interrupted):
            signal.raise_signal(signal.SIGINT)


def test_handlers_are_restored_and_other_threads_have_none() -> None:
    old = signal.getsignal(signal.SIGINT)
    seen: list[Any] = []

    def outside() -> None:
        with RunSignals():
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=outside)
    thread.start()
    thread.join()
    assert seen == [old]
    with RunSignals():
        assert signal.getsignal(signal.SIGINT) is not old
    assert signal.getsignal(signal.SIGINT) is old


def test_an_interruption_is_no_failure_of_anything() -> None:
    assert not issubclass(Interrupted, Exception)
    assert not issubclass(Interrupted, FathomError)

"""Run a recipe's steps in order, each once, continuing where the last call stopped."""

from __future__ import annotations

import contextlib
import errno
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from fathom.errors import FathomError, Interrupted, ResourceError, SpecError
from fathom.files import fingerprint, is_leftover
from fathom.inference.run_record import RECIPE_FILE, STATE_FILE, StepState, read_state
from fathom.model.device import resolve_device
from fathom.pipeline.context import RunPlan, StepContext
from fathom.pipeline.state import (
    check_unchanged,
    run_plan_mapping,
    step_inputs,
    write_run_plan,
    write_state,
)
from fathom.progress import NULL_PROGRESS, Progress
from fathom.spec.recipe import LearningStep, Step

LOCK_FILE = ".lock"


def run(
    plan: RunPlan,
    directory: Path,
    *,
    cache_dir: Path,
    resume: bool = False,
    restart: bool = False,
    until: str | None = None,
    device: str = "cpu",
    progress: Progress = NULL_PROGRESS,
) -> list[str]:
    """Run the steps of ``plan`` in ``directory`` that are not done yet; return their names.

    A finished step runs again only if its result was deleted and a step after it needs to run.
    A step that was interrupted continues if it trains and otherwise starts again from its beginning.
    Only the main thread can turn SIGINT and SIGTERM into a clean stop.

    Raises:
        SpecError: ``directory`` holds a run and neither ``resume`` nor ``restart`` is set; or a finished step's
            inputs changed; or ``until`` names no step.
        Interrupted: SIGINT or SIGTERM arrived; all finished work is kept.
        ResourceError: the disk or memory is full.
    """
    names = [step.name for step in plan.recipe.steps]
    if until is not None and until not in names:
        raise SpecError("--until", f"there is no step {until!r}", f"use one of {', '.join(names)}")
    resolve_device(device)
    last = len(names) if until is None else names.index(until) + 1
    runners = _runners(plan)
    states = _prepare(directory, plan, resume=resume, restart=restart)
    context = StepContext(plan=plan, directory=directory, cache_dir=cache_dir, device=device, progress=progress)
    ran = []
    with _locked(directory), _signals():
        write_state(directory, states)
        write_run_plan(directory, plan)
        for index, step in enumerate(plan.recipe.steps[:last]):
            if _is_done(step, context, states, last):
                continue
            progress.stage(step.name, index + 1, len(names))
            _run_step(step, runners[step.kind], context, states)
            progress.finish(states[step.name].seconds)
            ran.append(step.name)
    return ran


def _is_done(step: Step, context: StepContext, states: dict[str, StepState], last: int) -> bool:
    """Whether a step need not run: it is done, and its result is there if a step after it must still run."""
    names = [other.name for other in context.recipe.steps[:last]]
    done = {name for name, state in states.items() if state.status == "done"}
    if step.name not in done:
        return False
    return context.path(step).exists() or done.issuperset(names[names.index(step.name) :])


def _runners(plan: RunPlan) -> dict[str, Callable[[Any, StepContext], None]]:
    from fathom.pipeline.steps import RUNNERS

    return {step.kind: RUNNERS[step.kind] for step in plan.recipe.steps}


def _prepare(directory: Path, plan: RunPlan, *, resume: bool, restart: bool) -> dict[str, StepState]:
    """Make or check the run directory and return the states to start from."""
    if directory.exists() and not directory.is_dir():
        raise SpecError("--out", f"{directory} is a file", "name a folder")
    holds_run = (directory / STATE_FILE).exists()
    found = list(directory.iterdir()) if directory.exists() else []
    if not holds_run and any(path.name != LOCK_FILE and not is_leftover(path) for path in found):
        raise SpecError("--out", f"{directory} is not empty and holds no run", "give another --out")
    if holds_run and not (resume or restart):
        raise SpecError(
            "--out", f"{directory} already holds a run", "add --resume to continue it or --restart to begin again"
        )
    if resume and restart:
        raise SpecError("--restart", "contradicts --resume", "give one of them")
    states = read_state(directory)
    if restart:
        _clear(directory)
        states = {}
    check_unchanged(directory, plan, states)
    directory.mkdir(parents=True, exist_ok=True)
    return states


def _clear(directory: Path) -> None:
    """Remove a run's results; only a directory that holds a run's state is ever cleared."""
    if not (directory / STATE_FILE).exists():
        return
    with _locked(directory):
        (directory / RECIPE_FILE).unlink(missing_ok=True)
        for path in directory.iterdir():
            if path.name in (LOCK_FILE, STATE_FILE):
                continue
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        (directory / STATE_FILE).unlink()


def _run_step(
    step: Step, runner: Callable[[Any, StepContext], None], context: StepContext, states: dict[str, StepState]
) -> None:
    inputs = fingerprint(step_inputs(run_plan_mapping(context.plan), context.recipe, step))
    before = states[step.name].seconds if step.name in states else 0.0
    started = time.monotonic()

    def record(status: Any) -> None:
        states[step.name] = StepState(status=status, seconds=before + time.monotonic() - started, inputs=inputs)
        write_state(context.directory, states)

    if not isinstance(step, LearningStep):
        _remove(context.path(step))
    record("running")
    try:
        with _translated(context.directory):
            runner(step, context)
    except Interrupted:
        record("interrupted")
        raise
    except BaseException as error:
        if not isinstance(error, ResourceError):
            record("failed")
        raise
    record("done")


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def _translated(directory: Path) -> Iterator[None]:
    """Turn a full disk or memory into ``ResourceError``."""
    try:
        yield
    except FathomError:
        raise
    except MemoryError:
        raise ResourceError(
            "memory is full; lower train.batch.micro_batch_size or the model's size, then --resume"
        ) from None
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise ResourceError(f"the disk of {directory} is full; free some space, then --resume") from None
    except Exception as error:  # safetensors and torch report exhaustion only in words
        words = str(error).lower()
        if "no space left" in words:
            raise ResourceError(f"the disk of {directory} is full; free some space, then --resume") from error
        if "out of memory" in words or "can't allocate memory" in words:
            raise ResourceError("memory is full; lower train.batch.micro_batch_size, then --resume") from error
        raise


@contextlib.contextmanager
def _signals() -> Iterator[None]:
    """While steps run, SIGINT and SIGTERM raise ``Interrupted``; a step may install its own handler meanwhile."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: object) -> None:
        raise Interrupted(f"{signal.Signals(number).name} arrived; finished steps are kept")

    old = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Hold the run directory for this process; the system frees it when the process ends, however it ends."""
    try:
        import fcntl
    except ImportError:  # not a POSIX system: run without a lock
        yield
        return
    with (directory / LOCK_FILE).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise SpecError(
                "--out", f"another process is running in {directory}", "wait for it or give another --out"
            ) from None
        yield

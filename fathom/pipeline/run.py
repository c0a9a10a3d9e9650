"""Run a recipe's steps in order, each once, continuing where the last call stopped."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import time
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from fathom.checkpoint import store
from fathom.errors import (
    ENVIRONMENT_ERRORS,
    FathomError,
    Interrupted,
    ResourceError,
    SpecError,
    explain_os_error,
)
from fathom.files import fingerprint, is_leftover, make_folder
from fathom.inference.run_record import StepState, read_state
from fathom.locale import tr
from fathom.model.device import resolve_device
from fathom.parallel.processes import Processes
from fathom.pipeline import steps
from fathom.pipeline.changes import accept_changes
from fathom.pipeline.context import RunPlan, StepContext
from fathom.pipeline.parallel_checks import SharedStep, check_parallel
from fathom.pipeline.preflight import export_notes, schedule_warnings
from fathom.pipeline.recipe_faults import recipe_faults
from fathom.pipeline.recorded_plan import resume_command
from fathom.pipeline.signals import RunSignals
from fathom.pipeline.state import (
    run_plan_mapping,
    step_inputs,
    training_fields,
    write_run_plan,
    write_state,
)
from fathom.pipeline.trust import NO_TRUST, Trust, check_trust, runs_programs
from fathom.progress import NULL_PROGRESS, Progress, size
from fathom.spec import check
from fathom.spec.field_docs import toml_value
from fathom.spec.recipe import TRACKERS, LearningStep, Step
from fathom.spec.resume import effect_of
from fathom.spec.step_results import LOCK_FILE, RECIPE_FILE, STATE_FILE
from fathom.train.state import drop_optimizer
from fathom.train.trackers import chosen_trackers


def run(
    plan: RunPlan,
    directory: Path,
    *,
    cache_dir: Path,
    resume: bool = False,
    restart: bool = False,
    allow_changes: bool = False,
    until: str | None = None,
    device: str = "cpu",
    progress: Progress = NULL_PROGRESS,
    trust: Trust = NO_TRUST,
    track: Sequence[str] = (),
    processes: Processes | None = None,
) -> list[str]:
    """Run the steps of ``plan`` in ``directory`` that are not done yet; return their names.

    Where there are several ``processes``, all call this: they train together, and one does everything else.

    A finished step runs again only if its result was deleted and a step after it needs to run.
    A step that was interrupted continues if it trains and otherwise starts again.
    ``allow_changes`` accepts fields of training steps that change what is learned; ``accept_changes`` has the rules.
    ``trust`` permits this call, and no later one, to run code of the recipe or programs outside the sandbox.
    ``track`` names the trackers of this call instead of the recipe's own.
    Only the main thread can turn SIGINT and SIGTERM into a clean stop.

    Raises:
        SpecError: ``directory`` holds a run and neither ``resume`` nor ``restart`` is set; or a finished step's
            inputs changed; or an unfinished one's in more than may change; or ``until`` names no step.
        Interrupted: SIGINT or SIGTERM arrived; all finished work is kept.
        CodeNotAllowedError: a step would call functions of the recipe, and ``trust`` does not say so.
        DataError: the columns of a data file are of no known form, or of two.
        ResourceError: the disk or memory is full.
    """
    names = [step.name for step in plan.recipe.steps]
    last = len(names) if until is None else _place(names, until) + 1
    resolve_device(device)
    if processes is not None:
        check_parallel(plan, processes.size, names[last:])
    done = names[last:] + [name for name, s in read_state(directory).items() if resume and s.status == "done"]
    _check_before(plan, done, trust, cache_dir, progress)
    context = StepContext(
        plan=plan,
        directory=directory,
        cache_dir=cache_dir,
        device=device,
        progress=progress,
        trust=trust,
        trackers=_trackers(plan, track),
        processes=processes,
    )
    if processes is not None and not processes.leads:
        return _follow(processes, context)
    states = _prepare(directory, plan, resume=resume, restart=restart, allow_changes=allow_changes)
    with _locked(directory), RunSignals() as signals:
        write_state(directory, states)
        write_run_plan(directory, plan)
        return _lead(context, states, signals, last)


def _lead(context: StepContext, states: dict[str, StepState], signals: RunSignals, last: int) -> list[str]:
    """Run what is not done of the first ``last`` steps, and tell other processes which ones to take part in."""
    processes, progress, every, ran = context.processes, context.progress, context.recipe.steps, []
    for index, step in enumerate(every[:last]):
        if _is_done(step, context, states, last):
            continue
        signals.check()
        progress.stage(step.name, index + 1, len(every))
        if processes is not None and isinstance(step, SharedStep):
            processes.broadcast(step.name)
        _run_step(step, context, states, signals)
        progress.finish(states[step.name].seconds)
        ran.append(step.name)
    if processes is not None:
        processes.broadcast(None)
    return ran


def _follow(processes: Processes, context: StepContext) -> list[str]:
    """Take part in the steps that all processes run, as the leading one says; return their names."""
    by_name = {step.name: step for step in context.recipe.steps}
    ran: list[str] = []
    while (name := processes.broadcast(None)) is not None:
        steps.RUNNERS[by_name[name].kind](by_name[name], context)
        ran.append(name)
    return ran


def _place(names: Sequence[str], until: str) -> int:
    if until not in names:
        raise SpecError("--until", f"there is no step {until!r}", f"use one of {', '.join(names)}")
    return names.index(until)


def _check_before(plan: RunPlan, done: Collection[str], trust: Trust, cache_dir: Path, progress: Progress) -> None:
    """Refuse what the steps that are not done cannot work with, and say what is to be known of them."""
    check_trust(plan.recipe, plan.base, trust, done)
    if trust.unsandboxed and runs_programs(plan.recipe, done):
        progress.message(tr("programs of the model run as you, with your files and your network (--unsandboxed)"))
    for fault in recipe_faults(plan, done, trust, cache_dir):
        raise fault
    for line in (*(f"note: {line}" for line in export_notes(plan.recipe)), *schedule_warnings(plan, done)):
        progress.message(line)


def _trackers(plan: RunPlan, named: Sequence[str]) -> tuple[str, ...]:
    for name in named:
        check.one_of("--track", name, TRACKERS)
    return chosen_trackers(tuple(named) or plan.recipe.track)


def _is_done(step: Step, context: StepContext, states: dict[str, StepState], last: int) -> bool:
    """Whether a step need not run: it is done, and its result is there if a step after it must still run."""
    names = [other.name for other in context.recipe.steps[:last]]
    done = {name for name, state in states.items() if state.status == "done"}
    if step.name not in done:
        return False
    return context.path(step).exists() or done.issuperset(names[names.index(step.name) :])


def _prepare(
    directory: Path, plan: RunPlan, *, resume: bool, restart: bool, allow_changes: bool
) -> dict[str, StepState]:
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
    if found:
        _refuse_links(directory)
    states = read_state(directory)
    if restart:
        _clear(directory)
        states = {}
    states = accept_changes(directory, plan, states, allow_changes=allow_changes)
    try:
        make_folder(directory)
    except OSError as error:
        raise ResourceError(f"--out: {directory} cannot be made: {explain_os_error(error)}") from None
    return states


def _refuse_links(directory: Path) -> None:
    """Refuse a run with links to elsewhere: where it comes from somebody else, what they lead to would change."""
    root = directory.resolve()
    for folder, folders, files in os.walk(root):
        for name in (*folders, *files):
            path = Path(folder, name)
            if path.is_symlink() and not path.resolve().is_relative_to(root):
                problem = f"{path} is a link to {path.resolve()}, outside the run"
                raise SpecError("--out", problem, "put what it leads to in its place, or move the run and link to that")


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


def _run_step(step: Step, context: StepContext, states: dict[str, StepState], signals: RunSignals) -> None:
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
        with _translated(context.directory, step), signals.interruptible():
            steps.RUNNERS[step.kind](step, context)
    except Interrupted:
        record("interrupted")
        raise
    except BaseException as error:
        if not isinstance(error, ResourceError):
            record("failed")
        if isinstance(error, FathomError) and error.changes:
            raise _with_command(error, step, context.directory) from error
        raise
    record("done")
    if isinstance(step, LearningStep):
        with _translated(context.directory, step):
            _drop_optimizer(step, context)


def _drop_optimizer(step: LearningStep, context: StepContext) -> None:
    """Free what only training needed of a finished step, unless it is kept."""
    where, _ = training_fields(step)
    if not getattr(step, where).checkpoint.keep_optimizer:
        freed = drop_optimizer(context.path(step) / store.CHECKPOINTS)
        remedy = f"{where}.checkpoint.keep_optimizer = true keeps it"
        context.progress.message(f"dropped the optimizer's state of {step.name}: {size(freed)} freed ({remedy})")


def _with_command(error: FathomError, step: Step, directory: Path) -> FathomError:
    """Return an error of a learning step with the command that goes on with its ``changes``."""
    assert isinstance(step, LearningStep)
    where, effects = training_fields(step)
    options = [f"--set={step.name}.{where}.{name}={toml_value(value)}" for name, value in error.changes.items()]
    if any(effect_of(effects, name) == "learning" for name in error.changes):
        options = ["--allow-changes", *options]
    return type(error)(f"{error}; e.g. {resume_command(directory, *options)}")


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def _translated(directory: Path, step: Step) -> Iterator[None]:
    """Turn exhausted memory, and whatever the file system refuses, into ``ResourceError`` with its remedy."""
    try:
        yield
    except (FathomError, Interrupted):
        raise
    except MemoryError:
        raise ResourceError(_out_of_memory(step)) from None
    except OSError as error:
        if error.errno not in ENVIRONMENT_ERRORS:
            raise
        raise ResourceError(f"{error.filename or directory}: {explain_os_error(error)}, then --resume") from None
    except Exception as error:  # safetensors and torch report exhaustion only in words
        words = str(error).lower()
        if "no space left" in words:
            full = explain_os_error(OSError(errno.ENOSPC, ""))
            raise ResourceError(f"{directory}: {full}, then --resume") from error
        if "out of memory" in words or "can't allocate memory" in words:
            raise ResourceError(_out_of_memory(step)) from error
        raise


def _out_of_memory(step: Step) -> str:
    problem = f"memory: ran out in step {step.name!r}"
    if not isinstance(step, LearningStep):
        return f"{problem}; end other programs that use it, then --resume"
    where, _ = training_fields(step)
    size = "micro_batch_tokens" if where == "policy" else "batch.micro_batch_size"
    return f"{problem}; lower {where}.{size} or set {where}.activation_checkpointing = true, then --resume"


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Hold the run directory for this process; the system frees it when the process ends, however it ends."""
    lock = FileLock(directory / LOCK_FILE, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise SpecError(
            "--out", f"another process is running in {directory}", "wait for it or give another --out"
        ) from None
    except NotImplementedError:  # a file system without locks
        yield
        return
    try:
        yield
    finally:
        lock.release()

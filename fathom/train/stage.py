"""What every training stage shares: its position, its checkpoints, and how it stops and resumes."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from torch import Tensor

from fathom.checkpoint import store
from fathom.checkpoint.adapter_checkpoint import AdapterBase
from fathom.checkpoint.sharded.saving import ShardedSaver
from fathom.checkpoint.tensorfile import write_tensors
from fathom.errors import CheckpointError, Interrupted, ResourceError, TrainError
from fathom.files import write_json
from fathom.model.decoder import Decoder
from fathom.signals import StopRequest
from fathom.spec.resume import FieldChange
from fathom.spec.train import UpdateSpec
from fathom.train.freeze import freeze
from fathom.train.gradients import Gradients
from fathom.train.group import ALONE, Group, any_rank
from fathom.train.metrics import JsonLines
from fathom.train.optimizer import make_optimizer
from fathom.train.protocols import Resumable
from fathom.train.state import Position, load_state, save_state


class Stage:
    """One stage's directory of checkpoints and the loop over its steps.

    It freezes what ``spec.frozen`` names, and makes the ``optimizer`` of the rest; of a model that has an adapter, of
    that alone, and checkpoints then say that it was trained on ``base``. ``source`` is where the stage's batches come
    from: its state is part of every checkpoint. ``files`` are copied into each: the tokenizer's, so that a checkpoint
    is a model wherever it goes. Ranks of a ``group`` stop and save together, and rank 0 writes.
    """

    def __init__(
        self,
        directory: Path,
        *,
        model: Decoder,
        spec: UpdateSpec,
        source: Resumable,
        files: Sequence[Path] = (),
        note: Callable[[str], None],
        group: Group = ALONE,
        base: AdapterBase | None = None,
    ) -> None:
        if model.adaptation is None:
            freeze(model, spec.frozen)
        self.directory = directory
        self.optimizer = make_optimizer(model, spec.optimizer)
        self.checkpoints = directory / store.CHECKPOINTS
        self.position = Position()
        self.changes: list[FieldChange] = []
        self._parts: dict[str, Any] = {"model": model, "optimizer": self.optimizer, "loader": source, "spec": spec}
        self._base = base
        self._checkpointing = spec.checkpoint
        self._files = tuple(files)
        self._note = note
        self._group = group
        self._saver = None if group.processes is None else ShardedSaver(group.processes)

    def start(self, resume: bool, *, allow_changes: bool = False) -> Position:
        """Go to the latest checkpoint, if there is one; ``changes`` are then how the spec differs from the saved one.

        Raises:
            CheckpointError: there is one and ``resume`` is not set, or it is damaged, or of another model or of a spec
                that differs in more than may change (``fathom.spec.resume``).
        """
        found = store.latest(self.checkpoints)
        if found is not None:
            if not resume:
                raise CheckpointError(f"{self.checkpoints}: holds checkpoints already; resume, or use a new directory")
            self.position, self.changes = load_state(
                found, **self._parts, allow_changes=allow_changes, processes=self._group.processes
            )
        return self.position

    def record_changes(self, metrics: JsonLines) -> None:
        """Write what differs from the checkpoint's spec to the metrics, and note it."""
        if not self.changes:
            return
        metrics.write_changes(
            self.position.step, [{"field": c.field, "old": c.old, "new": c.new} for c in self.changes]
        )
        self._note(f"resumes after step {self.position.step} with {', '.join(map(str, self.changes))}")

    def run(
        self,
        take_step: Callable[[Position], Position],
        *,
        more: Callable[[Position], bool],
        stop: StopRequest,
        sync: Callable[[], None],
        finish: Callable[[Position], None] = lambda position: None,
    ) -> Path:
        """Take steps while there are ``more``; returns the last checkpoint, which the stage ends on.

        Periodic checkpoints that the disk has no room for are noted and tried again when the next is due. ``sync``
        brings the metrics to disk before each. ``finish`` is called once the last step of all was taken, before its
        checkpoint is written.

        Raises:
            ResourceError: no room for the last checkpoint.
            Interrupted: SIGINT or SIGTERM; the step was finished and saved first.
        """
        saved, attempted = self.position.step, time.monotonic()
        while not self._stopping(stop) and more(self.position):
            self.position = take_step(self.position)
            if not self._stopping(stop) and more(self.position) and self._due(attempted):
                saved, attempted = self._save_if_there_is_room(sync, saved), time.monotonic()
        path = store.step_directory(self.checkpoints, self.position.step)
        if saved != self.position.step:
            if not more(self.position):
                finish(self.position)
            path = self._save(sync)
        if self._saver is not None:
            self._saver.close()
        self.check_stop(stop)
        return path

    def check_stop(self, stop: StopRequest) -> None:
        """Raise ``Interrupted`` if a signal arrived at any rank; call it again once ``stop`` was left, for a late one.

        Raises:
            Interrupted: SIGINT or SIGTERM; the step was finished and saved first.
        """
        if self._stopping(stop):
            path = store.step_directory(self.checkpoints, self.position.step)
            name = stop.signal_name or "a signal to another rank"
            raise Interrupted(f"{name} after step {self.position.step}: the state is saved in {path}")

    def refuse(self, number: int, gradients: Gradients, tensors: Mapping[str, Tensor]) -> NoReturn:
        """Keep the batch that broke a step, and stop before the weights are touched.

        Raises:
            TrainError: always.
        """
        path = self.directory / f"bad_batch-{number:08d}.safetensors"
        described = {
            "step": number,
            "tokens_seen": self.position.tokens,
            "objective": repr(gradients.objective),
            "balance_loss": repr(gradients.balance),
            "mtp_loss": repr(gradients.mtp),
            "grad_norm": repr(gradients.norm_value),
        }
        try:
            write_tensors(path, tensors)
            write_json(path.with_suffix(".json"), described)
            kept = f"its batch is kept in {path}"
        except ResourceError as error:
            kept = f"its batch could not be kept ({error})"
        raise TrainError(
            f"step {number}: loss is {gradients.loss}, gradient norm {gradients.norm_value}; the step was not taken "
            f"and {kept}; look at that batch, lower optimizer.lr or raise schedule.warmup_steps, and resume from the "
            "latest checkpoint with changes allowed"
        ).with_changes(optimizer__lr=self._parts["spec"].optimizer.lr / 2)

    def _due(self, attempted: float) -> bool:
        every_steps, every_seconds = self._checkpointing.every_steps, self._checkpointing.every_seconds
        by_step = every_steps is not None and self.position.step % every_steps == 0
        by_time = every_seconds is not None and time.monotonic() - attempted >= every_seconds
        return self._group.broadcast(by_step or by_time)

    def _stopping(self, stop: StopRequest) -> bool:
        """Whether any rank was asked to stop."""
        return any_rank(self._group, stop.signal_name is not None)

    def _save_if_there_is_room(self, sync: Callable[[], None], saved: int) -> int:
        try:
            self._save(sync, wait=False)
        except ResourceError as error:
            self._note(f"step {self.position.step}: {error}; training goes on")
            return saved
        return self.position.step

    def _save(self, sync: Callable[[], None], *, wait: bool = True) -> Path:
        """Publish a checkpoint, from rank 0 or of the parts that ranks hold; where it cannot be, all ranks raise why.

        Parts are written while training goes on, unless this is to ``wait``.
        """
        directory = store.step_directory(self.checkpoints, self.position.step)
        self._agreed(sync)
        if self._saver is not None:
            return self._write(directory, wait=wait)
        self._agreed(lambda: self._write(directory))
        return directory

    def _write(self, directory: Path, *, wait: bool = True) -> Path:
        return save_state(
            directory,
            **self._parts,
            position=self.position,
            files=self._files,
            base=self._base,
            saver=self._saver,
            published=lambda path: store.prune(self.checkpoints, self._checkpointing.keep),
            wait=wait,
        )

    def _agreed(self, work: Callable[[], object]) -> None:
        """Do something on the rank that leads; all raise the ``ResourceError`` that it raises."""
        failure: ResourceError | None = None
        if self._group.leads:
            try:
                work()
            except ResourceError as error:
                failure = error
        failure = self._group.broadcast(failure)
        if failure is not None:
            raise failure

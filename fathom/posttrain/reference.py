"""The model a policy is kept near: a frozen copy of the policy, taken every so many rollouts."""

from __future__ import annotations

import re
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file

from fathom.checkpoint import store
from fathom.checkpoint.tensorfile import write_tensors
from fathom.errors import CheckpointError, shortened
from fathom.files import remove_leftovers
from fathom.model.adapters.attach import frozen_copy, learned_state
from fathom.model.decoder import Decoder
from fathom.train.state import load_model_tensors

STATE_KEY = "reference"
"""Under this name a checkpoint's loader state says after which rollout its reference was taken."""

_FILE = re.compile(r"reference-(\d{8})\.safetensors")


class ReferenceModel:
    """A frozen copy of the policy, taken anew every ``every`` rollouts; a file for each lets a killed run resume.

    Of an adapted policy only the adapter is copied. ``step`` is the rollout after which the copy was taken. A file is
    removed once neither the copy in use nor any checkpoint of the stage names it, so that a run can be resumed from
    every checkpoint that is kept.
    """

    def __init__(self, model: Decoder, directory: Path, every: int | None) -> None:
        self._policy = model
        self._directory = directory
        self._every = every
        self.step = 0
        self.model = frozen_copy(model)

    def begin(self, done: int, step: int | None = None) -> None:
        """Make ready to continue after ``done`` rollouts with the copy that an uninterrupted run would have.

        ``step`` is what the checkpoint names; None, as in checkpoints that name nothing, follows from ``every``.

        Raises:
            CheckpointError: that copy's file is missing or damaged.
        """
        if done == 0:
            self._take(0)
            return
        self.step = self._due(done) if step is None else step
        path = self._path(self.step)
        try:
            load_model_tensors(self.model, load_file(path), path)
        except (OSError, SafetensorError) as error:
            raise CheckpointError(
                f"{path}: the reference model cannot be read ({shortened(str(error))}); restore the file, or "
                "start again in a new directory"
            ) from None

    def after(self, done: int) -> None:
        """Take a new copy if one is due after ``done`` rollouts."""
        if self._every and done % self._every == 0:
            self._take(done)

    def _take(self, done: int) -> None:
        path = self._path(done)
        learned = learned_state(self._policy)
        write_tensors(path, learned)
        load_model_tensors(self.model, learned, path)
        self.step = done
        self._prune()

    def _prune(self) -> None:
        """Remove the files that nothing names, and what killed processes left unfinished."""
        remove_leftovers(self._directory)
        named = self._named()
        for path in self._directory.iterdir():
            found = _FILE.fullmatch(path.name)
            if named is not None and found is not None and int(found[1]) not in named:
                path.unlink(missing_ok=True)

    def _named(self) -> set[int] | None:
        """The references that are in use or that a checkpoint names; None where one cannot be read: keep all then."""
        named = {self.step}
        for directory in store.list_checkpoints(self._directory / store.CHECKPOINTS):
            try:
                state = store.Checkpoint.open(directory, verify=False).document("state")
                named.add(state["loader"].get(STATE_KEY, self._due(state["step"])))
            except (CheckpointError, LookupError, TypeError, AttributeError):
                return None
        return named

    def _due(self, done: int) -> int:
        """After which rollout the copy was taken that is in use after ``done`` rollouts."""
        return done - done % self._every if self._every else 0

    def _path(self, done: int) -> Path:
        return self._directory / f"reference-{done:08d}.safetensors"

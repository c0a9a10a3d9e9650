"""The model a policy is kept near: its own former self, as old as the spec allows."""

from __future__ import annotations

import copy
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file

from fathom.checkpoint.tensorfile import write_tensors
from fathom.errors import CheckpointError
from fathom.files import remove_leftovers
from fathom.model.decoder import Decoder
from fathom.train.state import load_model_tensors

_KEPT = 2


class ReferenceModel:
    """A frozen copy of the policy, made anew every ``every`` rollouts; a file for each lets a resumed run go on."""

    def __init__(self, model: Decoder, directory: Path, every: int | None) -> None:
        self._policy = model
        self._directory = directory
        self._every = every
        self.model = copy.deepcopy(model).eval().requires_grad_(False)

    def begin(self, done: int) -> None:
        """Make ready to go on after ``done`` rollouts: with the copy that an uninterrupted run would have.

        Raises:
            CheckpointError: that copy's file is gone or damaged.
        """
        if done == 0:
            self._sync(0)
            return
        path = self._path(done - done % self._every if self._every else 0)
        try:
            load_model_tensors(self.model, load_file(path), path)
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{path}: the reference model cannot be read ({error}); begin again") from None

    def after(self, done: int) -> None:
        """Take note that ``done`` rollouts are done."""
        if self._every and done % self._every == 0:
            self._sync(done)

    def _sync(self, done: int) -> None:
        path = self._path(done)
        remove_leftovers(self._directory)
        write_tensors(path, self._policy.state_dict())
        self.model.load_state_dict(self._policy.state_dict())
        for old in sorted(self._directory.glob("reference-*.safetensors"))[:-_KEPT]:
            old.unlink(missing_ok=True)

    def _path(self, done: int) -> Path:
        return self._directory / f"reference-{done:08d}.safetensors"

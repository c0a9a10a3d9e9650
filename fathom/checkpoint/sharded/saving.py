"""Saving from several processes, each its own pieces, while training waits or goes on."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch.distributed.checkpoint.state_dict_saver import save as save_planned

from fathom.checkpoint import store
from fathom.checkpoint.sharded.agreement import one_error
from fathom.checkpoint.sharded.pieces import Named, Piece, written_pieces
from fathom.checkpoint.sharded.planning import PieceSavePlanner
from fathom.checkpoint.sharded.staging import Staging
from fathom.checkpoint.sharded.storage import PublishedParts, SafetensorsWriter

_Prepared = tuple[list[Piece], dict[str, str]]


class ShardedSaver:
    """Saves checkpoints of the ranks of ``group``, one after another.

    The group's collectives must work on the CPU (gloo), and nothing else may use it: a save that training does not
    wait for runs on a thread of its own. That is what ``torch.distributed.checkpoint.async_save`` does as well; here
    the thread calls ``save`` itself, so that memory is copied once into buffers that are kept, and what a failed save
    left is removed by the thread that failed.
    """

    def __init__(self, group: dist.ProcessGroup) -> None:
        self._group = group
        self._rank, self._ranks = dist.get_rank(group), dist.get_world_size(group)
        self._staging = Staging()
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._running: Future[Path] | None = None

    def save(
        self,
        directory: Path,
        *,
        tensors: Named,
        documents: Mapping[str, Any] | None = None,
        files: Sequence[Path] = (),
        published: Callable[[Path], None] = lambda path: None,
        wait: bool = True,
    ) -> Path:
        """Publish a checkpoint at ``directory`` and return it; one already there is replaced. Every rank calls this.

        Args:
            directory: where the checkpoint appears, on a file system that all ranks share.
            tensors: file stem -> name -> tensor. A DTensor is written in the pieces that its ranks hold, and replicas
                share its copying and writing. A plain tensor is the same on every rank that gives it, which may be
                some only: each copies it, and one writes it.
            documents: file stem -> a JSON value; rank 0's counts.
            files: further files, copied by rank 0 under their own names.
            published: called on rank 0 once the checkpoint is there, such as to prune earlier ones.
            wait: whether to return only when it is published. Otherwise the tensors are copied to CPU memory and may
                change as soon as this returns; ``wait`` says whether it was published.

        Raises:
            ResourceError: a rank's disk or memory refuses; nothing is left behind, and earlier checkpoints stay.
            CheckpointError: the pieces do not make whole tensors.
            All ranks raise the same error, which names the rank. Where a save before this one failed that nothing
            waited for, its error is raised and nothing is saved.
        """
        self.wait()
        parts = PublishedParts(documents or {}, tuple(files), published)
        if wait:
            return self._save(directory, parts, lambda: _pieces(directory, tensors))
        staged = self._staged(directory, tensors)
        parts = PublishedParts(copy.deepcopy(parts.documents), parts.files, published)
        self._running = self._thread.submit(self._save, directory, parts, staged)
        return directory

    def wait(self) -> Path | None:
        """Wait for the save that is under way, and return its checkpoint; None without one.

        Raises:
            ResourceError: it failed, on any rank.
        """
        running, self._running = self._running, None
        return None if running is None else running.result()

    def close(self) -> None:
        """Wait for the save that is under way, and give the memory back; raises what ``wait`` does."""
        try:
            self.wait()
        finally:
            self._thread.shutdown()
            self._staging.release()

    def _staged(self, directory: Path, tensors: Named) -> Callable[[], _Prepared]:
        """Copy what this rank writes; what that raises is raised when the ranks plan, so that all learn of it."""
        try:
            pieces, aliases = _pieces(directory, tensors)
            prepared = self._staging.copied(pieces), aliases
        except Exception as error:
            failure = error

            def failed() -> _Prepared:
                raise failure

            return failed
        return lambda: prepared

    def _save(self, directory: Path, parts: PublishedParts, prepare: Callable[[], _Prepared]) -> Path:
        with one_error(), ExitStack() as cleanup:
            writer = SafetensorsWriter(directory, self._rank, self._ranks, parts, cleanup)
            save_planned({}, storage_writer=writer, planner=PieceSavePlanner(prepare), process_group=self._group)
        return directory


def _pieces(directory: Path, tensors: Named) -> _Prepared:
    store.check_stems(tensors, directory)
    return written_pieces(tensors)


def save_sharded(
    directory: Path,
    *,
    tensors: Named,
    group: dist.ProcessGroup,
    documents: Mapping[str, Any] | None = None,
    files: Sequence[Path] = (),
) -> Path:
    """Publish one checkpoint of the ranks of ``group``: ``ShardedSaver.save``, waited for."""
    saver = ShardedSaver(group)
    try:
        return saver.save(directory, tensors=tensors, documents=documents, files=files)
    finally:
        saver.close()

"""Fathom checkpoints as ``Weights``: read tensor by tensor, and written from any other format."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fathom.checkpoint import store
from fathom.checkpoint.hf.files import GENERATION, TOKENIZER, TOKENIZER_FILES, read_json
from fathom.checkpoint.names import current_layout
from fathom.checkpoint.names.promised import check_promised_layers
from fathom.checkpoint.sharded.tensors import StoredTensors
from fathom.checkpoint.tensorfile import TYPES
from fathom.checkpoint.weights import StoredTensor, Weights
from fathom.checkpoint.writer import CheckpointWriter
from fathom.errors import CheckpointError, SpecError
from fathom.files import json_text, write_text
from fathom.logs import listed
from fathom.model.build import parameter_shapes
from fathom.progress import NULL_PROGRESS, Progress
from fathom.spec import ModelSpec, from_mapping, to_mapping
from fathom.spec.hf import ExtraConfig
from fathom.tokenizer.bpe import Tokenizer
from fathom.tokenizer.chat_templates import TEMPLATE_FOLDER, with_template_files

STEM = "model"
_BIAS = "e_score_correction_bias"


@dataclass(frozen=True, slots=True)
class FathomCheckpoint:
    """A Fathom checkpoint whose manifest, spec and header were read; ``stream`` compares the checksum.

    ``tokenizer_directory`` is where its tokenizer lies. ``stored_eos_ids`` are the tokens that end an answer, where the
    checkpoint names them.
    """

    path: Path
    spec: ModelSpec
    checkpoint: store.Checkpoint
    file: StoredTensors
    tokenizer_directory: Path | None = None
    carried: ExtraConfig | None = None
    stored_eos_ids: frozenset[int] | None = None
    form: str = "fathom"

    @classmethod
    def open(cls, path: Path, tokenizer_directory: Path | None = None) -> FathomCheckpoint:
        """Open one; its own tokenizer.json comes before ``tokenizer_directory``.

        Raises:
            CheckpointError: it is missing or cut short, or holds a spec that cannot be used or is not its tensors'.
        """
        opened = store.Checkpoint.open(path, verify=False)
        opened.verify("spec.json")
        document = opened.document("spec")
        try:
            spec = from_mapping(ModelSpec, document["model"])
            ends = frozenset(map(int, document["eos_token_ids"])) if "eos_token_ids" in document else None
        except (SpecError, KeyError, TypeError, ValueError, OverflowError) as error:
            raise CheckpointError(f"{path}: its spec cannot be used ({error}); use a newer Fathom") from None
        file = opened.stored(STEM)
        own = path if (path / TOKENIZER).is_file() else tokenizer_directory
        found = cls(path, spec, opened, file, own, document.get("carried"), ends)
        found._check_promised()
        return found

    @property
    def dtypes(self) -> dict[str, torch.dtype]:
        """Types by parameter name."""
        return {param_name: TYPES[self.file.entries[name].kind] for param_name, name in self._names().items()}

    @property
    def stored(self) -> tuple[StoredTensor, ...]:
        """The tensors as stored."""
        return tuple(self.file.entries.values())

    @property
    def eos_ids(self) -> frozenset[int]:
        """Those the checkpoint names, else the spec's token, else the tokenizer's."""
        if self.stored_eos_ids is not None:
            return self.stored_eos_ids
        if self.spec.eos_token_id is not None:
            return frozenset({self.spec.eos_token_id})
        tokenizer = self.tokenizer()
        return frozenset() if tokenizer is None else frozenset({tokenizer.eos_id})

    def stream(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the tensors in the order of the state.

        The files' checksums are taken on another thread meanwhile and compared before the last tensor is handed out,
        so that a damaged file is never handed out whole.
        """
        names = list(self._names().items())
        with _checked(self.checkpoint) as sound:
            for param_name, name in names[:-1]:
                yield param_name, current_layout(param_name, self.file.read(name))
            for param_name, name in names[-1:]:
                last = self.file.read(name)
                sound.result()
                yield param_name, current_layout(param_name, last)

    def tokenizer(self) -> Tokenizer | None:
        """The tokenizer, or None."""
        return None if self.tokenizer_directory is None else Tokenizer.load(self.tokenizer_directory)

    def _names(self) -> dict[str, str]:
        """Return the file's name of each parameter."""
        aliases = self.checkpoint.aliases(STEM)
        return {param_name: aliases.get(param_name, param_name) for param_name in parameter_shapes(self.spec)}

    def _check_promised(self) -> None:
        """Compare the spec with the tensors that are there, before anything is made for it."""
        try:
            check_promised_layers(self.spec, len(self.file.entries), "spec.json")
            shapes = parameter_shapes(self.spec)
        except (CheckpointError, SpecError) as error:
            raise CheckpointError(f"{self.path}: {error}") from None
        faults = []
        for param_name, name in self._names().items():
            entry = self.file.entries.get(name)
            if entry is None:
                faults.append(f"{param_name} is missing")
                continue
            found = tuple(current_layout(param_name, torch.empty(entry.shape, device="meta")).shape)
            if found != shapes[param_name]:
                faults.append(f"{param_name} has shape {found} instead of {shapes[param_name]}")
        if faults:
            problem = f"its spec and its weights disagree, {listed(faults)}"
            raise CheckpointError(f"{self.path}: {problem}; use a complete checkpoint")


def write_fathom(
    directory: Path,
    weights: Weights,
    *,
    tokenizer: Tokenizer | Path | None = None,
    carried: ExtraConfig | None = None,
    eos_ids: frozenset[int] = frozenset(),
    dtype: torch.dtype | None = None,
    progress: Progress = NULL_PROGRESS,
) -> Path:
    """Write a self-contained Fathom checkpoint and return it; one tensor is held at a time.

    Args:
        directory: where it appears; nothing may exist there.
        weights: what is written, in its own types.
        tokenizer: a tokenizer, or a directory whose tokenizer files are copied.
        carried: fields of a config.json beyond the spec, kept so that they can be written again.
        eos_ids: tokens that end an answer, where they are more than the spec's.
        dtype: the type all tensors are converted to, but selection biases to float32; None keeps each.
        progress: receives the bytes written.

    Raises:
        CheckpointError: the directory exists, the weights are not whole, or there is no tokenizer.json.
        ResourceError: the disk is full or refuses; nothing appears.
    """
    if directory.exists():
        raise CheckpointError(f"{directory}: already exists; choose a new directory or remove it first")
    types = {name: _type(name, kind, dtype) for name, kind in weights.dtypes.items()}
    shapes = parameter_shapes(weights.spec)
    if types.keys() != shapes.keys():
        absent = next(iter(shapes.keys() ^ types.keys()))
        raise CheckpointError(f"{absent}: the weights and their spec disagree about it; use a complete checkpoint")
    total = sum(math.prod(shapes[name]) * kind.itemsize for name, kind in types.items())
    document: dict[str, Any] = {"model": to_mapping(weights.spec)}
    document |= {"eos_token_ids": sorted(eos_ids)} if eos_ids else {}
    document |= {"carried": carried} if carried is not None else {}
    with store.atomic_checkpoint(directory) as draft:
        draft.document("spec", document)
        _write_tokenizer(draft, tokenizer)
        done = 0

        def wrote(count: int) -> None:
            nonlocal done
            done += count
            progress.update(done, total, "bytes", phase="write")

        entries = [(name, kind, shapes[name]) for name, kind in types.items()]
        draft.stream(STEM, entries, _converted(weights, types), wrote)
    return directory


def _type(name: str, stored: torch.dtype, asked: torch.dtype | None) -> torch.dtype:
    if asked is None:
        return stored
    return torch.float32 if name.endswith(_BIAS) else asked


def _converted(weights: Weights, types: Mapping[str, torch.dtype]) -> Iterator[tuple[str, Tensor]]:
    for name, tensor in weights.stream():
        yield name, tensor.to(types[name])
        del tensor  # else it would be held beside the next one


def _write_tokenizer(draft: CheckpointWriter, tokenizer: Tokenizer | Path | None) -> None:
    if isinstance(tokenizer, Path):
        if not (tokenizer / TOKENIZER).is_file():
            raise CheckpointError(f"{tokenizer}: holds no {TOKENIZER}; name the directory of the tokenizer")
        for name in (*TOKENIZER_FILES, GENERATION):
            if (tokenizer / name).is_file():
                draft.copy(tokenizer / name)
        if (tokenizer / TEMPLATE_FOLDER).is_dir():  # a checkpoint is one folder: its templates go into one file
            config = draft.folder / TOKENIZER_FILES[1]
            found = read_json(config) if config.is_file() else {}
            write_text(config, json_text(with_template_files(found, tokenizer), indent=2))
            draft.add_file(config.name)
    elif tokenizer is not None:
        tokenizer.save(draft.folder)
        for name in TOKENIZER_FILES[:2]:
            draft.add_file(name)


@contextmanager
def _checked(checkpoint: store.Checkpoint) -> Iterator[Future[None]]:
    """Verify the weights' checksum on another thread while the context lasts."""
    left = threading.Event()
    with ThreadPoolExecutor(1, "checksum") as pool:
        try:
            yield pool.submit(_verify, checkpoint, left.is_set)
        finally:
            left.set()


def _verify(checkpoint: store.Checkpoint, stop: Callable[[], bool]) -> None:
    for name in checkpoint.tensor_files(STEM):
        checkpoint.verify(name, stop)

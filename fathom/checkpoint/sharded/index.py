"""The index of a sharded stem: every tensor's type and shape, and which pieces of it lie in which files.

    {"files": ["model-00000-of-00004.safetensors", ...],
     "tensors": {NAME: {"dtype": "F32", "shape": [6, 8], "pieces": [[FILE, [3, 0], [3, 8]], ...]}}}

A piece is the number of its file, where it begins in the tensor, and its shape; in its file it has the name
``piece_name`` gives it. An index is used only after it was checked whole: every piece lies within its tensor, and
the pieces tile it without overlap or gap.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fathom.checkpoint.damaged import damaged
from fathom.checkpoint.regions import is_inside
from fathom.checkpoint.tensorfile import DTYPE_NAMES, MAX_TENSORS, TYPES
from fathom.checkpoint.weights import StoredTensor
from fathom.errors import CheckpointError
from fathom.files import read_text

_LARGEST_INDEX = 64 * 2**20
"""Bytes: some two million pieces."""
_LARGEST_SIZE = 2**62
_DEEPEST = 16
"""Cuts within cuts; a mesh of D dimensions makes D, and replicas that share a piece one more."""

PlacedBox = tuple[tuple[int, ...], tuple[int, ...]]
"""Offset and shape."""


class _Fault(ValueError):
    """A fault of an index."""


@dataclass(frozen=True, slots=True)
class StoredPiece:
    """A part of a tensor in a file."""

    file: str
    offset: tuple[int, ...]
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Index:
    """The tensors of a stem, and the pieces that tile each."""

    entries: Mapping[str, StoredTensor]
    pieces: Mapping[str, tuple[StoredPiece, ...]]


def index_name(stem: str) -> str:
    """Return the file name of a stem's index."""
    return f"{stem}.index.json"


def pieces_name(stem: str, rank: int, ranks: int) -> str:
    """Return the file stem of what one rank of several writes."""
    return f"{stem}-{rank:05d}-of-{ranks:05d}"


def stem_files(names: Iterable[str], stem: str) -> list[str]:
    """Return those of a checkpoint's files that hold a stem's tensors, whole or in pieces, and its index."""
    known = re.compile(rf"{re.escape(stem)}(-\d{{5,}}-of-\d{{5,}})?\.safetensors|{re.escape(index_name(stem))}")
    return sorted(name for name in names if known.fullmatch(name))


def stem_of(name: str) -> str | None:
    """Return the stem of whose tensors a file holds some; None for any other file."""
    found = re.fullmatch(r"(.+?)(-\d{5,}-of-\d{5,})?\.safetensors", name)
    return found[1] if found else None


def piece_name(name: str, offset: Sequence[int]) -> str:
    """Return the name of a piece in its file: ``layers.0.mlp.down_proj.weight@0,512``."""
    return f"{name}@{','.join(map(str, offset))}"


def index_text(index: Index) -> str:
    """Return an index as JSON.

    Raises:
        CheckpointError: there are more pieces than are read again.
    """
    files = sorted({piece.file for pieces in index.pieces.values() for piece in pieces})
    numbers = {name: number for number, name in enumerate(files)}
    tensors = {
        name: {
            "dtype": entry.kind,
            "shape": entry.shape,
            "pieces": [(numbers[piece.file], piece.offset, piece.shape) for piece in index.pieces[name]],
        }
        for name, entry in index.entries.items()
    }
    text = json.dumps({"files": files, "tensors": tensors}, ensure_ascii=False, separators=(",", ":"))
    if len(text) > _LARGEST_INDEX:
        raise CheckpointError(f"an index of {len(text)} bytes is beyond {_LARGEST_INDEX}; save on fewer ranks")
    return text


def read_index(path: Path, known: Collection[str]) -> Index:
    """Read an index whose files must be among those that the manifest knows.

    Raises:
        CheckpointError: it cannot be read, or describes what is no set of tensors.
    """
    try:
        document = json.loads(read_text(path, _LARGEST_INDEX))
        return _index(document, known)
    except (OSError, ValueError, RecursionError) as error:
        raise damaged(path, f"cannot be used ({error})") from error


def stored_tensor(name: str, dtype: torch.dtype, shape: Sequence[int]) -> StoredTensor:
    """Describe a tensor as an index does; ``CheckpointError`` for a type that is not written."""
    if dtype not in DTYPE_NAMES:
        raise CheckpointError(f"{name}: is {dtype}, which is not written; convert it to one of {', '.join(TYPES)}")
    return StoredTensor(name, tuple(shape), DTYPE_NAMES[dtype], math.prod(shape) * dtype.itemsize)


def tiling_fault(shape: Sequence[int], boxes: Sequence[PlacedBox]) -> str | None:
    """Return why boxes do not tile a shape: where they overlap or leave a gap; None where they do.

    What can be cut apart, again and again, is understood: every mesh's pieces can.
    """
    outside = next((box for box in boxes if not is_inside(shape, *box)), None)
    if outside is not None:
        return f"a piece of shape {list(outside[1])} at {list(outside[0])} lies outside"
    if not boxes:
        return "it has no pieces"
    if 0 in shape:
        return None
    return _fault((0,) * len(shape), tuple(shape), list(boxes), 0)


def _fault(offset: tuple[int, ...], shape: tuple[int, ...], boxes: list[PlacedBox], depth: int) -> str | None:
    if len(boxes) == 1:
        return None if boxes[0] == (offset, shape) else f"its pieces leave a gap at {list(offset)}"
    for dim in range(len(shape)):
        groups = _cut(boxes, dim)
        if len(groups) == 1:
            continue
        if depth == _DEEPEST:
            break
        end = offset[dim]
        for first, last, group in groups:
            if first != end:
                return f"its pieces leave a gap at {list(offset)}"
            end = last
            inner = (*offset[:dim], first, *offset[dim + 1 :]), (*shape[:dim], last - first, *shape[dim + 1 :])
            fault = _fault(*inner, group, depth + 1)
            if fault is not None:
                return fault
        return None if end == offset[dim] + shape[dim] else f"its pieces leave a gap at {list(offset)}"
    return f"its pieces overlap at {list(offset)}"


def _cut(boxes: list[PlacedBox], dim: int) -> list[tuple[int, int, list[PlacedBox]]]:
    """Group boxes between the planes across ``dim`` that cut none of them; each group with its first and last index."""
    found: list[tuple[int, int, list[PlacedBox]]] = []
    for box in sorted(boxes, key=lambda box: box[0][dim]):
        start, end = box[0][dim], box[0][dim] + box[1][dim]
        if found and start < found[-1][1]:
            first, last, group = found[-1]
            group.append(box)
            found[-1] = first, max(last, end), group
        else:
            found.append((start, end, [box]))
    return found


def _index(document: Any, known: Collection[str]) -> Index:
    if not isinstance(document, dict) or document.keys() != {"files", "tensors"}:
        raise _Fault("it needs files and tensors, and nothing else")
    files, tensors = document["files"], document["tensors"]
    if not isinstance(files, list) or not all(isinstance(name, str) and name in known for name in files):
        raise _Fault("it names files that the manifest does not")
    if not isinstance(tensors, dict) or len(tensors) > MAX_TENSORS:
        raise _Fault(f"its tensors are no table of at most {MAX_TENSORS}")
    entries, pieces = {}, {}
    for name, given in tensors.items():
        entries[name] = _entry(name, given)
        pieces[name] = _pieces(given["pieces"], files, name)
        fault = tiling_fault(entries[name].shape, [(piece.offset, piece.shape) for piece in pieces[name]])
        if fault is not None:
            raise _Fault(f"{name}: {fault}")
    return Index(entries, pieces)


def _entry(name: str, given: Any) -> StoredTensor:
    if not isinstance(given, dict) or given.keys() != {"dtype", "shape", "pieces"}:
        raise _Fault(f"{name}: needs dtype, shape and pieces, and nothing else")
    kind, shape = given["dtype"], given["shape"]
    if not isinstance(kind, str) or kind not in TYPES:
        raise _Fault(f"{name}: is of type {kind!r:.60}, which is not read; it can be one of {', '.join(TYPES)}")
    if not _counts(shape) or math.prod(size for size in shape if size) * TYPES[kind].itemsize > _LARGEST_SIZE:
        raise _Fault(f"{name}: shape {shape!r:.60} is none of a tensor")
    return stored_tensor(name, TYPES[kind], shape)


def _pieces(given: Any, files: Sequence[str], name: str) -> tuple[StoredPiece, ...]:
    found = []
    for piece in given if isinstance(given, list) else ():
        if not isinstance(piece, list) or len(piece) != 3 or not _counts(piece[1]) or not _counts(piece[2]):
            raise _Fault(f"{name}: piece {piece!r:.60} is not a file's number, an offset and a shape")
        if type(piece[0]) is not int or not 0 <= piece[0] < len(files):
            raise _Fault(f"{name}: piece {piece!r:.60} is of no file")
        found.append(StoredPiece(files[piece[0]], tuple(piece[1]), tuple(piece[2])))
    return tuple(found)


def _counts(given: Any) -> bool:
    return isinstance(given, list) and len(given) <= 64 and all(type(each) is int and each >= 0 for each in given)

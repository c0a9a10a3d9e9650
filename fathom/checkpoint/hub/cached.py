"""What lies in a cache of the hub already, found without asking the hub.

The layout is huggingface_hub's: models--OWNER--NAME/ with refs/REVISION (a commit) and snapshots/COMMIT/FILE.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path

from fathom.checkpoint.hf.files import CONFIG, INDEX, TOKENIZER, WEIGHTS
from fathom.checkpoint.hf.sentencepiece import FILE as SENTENCEPIECE
from fathom.checkpoint.hub.choice import choose_gguf, descriptions, has_safetensors, weight_files
from fathom.checkpoint.hub.names import HubName
from fathom.errors import CheckpointError

MAIN = "main"
_COMMIT = re.compile(r"[0-9a-f]{40}")
_VOCABULARIES = (TOKENIZER, SENTENCEPIECE)


def cached_model(name: HubName, cache: Path, *, lenient: bool = False) -> Path | None:
    """Return a whole model in a cache: a snapshot's directory, or its .gguf file. None where anything is missing.

    What belongs to it is known from the listing that huggingface_hub keeps beside the snapshot. Without a listing a
    model counts as whole when it has a config, all its weights and a vocabulary, or the .gguf files that are meant.
    ``lenient`` takes one without a vocabulary or other descriptions: for when the hub cannot be asked.

    Raises:
        CheckpointError: only if ``lenient``: by the listing the name means nothing, or several models.
    """
    snapshot, present = cached_files(name, cache)
    if snapshot is None:
        return None
    listed = _listing(name, cache)
    try:
        return _whole(name, snapshot, present, listed, lenient=lenient)
    except CheckpointError:
        if lenient and listed is not None:
            raise
        return None


def cached_files(name: HubName, cache: Path) -> tuple[Path | None, list[str]]:
    """Return the snapshot of a repository and the files that are in it; None and no files without one."""
    snapshot = _snapshot(name, cache)
    if snapshot is None:
        return None, []
    return snapshot, sorted(file.relative_to(snapshot).as_posix() for file in snapshot.rglob("*") if file.is_file())


def _whole(
    name: HubName, snapshot: Path, present: Collection[str], listed: Collection[str] | None, *, lenient: bool
) -> Path | None:
    names = present if listed is None else listed
    if name.choice is not None or not has_safetensors(names):
        choice = choose_gguf(name, names)
        return snapshot / choice.opens if all(file in present for file in choice.files) else None
    missing = [file for file in descriptions(names) if file not in present]
    if CONFIG in missing or (missing and not lenient) or (INDEX in missing and WEIGHTS not in present):
        return None
    if not all(file in present for file in weight_files(name, names, snapshot)):
        return None
    known = lenient or listed is not None or any(file in present for file in _VOCABULARIES)
    return snapshot if known else None


def repository_folder(name: HubName, cache: Path) -> Path:
    """Return where a cache keeps a repository."""
    return cache / f"models--{name.repo_id.replace('/', '--')}"


def is_commit(revision: str) -> bool:
    """Whether a revision is a whole commit hash, which means the same for ever."""
    return _COMMIT.fullmatch(revision) is not None


def _snapshot(name: HubName, cache: Path) -> Path | None:
    folder = repository_folder(name, cache)
    commit = name.revision or MAIN
    if not is_commit(commit):
        try:
            commit = (folder / "refs" / commit).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError):
            return None
    snapshot = folder / "snapshots" / commit
    return snapshot if is_commit(commit) and snapshot.is_dir() else None


def _listing(name: HubName, cache: Path) -> list[str] | None:
    """Return the repository's files as huggingface_hub 2 keeps them; None where it keeps none."""
    try:
        from huggingface_hub import get_cached_repo_tree
    except ImportError:
        return None
    try:
        return [file.path for file in get_cached_repo_tree(name.repo_id, revision=name.revision, cache_dir=cache)]
    except Exception:  # no listing, in any of the ways that its versions say so
        return None

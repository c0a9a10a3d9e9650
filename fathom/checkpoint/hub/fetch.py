"""Fetching a model of the hub into huggingface_hub's cache, once: what is there already is opened without the hub."""

from __future__ import annotations

import glob
from collections.abc import Collection, Sequence
from pathlib import Path

from fathom.checkpoint.hf.unreadable import ADAPTER
from fathom.checkpoint.hub.cached import MAIN, cached_model, is_commit, repository_folder
from fathom.checkpoint.hub.choice import (
    choose_gguf,
    descriptions,
    explain_unpublished,
    gguf_choices,
    has_safetensors,
    weight_files,
)
from fathom.checkpoint.hub.explain import ELSEWHERE, explain, explain_offline
from fathom.checkpoint.hub.names import HubName, parse_hub_name
from fathom.checkpoint.hub.report import ByteReport
from fathom.errors import CheckpointError, FathomError
from fathom.extras import install_extra
from fathom.files import write_text
from fathom.progress import NULL_PROGRESS, Progress


def fetch_model(
    name: str | HubName,
    progress: Progress = NULL_PROGRESS,
    *,
    cache_dir: Path | None = None,
    former_caches: Sequence[Path] = (),
    endpoint: str | None = None,
) -> Path:
    """Return the directory or .gguf file of a model, fetching what no cache holds.

    The cache, the hub's address, the token and whether the hub may be asked at all are huggingface_hub's own: HF_HOME,
    HF_HUB_CACHE, HF_ENDPOINT, HF_TOKEN, HF_HUB_OFFLINE, which it reads itself. A whole model in the cache is returned
    without a request; a branch is therefore followed only when the model is fetched by ``hf download`` or by commit.
    Of a repository only safetensors or the chosen .gguf files are fetched, and the files that describe the model and
    its text; never a pickle, and no code.

    Args:
        name: ``owner/name[@revision][:quantisation]``, or ``owner/name/file.gguf``.
        progress: receives the bytes fetched.
        cache_dir: stands for huggingface_hub's own.
        former_caches: further caches to look into.
        endpoint: stands for huggingface_hub's own.

    Raises:
        CheckpointError: the library is missing, the hub cannot be reached, or has no such model to read.
        ResourceError: the disk is full.
    """
    wanted = parse_hub_name(name) if isinstance(name, str) else name
    if wanted is None:
        raise CheckpointError(f"{name}: is no name of the hub; write it as owner/name")
    try:
        from huggingface_hub import constants
    except ImportError:
        raise CheckpointError(
            f"{wanted}: downloading needs huggingface_hub; {install_extra('hub')}, {ELSEWHERE}"
        ) from None
    cache = Path(constants.HF_HUB_CACHE) if cache_dir is None else cache_dir
    caches = (cache, *former_caches)
    found = _cached(wanted, caches)
    if found is not None:
        return found
    if constants.HF_HUB_OFFLINE:
        found = _cached(wanted, caches, lenient=True)
        if found is None:
            raise explain_offline(wanted, cache)
        return found
    try:
        return _download(wanted, cache, endpoint, progress)
    except FathomError:
        raise
    except Exception as error:  # the library's HTTP client raises errors of its own
        reason = explain(wanted, error)
        found = _cached(wanted, caches, lenient=True) if isinstance(reason, CheckpointError) else None
        if found is None:
            raise reason from error
        return found


def hub_cache() -> Path | None:
    """Return where huggingface_hub keeps models; None where it is not installed."""
    try:
        from huggingface_hub import constants
    except ImportError:
        return None
    return Path(constants.HF_HUB_CACHE)


def _cached(name: HubName, caches: Sequence[Path], *, lenient: bool = False) -> Path | None:
    for cache in caches:
        found = cached_model(name, cache, lenient=lenient)
        if found is not None:
            return found
    return None


def _download(name: HubName, cache: Path, endpoint: str | None, progress: Progress) -> Path:
    from huggingface_hub import HfApi, snapshot_download

    info = HfApi(endpoint=endpoint).model_info(name.repo_id, revision=name.revision)
    published, commit = [sibling.rfilename for sibling in info.siblings or ()], str(info.sha)
    _check_listing(name, published, commit)
    report = ByteReport(progress)

    def fetch(files: Collection[str], *, last: bool) -> Path:
        """Fetch exactly these files of the commit; the snapshot's directory."""
        found = snapshot_download(
            name.repo_id,
            revision=commit,
            cache_dir=cache,
            endpoint=endpoint,
            allow_patterns=[glob.escape(file) for file in files],
            tqdm_class=report.bar_class(last=last),
        )
        return Path(found)

    if name.choice is None and has_safetensors(published):
        directory = fetch(descriptions(published), last=False)
        fetch(weight_files(name, published, directory), last=True)
        opens = directory
    elif gguf_choices(published) or name.choice is not None:
        choice = choose_gguf(name, published)
        opens = fetch(choice.files, last=True) / choice.opens
    else:
        described = fetch([ADAPTER], last=False) if ADAPTER in published else None
        raise explain_unpublished(name, published, described)
    _record(name, cache, commit)
    return opens


def _check_listing(name: HubName, published: Collection[str], commit: str) -> None:
    """Refuse a listing whose names would lead out of the cache."""
    if not is_commit(commit):
        raise CheckpointError(f"{name}: the hub names {commit[:60]!r} for a commit; check HF_ENDPOINT")
    for file in published:
        parts = file.split("/")
        if not file.isprintable() or "\\" in file or ":" in parts[0] or any(part in ("", ".", "..") for part in parts):
            raise CheckpointError(f"{name}: lists {file[:200]!r}, which is no file of a repository; choose another one")


def _record(name: HubName, cache: Path, commit: str) -> None:
    """Note which commit a branch was, where huggingface_hub does, so that the next look-up finds the snapshot."""
    revision = name.revision or MAIN
    place = repository_folder(name, cache) / "refs" / revision
    if not is_commit(revision) and not (place.is_file() and place.read_text(encoding="utf-8") == commit):
        write_text(place, commit)

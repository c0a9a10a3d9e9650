"""Models of the Hugging Face hub: fetched into its own cache, as a directory that ``HFCheckpoint`` opens.

Only safetensors, JSON, templates and tokenizer files at the top of a repository are fetched; never a pickle, and no
code.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

from fathom.errors import ENVIRONMENT_ERRORS, CheckpointError, ResourceError, explain_os_error
from fathom.progress import NULL_PROGRESS, Progress

WANTED = ("*.safetensors", "*.json", "*.jinja", "tokenizer.model", "merges.txt", "vocab.txt")
UNWANTED = ("*/*", "consolidated*")
"""Other formats of the same weights: in folders, or in the files of a model's first release."""
_ELSEWHERE = "or download it by other means and give its directory"


def fetch_model(
    repo_id: str,
    progress: Progress = NULL_PROGRESS,
    *,
    revision: str | None = None,
    cache_dir: Path | None = None,
    endpoint: str | None = None,
) -> Path:
    """Fetch what is not cached yet and return the directory; offline, what was fetched before is found.

    ``cache_dir`` and ``endpoint`` stand for huggingface_hub's own, which HF_HOME and HF_ENDPOINT set. ``progress``
    receives the bytes fetched.

    Raises:
        CheckpointError: the library is missing, the hub cannot be reached, or has no such model to read.
        ResourceError: the disk is full.
    """
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise CheckpointError(
            f"{repo_id}: downloading needs huggingface_hub; pip install 'fathom-lm[hub]', {_ELSEWHERE}"
        ) from None
    try:
        found = snapshot_download(
            repo_id,
            revision=revision,
            cache_dir=cache_dir,
            endpoint=endpoint,
            allow_patterns=list(WANTED),
            ignore_patterns=list(UNWANTED),
            tqdm_class=_bars(progress),
        )
    except Exception as error:  # the library's HTTP client raises errors of its own
        raise _explained(repo_id, revision, error) from error
    directory = Path(found)
    if not any(directory.glob("*.safetensors")):
        raise CheckpointError(
            f"{repo_id}: publishes no safetensors, and pickled weights are never read; choose another repository"
        )
    return directory


def _explained(repo_id: str, revision: str | None, error: Exception) -> CheckpointError | ResourceError:
    """Translate the library's exception into an error with a remedy."""
    from huggingface_hub import errors

    if isinstance(error, errors.HFValidationError):
        return CheckpointError(f"{repo_id}: is no name of the hub; write it as owner/name")
    if isinstance(error, errors.GatedRepoError):
        remedy = f"accept its terms on the hub and log in with 'hf auth login', {_ELSEWHERE}"
        return CheckpointError(f"{repo_id}: is gated; {remedy}")
    denied = isinstance(error, errors.HfHubHTTPError) and error.response.status_code == 401
    if denied or isinstance(error, errors.RepositoryNotFoundError):
        remedy = f"check the name or log in with 'hf auth login', {_ELSEWHERE}"
        return CheckpointError(f"{repo_id}: is not on the hub, or is private; {remedy}")
    if isinstance(error, errors.RevisionNotFoundError):
        return CheckpointError(f"{repo_id}: has no revision {revision!r}; name a branch, tag or commit of it")
    if isinstance(error, OSError) and error.errno in ENVIRONMENT_ERRORS:
        return ResourceError(f"{repo_id}: not fetched, {explain_os_error(error)}, then fetch again")
    reason = " ".join(str(error.__cause__ or error).split())[:200] or type(error).__name__
    return CheckpointError(f"{repo_id}: the hub cannot be reached ({reason}); check the network, {_ELSEWHERE}")


def _bars(progress: Progress) -> Any:
    """Make the progress-bar class that the library counts bytes with, drawing nothing and reporting to ``progress``."""
    from huggingface_hub.utils.tqdm import tqdm

    lock, reported = threading.Lock(), [0]
    base: Any = tqdm

    class Bar(base):  # type: ignore[misc]
        def __init__(self, *args: Any, **options: Any) -> None:
            self._counts_bytes = options.get("unit") == "B"
            super().__init__(*args, **(options | {"disable": True}))

        def update(self, n: float | None = 1) -> None:
            with lock:
                self.n += n or 0
                if self._counts_bytes and self.n > reported[0]:
                    reported[0] = int(self.n)
                    progress.update(reported[0], int(self.total) if self.total else None, "bytes", phase="download")

    return Bar

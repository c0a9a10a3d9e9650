"""Errors of the hub's library as one line each, with a remedy."""

from __future__ import annotations

from pathlib import Path

from fathom.checkpoint.hub.names import HubName
from fathom.errors import ENVIRONMENT_ERRORS, CheckpointError, ResourceError, explain_os_error, reason_of

ELSEWHERE = "or download it by other means and give its directory"


def explain(name: HubName, error: Exception) -> CheckpointError | ResourceError:
    """Translate the library's exception."""
    from huggingface_hub import errors

    repo_id = name.repo_id
    if isinstance(error, errors.HFValidationError):
        return CheckpointError(f"{repo_id}: is no name of the hub; write it as owner/name")
    if isinstance(error, errors.GatedRepoError):
        remedy = f"accept its terms on the hub and log in with 'hf auth login' or HF_TOKEN, {ELSEWHERE}"
        return CheckpointError(f"{repo_id}: is gated; {remedy}")
    denied = isinstance(error, errors.HfHubHTTPError) and error.response.status_code == 401
    if denied or isinstance(error, errors.RepositoryNotFoundError):
        remedy = f"check the name or log in with 'hf auth login' or HF_TOKEN, {ELSEWHERE}"
        return CheckpointError(
            f"{repo_id}: is no file or directory here, and is not on the hub, or is private; {remedy}"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return CheckpointError(f"{repo_id}: has no revision {name.revision!r}; name a branch, tag or commit of it")
    if isinstance(error, OSError) and error.errno in ENVIRONMENT_ERRORS:
        return ResourceError(f"{repo_id}: not fetched, {explain_os_error(error)}, then fetch again")
    reason = reason_of(error.__cause__ or error)
    return CheckpointError(
        f"{repo_id}: is no file or directory here, and the hub cannot be reached ({reason}); check the path or the "
        f"network, {ELSEWHERE}"
    )


def explain_offline(name: HubName, cache: Path) -> CheckpointError:
    """Return the error of a model that is not in the cache while the hub may not be asked."""
    return CheckpointError(
        f"{name}: is not whole in the cache ({cache}), and HF_HUB_OFFLINE forbids to fetch it; unset it, {ELSEWHERE}"
    )

"""Names of models on the hub: owner/name, with a revision, and a quantisation or file where it publishes GGUF."""

from __future__ import annotations

import re
from dataclasses import dataclass

_PART = r"[A-Za-z0-9][\w.-]*"
_NAME = re.compile(
    rf"(?P<repo>{_PART}/{_PART})(@(?P<revision>[^:@\s]+?))?(:(?P<choice>[^:@\s]+)|/(?P<file>[^:@\s]+\.gguf))?",
    re.IGNORECASE,
)
_PREFIX = re.compile(r"(https?://)?(huggingface\.co|hf\.co)/|hf://", re.IGNORECASE)
_GGUF = ".gguf"


@dataclass(frozen=True, slots=True)
class HubName:
    """A model on the hub: ``owner/name[@revision][:choice]``, or ``owner/name/file.gguf``.

    ``revision`` is a branch, tag or commit; None is the main branch. ``choice`` is a quantisation of a GGUF repository
    (Q4_K_M, as llama.cpp and ollama take it) or the path of a .gguf file.
    """

    repo_id: str
    revision: str | None = None
    choice: str | None = None

    def __str__(self) -> str:
        revision = f"@{self.revision}" if self.revision is not None else ""
        choice = f":{self.choice}" if self.choice is not None else ""
        return f"{self.repo_id}{revision}{choice}"


def parse_hub_name(text: str) -> HubName | None:
    """Take a name apart; None for anything else, such as owner/file.gguf, which is a path."""
    prefix = _PREFIX.match(text)
    found = _NAME.fullmatch(text[prefix.end() :].rstrip("/") if prefix else text)
    if found is None or found["repo"].lower().endswith(_GGUF) or ".." in (found["revision"] or ""):
        return None
    return HubName(found["repo"], found["revision"], found["choice"] or found["file"])

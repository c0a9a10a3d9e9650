"""Which tokens end an answer, by the files of a Hugging Face directory."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fathom.checkpoint.hf.files import CONFIG, GENERATION, read_json
from fathom.errors import CheckpointError
from fathom.logs import warn_once
from fathom.spec import ModelSpec
from fathom.tokenizer.bpe import Tokenizer

_FIELD = "eos_token_id"


def end_tokens(
    directory: Path, spec: ModelSpec, config: Mapping[str, Any], tokenizer: Tokenizer | None
) -> frozenset[int]:
    """Return the tokens that end an answer: all that generation_config.json, config.json and the tokenizer name.

    A token of config.json that is ordinary text counts only where nothing else names one: conversions leave the default
    of a model type there. A missing field of config.json is such a default too. Contradictions are logged once.

    Raises:
        CheckpointError: a file names something else than token ids.
    """
    path = directory / GENERATION
    generation = _ids(path, read_json(path).get(_FIELD)) if path.is_file() else frozenset()
    text = config.get("text_config", config)
    own = _ids(directory / CONFIG, config.get(_FIELD)) | _ids(directory / CONFIG, text.get(_FIELD))
    ends = frozenset() if tokenizer is None else frozenset({tokenizer.eos_id})
    kept = own if tokenizer is None else own & (tokenizer.special_ids | generation | ends)
    found = frozenset(token for token in generation | kept | ends if token < spec.vocab_size)
    if not found:
        default = spec.eos_token_id
        return own or (frozenset() if default is None or default < 0 else frozenset({default}))
    if kept < own or not ends <= (generation | own or ends):
        named = ((GENERATION, generation), (CONFIG, own), ("the tokenizer", ends))
        said = ", ".join(f"{name} {sorted(ids)}" for name, ids in named if ids)
        warn_once(f"{directory}: {_FIELD} differs ({said}); answers end at {sorted(found)}")
    return found


def _ids(path: Path, value: Any) -> frozenset[int]:
    """Return the tokens of a field: one, a list, or none; -1 means none."""
    listed = value if isinstance(value, list) else [] if value is None else [value]
    listed = [int(token) if isinstance(token, float) and token.is_integer() else token for token in listed]
    if any(not isinstance(token, int) for token in listed):
        raise CheckpointError(f"{path}: {_FIELD} is {value!r:.60}; give a token id or a list of them")
    return frozenset(token for token in listed if type(token) is int and token >= 0)

"""What a checkpoint format cannot express of a model, reported before anything is written."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, get_args

from fathom.checkpoint.fathom_checkpoint import STEM, FathomCheckpoint
from fathom.checkpoint.hf import HFCheckpoint
from fathom.checkpoint.hf.files import TOKENIZER_FILES
from fathom.checkpoint.hf.sentencepiece import FILE as SENTENCEPIECE
from fathom.checkpoint.names import name_table
from fathom.checkpoint.weights import WeightSource
from fathom.errors import FathomError, SpecError
from fathom.logs import listed
from fathom.spec.hf import ExtraConfig, spec_to_hf
from fathom.spec.model import ModelSpec

CheckpointFormat = Literal["hf", "gguf", "fathom"]
FORMS: tuple[CheckpointFormat, ...] = ("hf", "gguf", "fathom")
"""Hugging Face directories, GGUF files, and Fathom checkpoints."""

_WEIGHTS = ("config.json", "generation_config.json", "manifest.json", "spec.json")


def unsupported_reason(source: WeightSource, format: CheckpointFormat) -> str | None:
    """Return why a model cannot be written in a format, or cannot be opened there by what it is for; None if it can."""
    try:
        if format == "hf":
            _check_hf(source.spec, source.carried)
        elif format == "gguf":
            _check_gguf(source.spec)
            _token_metadata(source)
    except FathomError as error:
        return str(error)
    return None


def export_faults(spec: ModelSpec) -> dict[CheckpointFormat, str]:
    """Return why a model cannot be exported, by the formats that it cannot be exported to; from its spec alone."""
    faults: dict[CheckpointFormat, str] = {}
    checks: dict[CheckpointFormat, Callable[[ModelSpec], None]] = {"hf": _check_hf, "gguf": _check_gguf}
    for format, check in checks.items():
        try:
            check(spec)
        except FathomError as error:
            faults[format] = str(error)
    return faults


def _check_hf(spec: ModelSpec, carried: ExtraConfig | None = None) -> None:
    spec_to_hf(spec, carried)
    name_table(spec)


def _check_gguf(spec: ModelSpec) -> None:
    from fathom.checkpoint.gguf import unopenable
    from fathom.checkpoint.gguf.metadata import metadata_from_spec

    metadata_from_spec(spec)
    for reason in unopenable(spec):
        where, _, problem = reason.partition(": ")
        raise SpecError(where, problem, "write another format")


def conversion_warnings(source: WeightSource, format: CheckpointFormat, kind: str | None = None) -> tuple[str, ...]:
    """Return a sentence for everything that is lost when a model is written in a supported format.

    ``kind`` is the dtype of a GGUF file's matrices; ``dtype_warnings`` describes what it does to numbers.
    """
    found = list(_dropped_files(source))
    if format == "gguf":
        from fathom.checkpoint.gguf import conversion_warnings as of_gguf
        from fathom.checkpoint.gguf import tokenizer_warnings
        from fathom.checkpoint.gguf.blocks import QuantType
        from fathom.checkpoint.gguf.tokens import end_ids

        tokenizer, kinds = source.tokenizer(), get_args(QuantType)
        found += of_gguf(source.spec, next((one for one in kinds if one == kind), "F32"))
        found += (
            tokenizer_warnings(tokenizer) if tokenizer is not None else ["no tokenizer: the file takes token ids only"]
        )
        unmarked = sorted(source.eos_ids - end_ids(_token_metadata(source)))
        found += [f"tokens {unmarked} end an answer, but are not marked so"] if unmarked and tokenizer else []
        beyond = [] if source.carried is None else sorted(source.carried["fields"].keys() - {"dtype", "torch_dtype"})
        found += [f"left out, for no number depends on it: {listed(beyond)} of config.json"] if beyond else []
    return tuple(found)


def _token_metadata(source: WeightSource) -> dict[str, Any]:
    """Return the tokenizer's GGUF metadata; ``CheckpointError`` where it cannot be expressed."""
    from fathom.checkpoint.gguf.write_tokens import metadata_from_tokenizer

    tokenizer = source.tokenizer()
    if tokenizer is None:
        return {}
    return {name: value for name, (_, value) in metadata_from_tokenizer(tokenizer, source.spec).items()}


def _dropped_files(source: WeightSource) -> list[str]:
    """Name the files of a source that no other format keeps."""
    if isinstance(source, FathomCheckpoint):
        more = sorted(source.checkpoint.stems() - {STEM})
        return [f"left out, for only training needs it: {listed(more)}"] if more else []
    if isinstance(source, HFCheckpoint):
        known = {*TOKENIZER_FILES, SENTENCEPIECE, *_WEIGHTS}
        names = (path.name for path in source.path.iterdir() if path.is_file() and not path.name.startswith("."))
        more = sorted(name for name in names if name not in known and not name.startswith("model"))
        return [f"left out, for it is no part of the model: {listed(more)}"] if more else []
    return []

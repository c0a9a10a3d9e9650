"""Fathom: the whole DeepSeek-V2 system, from raw text to a served mixture-of-experts language model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fathom.errors import FathomError

if TYPE_CHECKING:
    from pathlib import Path

    from fathom.pipeline.handle import LanguageModel

__version__ = "0.1.0"
__all__ = ["FathomError", "__version__", "load"]


def load(path: str | Path, *, device: str = "auto", dtype: str = "auto") -> LanguageModel:
    """Open a trained directory: a run, one of its checkpoints, or an exported model.

    Returns a handle with ``logits(token_ids) -> Tensor (T, V)``, ``generate(token_ids, params)``,
    ``tokenizer`` and ``spec``.

    Raises:
        CheckpointError: nothing loadable at ``path``, or its tensors do not fit its spec.
    """
    from fathom.pipeline.handle import LanguageModel

    return LanguageModel.open(path, device=device, dtype=dtype)

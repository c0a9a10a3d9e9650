"""Fathom: the whole DeepSeek-V2 system, from raw text to a served mixture-of-experts language model.

    import fathom

    model = fathom.load("smollm2-135m")
    print(model.chat("Why is the sky blue?"))
    for part in model.chat("And at night?", stream=True):
        print(part.text, end="", flush=True)

``load`` opens any model; the packages below are for those who train, serve or take one apart.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from fathom.errors import FathomError
from fathom.openmp import limit_spinning

if TYPE_CHECKING:
    from pathlib import Path

    from fathom.inference.language_model import LanguageModel
    from fathom.spec import EngineSpec, WeightFormat

__version__ = "0.1.0"
__all__ = ["FathomError", "__version__", "load"]

limit_spinning(os.environ)


def load(
    path: str | Path,
    *,
    device: str = "auto",
    dtype: str = "auto",
    weights: WeightFormat = "plain",
    engine: EngineSpec | None = None,
    cache_dir: str | Path | None = None,
    chat_template: str | None = None,
) -> LanguageModel:
    """Open a model: a run, one of its checkpoints, a directory with config.json, a .gguf file, or a name.

    A name is one of the catalog (``"smollm2-135m"``), fetched into ``cache_dir``, ~/.cache/fathom if left out; or
    ``"owner/name[@revision][:quantisation]"`` on the hub, fetched into huggingface_hub's own cache. Returns a handle
    with ``chat(text_or_messages)``, ``logits(token_ids) -> Tensor (T, V)``, ``generate(token_ids, params)``,
    ``tokenizer`` and ``spec``. ``weights`` int8 or int4 packs them once loaded; ``engine`` says how many requests run
    together, and how their cache is kept. ``chat_template`` is one of the model's by name, or the text of another.

    Raises:
        CheckpointError: nothing loadable at ``path``, or its tensors do not fit its spec.
        DataError: the model has no chat template of that name.
    """
    from pathlib import Path

    from fathom.inference.catalog import DEFAULT_CACHE
    from fathom.inference.language_model import LanguageModel

    kept = DEFAULT_CACHE if cache_dir is None else Path(cache_dir)
    return LanguageModel.open(
        path,
        device=device,
        dtype=dtype,
        weights=weights,
        engine=engine,
        cache_dir=kept,
        chat_template=chat_template,
    )

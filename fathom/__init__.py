"""Fathom: the whole DeepSeek-V2 system, from raw text to a served mixture-of-experts language model.

    import fathom

    model = fathom.load("smollm2-135m")
    print(model.chat("Why is the sky blue?"))
    for part in model.chat("And at night?", stream=True):
        print(part.text, end="", flush=True)
    for text in model.generate(["The city of", "The river"], max_tokens=20):
        print(text)

``load`` opens any model; the packages below are for those who train, serve or take one apart.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING

from fathom.errors import FathomError
from fathom.openmp import limit_spinning

if TYPE_CHECKING:
    from pathlib import Path

    from fathom.inference.chat_session import ChatAnswer, ChatStream
    from fathom.inference.generation import GeneratedText
    from fathom.inference.language_model import LanguageModel
    from fathom.spec import EngineSpec, ModelSpec, SamplingParams, WeightChoice
    from fathom.tokenizer import Tokenizer

__version__ = "0.1.0"
__all__ = [
    "ChatAnswer",
    "ChatStream",
    "EngineSpec",
    "FathomError",
    "GeneratedText",
    "LanguageModel",
    "ModelSpec",
    "SamplingParams",
    "Tokenizer",
    "__version__",
    "load",
]

_HOMES = {
    "ChatAnswer": "fathom.inference.chat_session",
    "ChatStream": "fathom.inference.chat_session",
    "EngineSpec": "fathom.spec",
    "GeneratedText": "fathom.inference.generation",
    "LanguageModel": "fathom.inference.language_model",
    "ModelSpec": "fathom.spec",
    "SamplingParams": "fathom.spec",
    "Tokenizer": "fathom.tokenizer",
}
"""Where the names are that ``fathom`` imports on first use, so that ``import fathom`` loads no torch."""

limit_spinning(os.environ)


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'fathom' has no attribute {name!r}")
    found: object = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})


def load(
    path: str | Path,
    *,
    device: str = "auto",
    dtype: str = "auto",
    weights: WeightChoice = "auto",
    engine: EngineSpec | None = None,
    cache_dir: str | Path | None = None,
    chat_template: str | None = None,
    adapter: str | Path | None = None,
) -> LanguageModel:
    """Open a model: a run, one of its checkpoints, a directory with config.json, a .gguf file, or a name.

    A name is one of the catalog (``"smollm2-135m"``), fetched into ``cache_dir``, ``cache_directory()`` if left out; or
    ``"owner/name[@revision][:quantisation]"`` on the hub, fetched into huggingface_hub's own cache. Returns a handle
    with ``chat(text_or_messages)``, ``generate(text)``, each for a list too, ``logits(token_ids) -> Tensor (T, V)``,
    ``tokenizer`` and ``spec``. ``weights`` int8 or int4 quantizes them, and plain widens those of a GGUF file;
    ``engine`` says how many requests run together, and how their cache is kept. ``chat_template`` is one of the model's
    by name, or the text of another. ``adapter`` is merged into the weights: a directory that PEFT wrote, or a step of a
    run that trained one.

    Raises:
        CheckpointError: nothing loadable at ``path``, its tensors do not fit its spec, or the adapter not the model.
        DataError: the model has no chat template of that name.
    """
    from pathlib import Path

    from fathom.inference.language_model import LanguageModel

    return LanguageModel.open(
        path,
        device=device,
        dtype=dtype,
        weights=weights,
        engine=engine,
        cache_dir=None if cache_dir is None else Path(cache_dir),
        chat_template=chat_template,
        adapter=adapter,
    )

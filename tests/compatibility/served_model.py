"""A tiny model behind a server of its own, for cases of clients."""

from __future__ import annotations

import dataclasses
import functools
import tempfile
from collections.abc import Callable
from pathlib import Path

from fathom.checkpoint.hf import save_hf
from fathom.inference.language_model import LanguageModel
from fathom.model import build
from fathom.spec.engine import EngineSpec
from fathom.tokenizer import train_bpe
from tests.compatibility.case import Outcome
from tests.serve.serving import SPEC, TEXT, Running, running


def served(work: Callable[[Running], Outcome], **settings: object) -> Callable[[Path], Outcome]:
    """Return a case's ``run`` that does ``work`` with a server."""

    def run(folder: Path) -> Outcome:
        opened = _model()
        engine = EngineSpec(max_batch=4, cache_tokens=4096, page_size=16)
        model = LanguageModel(opened.model, opened.tokenizer, opened.path, opened.eos_ids, engine=engine)
        with running(model, **settings) as server:
            return work(server)

    return run


@functools.cache
def _model() -> LanguageModel:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        tokenizer = train_bpe([TEXT * 3], vocab_size=SPEC.vocab_size)
        tokenizer.save(root / "tokenizer")
        spec = dataclasses.replace(SPEC, vocab_size=tokenizer.vocab_size)
        save_hf(root / "model", spec, dict(build(spec, seed=7).state_dict()), tokenizer=root / "tokenizer")
        return LanguageModel.open(root / "model", device="cpu")

"""A tiny model behind a server of its own, for cases of clients."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable
from pathlib import Path

from fathom.inference.language_model import LanguageModel
from fathom.spec.engine import EngineSpec
from tests.compatibility.case import Outcome
from tests.serve.serving import Running, publish_tiny, running, with_engine


def served(work: Callable[[Running], Outcome], **settings: object) -> Callable[[Path], Outcome]:
    """Return a case's ``run`` that does ``work`` with a server."""

    def run(folder: Path) -> Outcome:
        opened = _model()
        engine = EngineSpec(max_batch=4, cache_tokens=4096, page_size=16)
        with running(with_engine(opened, engine), **settings) as server:
            return work(server)

    return run


@functools.cache
def _model() -> LanguageModel:
    with tempfile.TemporaryDirectory() as folder:
        return LanguageModel.open(publish_tiny(Path(folder)), device="cpu")

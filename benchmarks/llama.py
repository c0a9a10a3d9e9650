"""llama.cpp through llama-cpp-python's low-level interface, as a contestant of benchmarks; needs llama-cpp-python."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.timing import Backend

CACHE_TYPES = {"f32": 0, "f16": 1, "q8_0": 8}
BATCH = 512
_log_callbacks: list[Any] = []
"""The one that says nothing: it is called as long as the process lives."""


class LlamaCpp:
    """A GGUF file opened by llama.cpp; every prompt is a sequence of its own.

    ``context`` is the number of tokens of all sequences together.
    """

    def __init__(self, path: Path, *, sequences: int, context: int, threads: int, cache: str = "f32") -> None:
        from llama_cpp import llama_cpp as library

        self.library = library
        if not _log_callbacks:
            _log_callbacks.append(library.llama_log_callback(lambda level, text, data: None))
            library.llama_log_set(_log_callbacks[0], None)
            library.llama_backend_init()
        self.model = library.llama_model_load_from_file(str(path).encode(), library.llama_model_default_params())
        if not self.model:
            raise RuntimeError(f"llama.cpp does not open {path}")
        parameters = library.llama_context_default_params()
        parameters.n_ctx = context
        parameters.n_batch = parameters.n_ubatch = BATCH
        parameters.n_seq_max = sequences
        parameters.kv_unified = True
        parameters.n_threads = parameters.n_threads_batch = threads
        parameters.type_k = parameters.type_v = CACHE_TYPES[cache]
        self.context = library.llama_init_from_model(self.model, parameters)
        if not self.context:
            raise RuntimeError(f"llama.cpp makes no context over {path} with a cache of {cache}")
        self.vocab = library.llama_vocab_n_tokens(library.llama_model_get_vocab(self.model))
        self._memory = library.llama_get_memory(self.context)
        self._batch = library.llama_batch_init(BATCH, 0, 1)

    def close(self) -> None:
        """Free the context and the model."""
        self.library.llama_batch_free(self._batch)
        self.library.llama_free(self.context)
        self.library.llama_model_free(self.model)

    def decoding(self, prompts: Sequence[Sequence[int]], steps: int) -> Backend:
        """Decode ``steps`` tokens of every prompt greedily. The prompts are read now."""
        for sequence, prompt in enumerate(prompts):
            self._read(prompt[:-1], sequence, last_logits=False)

        def prepare() -> None:
            for sequence, prompt in enumerate(prompts):
                self._forget(sequence, len(prompt) - 1)

        def run() -> None:
            last = [prompt[-1] for prompt in prompts]
            for step in range(steps):
                self._decode((token, len(prompts[i]) - 1 + step, i, True) for i, token in enumerate(last))
                last = [self._greedy(i) for i in range(len(last))]

        return Backend(run, prepare)

    def reading(self, prompt: Sequence[int]) -> Backend:
        """Read one prompt and draw its first token."""

        def run() -> None:
            self.greedy(prompt, 1)

        return Backend(run, lambda: self._forget(0, 0))

    def greedy(self, prompt: Sequence[int], tokens: int) -> list[int]:
        """Return ``tokens`` greedy tokens after a prompt."""
        self._forget(0, 0)
        self._read(prompt, 0, last_logits=True)
        found = [self._greedy(-1)]
        while len(found) < tokens:
            self._decode([(found[-1], len(prompt) + len(found) - 1, 0, True)])
            found.append(self._greedy(0))
        return found

    def logits(self, row: int = -1) -> Any:
        """Return the logits of a row of the last batch; -1 is the last that has any."""
        return np.ctypeslib.as_array(self.library.llama_get_logits_ith(self.context, row), shape=(self.vocab,))

    def _greedy(self, row: int) -> int:
        return int(self.logits(row).argmax())

    def _forget(self, sequence: int, position: int) -> None:
        self.library.llama_memory_seq_rm(self._memory, sequence, position, -1)

    def _read(self, tokens: Sequence[int], sequence: int, *, last_logits: bool) -> None:
        for start in range(0, len(tokens), BATCH):
            piece = tokens[start : start + BATCH]
            wanted = len(tokens) - 1 if last_logits else -1
            self._decode((token, start + i, sequence, start + i == wanted) for i, token in enumerate(piece))

    def _decode(self, tokens: Iterable[tuple[int, int, int, bool]]) -> None:
        """Run tokens, each with its position, its sequence, and whether its logits are wanted."""
        batch, count = self._batch, 0
        for token, position, sequence, wanted in tokens:
            batch.token[count], batch.pos[count], batch.n_seq_id[count] = token, position, 1
            batch.seq_id[count][0], batch.logits[count] = sequence, wanted
            count += 1
        batch.n_tokens = count
        if self.library.llama_decode(self.context, batch):
            raise RuntimeError("llama.cpp could not decode")

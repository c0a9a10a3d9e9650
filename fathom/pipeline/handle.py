"""``LanguageModel``: a trained directory opened for use; what ``fathom.load`` returns.

T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from fathom.checkpoint import store
from fathom.checkpoint.hf import load_published
from fathom.engine.generate import Generator
from fathom.errors import CheckpointError, ContextError, DataError, SpecError
from fathom.model.build import build
from fathom.model.cache import Cache
from fathom.model.decoder import Decoder
from fathom.model.device import resolve_device
from fathom.pipeline.context import last_before, result_name
from fathom.pipeline.state import RECIPE_FILE, STATE_FILE, read_recipe, read_state
from fathom.spec.mapping import from_mapping
from fathom.spec.model import ModelSpec
from fathom.spec.recipe import TokenizerStep, TrainStep
from fathom.spec.sampling import SamplingParams
from fathom.tokenizer.bpe import Tokenizer
from fathom.train.state import load_model_tensors

CHECKPOINTS = "checkpoints"


class LanguageModel:
    """A model with its tokenizer.

    ``tokenizer`` is None when the directory has none; then only token ids can be used.
    """

    def __init__(self, model: Decoder, tokenizer: Tokenizer | None, directory: Path) -> None:
        self.model = model.eval()
        self.directory = directory
        self._tokenizer = tokenizer
        eos_id = model.spec.eos_token_id
        if eos_id is None and tokenizer is not None:
            eos_id = tokenizer.eos_id
        self.generator = Generator(model, eos_id=eos_id)

    @classmethod
    def open(cls, path: str | Path, *, device: str = "auto", dtype: str = "auto") -> LanguageModel:
        """Open a run directory, one of its train steps, a checkpoint, or an exported model.

        A run gives its last train step that has a checkpoint. ``dtype`` is float32, bfloat16, or auto: float32 on
        CPU, bfloat16 elsewhere.

        Raises:
            CheckpointError: nothing loadable at ``path``, or its tensors do not fit its spec.
        """
        directory = Path(path)
        where = resolve_device(device)
        kind = _dtype(dtype, where)
        if not directory.is_dir():
            raise CheckpointError(f"{directory}: no such directory; give a run, a checkpoint or an exported model")
        if (directory / "config.json").is_file():
            spec, state = load_published(directory)
            return cls(_filled(spec, state, directory, where, kind), _tokenizer(directory), directory)
        checkpoint = find_checkpoint(directory)
        opened = store.Checkpoint.open(checkpoint)
        try:
            spec = from_mapping(ModelSpec, opened.document("spec")["model"])
        except (SpecError, KeyError, TypeError) as error:
            raise CheckpointError(f"{checkpoint}: its spec cannot be used ({error}); use a newer Fathom") from None
        model = _filled(spec, opened.tensors("model"), checkpoint, where, kind)
        return cls(model, _tokenizer_of_run(checkpoint), directory)

    @property
    def spec(self) -> ModelSpec:
        """What the model is."""
        return self.model.spec

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer; ``DataError`` when the directory has none."""
        if self._tokenizer is None:
            raise DataError(f"{self.directory}: has no tokenizer; put tokenizer.json beside the weights")
        return self._tokenizer

    @property
    def cache_bytes_per_token(self) -> int:
        """Bytes the cache takes for one token, at the precision the model runs in."""
        weight = self.model.embed_tokens.weight
        cache = Cache.allocate(self.spec, batch_size=1, max_length=1, device=weight.device, dtype=weight.dtype)
        return cache.bytes_per_token

    def logits(self, token_ids: Sequence[int]) -> Tensor:
        """Return the float32 logits after every token, (T, V): row t predicts token t + 1.

        Raises:
            ContextError: no tokens, or more than the model's context.
            SpecError: a token id outside the vocabulary.
        """
        if not token_ids:
            raise ContextError("token_ids: has no tokens; begin with the beginning-of-sequence token or some text")
        beyond = [token for token in token_ids if not 0 <= token < self.spec.vocab_size]
        if beyond:
            raise SpecError(
                "token_ids", f"{beyond[0]} is outside the vocabulary of {self.spec.vocab_size}", "use this tokenizer"
            )
        tokens_1T = torch.tensor([list(token_ids)], device=self.model.embed_tokens.weight.device)
        with torch.inference_mode():
            return self.model.logits(self.model(tokens_1T).hidden_BTD[0])

    def generate(self, token_ids: Sequence[int], params: SamplingParams | None = None) -> list[int]:
        """Continue a prompt and return the new token ids only; ``generator.sample`` also gives log-probabilities."""
        return list(self.generator.sample([token_ids], params or SamplingParams())[0].token_ids)

    def stream(self, token_ids: Sequence[int], params: SamplingParams | None = None) -> Iterator[int]:
        """Yield the new token ids as they are drawn."""
        return self.generator.stream(token_ids, params or SamplingParams())


def find_checkpoint(directory: Path) -> Path:
    """Return the checkpoint a run, a train step or a checkpoint directory stands for; else ``CheckpointError``."""
    if (directory / store.MANIFEST).is_file():
        return directory
    if (directory / STATE_FILE).is_file() and (directory / RECIPE_FILE).is_file():
        recipe, states = read_recipe(directory), read_state(directory)
        stages = [step for step in recipe.steps if isinstance(step, TrainStep)]
        for step in reversed(stages):
            found = store.latest(directory / step.name / CHECKPOINTS)
            if found is not None:
                return found
        done = ", ".join(name for name, state in states.items() if state.status == "done") or "none"
        raise CheckpointError(
            f"{directory}: has no trained weights yet (steps done: {done}); fathom train ... --resume"
        )
    for root in (directory / CHECKPOINTS, directory):
        found = store.latest(root)
        if found is not None:
            return found
    raise CheckpointError(f"{directory}: holds no run, checkpoint or config.json; give the directory of one")


def find_run(directory: Path) -> Path | None:
    """Return the run directory that ``directory`` is or lies in, or None."""
    for candidate in (directory.resolve(), *list(directory.resolve().parents)[:3]):
        if (candidate / STATE_FILE).is_file() and (candidate / RECIPE_FILE).is_file():
            return candidate
    return None


def _tokenizer_of_run(checkpoint: Path) -> Tokenizer | None:
    beside = _tokenizer(checkpoint)
    run = find_run(checkpoint)
    if beside is not None or run is None:
        return beside
    recipe = read_recipe(run)
    step = last_before(recipe, recipe.steps[-1], TokenizerStep)
    return _tokenizer(run / result_name(step)) if step is not None else None


def _tokenizer(directory: Path) -> Tokenizer | None:
    return Tokenizer.load(directory) if (directory / "tokenizer.json").is_file() else None


def _filled(
    spec: ModelSpec, state: dict[str, Tensor], directory: Path, device: torch.device, dtype: torch.dtype
) -> Decoder:
    model = build(spec, device=device, dtype=dtype, seed=None)
    load_model_tensors(model, state, directory)
    return model


def _dtype(name: str, device: torch.device) -> torch.dtype:
    known = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    if name == "auto":
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    if name not in known:
        raise SpecError("dtype", f"unknown value {name!r}", "use auto, float32 or bfloat16")
    return known[name]

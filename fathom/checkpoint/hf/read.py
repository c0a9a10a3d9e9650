"""Reading a Hugging Face directory as ``Weights``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fathom.checkpoint import fp8
from fathom.checkpoint.hf.end_tokens import end_tokens
from fathom.checkpoint.hf.files import CONFIG, TOKENIZER, read_json, tensor_files
from fathom.checkpoint.hf.scales import FP8Scales, find_scales
from fathom.checkpoint.hf.sentencepiece import FILE as SENTENCEPIECE
from fathom.checkpoint.hf.sentencepiece import read_sentencepiece
from fathom.checkpoint.names import check_promised, name_table, stream_from_hf
from fathom.checkpoint.tensorfile import TYPES, TensorFile
from fathom.checkpoint.weights import StoredTensor
from fathom.errors import CheckpointError, DataError, SpecError
from fathom.logs import listed, warn_once
from fathom.model.build import Shape
from fathom.spec import ModelSpec
from fathom.spec.hf import ExtraConfig, HFConfig, spec_from_hf, spec_to_hf
from fathom.tokenizer.bpe import Tokenizer

_PREDICTION = "num_nextn_predict_layers"
_TIED, _HEAD = "tie_word_embeddings", "lm_head.weight"


@dataclass(frozen=True, slots=True)
class HFCheckpoint:
    """A Hugging Face directory whose config and file headers were read, but none of its tensors.

    ``carried`` holds the fields of config.json that a spec cannot hold; ``write_hf`` writes them again.
    Block-quantized FP8 weights are handed out in bfloat16. Where the config promises multi-token-prediction modules
    and no tensor of theirs is there, as transformers saves DeepSeek-V3, the spec has none and ``carried`` keeps the
    config's promise. A vision model whose files hold an output head has one, though its config may say by default that
    the embedding serves as one.
    """

    path: Path
    spec: ModelSpec
    carried: ExtraConfig
    stored: tuple[StoredTensor, ...]
    files: Mapping[str, TensorFile] = field(repr=False)
    scales: FP8Scales = field(repr=False)
    form: str = "hf"
    _tokenizers: list[Tokenizer] = field(default_factory=list, repr=False, compare=False)

    @classmethod
    def open(cls, directory: Path) -> HFCheckpoint:
        """Read config.json and the headers of all weight files.

        Raises:
            CheckpointError: something is missing, unreadable, or does not fit the config; all faults at once.
            SpecError: config.json describes a model that Fathom cannot build.
        """
        if not directory.is_dir():
            raise CheckpointError(f"{directory}: no such directory; check the path")
        raw = read_json(directory / CONFIG)
        named = raw.pop("transformers_weights", None)  # a file, and nothing of the model
        config = _config(directory / CONFIG, raw)
        if config.unknown:
            fields = f"{len(config.unknown)} field{'s' if len(config.unknown) > 1 else ''}"
            warn_once(f"{directory / CONFIG}: carries {fields} that Fathom does not read: {listed(config.unknown)}")
        files = tensor_files(directory, named)
        try:
            check_promised(config.spec, len(files))
        except CheckpointError as error:
            raise CheckpointError(f"{directory / CONFIG}: {error}") from None
        if config.spec.vision is not None and config.spec.tie_word_embeddings and _HEAD in files:
            config = _config(directory / CONFIG, {**raw, _TIED: False})
        if config.spec.num_nextn_predict_layers and not _has_prediction(config.spec, files):
            config = _without_prediction(directory / CONFIG, raw)
        stored = tuple(file.entries[name] for name, file in files.items())
        try:
            scales = find_scales(stored, raw.get("quantization_config"))
            shapes = {entry.name: entry.shape for entry in stored if entry.name not in scales.names}
            name_table(config.spec).check_hf(shapes)
        except CheckpointError as error:
            raise CheckpointError(f"{directory}: {error}") from None
        return cls(directory, config.spec, config.carried, stored, files, scales)

    @property
    def shapes(self) -> dict[str, Shape]:
        """Shapes of the stored tensors by name, quantization scales aside."""
        return {entry.name: entry.shape for entry in self.stored if entry.name not in self.scales.names}

    @property
    def dtypes(self) -> dict[str, torch.dtype]:
        """Parameter names and the types ``stream`` yields them in."""
        table = name_table(self.spec)
        stored = table.stored_names(self.files)
        return {rule.param_name: rule.dtype(lambda name: self._dtype(stored[name])) for rule in table.rules}

    @property
    def eos_ids(self) -> frozenset[int]:
        """Tokens that end an answer, by the generation config, the config and the tokenizer (``end_tokens``)."""
        try:
            tokenizer = self.tokenizer()
        except DataError:  # who uses it is told; the weights serve without it
            tokenizer = None
        return end_tokens(self.path, self.spec, spec_to_hf(self.spec, self.carried), tokenizer)

    @property
    def fp8_parameters(self) -> frozenset[str]:
        """Names of the parameters of which any part is stored in FP8 blocks."""
        if not self.scales.of:
            return frozenset()
        table = name_table(self.spec)
        stored = table.stored_names(self.files)
        return frozenset(
            rule.param_name for rule in table.rules if any(stored[n] in self.scales.of for n in rule.names)
        )

    def tokenizer(self) -> Tokenizer | None:
        """The tokenizer beside the weights, read once, or None."""
        if not self._tokenizers and (self.path / TOKENIZER).is_file():
            self._tokenizers.append(Tokenizer.load(self.path))
        elif not self._tokenizers and (self.path / SENTENCEPIECE).is_file():
            self._tokenizers.append(read_sentencepiece(self.path))
        return self._tokenizers[0] if self._tokenizers else None

    def stream(self) -> Iterator[tuple[str, Tensor]]:
        """Yield parameters one by one, on the CPU, in the types they are stored in (FP8: bfloat16)."""
        yield from stream_from_hf(self.spec, self.shapes, self._read, self._dtype)

    def _dtype(self, name: str) -> torch.dtype:
        return torch.bfloat16 if name in self.scales.of else TYPES[self.files[name].entries[name].kind]

    def _read(self, name: str) -> Tensor:
        tensor, scale = self.files[name].read(name), self.scales.of.get(name)
        if scale is None:
            return tensor
        return fp8.dequantize(tensor, self.files[scale].read(scale), block=self.scales.block, dtype=self._dtype(name))


def _config(path: Path, raw: Mapping[str, Any]) -> HFConfig:
    try:
        return spec_from_hf(raw)
    except SpecError as error:
        raise SpecError(f"{path}: {error.path}", error.problem, error.remedy) from None


def _has_prediction(spec: ModelSpec, names: Mapping[str, object]) -> bool:
    layers = range(spec.num_hidden_layers, spec.num_hidden_layers + spec.num_nextn_predict_layers)
    prefixes = tuple(f"model.layers.{layer}." for layer in layers)
    return any(name.startswith(prefixes) for name in names)


def _without_prediction(path: Path, raw: Mapping[str, Any]) -> HFConfig:
    """Read the config as if it promised no modules, and carry what it does promise as another spelling."""
    config = _config(path, {**raw, _PREDICTION: 0})
    carried = dict(config.carried)
    if _PREDICTION in raw:
        carried["spelled"] = {**carried["spelled"], _PREDICTION: [0, raw[_PREDICTION]]}
    else:
        carried["absent"] = {**carried["absent"], _PREDICTION: 0}
    return HFConfig(config.spec, carried, config.unknown)

"""The ggml type of each tensor of a written file."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from fathom.checkpoint.gguf.blocks import QuantType
from fathom.checkpoint.gguf.names import gguf_rules
from fathom.model.build import Shape
from fathom.spec import ModelSpec

FILE_TYPES: Mapping[QuantType, int] = MappingProxyType({"F32": 0, "F16": 1, "Q4_0": 2, "Q8_0": 7, "BF16": 32})
"""llama.cpp's numbers for a file mostly of one type."""
_BLOCK = 32


def stored_kinds(spec: ModelSpec, kind: QuantType) -> dict[str, QuantType]:
    """Return the type of every stored tensor, in the order they are written.

    Norms, biases and router gates stay F32, as llama.cpp wants them. Rows that are not whole blocks are F16. In Q4_0
    files the head, or the embedding that stands for it, is Q8_0 (llama.cpp's own quantizer takes Q6_K).
    """
    return {
        name: _kind(name, shape, kind, tied=spec.tie_word_embeddings)
        for rule in gguf_rules(spec)
        for name, shape in rule.shapes.items()
    }


def _kind(name: str, shape: Shape, kind: QuantType, *, tied: bool) -> QuantType:
    if len(shape) == 1 or name.endswith("ffn_gate_inp.weight"):
        return "F32"
    if kind in ("F32", "F16", "BF16"):
        return kind
    if shape[-1] % _BLOCK:
        return "F16"
    if kind == "Q4_0" and name == ("token_embd.weight" if tied else "output.weight"):
        return "Q8_0"
    return kind

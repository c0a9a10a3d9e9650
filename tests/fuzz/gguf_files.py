"""Small GGUF files made with the gguf library, and the same built byte by byte so that any field can be wrong."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any, Literal

import gguf
import numpy as np

from fathom.tokenizer.pieces import byte_characters

KINDS = gguf.GGMLQuantizationType
HIDDEN, WIDTH, HEADS, GROUPS, LAYERS, VOCAB = 64, 96, 4, 2, 2, 261

ALIGNMENT = "general.alignment"
VALUES: dict[str, tuple[gguf.GGUFValueType, Any]] = {
    "a.u8": (gguf.GGUFValueType.UINT8, 250),
    "a.i8": (gguf.GGUFValueType.INT8, -5),
    "a.u16": (gguf.GGUFValueType.UINT16, 65535),
    "a.i16": (gguf.GGUFValueType.INT16, -3),
    "a.u32": (gguf.GGUFValueType.UINT32, 2**32 - 1),
    "a.i32": (gguf.GGUFValueType.INT32, -(2**31)),
    "a.f32": (gguf.GGUFValueType.FLOAT32, 0.5),
    "a.u64": (gguf.GGUFValueType.UINT64, 2**64 - 1),
    "a.i64": (gguf.GGUFValueType.INT64, -(2**63)),
    "a.f64": (gguf.GGUFValueType.FLOAT64, 0.1),
    "a.bool": (gguf.GGUFValueType.BOOL, True),
    "a.text": (gguf.GGUFValueType.STRING, "天下 ▁é"),
}
LISTS: dict[str, tuple[gguf.GGUFValueType, list[Any]]] = {
    "l.i32": (gguf.GGUFValueType.INT32, [3, -1, 7]),
    "l.f32": (gguf.GGUFValueType.FLOAT32, [0.25, -1.5]),
    "l.bool": (gguf.GGUFValueType.BOOL, [True, False]),
    "l.text": (gguf.GGUFValueType.STRING, ["", "Ġthe", "天"]),
}


def tensors() -> dict[str, tuple[gguf.GGMLQuantizationType, np.ndarray]]:
    """Return tensors of every kind that the library writes, as the bytes to store or the plain numbers."""
    rng = np.random.default_rng(0)
    kinds = gguf.GGMLQuantizationType
    found: dict[str, tuple[gguf.GGMLQuantizationType, np.ndarray]] = {
        "norm.weight": (kinds.F32, rng.standard_normal(64, dtype=np.float32)),
        "half.weight": (kinds.F16, rng.standard_normal((3, 8), dtype=np.float32).astype(np.float16)),
        "cube.weight": (kinds.F32, rng.standard_normal((2, 3, 4), dtype=np.float32)),
    }
    for name in ("BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"):
        numbers = rng.standard_normal((5, 64), dtype=np.float32)
        found[f"{name.lower()}.weight"] = (kinds[name], gguf.quantize(numbers, kinds[name]))
    return found


def write(path: Path, *, metadata: dict[str, Any] | None = None, alignment: int | None = None) -> Path:
    """Write a file of all kinds of values and tensors with the library."""
    writer = gguf.GGUFWriter(path, "llama")
    if alignment is not None:
        writer.add_custom_alignment(alignment)
    for key, (kind, value) in VALUES.items():
        writer.add_key_value(key, value, kind)
    for key, (kind, listed) in LISTS.items():
        writer.add_key_value(key, listed, gguf.GGUFValueType.ARRAY, sub_type=kind)
    for key, value in (metadata or {}).items():
        writer.add_string(key, value)
    for name, (kind, array) in tensors().items():
        plain = kind in (gguf.GGMLQuantizationType.F32, gguf.GGMLQuantizationType.F16)
        writer.add_tensor(name, array, raw_dtype=None if plain else kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_model(
    path: Path,
    *,
    kind: gguf.GGMLQuantizationType = KINDS.Q8_0,
    without: str = "",
    tokens: Literal["llama", "gpt2"] | None = "llama",
    experts: int = 0,
) -> Path:
    """Write a tiny Llama or Mixtral, matrices of one kind, as llama.cpp's converter would."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_block_count(LAYERS)
    writer.add_context_length(128)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(WIDTH)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(GROUPS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(HIDDEN // HEADS)
    writer.add_vocab_size(VOCAB)
    if experts:
        writer.add_expert_count(experts)
        writer.add_expert_used_count(2)
    if tokens is not None:
        _add_tokens(writer, tokens)
    rng = np.random.default_rng(5)
    shapes = _shapes(experts)
    for name, shape in shapes.items():
        numbers = (rng.standard_normal(shape) / 8 + (len(shape) == 1)).astype(np.float32)
        if f"{name}.weight" == without:
            continue
        if len(shape) == 1 or kind == KINDS.F32:
            writer.add_tensor(f"{name}.weight", numbers)
        elif kind == KINDS.F16:
            writer.add_tensor(f"{name}.weight", numbers.astype(np.float16))
        else:
            writer.add_tensor(f"{name}.weight", gguf.quantize(numbers, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def split(whole: Path, folder: Path, tensors: int) -> list[Path]:
    """Split a model as llama.cpp's converter does, with the gguf library's own writer."""
    reader = gguf.GGUFReader(whole)
    writer = gguf.GGUFWriter(None, "llama", split_max_tensors=tensors)
    for key, field in reader.fields.items():
        if not key.startswith("GGUF.") and key != "general.architecture":
            listed = field.types[0] == gguf.GGUFValueType.ARRAY
            sub_type = field.types[-1] if listed else None
            writer.add_key_value(key, field.contents(), field.types[0], sub_type=sub_type)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file(folder / "tiny.gguf")
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return sorted(folder.glob("tiny-0*.gguf"))


def _add_tokens(writer: gguf.GGUFWriter, model: Literal["llama", "gpt2"]) -> None:
    writer.add_tokenizer_model(model)
    if model == "llama":
        listed = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "a"]
        writer.add_token_scores([0.0] * VOCAB)
        writer.add_token_types([2, 3, 3, *[6] * 256, 1, 1])
        writer.add_eot_token_id(1)
    else:
        listed = ["<s>", "</s>", *byte_characters(), "ab", "abc", "<|im_end|>"]
        writer.add_tokenizer_pre("smollm")
        writer.add_token_merges(["a b", "ab c"])
        writer.add_token_types([3, 3, *[1] * (VOCAB - 3), 3])
        writer.add_bos_token_id(0)
        writer.add_eos_token_id(1)
        writer.add_add_bos_token(True)
    writer.add_token_list(listed)
    writer.add_chat_template("{{ messages[0].content }}")


def _shapes(experts: int) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {
        "token_embd": (VOCAB, HIDDEN),
        "output": (VOCAB, HIDDEN),
        "output_norm": (HIDDEN,),
    }
    inner: dict[str, tuple[int, ...]] = {
        "attn_norm": (HIDDEN,),
        "ffn_norm": (HIDDEN,),
        "attn_q": (HIDDEN, HIDDEN),
        "attn_k": (HIDDEN * GROUPS // HEADS, HIDDEN),
        "attn_v": (HIDDEN * GROUPS // HEADS, HIDDEN),
        "attn_output": (HIDDEN, HIDDEN),
    }
    if experts:
        inner["ffn_gate_inp"] = (experts, HIDDEN)
    for name, shape in (("gate", (WIDTH, HIDDEN)), ("up", (WIDTH, HIDDEN)), ("down", (HIDDEN, WIDTH))):
        inner[f"ffn_{name}_exps" if experts else f"ffn_{name}"] = (experts, *shape) if experts else shape
    return shapes | {f"blk.{layer}.{name}": shape for layer in range(LAYERS) for name, shape in inner.items()}


def text(value: str | bytes) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(data)) + data


def number(key: str | bytes, kind: int, layout: str, *value: Any) -> bytes:
    """Return a metadata field."""
    return text(key) + struct.pack(f"<I{layout}", kind, *value)


def entry(name: str | bytes = "w", dimensions: tuple[int, ...] = (4,), kind: int = 0, offset: int = 0) -> bytes:
    """Return a tensor entry; dimensions fastest first."""
    return text(name) + struct.pack(f"<I{len(dimensions)}QIQ", len(dimensions), *dimensions, kind, offset)


def build(
    fields: tuple[bytes, ...] = (),
    entries: tuple[bytes, ...] = (),
    *,
    data: bytes = b"",
    magic: bytes = b"GGUF",
    version: int = 3,
    tensor_count: int | None = None,
    field_count: int | None = None,
    alignment: int = 32,
) -> bytes:
    """Return a whole file; counts that are not given are the true ones."""
    counts = (
        len(entries) if tensor_count is None else tensor_count,
        len(fields) if field_count is None else field_count,
    )
    header = magic + struct.pack("<IQQ", version, *counts) + b"".join(fields) + b"".join(entries)
    return header + bytes(-len(header) % alignment) + data

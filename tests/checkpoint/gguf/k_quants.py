"""Files of K-quants as llama.cpp writes them: its block layouts, and other types where rows are no whole blocks.

X blocks, Y elements of one, G groups of a block.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt

KINDS = gguf.GGMLQuantizationType
Numbers = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]
FALLBACK = {KINDS.Q4_K: KINDS.Q5_0, KINDS.Q5_K: KINDS.Q5_1, KINDS.Q6_K: KINDS.Q8_0}
"""What llama.cpp takes for rows that are no multiple of 256."""


def quantize(numbers: Numbers, kind: gguf.GGMLQuantizationType) -> Bytes:
    """Return the bytes of a tensor, row by row, in Q4_K, Q5_K or Q6_K."""
    blocks_XY = numbers.reshape(-1, 256)
    packed = _q6_k(blocks_XY) if kind == KINDS.Q6_K else _q45_k(blocks_XY, 5 if kind == KINDS.Q5_K else 4)
    return packed.reshape(*numbers.shape[:-1], -1)


def requantized(source: Path, target: Path, kind_of: Callable[[str], gguf.GGMLQuantizationType]) -> dict[str, Numbers]:
    """Write a file of floats with its matrices in the types of their names; return the numbers by the gguf library."""
    reader = gguf.GGUFReader(source)
    architecture = reader.fields["general.architecture"].contents()
    writer = gguf.GGUFWriter(target, architecture)
    for key, field in reader.fields.items():
        if not key.startswith("GGUF.") and key != "general.architecture":
            sub_type = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(key, field.contents(), field.types[0], sub_type=sub_type)
    found: dict[str, Numbers] = {}
    for tensor in reader.tensors:
        numbers, kind = np.asarray(tensor.data, dtype=np.float32), kind_of(tensor.name)
        if numbers.ndim == 1 or tensor.name.endswith("ffn_gate_inp.weight") or numbers.shape[-1] % 32:
            writer.add_tensor(tensor.name, numbers)
            found[tensor.name] = numbers
            continue
        if numbers.shape[-1] % 256:
            kind = FALLBACK[kind]
        data = quantize(numbers, kind) if kind in FALLBACK else gguf.quantize(numbers, kind)
        writer.add_tensor(tensor.name, data, raw_dtype=kind)
        found[tensor.name] = gguf.dequantize(data, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return found


def _q45_k(blocks_XY: Numbers, bits: int) -> Bytes:
    """Eight groups of 32 with scales and minima of 6 bits each."""
    groups_XGY = blocks_XY.reshape(-1, 8, 32)
    low_XG = np.maximum(0, -groups_XGY.min(-1))
    scale_XG = (groups_XGY.max(-1) + low_XG).clip(0) / (2**bits - 1)
    steps = [_half(each.max(-1, keepdims=True) / 63) for each in (scale_XG, low_XG)]
    codes = [
        np.rint(each / np.where(step == 0, 1, step)).clip(0, 63).astype(np.uint8)
        for each, step in zip((scale_XG, low_XG), steps, strict=True)
    ]
    width_XG, minimum_XG = (code * step.astype(np.float32) for code, step in zip(codes, steps, strict=True))
    shifted = (groups_XGY + minimum_XG[..., None]) / np.where(width_XG == 0, 1, width_XG)[..., None]
    q_XGY = np.rint(shifted).clip(0, 2**bits - 1).astype(np.uint8)
    (first, last), (first_low, last_low) = (np.split(code, 2, axis=1) for code in codes)
    packed = [
        first | (last >> 4) << 6,
        first_low | (last_low >> 4) << 6,
        (last & 15) | (last_low & 15) << 4,
    ]
    high = [(q_XGY[:, group] >> 4) << group for group in range(8)] if bits == 5 else []
    nibbles = [(q_XGY[:, g] & 15) | (q_XGY[:, g + 1] & 15) << 4 for g in range(0, 8, 2)]
    fifth = [np.bitwise_or.reduce(high)] if high else []
    return np.concatenate([*(step.view(np.uint8) for step in steps), *packed, *fifth, *nibbles], axis=1)


def _q6_k(blocks_XY: Numbers) -> Bytes:
    """Sixteen groups of 16 with scales of 8 bits."""
    groups_XGY = blocks_XY.reshape(-1, 16, 16)
    scale_XG = np.abs(groups_XGY).max(-1) / 31
    step_X1 = _half(scale_XG.max(-1, keepdims=True) / 127)
    codes_XG = np.rint(scale_XG / np.where(step_X1 == 0, 1, step_X1)).clip(0, 127).astype(np.int8)
    width_XG = codes_XG * step_X1.astype(np.float32)
    scaled = groups_XGY / np.where(width_XG == 0, 1, width_XG)[..., None]
    q_XQY = (np.rint(scaled).clip(-32, 31).astype(np.int8) + 32).astype(np.uint8).reshape(-1, 2, 4, 32)
    low = [(q_XQY[:, half, a] & 15) | (q_XQY[:, half, a + 2] & 15) << 4 for half in (0, 1) for a in (0, 1)]
    high = [np.bitwise_or.reduce([(q_XQY[:, half, a] >> 4) << 2 * a for a in range(4)]) for half in (0, 1)]
    return np.concatenate([*low, *high, codes_XG.view(np.uint8), step_X1.view(np.uint8)], axis=1)


def _half(numbers: npt.NDArray[np.floating]) -> npt.NDArray[np.float16]:
    return numbers.astype(np.float16)

"""Where packed weights go in a decoder: which parameters can be packed, in which form, and the modules that hold them.

X outputs, Y inputs of a matrix.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, TypeAlias

from torch import Tensor, nn

from fathom.kernels.native import library
from fathom.kernels.native.matrix import GROUP_COLUMNS, PackedExperts, PackedFormat, PackedMatrix, pack, pack_experts
from fathom.model.attention.mla import MLA
from fathom.model.decoder import Decoder
from fathom.model.ffn import GateUpLinear
from fathom.model.moe.layer import Experts
from fathom.model.quantized import QuantizedEmbedding, QuantizedExperts, QuantizedLinear, QuantizedUpProjection
from fathom.spec.engine import WeightFormat

Role = Literal["linear", "experts", "up", "embedding", "head"]


@dataclass(frozen=True, slots=True)
class PackedUp:
    """A packed ``kv_b_proj``: of each head the key rows transposed, (C, P), and the value rows, (U, C)."""

    keys: PackedExperts
    values: PackedExperts

    @property
    def nbytes(self) -> int:
        """Bytes of both."""
        return self.keys.nbytes + self.values.nbytes


Packed: TypeAlias = PackedMatrix | PackedExperts | PackedUp
"""The packed form of one parameter."""


@dataclass(frozen=True, slots=True)
class Packable:
    """A parameter that can be packed: ``count`` matrices of ``rows`` x ``columns``.

    Of ``kv_b_proj``, whose ``role`` is up, these are its heads' and ``keys`` of the rows make keys.
    """

    role: Role
    count: int
    rows: int
    columns: int
    keys: int = 0

    def pack(self, weight: Tensor, format: PackedFormat) -> Packed:
        """Pack the parameter; at most one of its matrices is copied in float32.

        Raises:
            FathomError: numbers that are not finite, or beyond the scale's float16.
        """
        if self.role == "experts":
            return pack_experts(weight.reshape(self.count, self.rows, self.columns), format)
        if self.role == "up":
            rows_HXY = weight.reshape(self.count, self.rows, self.columns)
            keys_HYX = rows_HXY[:, : self.keys].transpose(1, 2)
            return PackedUp(pack_experts(keys_HYX, format), pack_experts(rows_HXY[:, self.keys :], format))
        return pack(weight.reshape(self.rows, self.columns), format)

    def parts(self, weight: Tensor) -> Iterator[Tensor]:
        """Yield the matrices that ``pack`` packs, as views in their order."""
        by_matrix = weight.reshape(self.count, self.rows, self.columns)
        if self.role == "up":
            yield from by_matrix[:, : self.keys].transpose(1, 2)
            yield from by_matrix[:, self.keys :]
        else:
            yield from by_matrix

    def matrices(self, packed: Packed) -> Iterator[PackedMatrix]:
        """Yield the packed matrices in the order of ``parts``."""
        if isinstance(packed, PackedUp):
            yield from (*packed.keys, *packed.values)
        elif isinstance(packed, PackedExperts):
            yield from packed
        else:
            yield packed


def can_pack(model: Decoder) -> bool:
    """Whether packed weights run here: the native library is there, and the model is on a CPU or not allocated yet."""
    return library.available() and model.device.type in ("cpu", "meta")


def packable(model: Decoder) -> dict[str, Packable]:
    """Return the parameters that can be packed, in the order of the state; the model may be on the meta device."""
    found: dict[str, Packable] = {}
    for name, module in model.named_modules():
        if name.startswith("vision."):
            continue
        if isinstance(module, MLA):
            found |= _up_projection(f"{name}.kv_b_proj.weight", module)
        elif isinstance(module, Experts):
            found |= _experts(name, module)
        elif isinstance(module, nn.Linear | GateUpLinear) and not name.endswith(".kv_b_proj"):
            found |= _matrix(f"{name}.weight", "linear", module.weight)
    found |= _matrix("embed_tokens.weight", "embedding", model.embed_tokens.weight)
    if not model.spec.tie_word_embeddings:
        found |= _matrix("lm_head.weight", "head", model.get_parameter("lm_head.weight"))
    return {name: found[name] for name, _ in model.named_parameters() if name in found}


def target_format(role: Role, weights: WeightFormat, head: WeightFormat, *, tied: bool) -> PackedFormat | None:
    """Return the format that a parameter is packed in by ``quantize``; None leaves it plain.

    What takes few bytes and loses more than others stays in 8 bits: the embedding and the up-projection of latent
    attention. An embedding that is the head too has the head's format.
    """
    if role == "head" or (role == "embedding" and tied):
        return None if head == "plain" else "q8" if head == "int8" else "q4"
    if role in ("embedding", "up"):
        return "q8"
    return "q8" if weights == "int8" else "q4"


class Packing:
    """Puts packed parameters in the place of plain ones, module by module; both matrices of experts go together."""

    def __init__(self, model: Decoder) -> None:
        self._model = model
        self._waiting: dict[str, PackedExperts] = {}

    def place(self, name: str, packed: Packed) -> None:
        """Hold a parameter packed from now on; the plain one is freed, of experts once both are placed."""
        place, _, part = name.rpartition(".")
        module = self._model.get_submodule(place)
        if isinstance(packed, PackedUp):
            self._replace(place, QuantizedUpProjection(packed.keys, packed.values))
        elif isinstance(packed, PackedExperts):
            self._place_experts(place, part, packed)
        elif name == "embed_tokens.weight":
            self._replace(place, QuantizedEmbedding(packed, self._model.dtype))
            if self._model.spec.tie_word_embeddings:
                self._replace("lm_head", QuantizedLinear(packed))
        else:
            bias = dict(module.named_parameters(recurse=False)).get("bias")
            flat = None if bias is None else nn.Parameter(bias.detach().flatten(), requires_grad=False)
            self._replace(place, QuantizedLinear(packed, flat))

    def _place_experts(self, place: str, part: str, packed: PackedExperts) -> None:
        module, other = self._model.get_submodule(place), self._waiting.pop(place, None)
        assert isinstance(module, Experts)
        if other is None:
            self._waiting[place] = packed
            del module._parameters[part]
            return
        gate_up, down = (other, packed) if part == "down_proj" else (packed, other)
        self._replace(place, QuantizedExperts(gate_up, down, module.dispatcher))

    def _replace(self, place: str, module: nn.Module) -> None:
        parent, _, own = place.rpartition(".")
        setattr(self._model.get_submodule(parent), own, module.eval())


def _matrix(name: str, role: Role, weight: Tensor) -> dict[str, Packable]:
    rows, columns = weight.numel() // weight.shape[-1] if weight.numel() else 0, weight.shape[-1]
    return {name: Packable(role, 1, rows, columns)} if rows and not columns % GROUP_COLUMNS else {}


def _experts(name: str, module: Experts) -> dict[str, Packable]:
    count, _, width, hidden = module.gate_up_proj.shape
    if width % GROUP_COLUMNS or hidden % GROUP_COLUMNS or not count:
        return {}
    return {
        f"{name}.gate_up_proj": Packable("experts", count, 2 * width, hidden),
        f"{name}.down_proj": Packable("experts", count, hidden, width),
    }


def _up_projection(name: str, module: MLA) -> dict[str, Packable]:
    shape, weight = module.shape, module.kv_b_proj.weight
    rows = shape.qk_nope_head_dim + shape.v_head_dim
    if shape.qk_nope_head_dim % GROUP_COLUMNS or shape.kv_lora_rank % GROUP_COLUMNS:
        return {}
    return {name: Packable("up", len(weight) // rows, rows, shape.kv_lora_rank, shape.qk_nope_head_dim)}

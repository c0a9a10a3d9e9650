"""Vision: the towers that turn images into tokens, and what connects them to the language model (DeepSeek-VL §3.1)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from fathom.errors import SpecError
from fathom.spec import check

Gelu = Literal["gelu", "gelu_pytorch_tanh"]
"""GELU by the error function, or by its tanh approximation."""

Connector = Literal["mlp", "hybrid"]
"""``mlp``: linear, GELU, linear. ``hybrid``: a linear for each tower to half the width, side by side, GELU, linear."""

LARGEST: Mapping[str, int] = MappingProxyType(
    {
        "hidden_size": 2**20,
        "num_hidden_layers": 1_000,
        "num_attention_heads": 2**16,
        "image_size": 4096,
        "patch_size": 4096,
    }
)
"""What a tower's fields may be at most; far above any model."""
_FINEST_GRID = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class SiglipSpec:
    """A SigLIP vision transformer: patches with learned positions, pre-norm layers, a final norm."""

    hidden_size: int
    """Width of the tower.

    Paper: 1024 (DeepSeek-VL)
    Example: 64
    """
    num_hidden_layers: int
    """Layers of the tower.

    Unit: layers
    Paper: 24 (DeepSeek-VL)
    Example: 2
    """
    num_attention_heads: int
    """Attention heads; they share the width.

    Unit: heads
    Paper: 16 (DeepSeek-VL)
    Example: 4
    """
    intermediate_size: int
    """Width of the feed-forward part.

    Paper: 4096 (DeepSeek-VL)
    Example: 128
    """
    image_size: int
    """Side of the image the tower sees.

    Unit: pixels
    Paper: 384 (DeepSeek-VL)
    Example: 64
    """
    patch_size: int
    """Side of a patch.

    Unit: pixels
    Paper: 16 (DeepSeek-VL)
    Example: 16
    """
    layer_norm_eps: float = 1e-6
    """Added to the variance in every LayerNorm."""
    hidden_act: Gelu = "gelu_pytorch_tanh"
    """The activation: GELU by the error function, or by its tanh approximation."""
    vision_use_head: bool = False
    """Whether the weights hold SigLIP's pooling head; it is kept, but image tokens do not use it."""

    def __post_init__(self) -> None:
        _check_transformer(self, self.intermediate_size, "intermediate_size")
        check.one_of("hidden_act", self.hidden_act, ("gelu", "gelu_pytorch_tanh"))

    @property
    def grid(self) -> int:
        """Patches along each side of the image."""
        return self.image_size // self.patch_size


@dataclass(frozen=True, slots=True, kw_only=True)
class SamSpec:
    """The image encoder of Segment Anything: a transformer over windows of patches, and a neck of two convolutions.

    The grid of patches is padded to whole windows.
    """

    hidden_size: int
    """Width of the tower.

    Paper: 768 (DeepSeek-VL)
    Example: 64
    """
    num_hidden_layers: int
    """Layers of the tower.

    Unit: layers
    Paper: 12 (DeepSeek-VL)
    Example: 2
    """
    num_attention_heads: int
    """Attention heads; they share the width.

    Unit: heads
    Paper: 12 (DeepSeek-VL)
    Example: 4
    """
    mlp_dim: int
    """Width of the feed-forward part.

    Example: 128
    """
    image_size: int
    """Side of the image the tower sees.

    Unit: pixels
    Paper: 1024 (DeepSeek-VL)
    Example: 128
    """
    patch_size: int
    """Side of a patch.

    Unit: pixels
    Paper: 16 (DeepSeek-VL)
    Example: 16
    """
    window_size: int
    """Side of the windows that layers attend within.

    Unit: patches
    Paper: 14 (DeepSeek-VL)
    Example: 4
    """
    global_attn_indexes: tuple[int, ...]
    """Layers, counted from 0, that attend over the whole image.

    Paper: 2, 5, 8, 11 (DeepSeek-VL)
    Example: [1]
    """
    output_channels: int
    """Width of what the neck leaves.

    Paper: 256 (DeepSeek-VL)
    Example: 32
    """
    use_rel_pos: bool = True
    """Whether queries meet learned embeddings of relative rows and columns.

    Paper: true (DeepSeek-VL)
    """
    layer_norm_eps: float = 1e-6
    """Added to the variance in every LayerNorm."""

    def __post_init__(self) -> None:
        _check_transformer(self, self.mlp_dim, "mlp_dim")
        check.count("output_channels", self.output_channels, 2**20)
        check.count("window_size", self.window_size, LARGEST["image_size"])
        beyond = [i for i in self.global_attn_indexes if not 0 <= i < self.num_hidden_layers]
        if beyond or not self.global_attn_indexes or len(set(self.global_attn_indexes)) < len(self.global_attn_indexes):
            raise SpecError(
                "global_attn_indexes",
                f"{list(self.global_attn_indexes[:_FINEST_GRID])} are not distinct layers of {self.num_hidden_layers}",
                "name at least one layer from 0, each once",
            )

    @property
    def grid(self) -> int:
        """Patches along each side of the image."""
        return self.image_size // self.patch_size


@dataclass(frozen=True, slots=True, kw_only=True)
class VisionSpec:
    """A tower for a small image, optionally one for a large image of the same, joined into image tokens.

    The features of ``high`` are resampled to the grid of ``low``, so both give ``tokens_per_image``.
    """

    low: SiglipSpec
    """The SigLIP tower that sees a small image."""
    image_token_id: int
    """Id of the token that stands in the text for each image token.

    Unit: token id
    Paper: 100015 (DeepSeek-VL)
    Example: 3
    """
    connector: Connector
    """mlp: linear, GELU, linear, for one tower. hybrid: a linear for each of two towers to half the width, side by
    side, GELU, linear.

    Paper: mlp (VL 1.3B), hybrid (VL 7B)
    Example: "mlp"
    """
    high: SamSpec | None = None
    """The SAM tower that sees a large image; left out, there is one tower."""

    def __post_init__(self) -> None:
        check.one_of("connector", self.connector, ("mlp", "hybrid"))
        check.not_negative("image_token_id", self.image_token_id)
        if (self.connector == "hybrid") != (self.high is not None):
            problem = f"{self.connector} does not join {'one tower' if self.high is None else 'two towers'}"
            raise SpecError("connector", problem, "use mlp for low alone, hybrid for low and high")

    @property
    def tokens_per_image(self) -> int:
        """Tokens one image takes in the text."""
        return self.low.grid**2


def _check_transformer(tower: SiglipSpec | SamSpec, width: int, width_name: str) -> None:
    for name, most in LARGEST.items():
        check.count(name, getattr(tower, name), most)
    check.count(width_name, width, 2**20)
    check.positive("layer_norm_eps", tower.layer_norm_eps)
    check.multiple_of("hidden_size", tower.hidden_size, tower.num_attention_heads, why="heads share it equally")
    check.multiple_of("image_size", tower.image_size, tower.patch_size, why="patches tile the image")
    if tower.grid > _FINEST_GRID:
        problem = f"{tower.patch_size} cuts an image of {tower.image_size} into {tower.grid} patches a side"
        raise SpecError("patch_size", problem, f"give at least {-(-tower.image_size // _FINEST_GRID)}")

"""The image encoder of Segment Anything (SAM) with window attention and relative positions, as DeepSeek-VL uses it.

A colours or channels, X rows, Y columns, Z squares of patches (windows, or whole images), O queries.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fathom.spec.vision import SamSpec

_MAX_BIAS_ELEMENTS = 1 << 25
"""Elements of relative-position bias that are materialised at once; a whole image of 64 x 64 patches in 12 heads has
six times as many."""


class SamTower(nn.Module):
    """Patches plus learned positions, layers over windows or the whole image, a neck.

    DeepSeek-VL also takes the output of the first global-attention layer, through a neck of its own; both are resampled
    to ``grid`` x ``grid``, and the second is added with weight ``alpha`` (DeepSeek-VL §3.1 and its release).
    """

    def __init__(self, spec: SamSpec, grid: int) -> None:
        super().__init__()
        self.patch_embed = nn.Conv2d(3, spec.hidden_size, spec.patch_size, stride=spec.patch_size)
        self.pos_embed = nn.Parameter(torch.zeros(1, spec.grid, spec.grid, spec.hidden_size))
        self.layers = nn.ModuleList(
            SamLayer(spec, None if i in spec.global_attn_indexes else spec.window_size)
            for i in range(spec.num_hidden_layers)
        )
        self.neck = Neck(spec)
        self.global_neck = Neck(spec)
        self.downsample = Downsample(spec.output_channels, grid)
        self.alpha = nn.Parameter(torch.zeros(1))
        self.first_global = spec.global_attn_indexes[0]

    def forward(self, images_IAXY: Tensor) -> Tensor:
        """Return features (I, T, 4 x output_channels), T = grid x grid, in rows from the top left."""
        x_IXYD = self.patch_embed(images_IAXY).permute(0, 2, 3, 1) + self.pos_embed
        early_IXYD = x_IXYD
        for index, layer in enumerate(self.layers):
            x_IXYD = layer(x_IXYD)
            if index == self.first_global:
                early_IXYD = x_IXYD
        late_IAXY = self.downsample(self.neck(x_IXYD))
        early_IAXY = self.downsample(self.global_neck(early_IXYD))
        features_ITA: Tensor = (late_IAXY + early_IAXY * self.alpha).flatten(2).transpose(1, 2)
        return features_ITA


class SamLayer(nn.Module):
    """x + attention(norm(x)) over windows or, without ``window``, over the whole image; then x + mlp(norm(x))."""

    def __init__(self, spec: SamSpec, window: int | None) -> None:
        super().__init__()
        self.window = window
        self.layer_norm1 = nn.LayerNorm(spec.hidden_size, eps=spec.layer_norm_eps)
        self.attn = SamAttention(spec, spec.grid if window is None else window)
        self.layer_norm2 = nn.LayerNorm(spec.hidden_size, eps=spec.layer_norm_eps)
        self.mlp = SamMLP(spec)

    def forward(self, x_IXYD: Tensor) -> Tensor:
        """Map (I, X, Y, D) to (I, X, Y, D)."""
        normed_IXYD = self.layer_norm1(x_IXYD)
        if self.window is None:
            seen_IXYD = self.attn(normed_IXYD)
        else:
            rows, columns = x_IXYD.shape[1:3]
            seen_IXYD = join_windows(self.attn(split_windows(normed_IXYD, self.window)), rows, columns)
        x_IXYD = x_IXYD + seen_IXYD
        mixed_IXYD: Tensor = x_IXYD + self.mlp(self.layer_norm2(x_IXYD))
        return mixed_IXYD


def split_windows(x_IXYD: Tensor, window: int) -> Tensor:
    """Cut images into windows (I x windows, window, window, D), padded below and right with zeros to whole ones."""
    images, rows, columns, width = x_IXYD.shape
    x_IXYD = F.pad(x_IXYD, (0, 0, 0, -columns % window, 0, -rows % window))
    down, across = x_IXYD.shape[1] // window, x_IXYD.shape[2] // window
    cut = x_IXYD.view(images, down, window, across, window, width).transpose(2, 3)
    return cut.reshape(-1, window, window, width)


def join_windows(windows_ZXYD: Tensor, rows: int, columns: int) -> Tensor:
    """Undo ``split_windows`` for images of ``rows`` x ``columns`` patches."""
    window, width = windows_ZXYD.shape[1], windows_ZXYD.shape[-1]
    down, across = -(-rows // window), -(-columns // window)
    cut = windows_ZXYD.view(-1, down, across, window, window, width).transpose(2, 3)
    return cut.reshape(-1, down * window, across * window, width)[:, :rows, :columns]


class SamAttention(nn.Module):
    """Attention over one square of patches, with decomposed relative-position embeddings of rows and columns.

    The score of a query and a key is q k / sqrt(W) + q r[row distance] + q c[column distance]; ``rel_pos_h`` holds r
    and ``rel_pos_w`` c for the distances -(size - 1) to size - 1. ``qkv`` is (3D, D), queries first.
    The number of heads is that of the weights: a shard of them along the heads attends with its own.
    """

    def __init__(self, spec: SamSpec, size: int) -> None:
        super().__init__()
        self.head_dim, self.size = spec.hidden_size // spec.num_attention_heads, size
        width = spec.hidden_size
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.relative = spec.use_rel_pos
        if self.relative:
            self.rel_pos_h = nn.Parameter(torch.zeros(2 * size - 1, self.head_dim))
            self.rel_pos_w = nn.Parameter(torch.zeros(2 * size - 1, self.head_dim))

    def forward(self, x_ZXYD: Tensor) -> Tensor:
        """Map squares (Z, X, Y, D) to squares (Z, X, Y, D)."""
        squares, rows, columns, _ = x_ZXYD.shape
        split = self.qkv(x_ZXYD).view(squares, rows * columns, 3, -1, self.head_dim)
        q_ZHOW, k_ZHSW, v_ZHSW = split.permute(2, 0, 3, 1, 4)
        if self.relative:
            seen_ZHOW = self._attend_relatively(q_ZHOW, k_ZHSW, v_ZHSW)
        else:
            seen_ZHOW = F.scaled_dot_product_attention(q_ZHOW, k_ZHSW, v_ZHSW)
        out_ZXYD: Tensor = self.proj(seen_ZHOW.transpose(1, 2).reshape(squares, rows, columns, -1))
        return out_ZXYD

    def _attend_relatively(self, q_ZHOW: Tensor, k_ZHSW: Tensor, v_ZHSW: Tensor) -> Tensor:
        """Attend a few rows of queries at a time, which bounds the bias in memory."""
        squares, heads, keys, width = k_ZHSW.shape
        size = self.size
        at = torch.arange(size, device=q_ZHOW.device)
        distance = at[:, None] - at[None, :] + size - 1
        q_ZHXYW = q_ZHOW.reshape(squares, heads, size, size, width)
        by_row = torch.einsum("xahwk,hsk->xahws", q_ZHXYW, self.rel_pos_h[distance])
        by_column = torch.einsum("xahwk,wsk->xahws", q_ZHXYW, self.rel_pos_w[distance])
        step = max(1, _MAX_BIAS_ELEMENTS // (squares * heads * size * keys))
        pieces = []
        for start in range(0, size, step):
            bias = by_row[:, :, start : start + step, :, :, None] + by_column[:, :, start : start + step, :, None, :]
            bias_ZHOS = bias.reshape(squares, heads, -1, keys)
            queries = q_ZHOW[:, :, start * size : (start + step) * size]
            pieces.append(F.scaled_dot_product_attention(queries, k_ZHSW, v_ZHSW, attn_mask=bias_ZHOS))
        return torch.cat(pieces, dim=2)


class SamMLP(nn.Module):
    """lin2(gelu(lin1(x)))."""

    def __init__(self, spec: SamSpec) -> None:
        super().__init__()
        self.lin1 = nn.Linear(spec.hidden_size, spec.mlp_dim)
        self.lin2 = nn.Linear(spec.mlp_dim, spec.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., D) to (..., D)."""
        y: Tensor = self.lin2(F.gelu(self.lin1(x)))
        return y


class Neck(nn.Module):
    """A 1 x 1 and a 3 x 3 convolution, each followed by a norm over the channels (whose epsilon is always 1e-6)."""

    def __init__(self, spec: SamSpec) -> None:
        super().__init__()
        channels = spec.output_channels
        self.conv1 = nn.Conv2d(spec.hidden_size, channels, 1, bias=False)
        self.layer_norm1 = nn.LayerNorm(channels, eps=1e-6)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.layer_norm2 = nn.LayerNorm(channels, eps=1e-6)

    def forward(self, x_IXYD: Tensor) -> Tensor:
        """Map (I, X, Y, D) to (I, A, X, Y)."""
        x_IAXY = self.conv1(x_IXYD.permute(0, 3, 1, 2))
        x_IAXY = self.layer_norm1(x_IAXY.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        x_IXYA = self.layer_norm2(self.conv2(x_IAXY).permute(0, 2, 3, 1))
        return x_IXYA.permute(0, 3, 1, 2)  # type: ignore[no-any-return]


class Downsample(nn.Module):
    """Resample to four times ``grid`` a side, then halve twice by convolutions that double the channels."""

    def __init__(self, channels: int, grid: int) -> None:
        super().__init__()
        self.grid = grid
        self.conv1 = nn.Conv2d(channels, 2 * channels, 3, stride=2, padding=1, bias=False)
        self.conv2 = nn.Conv2d(2 * channels, 4 * channels, 3, stride=2, padding=1, bias=False)

    def forward(self, x_IAXY: Tensor) -> Tensor:
        """Map (I, A, X, Y) to (I, 4A, grid, grid)."""
        side = 4 * self.grid
        resized = F.interpolate(x_IAXY, size=(side, side), mode="bilinear", align_corners=False)
        return self.conv2(self.conv1(resized))  # type: ignore[no-any-return]

"""The image encoder of Segment Anything (SAM) with window attention and relative positions, as DeepSeek-VL uses it.

I images, C colours or channels, H rows, W columns, D hidden size, A heads, K head width, Q queries, S keys (patches
of one window, or of the whole image).
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

    def forward(self, images_ICHW: Tensor) -> Tensor:
        """Return features (I, N, 4 x output_channels), N = grid x grid, in rows from the top left."""
        x_IHWD = self.patch_embed(images_ICHW).permute(0, 2, 3, 1) + self.pos_embed
        early_IHWD = x_IHWD
        for index, layer in enumerate(self.layers):
            x_IHWD = layer(x_IHWD)
            if index == self.first_global:
                early_IHWD = x_IHWD
        late_ICHW = self.downsample(self.neck(x_IHWD))
        early_ICHW = self.downsample(self.global_neck(early_IHWD))
        features_INC: Tensor = (late_ICHW + early_ICHW * self.alpha).flatten(2).transpose(1, 2)
        return features_INC


class SamLayer(nn.Module):
    """x + attention(norm(x)) over windows or, without ``window``, over the whole image; then x + mlp(norm(x))."""

    def __init__(self, spec: SamSpec, window: int | None) -> None:
        super().__init__()
        self.window = window
        self.layer_norm1 = nn.LayerNorm(spec.hidden_size, eps=spec.layer_norm_eps)
        self.attn = SamAttention(spec, spec.grid if window is None else window)
        self.layer_norm2 = nn.LayerNorm(spec.hidden_size, eps=spec.layer_norm_eps)
        self.mlp = SamMLP(spec)

    def forward(self, x_IHWD: Tensor) -> Tensor:
        """Map (I, H, W, D) to (I, H, W, D)."""
        normed_IHWD = self.layer_norm1(x_IHWD)
        if self.window is None:
            seen_IHWD = self.attn(normed_IHWD)
        else:
            rows, columns = x_IHWD.shape[1:3]
            seen_IHWD = join_windows(self.attn(split_windows(normed_IHWD, self.window)), rows, columns)
        x_IHWD = x_IHWD + seen_IHWD
        mixed_IHWD: Tensor = x_IHWD + self.mlp(self.layer_norm2(x_IHWD))
        return mixed_IHWD


def split_windows(x_IHWD: Tensor, window: int) -> Tensor:
    """Cut images into windows (I x windows, window, window, D), padded below and right with zeros to whole ones."""
    images, rows, columns, width = x_IHWD.shape
    x_IHWD = F.pad(x_IHWD, (0, 0, 0, -columns % window, 0, -rows % window))
    down, across = x_IHWD.shape[1] // window, x_IHWD.shape[2] // window
    cut = x_IHWD.view(images, down, window, across, window, width).transpose(2, 3)
    return cut.reshape(-1, window, window, width)


def join_windows(windows_XHWD: Tensor, rows: int, columns: int) -> Tensor:
    """Undo ``split_windows`` for images of ``rows`` x ``columns`` patches."""
    window, width = windows_XHWD.shape[1], windows_XHWD.shape[-1]
    down, across = -(-rows // window), -(-columns // window)
    cut = windows_XHWD.view(-1, down, across, window, window, width).transpose(2, 3)
    return cut.reshape(-1, down * window, across * window, width)[:, :rows, :columns]


class SamAttention(nn.Module):
    """Attention over one square of patches, with decomposed relative-position embeddings of rows and columns.

    The score of a query and a key is q k / sqrt(K) + q r[row distance] + q c[column distance]; ``rel_pos_h`` holds r
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

    def forward(self, x_XHWD: Tensor) -> Tensor:
        """Map squares (X, H, W, D) to squares (X, H, W, D)."""
        squares, rows, columns, _ = x_XHWD.shape
        split = self.qkv(x_XHWD).view(squares, rows * columns, 3, -1, self.head_dim)
        q_XAQK, k_XASK, v_XASK = split.permute(2, 0, 3, 1, 4)
        if self.relative:
            seen_XAQK = self._attend_relatively(q_XAQK, k_XASK, v_XASK)
        else:
            seen_XAQK = F.scaled_dot_product_attention(q_XAQK, k_XASK, v_XASK)
        out_XHWD: Tensor = self.proj(seen_XAQK.transpose(1, 2).reshape(squares, rows, columns, -1))
        return out_XHWD

    def _attend_relatively(self, q_XAQK: Tensor, k_XASK: Tensor, v_XASK: Tensor) -> Tensor:
        """Attend a few rows of queries at a time, which bounds the bias in memory."""
        squares, heads, keys, width = k_XASK.shape
        size = self.size
        at = torch.arange(size, device=q_XAQK.device)
        distance = at[:, None] - at[None, :] + size - 1
        q_XAHWK = q_XAQK.reshape(squares, heads, size, size, width)
        by_row = torch.einsum("xahwk,hsk->xahws", q_XAHWK, self.rel_pos_h[distance])
        by_column = torch.einsum("xahwk,wsk->xahws", q_XAHWK, self.rel_pos_w[distance])
        step = max(1, _MAX_BIAS_ELEMENTS // (squares * heads * size * keys))
        pieces = []
        for start in range(0, size, step):
            bias = by_row[:, :, start : start + step, :, :, None] + by_column[:, :, start : start + step, :, None, :]
            bias_XAQS = bias.reshape(squares, heads, -1, keys)
            queries = q_XAQK[:, :, start * size : (start + step) * size]
            pieces.append(F.scaled_dot_product_attention(queries, k_XASK, v_XASK, attn_mask=bias_XAQS))
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

    def forward(self, x_IHWD: Tensor) -> Tensor:
        """Map (I, H, W, D) to (I, C, H, W)."""
        x_ICHW = self.conv1(x_IHWD.permute(0, 3, 1, 2))
        x_ICHW = self.layer_norm1(x_ICHW.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        x_IHWC = self.layer_norm2(self.conv2(x_ICHW).permute(0, 2, 3, 1))
        return x_IHWC.permute(0, 3, 1, 2)  # type: ignore[no-any-return]


class Downsample(nn.Module):
    """Resample to four times ``grid`` a side, then halve twice by convolutions that double the channels."""

    def __init__(self, channels: int, grid: int) -> None:
        super().__init__()
        self.grid = grid
        self.conv1 = nn.Conv2d(channels, 2 * channels, 3, stride=2, padding=1, bias=False)
        self.conv2 = nn.Conv2d(2 * channels, 4 * channels, 3, stride=2, padding=1, bias=False)

    def forward(self, x_ICHW: Tensor) -> Tensor:
        """Map (I, C, H, W) to (I, 4C, grid, grid)."""
        side = 4 * self.grid
        resized = F.interpolate(x_ICHW, size=(side, side), mode="bilinear", align_corners=False)
        return self.conv2(self.conv1(resized))  # type: ignore[no-any-return]

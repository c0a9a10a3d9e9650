"""SigLIP: a vision transformer with one feature vector per patch.

A colours, X rows and Y columns of pixels; the patches are tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fathom.spec.vision import SiglipSpec


class SiglipTower(nn.Module):
    """Patches plus learned positions, bidirectional pre-norm layers, a final norm."""

    def __init__(self, spec: SiglipSpec) -> None:
        super().__init__()
        width = spec.hidden_size
        self.patch_embedding = nn.Conv2d(3, width, spec.patch_size, stride=spec.patch_size)
        self.position_embedding = nn.Embedding(spec.grid**2, width)
        self.layers = nn.ModuleList(SiglipLayer(spec) for _ in range(spec.num_hidden_layers))
        self.post_layernorm = nn.LayerNorm(width, eps=spec.layer_norm_eps)
        self.head = PoolingHead(spec) if spec.vision_use_head else None

    def forward(self, images_IAXY: Tensor) -> Tensor:
        """Return features (I, T, D), patches in rows from the top left."""
        x_ITD = self.patch_embedding(images_IAXY).flatten(2).transpose(1, 2) + self.position_embedding.weight
        for layer in self.layers:
            x_ITD = layer(x_ITD)
        normed_ITD: Tensor = self.post_layernorm(x_ITD)
        return normed_ITD


class SiglipLayer(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, spec: SiglipSpec) -> None:
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(spec.hidden_size, eps=spec.layer_norm_eps)
        self.self_attn = SiglipAttention(spec.hidden_size, spec.num_attention_heads)
        self.layer_norm2 = nn.LayerNorm(spec.hidden_size, eps=spec.layer_norm_eps)
        self.mlp = SiglipMLP(spec)

    def forward(self, x_ITD: Tensor) -> Tensor:
        """Map (I, T, D) to (I, T, D)."""
        x_ITD = x_ITD + self.self_attn(self.layer_norm1(x_ITD))
        mixed_ITD: Tensor = x_ITD + self.mlp(self.layer_norm2(x_ITD))
        return mixed_ITD


class SiglipAttention(nn.Module):
    """Every patch attends to every patch; ``qkv_proj`` is (3D, D), queries first.

    The number of heads is that of the weights: a shard of them along the heads attends with its own.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.head_dim = width // heads
        self.qkv_proj = nn.Linear(width, 3 * width)
        self.out_proj = nn.Linear(width, width)

    def forward(self, x_ITD: Tensor) -> Tensor:
        """Map (I, T, D) to (I, T, D)."""
        images, patches, _ = x_ITD.shape
        split = self.qkv_proj(x_ITD).view(images, patches, 3, -1, self.head_dim)
        q_IHTW, k_IHTW, v_IHTW = split.permute(2, 0, 3, 1, 4)
        seen_IHTW = F.scaled_dot_product_attention(q_IHTW, k_IHTW, v_IHTW)
        out_ITD: Tensor = self.out_proj(seen_IHTW.transpose(1, 2).flatten(2))
        return out_ITD


class SiglipMLP(nn.Module):
    """fc2(gelu(fc1(x)))."""

    def __init__(self, spec: SiglipSpec) -> None:
        super().__init__()
        self.approximate = "tanh" if spec.hidden_act == "gelu_pytorch_tanh" else "none"
        self.fc1 = nn.Linear(spec.hidden_size, spec.intermediate_size)
        self.fc2 = nn.Linear(spec.intermediate_size, spec.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., D) to (..., D)."""
        y: Tensor = self.fc2(F.gelu(self.fc1(x), approximate=self.approximate))
        return y


class PoolingHead(nn.Module):
    """The weights of SigLIP's pooling head, which some checkpoints hold; it is never run."""

    def __init__(self, spec: SiglipSpec) -> None:
        super().__init__()
        width = spec.hidden_size
        self.probe = nn.Parameter(torch.zeros(1, 1, width))
        self.in_proj = nn.Linear(width, 3 * width)
        self.out_proj = nn.Linear(width, width)
        self.layernorm = nn.LayerNorm(width, eps=spec.layer_norm_eps)
        self.mlp = SiglipMLP(spec)
        self.requires_grad_(False)

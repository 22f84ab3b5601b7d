"""Perception encoder: patch embedding, a small transformer, two strided convolutions.

An image of 728 pixels gives 169 tokens, a crop of 504 pixels 81.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.training.model.dimensions import VisionDimensions


def axial_table(side: int, dim: int) -> tuple[Tensor, Tensor]:
    """Cosine and sine [side * side, dim] of the 2-D rotary embedding.

    The first half of the channels rotates with the column, the second with the row; pairs are interleaved.
    """
    half = dim // 2
    inverse = 10_000.0 ** (-torch.arange(0, half, 2, dtype=torch.float32) / half)
    along = (torch.arange(side, dtype=torch.float32).unsqueeze(-1) * inverse).repeat_interleave(2, dim=-1)
    columns = along.unsqueeze(0).expand(side, side, half)
    rows = along.unsqueeze(1).expand(side, side, half)
    angle = torch.cat([columns, rows], dim=-1).reshape(side * side, dim)
    return angle.cos(), angle.sin()


def rotate_pairs(x: Tensor, table: tuple[Tensor, Tensor]) -> Tensor:
    """Rotate interleaved channel pairs of `x` [..., patches, dim] by `table`."""
    cos, sin = table
    rotated = torch.stack([-x[..., 1::2], x[..., 0::2]], dim=-1).flatten(-2)
    return x * cos + rotated * sin


class VisionAttention(nn.Module):
    """Self-attention whose query and key weights stay zero, so that it averages the values over the image.

    Training mode computes that average directly: attention over 2,704 patches would be the slowest part of a step.
    """

    def __init__(self, dims: VisionDimensions) -> None:
        super().__init__()
        self.heads, self.dim = dims.heads, dims.width // dims.heads
        self.in_proj_weight = nn.Parameter(torch.zeros(3 * dims.width, dims.width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * dims.width))
        self.out_proj = nn.Linear(dims.width, dims.width)
        nn.init.normal_(self.in_proj_weight[2 * dims.width :], std=dims.width**-0.5)

    def forward(self, x: Tensor, table: tuple[Tensor, Tensor]) -> Tensor:
        width = x.shape[-1]
        if self.training:
            values = functional.linear(
                x.mean(1, keepdim=True), self.in_proj_weight[2 * width :], self.in_proj_bias[2 * width :]
            )
            averaged: Tensor = self.out_proj(values)
            return averaged
        return self.attend(x, table)

    def attend(self, x: Tensor, table: tuple[Tensor, Tensor]) -> Tensor:
        """The full computation, as an engine does it. `x` is [images, patches, width]."""
        batch, time, width = x.shape
        qkv = functional.linear(x, self.in_proj_weight, self.in_proj_bias)
        q, k, v = qkv.view(batch, time, 3, self.heads, self.dim).permute(2, 0, 3, 1, 4)
        attended = functional.scaled_dot_product_attention(rotate_pairs(q, table), rotate_pairs(k, table), v)
        out: Tensor = self.out_proj(attended.transpose(1, 2).reshape(batch, time, width))
        return out


class LayerScale(nn.Module):
    def __init__(self, width: int, initial: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((width,), initial))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class VisionMLP(nn.Module):
    def __init__(self, width: int, ratio: float) -> None:
        super().__init__()
        self.c_fc = nn.Linear(width, int(width * ratio))
        self.c_proj = nn.Linear(int(width * ratio), width)

    def hidden(self, x: Tensor) -> Tensor:
        """Hidden units [..., width * ratio], after the quick GELU."""
        inner: Tensor = self.c_fc(x)
        return inner * torch.sigmoid(1.702 * inner)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.c_proj(self.hidden(x))
        return out


class VisionBlock(nn.Module):
    def __init__(self, dims: VisionDimensions) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(dims.width, eps=1e-5)
        self.ln_2 = nn.LayerNorm(dims.width, eps=1e-5)
        self.attn = VisionAttention(dims)
        self.mlp = VisionMLP(dims.width, dims.mlp_ratio)
        self.ls_1 = LayerScale(dims.width, dims.layer_scale)
        self.ls_2 = LayerScale(dims.width, dims.layer_scale)

    def forward(self, x: Tensor, table: tuple[Tensor, Tensor]) -> Tensor:
        x = x + self.ls_1(self.attn(self.ln_1(x), table))
        out: Tensor = x + self.ls_2(self.mlp(self.ln_2(x)))
        return out


class VisionTransformer(nn.Module):
    def __init__(self, dims: VisionDimensions) -> None:
        super().__init__()
        self.resblocks = nn.ModuleList([VisionBlock(dims) for _ in range(dims.layers)])


class PerceptionEncoder(nn.Module):
    def __init__(self, dims: VisionDimensions) -> None:
        super().__init__()
        self.dims = dims
        self.grid = dims.image_size // dims.patch_size
        width = dims.width
        self.conv1 = nn.Conv2d(3, width, dims.patch_size, stride=dims.patch_size, bias=False)
        self.positional_embedding = nn.Parameter(torch.randn(self.grid**2, width) * width**-0.5 * 0.1)
        self.ln_pre = nn.LayerNorm(width, eps=1e-5)
        self.transformer = VisionTransformer(dims)
        self.vit_downsampler1 = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1)
        self.vit_downsampler2 = nn.Conv2d(2 * width, 4 * width, 3, stride=2, padding=1)

    def positions(self, side: int) -> Tensor:
        """Positional embeddings [side * side, width]. Other sides than the grid's are resampled bilinearly."""
        if side == self.grid:
            return self.positional_embedding
        square = self.positional_embedding.T.reshape(1, -1, self.grid, self.grid)
        small = functional.interpolate(square, size=(side, side), mode="bilinear", align_corners=False)
        return small.flatten(2).squeeze(0).T

    def patches(self, pixels: Tensor) -> Tensor:
        """Normalised patch embeddings [images, patches, width] of `pixels` [images, 3, side, side]."""
        x = self.conv1(pixels)
        out: Tensor = self.ln_pre(x.flatten(2).transpose(1, 2) + self.positions(x.shape[-1]))
        return out

    def table(self, side: int) -> tuple[Tensor, Tensor]:
        return axial_table(side, self.dims.width // self.dims.heads)

    def forward(self, pixels: Tensor) -> Tensor:
        """Features [images, tokens, 4 * width] of `pixels` [images, 3, side, side]."""
        x, side = self.patches(pixels), pixels.shape[-1] // self.dims.patch_size
        table = self.table(side)
        for block in self.transformer.resblocks:
            x = block(x, table)
        x = x.transpose(1, 2).reshape(x.shape[0], -1, side, side)
        x = self.vit_downsampler2(self.vit_downsampler1(x))
        return x.flatten(2).transpose(1, 2)

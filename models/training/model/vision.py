"""The perception encoder: patches, a small transformer, two strided convolutions. 728 px give 169 tokens, 504 px 81."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.training.model.dimensions import VisionShape


def axial_table(side: int, dim: int) -> tuple[Tensor, Tensor]:
    """Cosine and sine [side*side, dim] of the 2-D rotation: first half by column, second by row, pairs interleaved."""
    half = dim // 2
    inverse = 10_000.0 ** (-torch.arange(0, half, 2, dtype=torch.float32) / half)
    along = (torch.arange(side, dtype=torch.float32).unsqueeze(-1) * inverse).repeat_interleave(2, dim=-1)
    columns = along.unsqueeze(0).expand(side, side, half)
    rows = along.unsqueeze(1).expand(side, side, half)
    angle = torch.cat([columns, rows], dim=-1).reshape(side * side, dim)
    return angle.cos(), angle.sin()


def rotate_pairs(x: Tensor, table: tuple[Tensor, Tensor]) -> Tensor:
    cos, sin = table
    turned = torch.stack([-x[..., 1::2], x[..., 0::2]], dim=-1).flatten(-2)
    return x * cos + turned * sin


class VisionAttention(nn.Module):
    """Self-attention whose queries and keys stay zero: it averages the values, which training can do without attending.

    2,704 patches make true attention the dearest part of a training step, and plain pictures need no more of it.
    """

    def __init__(self, shape: VisionShape) -> None:
        super().__init__()
        self.heads, self.dim = shape.heads, shape.width // shape.heads
        self.in_proj_weight = nn.Parameter(torch.zeros(3 * shape.width, shape.width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * shape.width))
        self.out_proj = nn.Linear(shape.width, shape.width)
        nn.init.normal_(self.in_proj_weight[2 * shape.width :], std=shape.width**-0.5)

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
        """What an engine computes."""
        batch, time, width = x.shape
        qkv = functional.linear(x, self.in_proj_weight, self.in_proj_bias)
        q, k, v = qkv.view(batch, time, 3, self.heads, self.dim).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(rotate_pairs(q, table), rotate_pairs(k, table), v)
        out: Tensor = self.out_proj(mixed.transpose(1, 2).reshape(batch, time, width))
        return out


class LayerScale(nn.Module):
    def __init__(self, width: int, start: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((width,), start))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class VisionMLP(nn.Module):
    def __init__(self, width: int, ratio: float) -> None:
        super().__init__()
        self.c_fc = nn.Linear(width, int(width * ratio))
        self.c_proj = nn.Linear(int(width * ratio), width)

    def hidden(self, x: Tensor) -> Tensor:
        """The hidden units, by the quick GELU."""
        inner: Tensor = self.c_fc(x)
        return inner * torch.sigmoid(1.702 * inner)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.c_proj(self.hidden(x))
        return out


class VisionBlock(nn.Module):
    def __init__(self, shape: VisionShape) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(shape.width, eps=1e-5)
        self.ln_2 = nn.LayerNorm(shape.width, eps=1e-5)
        self.attn = VisionAttention(shape)
        self.mlp = VisionMLP(shape.width, shape.mlp_ratio)
        self.ls_1 = LayerScale(shape.width, shape.layer_scale)
        self.ls_2 = LayerScale(shape.width, shape.layer_scale)

    def forward(self, x: Tensor, table: tuple[Tensor, Tensor]) -> Tensor:
        x = x + self.ls_1(self.attn(self.ln_1(x), table))
        out: Tensor = x + self.ls_2(self.mlp(self.ln_2(x)))
        return out


class VisionTransformer(nn.Module):
    def __init__(self, shape: VisionShape) -> None:
        super().__init__()
        self.resblocks = nn.ModuleList([VisionBlock(shape) for _ in range(shape.layers)])


class PerceptionEncoder(nn.Module):
    def __init__(self, shape: VisionShape) -> None:
        super().__init__()
        self.shape = shape
        self.grid = shape.image_size // shape.patch_size
        width = shape.width
        self.conv1 = nn.Conv2d(3, width, shape.patch_size, stride=shape.patch_size, bias=False)
        self.positional_embedding = nn.Parameter(torch.randn(self.grid**2, width) * width**-0.5 * 0.1)
        self.ln_pre = nn.LayerNorm(width, eps=1e-5)
        self.transformer = VisionTransformer(shape)
        self.vit_downsampler1 = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1)
        self.vit_downsampler2 = nn.Conv2d(2 * width, 4 * width, 3, stride=2, padding=1)

    def positions(self, side: int) -> Tensor:
        """Learnt position of every patch; a smaller image takes the same ones, resampled."""
        if side == self.grid:
            return self.positional_embedding
        square = self.positional_embedding.T.reshape(1, -1, self.grid, self.grid)
        small = functional.interpolate(square, size=(side, side), mode="bilinear", align_corners=False)
        return small.flatten(2).squeeze(0).T

    def patches(self, pixels: Tensor) -> Tensor:
        """What the blocks start from [images, patches, width]."""
        x = self.conv1(pixels)
        out: Tensor = self.ln_pre(x.flatten(2).transpose(1, 2) + self.positions(x.shape[-1]))
        return out

    def table(self, side: int) -> tuple[Tensor, Tensor]:
        return axial_table(side, self.shape.width // self.shape.heads)

    def forward(self, pixels: Tensor) -> Tensor:
        """Features [images, tokens, 4 * width]."""
        x, side = self.patches(pixels), pixels.shape[-1] // self.shape.patch_size
        table = self.table(side)
        for block in self.transformer.resblocks:
            x = block(x, table)
        x = x.transpose(1, 2).reshape(x.shape[0], -1, side, side)
        x = self.vit_downsampler2(self.vit_downsampler1(x))
        return x.flatten(2).transpose(1, 2)

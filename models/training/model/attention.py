"""Attention as Step-3.7 does it, and its norms, in few passes over memory: on a CPU a training step is mostly that."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.training.model.dimensions import FULL, Shape

Rotation = tuple[Tensor, Tensor]
"""Cosine and sine by position."""


class RootMeanSquare(torch.autograd.Function):
    """RMS norm with its scale, in few passes over memory: PyTorch's own takes ten on a CPU, and as many back."""

    @staticmethod
    def forward(context: Any, x: Tensor, scale: Tensor, eps: float) -> Tensor:
        """`scale` broadcasts against the last dimensions of `x`."""
        size = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        inverse = torch.rsqrt(size.square_().div_(x.shape[-1]).add_(eps))
        unit = x * inverse
        context.save_for_backward(unit, inverse, scale)
        return unit * scale

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        unit, inverse, scale = context.saved_tensors
        for_scale = (gradient * unit).sum_to_size(scale.shape)
        back = gradient * scale
        along = torch.linalg.vecdot(back, unit).div_(-unit.shape[-1]).unsqueeze(-1)
        return back.addcmul_(unit, along).mul_(inverse), for_scale, None


class GemmaNorm(nn.Module):
    """RMS norm whose weight is kept as its difference from one."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = RootMeanSquare.apply(x, 1.0 + self.weight, self.eps)
        return out


def rotary_table(positions: Tensor, width: int, theta: float) -> Rotation:
    """Cosine and sine for NeoX-style rotation of `width` channels at the given positions."""
    inverse = theta ** (-torch.arange(0, width, 2, dtype=torch.float32) / width)
    angle = positions.float().unsqueeze(-1) * inverse
    return angle.cos(), angle.sin()


class Rotate(torch.autograd.Function):
    """Rotates the first channels of `x` [batch, time, heads, dim]; the rest pass through. Backward it turns back."""

    @staticmethod
    def forward(context: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        context.save_for_backward(cos, sin)
        return Rotate.turn(x, cos, sin, 1.0)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = context.saved_tensors
        return Rotate.turn(gradient, cos, sin, -1.0), None, None

    @staticmethod
    def turn(x: Tensor, cos: Tensor, sin: Tensor, sign: float) -> Tensor:
        half = cos.shape[-1]
        a, b = x[..., :half], x[..., half : 2 * half]
        out = torch.empty_like(x)
        torch.mul(a, cos, out=out[..., :half]).addcmul_(b, sin, value=-sign)
        torch.mul(b, cos, out=out[..., half : 2 * half]).addcmul_(a, sin, value=sign)
        if 2 * half < x.shape[-1]:
            out[..., 2 * half :] = x[..., 2 * half :]
        return out


class Attention(nn.Module):
    """Grouped-query attention with normed queries and keys and one gate per head."""

    def __init__(self, shape: Shape, layer: int) -> None:
        super().__init__()
        self.heads, self.groups, self.dim = shape.heads(layer), shape.kv_groups, shape.head_dim
        self.window = None if shape.layer_types[layer] == FULL else shape.window
        hidden = shape.hidden
        self.q_proj = nn.Linear(hidden, self.heads * self.dim, bias=False)
        self.k_proj = nn.Linear(hidden, self.groups * self.dim, bias=False)
        self.v_proj = nn.Linear(hidden, self.groups * self.dim, bias=False)
        self.g_proj = nn.Linear(hidden, self.heads, bias=False)
        self.o_proj = nn.Linear(self.heads * self.dim, hidden, bias=False)
        self.q_norm = GemmaNorm(self.dim, shape.norm_eps)
        self.k_norm = GemmaNorm(self.dim, shape.norm_eps)

    def forward(self, x: Tensor, table: Rotation) -> Tensor:
        batch, time, _ = x.shape
        both = self.heads + self.groups
        parts = (self.q_proj, self.k_proj, self.v_proj, self.g_proj)
        joined = functional.linear(x, torch.cat([part.weight for part in parts]))
        qk, v, gate = joined.split([both * self.dim, self.groups * self.dim, self.heads], dim=-1)
        scale = torch.cat([self.q_norm.weight.expand(self.heads, -1), self.k_norm.weight.expand(self.groups, -1)])
        normed = RootMeanSquare.apply(qk.view(batch, time, both, self.dim), 1.0 + scale, self.q_norm.eps)
        cos, sin = (t.unsqueeze(-2) for t in table)
        q, k = Rotate.apply(normed, cos, sin).transpose(1, 2).split([self.heads, self.groups], dim=1)
        v = v.view(batch, time, self.groups, self.dim).transpose(1, 2)
        repeat = self.heads // self.groups
        k, v = k.repeat_interleave(repeat, dim=1), v.repeat_interleave(repeat, dim=1)
        mixed = attend(q, k, v, self.window).transpose(1, 2) * torch.sigmoid(gate).unsqueeze(-1)
        out: Tensor = self.o_proj(mixed.reshape(batch, time, -1))
        return out


BLOCKS_FROM = 3
"""Windows in a row from which on it is cheaper to look at two of them at a time."""


def attend(q: Tensor, k: Tensor, v: Tensor, window: int | None) -> Tensor:
    """Causal attention [batch, heads, time, dim] that reaches `window` tokens back, itself included."""
    batch, heads, time, dim = q.shape
    if window is None or time <= window:
        return functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    if time <= BLOCKS_FROM * window:
        gap = torch.arange(time).unsqueeze(1) - torch.arange(time).unsqueeze(0)
        return functional.scaled_dot_product_attention(q, k, v, attn_mask=(gap >= 0) & (gap < window))
    blocks = -(-time // window)
    q, k, v = (functional.pad(t, (0, 0, 0, blocks * window - time)) for t in (q, k, v))
    q, k, v = (t.view(batch, heads, blocks, window, dim).transpose(1, 2) for t in (q, k, v))

    def with_last(t: Tensor) -> Tensor:
        return torch.cat([functional.pad(t[:, :-1], (0, 0, 0, 0, 0, 0, 1, 0)), t], dim=3).flatten(0, 1)

    gap = torch.arange(window, 2 * window).unsqueeze(1) - torch.arange(2 * window).unsqueeze(0)
    mask = ((gap >= 0) & (gap < window)).repeat(batch * blocks, 1, 1, 1)
    mask[::blocks, :, :, :window] = False
    mixed = functional.scaled_dot_product_attention(q.flatten(0, 1), with_last(k), with_last(v), attn_mask=mask)
    mixed = mixed.view(batch, blocks, heads, window, dim).transpose(1, 2).flatten(2, 3)
    return mixed[:, :, :time]

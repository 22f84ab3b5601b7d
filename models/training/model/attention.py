"""Step-3.7's attention, rotary embedding and RMS norm, written to touch memory few times.

On a CPU, memory traffic is most of a training step.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.training.model.dimensions import FULL, ModelDimensions

Rotation = tuple[Tensor, Tensor]
"""Cosine and sine by position, each [..., time, rotated channels / 2]."""


class RMSNormFunction(torch.autograd.Function):
    """RMS norm times a scale, with its own backward pass.

    PyTorch's operator makes ten passes over memory in each direction on a CPU; this one makes a few.
    """

    @staticmethod
    def forward(context: Any, x: Tensor, scale: Tensor, eps: float) -> Tensor:
        """Normalise `x` over its last dimension. `scale` must broadcast against the last dimensions of `x`."""
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        inverse = torch.rsqrt(norm.square_().div_(x.shape[-1]).add_(eps))
        unit = x * inverse
        context.save_for_backward(unit, inverse, scale)
        return unit * scale

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        unit, inverse, scale = context.saved_tensors
        scale_gradient = (gradient * unit).sum_to_size(scale.shape)
        unit_gradient = gradient * scale
        projection = torch.linalg.vecdot(unit_gradient, unit).div_(-unit.shape[-1]).unsqueeze(-1)
        return unit_gradient.addcmul_(unit, projection).mul_(inverse), scale_gradient, None


class GemmaNorm(nn.Module):
    """RMS norm whose stored weight is the scale minus one, as in Gemma and in the hub's checkpoint."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = RMSNormFunction.apply(x, 1.0 + self.weight, self.eps)
        return out


def rotary_table(positions: Tensor, width: int, theta: float) -> Rotation:
    """Cosine and sine [..., width / 2] for NeoX-style rotation of `width` channels at `positions` [...]."""
    inverse = theta ** (-torch.arange(0, width, 2, dtype=torch.float32) / width)
    angle = positions.float().unsqueeze(-1) * inverse
    return angle.cos(), angle.sin()


class RotaryFunction(torch.autograd.Function):
    """Rotates the first channels of `x` [batch, time, heads, dim] and copies the rest. The gradient is rotated back."""

    @staticmethod
    def forward(context: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        context.save_for_backward(cos, sin)
        return RotaryFunction.rotate(x, cos, sin, 1.0)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = context.saved_tensors
        return RotaryFunction.rotate(gradient, cos, sin, -1.0), None, None

    @staticmethod
    def rotate(x: Tensor, cos: Tensor, sin: Tensor, sign: float) -> Tensor:
        half = cos.shape[-1]
        a, b = x[..., :half], x[..., half : 2 * half]
        out = torch.empty_like(x)
        torch.mul(a, cos, out=out[..., :half]).addcmul_(b, sin, value=-sign)
        torch.mul(b, cos, out=out[..., half : 2 * half]).addcmul_(a, sin, value=sign)
        if 2 * half < x.shape[-1]:
            out[..., 2 * half :] = x[..., 2 * half :]
        return out


class Attention(nn.Module):
    """Grouped-query attention with RMS norm on queries and keys and a sigmoid gate per head.

    The projections and both norms each run as one operation over their joined weights.
    """

    def __init__(self, dims: ModelDimensions, layer: int) -> None:
        super().__init__()
        self.heads, self.groups, self.dim = dims.heads(layer), dims.kv_groups, dims.head_dim
        self.window = None if dims.layer_types[layer] == FULL else dims.window
        hidden = dims.hidden
        self.q_proj = nn.Linear(hidden, self.heads * self.dim, bias=False)
        self.k_proj = nn.Linear(hidden, self.groups * self.dim, bias=False)
        self.v_proj = nn.Linear(hidden, self.groups * self.dim, bias=False)
        self.g_proj = nn.Linear(hidden, self.heads, bias=False)
        self.o_proj = nn.Linear(self.heads * self.dim, hidden, bias=False)
        self.q_norm = GemmaNorm(self.dim, dims.norm_eps)
        self.k_norm = GemmaNorm(self.dim, dims.norm_eps)

    def forward(self, x: Tensor, table: Rotation) -> Tensor:
        batch, time, _ = x.shape
        qk_heads = self.heads + self.groups
        parts = (self.q_proj, self.k_proj, self.v_proj, self.g_proj)
        joined = functional.linear(x, torch.cat([part.weight for part in parts]))
        qk, v, gate = joined.split([qk_heads * self.dim, self.groups * self.dim, self.heads], dim=-1)
        scale = torch.cat([self.q_norm.weight.expand(self.heads, -1), self.k_norm.weight.expand(self.groups, -1)])
        normed = RMSNormFunction.apply(qk.view(batch, time, qk_heads, self.dim), 1.0 + scale, self.q_norm.eps)
        cos, sin = (t.unsqueeze(-2) for t in table)
        q, k = RotaryFunction.apply(normed, cos, sin).transpose(1, 2).split([self.heads, self.groups], dim=1)
        v = v.view(batch, time, self.groups, self.dim).transpose(1, 2)
        repeat = self.heads // self.groups
        k, v = k.repeat_interleave(repeat, dim=1), v.repeat_interleave(repeat, dim=1)
        attended = attend(q, k, v, self.window).transpose(1, 2) * torch.sigmoid(gate).unsqueeze(-1)
        out: Tensor = self.o_proj(attended.reshape(batch, time, -1))
        return out


MASK_UP_TO_WINDOWS = 3
"""Length in windows up to which one masked product is cheaper than attention by blocks."""


def attend(q: Tensor, k: Tensor, v: Tensor, window: int | None) -> Tensor:
    """Causal attention over [batch, heads, time, dim]. With a window, a token sees itself and `window - 1` before it.

    Long rows are cut into blocks of one window: each block of queries needs its own keys and the block before only.
    """
    batch, heads, time, dim = q.shape
    if window is None or time <= window:
        return functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    if time <= MASK_UP_TO_WINDOWS * window:
        distance = torch.arange(time).unsqueeze(1) - torch.arange(time).unsqueeze(0)
        return functional.scaled_dot_product_attention(q, k, v, attn_mask=(distance >= 0) & (distance < window))
    blocks = -(-time // window)
    q, k, v = (functional.pad(t, (0, 0, 0, blocks * window - time)) for t in (q, k, v))
    q, k, v = (t.view(batch, heads, blocks, window, dim).transpose(1, 2) for t in (q, k, v))

    def with_previous(t: Tensor) -> Tensor:
        return torch.cat([functional.pad(t[:, :-1], (0, 0, 0, 0, 0, 0, 1, 0)), t], dim=3).flatten(0, 1)

    distance = torch.arange(window, 2 * window).unsqueeze(1) - torch.arange(2 * window).unsqueeze(0)
    mask = ((distance >= 0) & (distance < window)).repeat(batch * blocks, 1, 1, 1)
    mask[::blocks, :, :, :window] = False
    attended = functional.scaled_dot_product_attention(
        q.flatten(0, 1), with_previous(k), with_previous(v), attn_mask=mask
    )
    attended = attended.view(batch, blocks, heads, window, dim).transpose(1, 2).flatten(2, 3)
    return attended[:, :, :time]

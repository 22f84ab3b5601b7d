"""Step-3.7's forward pass in plain PyTorch, made for training many short rows on a CPU.

Parameters carry the hub's names, so a state dict of `Step` is the checkpoint. One thing differs from an engine's pass:
the drafting layers' heads run only where there is something to predict.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.shape import FULL, Shape
from models.vision import PerceptionEncoder

Rotation = tuple[Tensor, Tensor]
"""Cosine and sine by position."""


class GemmaNorm(nn.Module):
    """RMS norm whose weight is kept as its difference from one."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return functional.rms_norm(x, x.shape[-1:], (1.0 + self.weight).to(x.dtype), self.eps)


def rotary_table(positions: Tensor, width: int, theta: float) -> Rotation:
    """Cosine and sine for NeoX-style rotation of `width` channels at the given positions."""
    inverse = theta ** (-torch.arange(0, width, 2, dtype=torch.float32) / width)
    angle = positions.float().unsqueeze(-1) * inverse
    return angle.cos(), angle.sin()


def rotate(x: Tensor, table: Rotation) -> Tensor:
    """Rotate the first channels of `x` [batch, heads, time, dim]; the rest pass through."""
    cos, sin = (t.unsqueeze(-3) for t in table)
    half = cos.shape[-1]
    a, b, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    return torch.cat([a * cos - b * sin, b * cos + a * sin, rest], dim=-1)


class Attention(nn.Module):
    """Grouped-query attention with normed queries and keys and one gate per head."""

    def __init__(self, shape: Shape, layer: int) -> None:
        super().__init__()
        self.heads, self.groups, self.dim = shape.heads(layer), shape.kv_groups, shape.head_dim
        self.is_full = shape.layer_types[layer] == FULL
        hidden = shape.hidden
        self.q_proj = nn.Linear(hidden, self.heads * self.dim, bias=False)
        self.k_proj = nn.Linear(hidden, self.groups * self.dim, bias=False)
        self.v_proj = nn.Linear(hidden, self.groups * self.dim, bias=False)
        self.g_proj = nn.Linear(hidden, self.heads, bias=False)
        self.o_proj = nn.Linear(self.heads * self.dim, hidden, bias=False)
        self.q_norm = GemmaNorm(self.dim, shape.norm_eps)
        self.k_norm = GemmaNorm(self.dim, shape.norm_eps)

    def forward(self, x: Tensor, table: Rotation, mask: Tensor | None) -> Tensor:
        batch, time, _ = x.shape
        q = self.q_norm(self.q_proj(x).view(batch, time, self.heads, self.dim)).transpose(1, 2)
        k = self.k_norm(self.k_proj(x).view(batch, time, self.groups, self.dim)).transpose(1, 2)
        v = self.v_proj(x).view(batch, time, self.groups, self.dim).transpose(1, 2)
        q, k = rotate(q, table), rotate(k, table)
        repeat = self.heads // self.groups
        k, v = k.repeat_interleave(repeat, dim=1), v.repeat_interleave(repeat, dim=1)
        mixed = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None)
        gated = mixed.transpose(1, 2) * torch.sigmoid(self.g_proj(x)).unsqueeze(-1)
        out: Tensor = self.o_proj(gated.reshape(batch, time, -1))
        return out


class GatedMLP(nn.Module):
    def __init__(self, hidden: int, width: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(hidden, width, bias=False)
        self.up_proj = nn.Linear(hidden, width, bias=False)
        self.down_proj = nn.Linear(width, hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down_proj(functional.silu(self.gate_proj(x)) * self.up_proj(x))
        return out


class Stack(nn.Module):
    """One weight per expert, stacked in front, as the hub packs them."""

    def __init__(self, experts: int, rows: int, columns: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(experts, rows, columns))


class Experts(nn.Module):
    """Sigmoid router with a bias that steers the choice but not the weights."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.gate = nn.Linear(shape.hidden, shape.experts, bias=False)
        self.register_buffer("router_bias", torch.zeros(shape.experts))
        self.router_bias: Tensor
        self.gate_proj = Stack(shape.experts, shape.expert_width, shape.hidden)
        self.up_proj = Stack(shape.experts, shape.expert_width, shape.hidden)
        self.down_proj = Stack(shape.experts, shape.hidden, shape.expert_width)
        self.load = torch.zeros(shape.experts)

    def route(self, x: Tensor) -> Tensor:
        """Weight of every expert for every token; zero where it was not chosen."""
        scores = torch.sigmoid(functional.linear(x.float(), self.gate.weight.float()))
        chosen = (scores + self.router_bias).topk(self.shape.experts_per_token, dim=-1).indices
        mask = torch.zeros_like(scores).scatter_(-1, chosen, 1.0)
        if self.training:
            self.load += mask.detach().sum(dim=tuple(range(mask.dim() - 1)))
        kept = scores * mask
        return kept / kept.sum(-1, keepdim=True) * self.shape.routed_scale

    def forward(self, x: Tensor) -> Tensor:
        """Each expert runs for the tokens that chose it."""
        tokens, weights = x.flatten(0, -2), self.route(x).to(x.dtype).flatten(0, -2)
        out = torch.zeros_like(tokens)
        for expert in range(self.shape.experts):
            rows = weights[:, expert].nonzero().squeeze(1)
            chosen = tokens[rows]
            gate = functional.linear(chosen, self.gate_proj.weight[expert])
            up = functional.linear(chosen, self.up_proj.weight[expert])
            down = functional.linear(functional.silu(gate) * up, self.down_proj.weight[expert])
            out.index_add_(0, rows, down * weights[rows, expert].unsqueeze(1))
        return out.view_as(x)


class Block(nn.Module):
    """A decoder layer: attention, then a dense MLP or experts with a shared one beside them."""

    def __init__(self, shape: Shape, layer: int) -> None:
        super().__init__()
        self.input_layernorm = GemmaNorm(shape.hidden, shape.norm_eps)
        self.post_attention_layernorm = GemmaNorm(shape.hidden, shape.norm_eps)
        self.self_attn = Attention(shape, layer)
        self.is_sparse = layer in shape.moe_layers
        if self.is_sparse:
            self.moe = Experts(shape)
            self.share_expert = GatedMLP(shape.hidden, shape.shared_width)
        else:
            self.mlp = GatedMLP(shape.hidden, shape.dense_width)

    def feed(self, x: Tensor) -> Tensor:
        inner = self.post_attention_layernorm(x)
        if self.is_sparse:
            return x + self.moe(inner) + self.share_expert(inner)
        out: Tensor = x + self.mlp(inner)
        return out

    def forward(self, x: Tensor, table: Rotation, mask: Tensor | None) -> Tensor:
        return self.feed(x + self.self_attn(self.input_layernorm(x), table, mask))


class SharedHead(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.norm = GemmaNorm(shape.hidden, shape.norm_eps)
        self.output = nn.Linear(shape.hidden, shape.vocab, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.output(self.norm(x))
        return out


class DraftBlock(Block):
    """An MTP layer: joins the embedding of a later token with the state that predicted it."""

    def __init__(self, shape: Shape, layer: int) -> None:
        super().__init__(shape, layer)
        self.enorm = GemmaNorm(shape.hidden, shape.norm_eps)
        self.hnorm = GemmaNorm(shape.hidden, shape.norm_eps)
        self.eh_proj = nn.Linear(2 * shape.hidden, shape.hidden, bias=False)
        self.shared_head = SharedHead(shape)

    def join(self, embedding: Tensor, state: Tensor) -> Tensor:
        out: Tensor = self.eh_proj(torch.cat([self.enorm(embedding), self.hnorm(state)], dim=-1))
        return out


class TextModel(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(shape.vocab, shape.hidden)
        trunk = [Block(shape, i) for i in range(shape.layers)]
        drafts = [DraftBlock(shape, shape.layers + i) for i in range(shape.mtp_layers)]
        self.layers = nn.ModuleList([*trunk, *drafts])
        self.norm = GemmaNorm(shape.hidden, shape.norm_eps)


@dataclass(frozen=True)
class Rows:
    """A batch of token rows, padded at the end. Full layers see `far`, sliding ones the plain position."""

    ids: Tensor
    far: Tensor
    images: Tensor | None = None
    """Pixels [n, 3, 728, 728] for the image tokens of the rows, in order."""


def window_mask(time: int, window: int) -> Tensor | None:
    """Causal mask that reaches `window` tokens back, itself included; None where plain causal says the same."""
    if time <= window:
        return None
    gap = torch.arange(time).unsqueeze(1) - torch.arange(time).unsqueeze(0)
    return (gap >= 0) & (gap < window)


class Step(nn.Module):
    """The whole model. `trunk` gives un-normed states, which is what both the head and the drafts start from."""

    def __init__(self, shape: Shape, image_token_id: int) -> None:
        super().__init__()
        self.shape, self.image_token_id = shape, image_token_id
        self.model = TextModel(shape)
        self.lm_head = nn.Linear(shape.hidden, shape.vocab, bias=False)
        self.vision_model = PerceptionEncoder(shape.vision)
        self.vit_large_projector = nn.Linear(shape.vision.width * 4, shape.hidden, bias=False)

    def drafts(self) -> list[DraftBlock]:
        """The drafting layers, in the order they run."""
        return [layer for layer in self.model.layers if isinstance(layer, DraftBlock)]

    def see(self, images: Tensor) -> Tensor:
        """Embeddings [pictures, tokens, hidden] of the image tokens."""
        seen: Tensor = self.vit_large_projector(self.vision_model(images))
        return seen

    def embed(self, rows: Rows, seen: Tensor | None = None) -> Tensor:
        """`seen`: what `see` gave for the rows' images, where it is at hand."""
        x: Tensor = self.model.embed_tokens(rows.ids)
        if rows.images is None:
            return x
        seen = self.see(rows.images) if seen is None else seen
        where = (rows.ids == self.image_token_id).unsqueeze(-1)
        return x.masked_scatter(where, seen.to(x.dtype))

    def tables(self, rows: Rows) -> tuple[list[Rotation], Tensor | None]:
        """Rotation per layer type (sliding first), and the sliding mask."""
        shape, time = self.shape, rows.ids.shape[1]
        near = rotary_table(torch.arange(time).unsqueeze(0), shape.head_dim, shape.sliding_theta)
        far = rotary_table(rows.far, shape.head_dim // 2, shape.full_theta)
        return [near, far], window_mask(time, shape.window)

    def trunk(self, embedding: Tensor, tables: list[Rotation], mask: Tensor | None) -> Tensor:
        x = embedding
        for i in range(self.shape.layers):
            is_full = self.shape.layer_types[i] == FULL
            x = self.model.layers[i](x, tables[is_full], None if is_full else mask)
        return x

    def logits(self, state: Tensor) -> Tensor:
        out: Tensor = self.lm_head(self.model.norm(state))
        return out

    def forward(self, rows: Rows) -> Tensor:
        """Logits for every position."""
        tables, mask = self.tables(rows)
        return self.logits(self.trunk(self.embed(rows), tables, mask))

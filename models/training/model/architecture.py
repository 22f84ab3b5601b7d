"""Step-3.7's forward pass in plain PyTorch, made for training many short rows on a CPU.

Parameters carry the hub's names, so a state dict of `Step` is the checkpoint. One thing differs from an engine's pass:
the drafting layers' heads run only where there is something to predict.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.training.model.attention import Attention, GemmaNorm, Rotation, rotary_table
from models.training.model.dimensions import FULL, Shape
from models.training.model.vision import PerceptionEncoder


def gated(x: Tensor, gate_and_up: Tensor, down: Tensor) -> Tensor:
    """SwiGLU, with the weights of gate and up joined in one matrix [2 * width, hidden]: one product instead of two."""
    gate, up = functional.linear(x, gate_and_up).chunk(2, dim=-1)
    return functional.linear(functional.silu(gate) * up, down)


class GatedMLP(nn.Module):
    def __init__(self, hidden: int, width: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(hidden, width, bias=False)
        self.up_proj = nn.Linear(hidden, width, bias=False)
        self.down_proj = nn.Linear(width, hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return gated(x, torch.cat([self.gate_proj.weight, self.up_proj.weight]), self.down_proj.weight)


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

    def route(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Experts of every token and their weights, both [tokens, experts per token]."""
        scores = torch.sigmoid(functional.linear(x.float(), self.gate.weight.float()))
        chosen = (scores + self.router_bias).topk(self.shape.experts_per_token, dim=-1).indices
        if self.training:
            self.load += torch.bincount(chosen.flatten(), minlength=self.shape.experts)
        kept = scores.gather(-1, chosen)
        return chosen, kept / kept.sum(-1, keepdim=True) * self.shape.routed_scale

    def forward(self, x: Tensor) -> Tensor:
        """Each expert runs for the tokens that chose it, which are sorted by expert for that."""
        tokens = x.flatten(0, -2)
        chosen, weights = self.route(tokens)
        order = chosen.flatten().argsort(stable=True)
        counts = torch.bincount(chosen.flatten(), minlength=self.shape.experts).tolist()
        sent = tokens.index_select(0, order // self.shape.experts_per_token).split(counts)
        both = torch.cat([self.gate_proj.weight, self.up_proj.weight], dim=1).unbind()
        done = [gated(*weighed) for weighed in zip(sent, both, self.down_proj.weight.unbind(), strict=True)]
        back = torch.cat(done).index_select(0, order.argsort()).view(len(tokens), -1, tokens.shape[-1])
        out = torch.bmm(weights.unsqueeze(1).to(back.dtype), back)
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

    def mix(self, x: Tensor, table: Rotation) -> Tensor:
        out: Tensor = x + self.self_attn(self.input_layernorm(x), table)
        return out

    def forward(self, x: Tensor, table: Rotation) -> Tensor:
        return self.feed(self.mix(x, table))


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

    def heads(self) -> list[nn.Linear]:
        """The trunk's head and the drafting layers' own: what turns states into tokens."""
        return [self.lm_head, *(layer.shared_head.output for layer in self.drafts())]

    def see(self, images: Tensor) -> Tensor:
        """Embeddings [pictures, tokens, hidden] of the image tokens."""
        seen: Tensor = self.vit_large_projector(self.vision_model(images))
        return seen

    def embed(self, rows: Rows) -> Tensor:
        x: Tensor = self.model.embed_tokens(rows.ids)
        if rows.images is None:
            return x
        where = (rows.ids == self.image_token_id).unsqueeze(-1)
        return x.masked_scatter(where, self.see(rows.images).to(x.dtype))

    def tables(self, rows: Rows) -> list[Rotation]:
        """Rotation per layer type, sliding first."""
        shape, time = self.shape, rows.ids.shape[1]
        near = rotary_table(torch.arange(time).unsqueeze(0), shape.head_dim, shape.sliding_theta)
        far = rotary_table(rows.far, shape.head_dim // 2, shape.full_theta)
        return [near, far]

    def trunk(self, embedding: Tensor, tables: list[Rotation], place: Tensor | None = None) -> Tensor:
        """States [rows, time, hidden]; with `place`, which indexes the flattened rows, only those [places, hidden]."""
        x = embedding
        *first, last = self.model.layers[: self.shape.layers]
        for i, layer in enumerate(first):
            x = layer(x, tables[self.shape.layer_types[i] == FULL])
        x = last.mix(x, tables[self.shape.layer_types[len(first)] == FULL])
        out: Tensor = last.feed(x if place is None else x.flatten(0, 1)[place])
        return out

    def logits(self, state: Tensor) -> Tensor:
        out: Tensor = self.lm_head(self.model.norm(state))
        return out

    def forward(self, rows: Rows) -> Tensor:
        """Logits for every position."""
        return self.logits(self.trunk(self.embed(rows), self.tables(rows)))

"""Step-3.7's forward pass in plain PyTorch, for training on many short rows on a CPU.

Modules and parameters have the hub's names, so the state dict of `StepModel` is the checkpoint's content.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.training.model.attention import Attention, GemmaNorm, Rotation, rotary_table
from models.training.model.dimensions import FULL, ModelDimensions
from models.training.model.vision import PerceptionEncoder


def swiglu(x: Tensor, gate_and_up: Tensor, down: Tensor) -> Tensor:
    """SwiGLU MLP. `gate_and_up` joins both weights as [2 * width, hidden], so that one product computes both."""
    gate, up = functional.linear(x, gate_and_up).chunk(2, dim=-1)
    return functional.linear(functional.silu(gate) * up, down)


class GatedMLP(nn.Module):
    def __init__(self, hidden: int, width: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(hidden, width, bias=False)
        self.up_proj = nn.Linear(hidden, width, bias=False)
        self.down_proj = nn.Linear(width, hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return swiglu(x, torch.cat([self.gate_proj.weight, self.up_proj.weight]), self.down_proj.weight)


class ExpertWeights(nn.Module):
    """The weights of all experts as one tensor [experts, rows, columns], as the hub packs them."""

    def __init__(self, experts: int, rows: int, columns: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(experts, rows, columns))


class MixtureOfExperts(nn.Module):
    """Routed experts. A bias per expert takes part in the choice of experts, but not in their weights.

    In training mode `load` counts the tokens that chose each expert, for `optimizers.balance_routers`.
    """

    def __init__(self, dims: ModelDimensions) -> None:
        super().__init__()
        self.dims = dims
        self.gate = nn.Linear(dims.hidden, dims.experts, bias=False)
        self.register_buffer("router_bias", torch.zeros(dims.experts))
        self.router_bias: Tensor
        self.gate_proj = ExpertWeights(dims.experts, dims.expert_width, dims.hidden)
        self.up_proj = ExpertWeights(dims.experts, dims.expert_width, dims.hidden)
        self.down_proj = ExpertWeights(dims.experts, dims.hidden, dims.expert_width)
        self.load = torch.zeros(dims.experts)

    def route(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Chosen experts and their weights, both [tokens, experts per token], for `x` [tokens, hidden]."""
        scores = torch.sigmoid(functional.linear(x.float(), self.gate.weight.float()))
        chosen = (scores + self.router_bias).topk(self.dims.experts_per_token, dim=-1).indices
        if self.training:
            self.load += torch.bincount(chosen.flatten(), minlength=self.dims.experts)
        weights = scores.gather(-1, chosen)
        return chosen, weights / weights.sum(-1, keepdim=True) * self.dims.routed_scale

    def forward(self, x: Tensor) -> Tensor:
        """Sort tokens by expert, so that each expert runs once over the tokens that chose it."""
        tokens = x.flatten(0, -2)
        chosen, weights = self.route(tokens)
        order = chosen.flatten().argsort(stable=True)
        counts = torch.bincount(chosen.flatten(), minlength=self.dims.experts).tolist()
        inputs = tokens.index_select(0, order // self.dims.experts_per_token).split(counts)
        gate_and_up = torch.cat([self.gate_proj.weight, self.up_proj.weight], dim=1).unbind()
        experts = zip(inputs, gate_and_up, self.down_proj.weight.unbind(), strict=True)
        outputs = [swiglu(x, up, down) for x, up, down in experts]
        by_token = torch.cat(outputs).index_select(0, order.argsort()).view(len(tokens), -1, tokens.shape[-1])
        out = torch.bmm(weights.unsqueeze(1).to(by_token.dtype), by_token)
        return out.view_as(x)


class DecoderLayer(nn.Module):
    """Attention, then a dense MLP or routed experts plus a shared one, each with a pre-norm and a residual."""

    def __init__(self, dims: ModelDimensions, layer: int) -> None:
        super().__init__()
        self.input_layernorm = GemmaNorm(dims.hidden, dims.norm_eps)
        self.post_attention_layernorm = GemmaNorm(dims.hidden, dims.norm_eps)
        self.self_attn = Attention(dims, layer)
        self.is_sparse = layer in dims.moe_layers
        if self.is_sparse:
            self.moe = MixtureOfExperts(dims)
            self.share_expert = GatedMLP(dims.hidden, dims.shared_width)
        else:
            self.mlp = GatedMLP(dims.hidden, dims.dense_width)

    def feed_forward(self, x: Tensor) -> Tensor:
        inner = self.post_attention_layernorm(x)
        if self.is_sparse:
            return x + self.moe(inner) + self.share_expert(inner)
        out: Tensor = x + self.mlp(inner)
        return out

    def attend(self, x: Tensor, table: Rotation) -> Tensor:
        out: Tensor = x + self.self_attn(self.input_layernorm(x), table)
        return out

    def forward(self, x: Tensor, table: Rotation) -> Tensor:
        return self.feed_forward(self.attend(x, table))


class SharedHead(nn.Module):
    def __init__(self, dims: ModelDimensions) -> None:
        super().__init__()
        self.norm = GemmaNorm(dims.hidden, dims.norm_eps)
        self.output = nn.Linear(dims.hidden, dims.vocab, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.output(self.norm(x))
        return out


class MTPLayer(DecoderLayer):
    """Multi-token prediction layer, used for drafting: joins a later token's embedding with an earlier hidden state."""

    def __init__(self, dims: ModelDimensions, layer: int) -> None:
        super().__init__(dims, layer)
        self.enorm = GemmaNorm(dims.hidden, dims.norm_eps)
        self.hnorm = GemmaNorm(dims.hidden, dims.norm_eps)
        self.eh_proj = nn.Linear(2 * dims.hidden, dims.hidden, bias=False)
        self.shared_head = SharedHead(dims)

    def join(self, embedding: Tensor, state: Tensor) -> Tensor:
        out: Tensor = self.eh_proj(torch.cat([self.enorm(embedding), self.hnorm(state)], dim=-1))
        return out


class TextModel(nn.Module):
    def __init__(self, dims: ModelDimensions) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(dims.vocab, dims.hidden)
        trunk = [DecoderLayer(dims, i) for i in range(dims.layers)]
        mtp = [MTPLayer(dims, dims.layers + i) for i in range(dims.mtp_layers)]
        self.layers = nn.ModuleList([*trunk, *mtp])
        self.norm = GemmaNorm(dims.hidden, dims.norm_eps)


@dataclass(frozen=True)
class ModelInputs:
    """Token rows padded at the end, [rows, time] each.

    Full-attention layers use `positions`; sliding ones use the index in the row.
    """

    ids: Tensor
    positions: Tensor
    images: Tensor | None = None
    """Pixels [images, 3, 728, 728], in the order of their image tokens in `ids`."""


class StepModel(nn.Module):
    """The whole model: trunk, MTP layers, heads, vision encoder and projector."""

    def __init__(self, dims: ModelDimensions, image_token_id: int) -> None:
        super().__init__()
        self.dims, self.image_token_id = dims, image_token_id
        self.model = TextModel(dims)
        self.lm_head = nn.Linear(dims.hidden, dims.vocab, bias=False)
        self.vision_model = PerceptionEncoder(dims.vision)
        self.vit_large_projector = nn.Linear(dims.vision.width * 4, dims.hidden, bias=False)

    def mtp_layers(self) -> list[MTPLayer]:
        """The MTP layers, in the order in which they draft."""
        return [layer for layer in self.model.layers if isinstance(layer, MTPLayer)]

    def output_heads(self) -> list[nn.Linear]:
        """The output projections: the trunk's, then one for each MTP layer."""
        return [self.lm_head, *(layer.shared_head.output for layer in self.mtp_layers())]

    def encode_images(self, images: Tensor) -> Tensor:
        """Embeddings [images, tokens, hidden] of `images` [images, 3, side, side]."""
        embeddings: Tensor = self.vit_large_projector(self.vision_model(images))
        return embeddings

    def embed(self, inputs: ModelInputs) -> Tensor:
        x: Tensor = self.model.embed_tokens(inputs.ids)
        if inputs.images is None:
            return x
        is_image = (inputs.ids == self.image_token_id).unsqueeze(-1)
        return x.masked_scatter(is_image, self.encode_images(inputs.images).to(x.dtype))

    def rotary_tables(self, inputs: ModelInputs) -> list[Rotation]:
        """Rotary tables of the sliding and of the full layers, in this order."""
        dims, time = self.dims, inputs.ids.shape[1]
        sliding = rotary_table(torch.arange(time).unsqueeze(0), dims.head_dim, dims.sliding_theta)
        full = rotary_table(inputs.positions, dims.head_dim // 2, dims.full_theta)
        return [sliding, full]

    def trunk(self, embedding: Tensor, tables: list[Rotation], indices: Tensor | None = None) -> Tensor:
        """Un-normed hidden states [rows, time, hidden], from which the head and the MTP layers start.

        With `indices` into the flattened rows, the last layer's MLP runs for those only: [indices, hidden].
        """
        x = embedding
        *first, last = self.model.layers[: self.dims.layers]
        for i, layer in enumerate(first):
            x = layer(x, tables[self.dims.layer_types[i] == FULL])
        x = last.attend(x, tables[self.dims.layer_types[len(first)] == FULL])
        out: Tensor = last.feed_forward(x if indices is None else x.flatten(0, 1)[indices])
        return out

    def logits(self, state: Tensor) -> Tensor:
        out: Tensor = self.lm_head(self.model.norm(state))
        return out

    def forward(self, inputs: ModelInputs) -> Tensor:
        """Logits [rows, time, vocab]."""
        return self.logits(self.trunk(self.embed(inputs), self.rotary_tables(inputs)))

"""The training pass' own arithmetic against PyTorch's."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from models.training.model.attention import RMSNormFunction, RotaryFunction, attend, rotary_table


def drawn(*size: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("time", [5, 8, 20, 24, 25, 61])
@pytest.mark.parametrize("window", [8, None])
def test_attention_reaches_as_far_back_as_it_should(time: int, window: int | None) -> None:
    q, k, v = (drawn(2, 3, time, 4, seed=i) for i in range(3))
    gap = torch.arange(time).unsqueeze(1) - torch.arange(time).unsqueeze(0)
    mask = (gap >= 0) & (gap < (window or time))
    wanted = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    torch.testing.assert_close(attend(q, k, v, window), wanted)


def test_the_norm_is_rms_norm_and_so_is_its_gradient() -> None:
    x, scale = drawn(3, 5, 8).requires_grad_(), drawn(5, 8, seed=1).requires_grad_()
    torch.testing.assert_close(RMSNormFunction.apply(x, scale, 1e-5), functional.rms_norm(x, (8,), eps=1e-5) * scale)
    assert torch.autograd.gradcheck(lambda a, b: RMSNormFunction.apply(a, b, 1e-5), (x, scale))


def test_a_rotation_keeps_what_it_does_not_turn_and_turns_back() -> None:
    cos, sin = (t.double().unsqueeze(-2) for t in rotary_table(torch.arange(6).unsqueeze(0), 4, 10_000.0))
    x = drawn(1, 6, 2, 8).requires_grad_()
    turned = RotaryFunction.apply(x, cos, sin)
    torch.testing.assert_close(turned[..., 4:], x[..., 4:])
    torch.testing.assert_close(turned[:, 0], x[:, 0])
    torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1))
    assert torch.autograd.gradcheck(lambda a: RotaryFunction.apply(a, cos, sin), (x,))

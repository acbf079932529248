"""Norms against the formula."""

from __future__ import annotations

import torch

from mmzoo.layers.norms import ChannelLayerNorm, ModalityNorm


def by_hand(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float) -> torch.Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt() * weight + bias


def test_channel_norm_normalises_every_place_over_its_channels(generator: torch.Generator):
    norm = ChannelLayerNorm(5, eps=1e-3)
    torch.nn.init.normal_(norm.weight, generator=generator)
    torch.nn.init.normal_(norm.bias, generator=generator)
    for shape in [(2, 5, 3), (2, 5, 3, 4)]:
        x = torch.randn(shape, generator=generator)
        wanted = by_hand(x.movedim(1, -1), norm.weight, norm.bias, 1e-3).movedim(-1, 1)
        torch.testing.assert_close(norm(x), wanted)


def test_each_modality_has_its_own_norm(generator: torch.Generator):
    norm = ModalityNorm(4, ("a", "b", "c"))
    for p in norm.parameters():
        torch.nn.init.normal_(p, generator=generator)
    x = torch.randn(7, 4, generator=generator)
    for slices in [{"a": (0, 3), "c": (3, 7)}, {"b": (0, 7)}]:
        wanted = [
            by_hand(x[s:e], norm.norms[m].weight, norm.norms[m].bias, 1e-5) for m, (s, e) in slices.items()
        ]
        torch.testing.assert_close(norm(x, slices), torch.cat(wanted))

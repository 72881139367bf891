from __future__ import annotations

import pytest
import torch
from torch import nn

from sidestep.nn.decoders import MapDecoder

SIZE = torch.Size([6, 4])


@pytest.mark.parametrize(
    ("shape", "kind", "weights"),
    [
        ((3, 2, 2), "auto", 3 * 5 * 9 + 2 * 5 + 5 * 4 * 9 + 4),
        ((3, 2, 2), "conv", 3 * 5 * 9 + 2 * 5 + 5 * 4 * 9 + 4),
        ((3, 2, 2), "linear", 3 * 4 + 4),
        ((7,), "auto", 7 * 5 + 5 + (5 + 1) * 4 * 24),
        ((7,), "linear", (7 + 1) * 4 * 24),
        ((9, 8, 8), "linear", 9 * 4 + 4),
    ],
)
def test_features_become_maps_of_the_size_asked_for(shape: tuple[int, ...], kind: str, weights: int) -> None:
    decoder = MapDecoder(torch.Size(shape), 4, SIZE, kind, width=5)  # pyright: ignore[reportArgumentType]
    out = decoder(torch.randn(2, *shape))
    assert out.shape == (2, 4, 6, 4)
    assert sum(p.numel() for p in decoder.parameters()) == weights
    out.square().sum().backward()
    assert all(p.grad is not None for p in decoder.parameters())


def test_a_linear_decoder_enlarges_and_mixes_channels() -> None:
    decoder = MapDecoder(torch.Size([2, 1, 1]), 1, SIZE, "linear")
    last = decoder.layers[-1]
    assert isinstance(last, nn.Conv2d) and last.bias is not None
    with torch.no_grad():
        last.weight.copy_(torch.tensor([2.0, -1.0]).view(1, 2, 1, 1))
        last.bias.fill_(0.5)
    h = torch.tensor([3.0, 4.0]).view(1, 2, 1, 1)
    # The weights of an interpolation sum to 1 but for rounding.
    torch.testing.assert_close(decoder(h), torch.full((1, 1, 6, 4), 2.5))


@pytest.mark.parametrize(("shape", "kind"), [((3, 2, 2), "mlp"), ((7,), "conv"), ((7,), "big")])
def test_a_kind_that_features_do_not_admit_is_refused(shape: tuple[int, ...], kind: str) -> None:
    with pytest.raises(ValueError, match=f"got head='{kind}'"):
        MapDecoder(torch.Size(shape), 4, SIZE, kind)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="got head_depth=0"):
        MapDecoder(torch.Size([7]), 4, SIZE, depth=0)

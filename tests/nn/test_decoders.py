from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from sidestep.models import autoencoder
from sidestep.nn.decoders import SCALE, MapDecoder

SIZE = torch.Size([6, 4])


@pytest.mark.parametrize(
    ("shape", "kind", "weights"),
    [
        ((3, 2, 2), "auto", 3 * 5 * 9 + 2 * 5 + (5 * 9 + 1) * 4 * 9),
        ((3, 2, 2), "conv", 3 * 5 * 9 + 2 * 5 + (5 * 9 + 1) * 4 * 9),
        ((3, 3, 2), "linear", (3 + 1) * 4 * 4),
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


def test_a_linear_decoder_gives_every_position_numbers_of_its_own() -> None:
    """Two positions side by side, doubled: channel 2 i + j of a position is row i and column j of its square."""
    decoder = MapDecoder(torch.Size([4, 1, 2]), 1, torch.Size([2, 4]), "linear")
    decoder.layers[0].load_state_dict(
        {"weight": torch.eye(4).view(4, 4, 1, 1), "bias": torch.tensor([0.0, 0.0, 0.0, 0.5])}
    )
    h = torch.tensor([[1.0, 5.0], [2.0, 6.0], [3.0, 7.0], [4.0, 8.0]]).view(1, 4, 1, 2)
    told = 0.1 * torch.tensor([[1.0, 2.0, 5.0, 6.0], [3.0, 4.5, 7.0, 8.5]])
    assert torch.equal(decoder(h), told.view(1, 1, 2, 4))


def test_what_is_too_large_is_interpolated() -> None:
    """Of 2 x 2 features 6 x 4 maps: three times as large, 6 x 6, whose rows are then 4 numbers, here all alike."""
    decoder = MapDecoder(torch.Size([2, 2, 2]), 1, SIZE, "linear")
    decoder.layers[0].load_state_dict(
        {"weight": torch.tensor([2.0, -1.0]).view(1, 2, 1, 1).expand(9, 2, 1, 1), "bias": torch.full((9,), 0.5)}
    )
    h = torch.tensor([3.0, 4.0]).view(1, 2, 1, 1).expand(1, 2, 2, 2)
    # The weights of an interpolation sum to 1 but for rounding.
    torch.testing.assert_close(decoder(h), torch.full((1, 1, 6, 4), 0.25))


def test_a_decoder_and_the_network_it_stands_beside_answer_at_one_scale() -> None:
    assert autoencoder.SCALE == SCALE
    last = autoencoder.autoencoder((1, 8, 8), 2, width=4)[-1]
    assert isinstance(last, autoencoder.Numbers)
    h = torch.randn(3, 4, 8, 8)
    assert torch.equal(last(h), SCALE * F.conv2d(h, last.weight, last.bias, padding=1))


@pytest.mark.parametrize(("shape", "kind"), [((3, 2, 2), "mlp"), ((7,), "conv"), ((7,), "big")])
def test_a_kind_that_features_do_not_admit_is_refused(shape: tuple[int, ...], kind: str) -> None:
    with pytest.raises(ValueError, match=f"got head='{kind}'"):
        MapDecoder(torch.Size(shape), 4, SIZE, kind)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="got head_depth=0"):
        MapDecoder(torch.Size([7]), 4, SIZE, depth=0)

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sidestep.nn.beliefs import BeliefModule
from sidestep.nn.heads import Head, Pool, pooled_width


def linear(head: Head, index: int = -1) -> nn.Linear:
    layer = head.out[index]
    assert isinstance(layer, nn.Linear)
    return layer


def fill(layer: nn.Linear, weight: list[list[float]], bias: list[float]) -> None:
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(weight))
        layer.bias.copy_(torch.tensor(bias))


@pytest.mark.parametrize(
    ("h", "pooled"),
    [
        (torch.tensor([[1.0, 2.0]]), [[1.0, 2.0]]),
        (torch.tensor([[[1.0, 2.0], [3.0, 6.0]]]), [[2.0, 4.0]]),  # two tokens of two features
        (torch.tensor([[[[1.0, 3.0]], [[2.0, 6.0]]]]), [[2.0, 4.0]]),  # two maps of 1 x 2
    ],
    ids=["vector", "tokens", "maps"],
)
def test_pooling_is_the_mean_over_positions(h: Tensor, pooled: list[list[float]]) -> None:
    assert torch.equal(Pool()(h), torch.tensor(pooled))
    assert pooled_width(h.shape[1:]) == 2


def test_a_linear_head_by_hand() -> None:
    """Pooled to (2, 4), then 2 x 1 + 4 x 10 + 1 and 2 x (-1) + 0."""
    head = Head(torch.Size([2, 1, 2]), 2, "linear")
    fill(linear(head), [[1.0, 10.0], [-1.0, 0.0]], [1.0, 0.0])
    assert torch.equal(head(torch.tensor([[[[1.0, 3.0]], [[2.0, 6.0]]]])), torch.tensor([[43.0, -2.0]]))


def test_a_belief_stands_behind_the_features() -> None:
    head = Head(torch.Size([1]), 2, "linear", belief=2)
    fill(linear(head), [[1.0, 10.0, 100.0], [0.0, 0.0, 1.0]], [0.0, 0.0])
    found = head(torch.tensor([[2.0]]), torch.tensor([[0.25, 0.75]]))
    assert torch.equal(found, torch.tensor([[79.5, 0.75]]))  # 2 + 2.5 + 75


def test_an_mlp_head_by_hand() -> None:
    """Hidden: relu(3 - 1) = 2 and relu(-3) = 0; out: 2 x 5 + 0 x 7 + 1."""
    head = Head(torch.Size([1]), 1, "mlp", width=2)
    fill(linear(head, 0), [[1.0], [-1.0]], [-1.0, 0.0])
    fill(linear(head), [[5.0, 7.0]], [1.0])
    assert torch.equal(head(torch.tensor([[3.0]])), torch.tensor([[11.0]]))


def test_a_head_on_sums_normalises_every_token_before_the_pool() -> None:
    """(0, 2) and (6, 2) become (-1, 1) and (1, -1), so with weights (-1, 10) and a bias of 3 they answer 14 and -8."""
    head = Head(torch.Size([2, 2]), 1, norm=True)
    fill(linear(head), [[-1.0, 10.0]], [3.0])
    h = torch.tensor([[[0.0, 2.0], [0.0, 2.0]], [[0.0, 2.0], [6.0, 2.0]]])
    # The variance gets 1e-6 more.
    torch.testing.assert_close(head(h), torch.tensor([[14.0], [3.0]]), rtol=0, atol=1e-4)
    each = Head(torch.Size([2, 2]), 1, norm=True, per_token=True)
    each.load_state_dict(head.state_dict())
    torch.testing.assert_close(each(h), torch.tensor([[[14.0], [14.0]], [[14.0], [-8.0]]]), rtol=0, atol=1e-4)


def test_a_conv_head_is_a_convolution_with_batch_norm_then_a_linear_head() -> None:
    torch.manual_seed(0)
    head = Head(torch.Size([2, 4, 4]), 3, "conv", belief=1, width=5).eval()
    h, belief = torch.randn(6, 2, 4, 4), torch.rand(6, 1)
    conv = next(m for m in head.modules() if isinstance(m, nn.Conv2d))
    maps = F.conv2d(h, conv.weight, padding=1) / (1 + 1e-5) ** 0.5  # fresh statistics: mean 0, variance 1
    features = torch.cat([maps.relu().mean((2, 3)), belief], 1)
    expected = features @ linear(head).weight.T + linear(head).bias
    # Float32: BatchNorm multiplies by one over the root, in another order.
    torch.testing.assert_close(head(h, belief), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("size", "seen"), [((16, 16), (8, 8)), ((8, 8), (8, 8)), ((5, 7), (5, 7)), ((12, 3), (8, 3)), ((1, 40), (1, 8))]
)
def test_a_conv_head_sees_at_most_8_by_8_positions(size: tuple[int, int], seen: tuple[int, int]) -> None:
    head = Head(torch.Size([2, *size]), 3, "conv")
    conv = next(m for m in head.modules() if isinstance(m, nn.Conv2d))
    shapes: list[tuple[int, ...]] = []
    conv.register_forward_pre_hook(lambda _, inputs: shapes.append(tuple(inputs[0].shape[2:])))
    head(torch.randn(2, 2, *size))
    assert shapes == [seen]


@pytest.mark.parametrize(
    ("shape", "convolves"), [((4, 2, 2), True), ((4, 1, 1), False), ((5, 4), False), ((4,), False)]
)
def test_auto_is_conv_for_feature_maps_and_linear_for_the_rest(shape: tuple[int, ...], convolves: bool) -> None:
    head = Head(torch.Size(shape), 3)
    assert any(isinstance(m, nn.Conv2d) for m in head.modules()) == convolves
    assert len(head.out) == 1
    assert linear(head).in_features == (128 if convolves else 4)


def test_an_unknown_kind_is_refused() -> None:
    kind: Any = "cnov"
    with pytest.raises(ValueError, match="got head='cnov', expected one of auto, linear, conv, mlp"):
        Head(torch.Size([4]), 3, kind)


@pytest.mark.parametrize("shape", [(4,), (5, 4), (4, 1, 1)])
def test_a_conv_head_needs_feature_maps(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"got head='conv' for features of shape .*; use linear or mlp"):
        Head(torch.Size(shape), 3, "conv")


def test_a_belief_module_is_the_released_one() -> None:
    """Linear(D + C, 256)-ReLU-Linear(256, C) on [p; z]: 38,154 parameters for D = 128, C = 10."""
    module = BeliefModule(128, 10)
    assert sum(p.numel() for p in module.parameters()) == 38_154
    z, p = torch.randn(3, 128), torch.rand(3, 10)
    first, _, last = module.layers
    assert isinstance(first, nn.Linear) and isinstance(last, nn.Linear)
    expected = F.linear(F.linear(torch.cat([p, z], 1), first.weight, first.bias).relu(), last.weight, last.bias)
    assert torch.equal(module(z, p), expected)


def test_a_belief_module_may_normalise_its_hidden_units() -> None:
    module = BeliefModule(6, 3, 8, norm=True)
    z, p = torch.randn(5, 6), torch.rand(5, 3)
    first, _, _, last = module.layers
    hidden = first(torch.cat([p, z], 1))
    mean, variance = hidden.mean(0), hidden.var(0, correction=0)
    expected = last(((hidden - mean) / (variance + 1e-5).sqrt()).relu())
    torch.testing.assert_close(module(z, p), expected)  # float32: the kernel multiplies by a reciprocal root
    with pytest.raises(ValueError, match="got module_norm=true on tokens, expected one label a sample"):
        BeliefModule(6, 3, 8, norm=True, per_token=True)


def test_a_deeper_conv_head_is_that_many_convolutions_in_a_row() -> None:
    head = Head(torch.Size((3, 8, 8)), 5, "conv", belief=5, width=4, depth=2).eval()
    h, belief = torch.randn(6, 3, 8, 8), torch.rand(6, 5)
    first, second = (m for m in head.modules() if isinstance(m, nn.Conv2d))
    norms = [m for m in head.modules() if isinstance(m, nn.BatchNorm2d)]
    expected = norms[1](second(norms[0](first(h)).relu())).relu().mean((2, 3))
    (linear,) = (m for m in head.modules() if isinstance(m, nn.Linear))
    assert torch.equal(head(h, belief), linear(torch.cat([expected, belief], -1)))


def test_a_deeper_mlp_head_is_that_many_hidden_layers() -> None:
    head = Head(torch.Size((7,)), 5, "mlp", belief=5, width=4, depth=3)
    widths = [(m.in_features, m.out_features) for m in head.modules() if isinstance(m, nn.Linear)]
    assert widths == [(12, 4), (4, 4), (4, 4), (4, 5)]
    with pytest.raises(ValueError, match="got head_depth=0"):
        Head(torch.Size((7,)), 5, "mlp", depth=0)

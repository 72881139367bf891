"""The released variant of BLL: its terms by hand, and the two things it does against its own aim."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from sidestep.methods.bll_released import BLLReleased, LocalPrediction, decorrelation, directions, prototypes
from tests import naive
from tests.conftest import CLASSES, engine_for, small_net, some_batch


def test_a_direction_is_the_pooled_maximum_centred_and_of_length_one() -> None:
    h = torch.tensor([[[[0.0, 3.0]], [[1.0, 0.5]], [[-1.0, -4.0]]]])  # (1, 3, 1, 2): maxima 3, 1, -1; mean 1
    assert torch.allclose(directions(h), torch.tensor([[2.0, 0.0, -2.0]]) / math.sqrt(8))  # one rounding of the length


def test_a_prototype_is_the_mean_of_its_class_and_zero_for_one_that_is_absent() -> None:
    n = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    target = F.one_hot(torch.tensor([0, 0, 2]), 4).float()
    assert torch.equal(prototypes(n, target), torch.tensor([[0.5, 0.5], [0, 0], [0, -1], [0, 0]]))


def test_decorrelation_is_the_mean_squared_cosine_without_a_sample_and_itself() -> None:
    n = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]])
    assert decorrelation(n).item() == pytest.approx(2 * (0.36 + 0.0 + 0.64) / 9, rel=1e-6)  # float32


def test_a_released_head_pools_to_half_of_each_side_and_has_no_bias() -> None:
    head = LocalPrediction(torch.Size([4, 8, 8]), CLASSES, trained=True)
    assert head.out.in_features == 4 * 3 * 3 and head.out.bias is None  # (8 - 3) // 2 + 1
    h = torch.randn(2, 4, 8, 8)
    assert torch.equal(head(h), F.adaptive_avg_pool2d(h, 3).flatten(1) @ head.out.weight.mT)


@pytest.mark.parametrize(
    "fields", [{}, {"similarity": "mended", "heads": "trained"}, {"denoise_weight": 0.5, "noise": 0.0}]
)
def test_a_step_follows_the_released_losses_written_out(fields: dict[str, Any]) -> None:
    """Float32 rounds a sum of five terms by some 1e-6 of its size."""
    method = BLLReleased(**fields)
    engine = engine_for(method, small_net(dropout=0.0))
    x, y = some_batch()
    found = engine.gradients((x, y))
    engine.chain.train()
    sign = 1 if method.similarity == "released" else -1
    total = naive.bll_released(engine.chain, x, y, sign, method.denoise_weight)
    total.backward()
    for name, p in engine.chain.named_parameters():
        if p.grad is not None:
            torch.testing.assert_close(found[name], p.grad, rtol=2e-5, atol=1e-6)
    assert found.keys() == {name for name, p in engine.chain.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(("heads", "moves"), [("untrained", False), ("trained", True)])
def test_the_released_heads_never_learn_and_the_mended_ones_do(heads: Any, moves: bool) -> None:
    engine = engine_for(BLLReleased(heads=heads))
    (weight,) = engine.chain.blocks[0].extras["head"].parameters()
    before = weight.detach().clone()
    for i in range(3):
        engine.step(some_batch(i))
    assert torch.equal(weight, before) is not moves


@pytest.mark.parametrize(("sign", "direction"), [("released", -1), ("mended", 1)])
def test_the_released_sign_drives_activations_away_from_their_prototypes(sign: Any, direction: int) -> None:
    """A step down the similarity term alone."""
    off: dict[str, Any] = {f"{w}_weight": 0.0 for w in ("classifier", "prediction", "decorrelation", "feedback")}
    engine = engine_for(BLLReleased(similarity=sign, similarity_weight=1.0, **off), small_net(dropout=0.0))
    x, y = some_batch()
    block = engine.chain.blocks[0]
    (weight,) = block.extras["prototypes"].parameters()

    def alignment() -> float:
        block.train()
        with torch.no_grad():
            return (weight.T[y] * directions(block.net(x))).sum().item()

    before = alignment()
    engine.step((x, y))
    assert (alignment() - before) * direction > 0


@pytest.mark.parametrize(
    "fields",
    [
        {"similarity": "up"},
        {"heads": "none"},
        {"label_smoothing": 1.0},
        {"feedback_weight": -1.0},
        {"denoise_weight": float("nan")},
        {"noise": float("inf")},
    ],
)
def test_fields_out_of_range_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"got {next(iter(fields))}=.*expected"):
        BLLReleased(**fields)


def test_under_autocast_directions_are_compared_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[torch.Tensor, torch.Tensor]] = []

    def watched(n: torch.Tensor) -> torch.Tensor:
        compared.append((n, decorrelation(n)))
        return compared[-1][1]

    monkeypatch.setattr("sidestep.methods.bll_released.decorrelation", watched)
    engine_for(BLLReleased(), small_net(dropout=0.0), autocast=torch.bfloat16).step(some_batch())
    assert compared and all(torch.equal(found, decorrelation(n)) for n, found in compared)

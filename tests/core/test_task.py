from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from sidestep.core.block import Block
from sidestep.core.cell import Batch, Cell
from sidestep.core.task import Classification, Regression, classes
from sidestep.errors import UsageError

CLASSES = 4
TASK = Classification(CLASSES, torch.zeros(1, 2, 3))
X = torch.zeros(3, 2, 3)
Y = torch.tensor([0, 3, 1])
SOFT = torch.tensor([[0.5, 0.5, 0.0, 0.0], [0.1, 0.2, 0.3, 0.4], [0.0, 0.0, 1.0, 0.0]])


def with_bad(value: float) -> Tensor:
    x = X.clone()
    x[1, 0, 2] = value
    return x


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (X[:0], Y[:0], "empty batch"),
        (X, Y[:2], "got 3 inputs and 2 labels"),
        (torch.zeros(3, 3, 2), Y, r"got inputs of shape \(3, 2\), expected \(2, 3\)"),
        (torch.zeros(3, 6), Y, r"got inputs of shape \(6,\), expected \(2, 3\)"),
        (with_bad(float("nan")), Y, "got NaN or Inf"),
        (with_bad(float("inf")), Y, "got NaN or Inf"),
        (with_bad(-float("inf")), Y, "got NaN or Inf"),
        (X, torch.tensor([0, 4, 1]), r"got labels 0\.\.4, expected 0\.\.3"),
        (X, torch.tensor([0, -1, 1]), r"got labels -1\.\.1, expected 0\.\.3"),
        (X, torch.tensor([0, -100, 1]), r"got labels -100\.\.1.*-100 is not ignored"),
        (X, Y.int(), r"shape \(3,\) and torch.int32, expected \(B,\) class indices of torch.int64"),
        (X, Y.float(), r"torch.float32, expected \(B,\) class indices"),
        (X, Y[:, None], r"got labels of shape \(3, 1\) and torch.int64"),
        (X, SOFT[:, :, None], r"got labels of shape \(3, 4, 1\)"),
        (X, F.one_hot(Y, CLASSES), "torch.int64, expected .* soft labels of a floating type"),
        (X, SOFT[:, :3], "got soft labels over 3 classes, expected 4"),
        (X, 2 * SOFT, "no distribution"),
        (X, SOFT * torch.tensor(float("nan")), "no distribution"),
        (X, SOFT + torch.tensor([-0.5, 0.5, 0.0, 0.0]) * (SOFT[:, :1] == 0), "no distribution"),
    ],
)
def test_a_batch_that_cannot_be_learnt_from_is_refused(x: Tensor, y: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message) as refused:
        TASK.check(x, y)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("y", [Y, SOFT, SOFT.bfloat16(), SOFT.double()], ids=["hard", "soft", "bf16", "double"])
def test_a_good_batch_passes(y: Tensor) -> None:
    TASK.check(X, y)


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (X.double(), Y, r"got inputs of torch\.float64, expected torch\.float32 as the task's sample; convert them\."),
        (X.numpy(), Y, r"got inputs of type ndarray, expected a tensor: a batch is \(x, y\)\."),
        ({"x": X}, Y, "got inputs of type dict"),
        (X, Y.numpy(), "got targets of type ndarray"),
        (X, [0, 3, 1], "got targets of type list"),
    ],
)
def test_what_is_no_tensor_or_of_another_precision_is_refused(x: Any, y: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TASK.check(x, y)


def test_an_answer_of_another_shape_is_refused() -> None:
    TASK.check_answer(torch.Size([1, CLASSES]))
    with pytest.raises(UsageError, match=r"answers with shape \(3,\), expected \(4,\) logits for the data's 4 classes"):
        TASK.check_answer(torch.Size([1, 3]))
    with pytest.raises(UsageError, match=r"answers with shape \(2,\), expected \(4,\) means and log-precisions"):
        NUMBERS.check_answer(torch.Size([1, 2]))


def test_integer_inputs_pass() -> None:
    TASK.check(X.to(torch.uint8), Y)


def test_targets_by_hand() -> None:
    """s = 0.2 over 4 classes: 0.05 everywhere, and 0.8 more on the label."""
    expected = torch.tensor([[0.85, 0.05, 0.05, 0.05], [0.05, 0.05, 0.05, 0.85], [0.05, 0.85, 0.05, 0.05]])
    torch.testing.assert_close(TASK.target(Y, 0.2), expected, rtol=1e-6, atol=0)  # 0.85 is no float32
    assert torch.equal(TASK.target(Y), F.one_hot(Y, CLASSES).float())
    assert torch.equal(TASK.target(SOFT), SOFT)


@given(st.floats(0, 0.99), st.booleans())
def test_targets_sum_to_one_and_loss_is_the_cross_entropy_with_them(smoothing: float, soft: bool) -> None:
    logits = torch.randn(3, CLASSES, generator=torch.Generator().manual_seed(0))
    y = SOFT if soft else Y
    target = TASK.target(y, smoothing)
    # Float32: four terms are added, each off by one rounding; torch's loss takes the smoothed part apart.
    torch.testing.assert_close(target.sum(-1), torch.ones(3), rtol=1e-6, atol=0)
    expected = -(target * F.log_softmax(logits, -1)).sum(-1).mean()
    torch.testing.assert_close(TASK.loss(logits, y, smoothing), expected, rtol=1e-6, atol=1e-7)


def test_the_loss_of_half_precision_logits_is_computed_in_float32() -> None:
    logits = torch.randn(3, CLASSES).bfloat16()
    assert torch.equal(TASK.loss(logits, Y), F.cross_entropy(logits.float(), Y))


def test_a_batchs_target_is_made_once_for_each_smoothing() -> None:
    batch = Batch(X, Y)
    cells = [Cell(Block(n, 2, nn.Identity()), batch, TASK, (), {}, key=0) for n in range(2)]
    assert cells[0].target(0.2) is cells[1].target(0.2)
    for smoothing in (0.2, 0.0):
        assert torch.equal(cells[1].target(smoothing), TASK.target(Y, smoothing))


TOKENS = Classification(CLASSES, torch.zeros(1, 2, dtype=torch.int64), per_token=True)
WORDS = torch.tensor([[0, 1], [3, 2], [2, 2]])


@pytest.mark.parametrize(
    ("y", "message"),
    [
        (Y, r"got labels of shape \(3,\) and torch.int64, expected \(B, T\) class indices of torch.int64\.$"),
        (WORDS[:, :1], r"got labels of shape \(3, 1\)"),
        (torch.ones(3, 2), "torch.float32, expected"),
        (WORDS + 2, r"got labels 2\.\.5, expected 0\.\.3"),
    ],
)
def test_labels_of_tokens_that_cannot_be_learnt_from_are_refused(y: Tensor, message: str) -> None:
    TOKENS.check(WORDS, WORDS)
    with pytest.raises(ValueError, match=message):
        TOKENS.check(WORDS, y)


def test_the_loss_of_tokens_is_that_of_as_many_samples() -> None:
    logits = torch.randn(3, 2, CLASSES, generator=torch.Generator().manual_seed(0))
    whole = Classification(CLASSES, X[:1])
    for smoothing in (0.0, 0.2):
        assert torch.equal(
            TOKENS.loss(logits, WORDS, smoothing), whole.loss(logits.flatten(0, 1), WORDS.flatten(), smoothing)
        )
        target = TOKENS.target(WORDS, smoothing)
        assert torch.equal(target.flatten(0, 1), whole.target(WORDS.flatten(), smoothing))


NUMBERS = Regression(torch.Size([2]), torch.zeros(1, 2, 3))


def test_a_regressions_loss_is_the_gaussians() -> None:
    """Means 1, 2 and precisions 1, 4 of targets 3, 2: nll (log 2pi + 4) / 2 and (log 2pi - log 4) / 2."""
    answer = torch.tensor([[1.0, 2.0, 0.0, math.log(4)]])
    y = torch.tensor([[3.0, 2.0]])
    expected = torch.tensor([[(math.log(2 * math.pi) + 4) / 2, (math.log(2 * math.pi) - math.log(4)) / 2]])
    surprise = NUMBERS.surprise(answer, y)
    torch.testing.assert_close(surprise, expected)  # float32: logarithms, and exp(log 4), are rounded
    assert torch.equal(NUMBERS.loss(answer, y), surprise.mean())
    law = torch.distributions.Normal(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 0.5]))
    torch.testing.assert_close(surprise, -law.log_prob(y))  # as above
    assert NUMBERS.answer_shape(X) == (3, 4) and NUMBERS.outputs == 4


def test_a_deviation_narrower_than_a_byte_is_not_believed() -> None:
    sure = torch.tensor([[0.0, 0.0, 50.0, 50.0]])
    found = NUMBERS.loss(sure, torch.zeros(1, 2)).item()
    assert found == pytest.approx(math.log(2 * math.pi) / 2 - 7, rel=1e-6)  # float32


@pytest.mark.parametrize(
    ("y", "message"),
    [
        (Y, r"got targets of shape \(3,\) and torch.int64, expected \(B, 2\) of a floating type"),
        (torch.zeros(3, 3), r"got targets of shape \(3, 3\)"),
        (torch.tensor([[0.0, 1.0], [float("nan"), 0.0], [0.0, 0.0]]), "got NaN or Inf in the targets"),
    ],
)
def test_numbers_that_cannot_be_learnt_from_are_refused(y: Tensor, message: str) -> None:
    NUMBERS.check(X, torch.zeros(3, 2))
    with pytest.raises(ValueError, match=message):
        NUMBERS.check(X, y)


def test_what_is_of_classes_only_is_refused_for_numbers() -> None:
    with pytest.raises(ValueError, match=r"label_smoothing=0\.1 for targets that are numbers, expected 0"):
        NUMBERS.loss(torch.zeros(3, 4), torch.zeros(3, 2), 0.1)
    with pytest.raises(ValueError, match="sid is for classes, got targets that are numbers; sidestep methods says who"):
        classes(NUMBERS, "sid")
    assert classes(TASK, "sid") is TASK

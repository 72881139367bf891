"""A label for every token: what a method makes of tokens that do not see each other, it makes of as many samples."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sidestep.core.cut import CutPlan
from sidestep.core.method import Method
from sidestep.core.task import Classification
from sidestep.engines.streaming import Streaming
from sidestep.methods.bll_released import BLLReleased
from tests.conftest import CASES, Case, sgd

CLASSES, FEATURES = 5, 6
TOKEN_CASES = [case for case in CASES if case.method.__class__ is not BLLReleased]


def tokens(b: int = 3, t: int = 4) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    return torch.randn(b, t, FEATURES, generator=g), torch.randint(CLASSES, (b, t), generator=g)


def net() -> nn.Sequential:
    """Linear layers: what they make of a token does not depend on the others."""
    torch.manual_seed(0)
    hidden = [part for _ in range(2) for part in (nn.Linear(8, 8), nn.ReLU())]
    return nn.Sequential(nn.Linear(FEATURES, 8), nn.ReLU(), *hidden, nn.Linear(8, CLASSES))


def engine(method: Method, sample: Tensor, *, per_token: bool) -> Streaming:
    model = net()
    task = Classification(CLASSES, sample, per_token=per_token)
    torch.manual_seed(1)
    return Streaming(method, method.build(model, task, CutPlan(blocks=3)), task, sgd())


def on_vectors(method: Any) -> Method:
    """The same, with nothing that asks for feature maps."""
    return replace(method, head="mlp") if getattr(method, "head", "") == "conv" else method


@pytest.mark.parametrize("row", TOKEN_CASES, ids=[case.id for case in TOKEN_CASES])
def test_tokens_that_do_not_see_each_other_are_learnt_from_as_samples(row: Case) -> None:
    """Gradients and logits.  Tolerance: a product over (B, T) rows may be computed in other blocks than over B T."""
    method = on_vectors(row.method)
    x, y = tokens()
    one, many = engine(method, x[:2], per_token=True), engine(method, x[0], per_token=False)
    many.chain.load_state_dict(one.chain.state_dict())
    flat = x.flatten(0, 1), y.flatten()
    found, expected = one.gradients((x, y)), many.gradients(flat)
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-7, msg=name)
    for logits, other in zip(one.predict(x), many.predict(flat[0]), strict=True):
        assert (logits is None) == (other is None)
        if logits is not None and other is not None:
            assert logits.shape == (3, 4, CLASSES)
            torch.testing.assert_close(logits.flatten(0, 1), other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("row", TOKEN_CASES, ids=[case.id for case in TOKEN_CASES])
def test_what_is_exported_answers_for_every_token(row: Case) -> None:
    x, y = tokens()
    made = engine(on_vectors(row.method), x[:2], per_token=True)
    made.step((x, y))
    answer = made.predict(x)[-1]
    assert answer is not None
    exported = row.method.export(made.inference_chain).eval()
    torch.testing.assert_close(exported(x), answer, rtol=1e-5, atol=1e-6)  # in eval mode the same, but for autocast


def test_the_released_bll_refuses_a_label_for_every_token() -> None:
    with pytest.raises(ValueError, match="got a label for every token; use bll"):
        engine(BLLReleased(), tokens()[0][:2], per_token=True)

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sidestep.engines.update import UpdateRule
from sidestep.methods.local_ce import LocalCE
from sidestep.models.mlp import resmlp
from tests.conftest import CLASSES, engine_for, small_net, some_batch

STEPS = 3


def plain_sgd(parameters: Any) -> torch.optim.SGD:
    return torch.optim.SGD(parameters, lr=0.1)


@pytest.mark.parametrize(
    ("smoothing", "of_block"), [(0.0, [0.0, 0.0, 0.0]), (0.1, [0.1, 0.1, 0.1]), ("sid:0.5", [0.5, 0.25, 0.125])]
)
def test_training_is_the_greedy_loop_of_the_paper_bit_for_bit(smoothing: float | str, of_block: list[float]) -> None:
    engine = engine_for(LocalCE(label_smoothing=smoothing), small_net(dropout=0.0), UpdateRule(plain_sgd))
    twins = copy.deepcopy(engine.chain.blocks)
    for step in range(STEPS):
        x, y = some_batch(step)
        found = engine.step((x, y)).loss
        for twin, s in zip(twins, of_block, strict=True):
            out = twin.net(x)
            logits = out if twin.is_last else twin.extras["head"](out)
            loss = F.cross_entropy(logits, y, label_smoothing=s)
            parameters = list(twin.parameters())
            gradients = torch.autograd.grad(loss, parameters)
            with torch.no_grad():
                for p, gradient in zip(parameters, gradients, strict=True):
                    p.sub_(gradient, alpha=0.1)
            assert torch.equal(found[twin.index], loss.detach())
            x = out.detach()
    for block, twin in zip(engine.chain.blocks, twins, strict=True):
        for (name, a), b in zip(block.state_dict().items(), twin.state_dict().values(), strict=True):
            assert torch.equal(a, b), name


def test_the_last_read_out_is_the_models_own_classifier() -> None:
    model = small_net()
    classifier = model[-1]
    assert isinstance(classifier, nn.Linear)
    chain = engine_for(LocalCE(), model).chain
    assert [list(block.extras) for block in chain.blocks] == [["head"], ["head"], []]
    assert any(p is classifier.weight for p in chain.blocks[-1].parameters())


def test_soft_labels_are_learnt_like_the_hard_ones_they_stand_for() -> None:
    x, y = some_batch()
    found: list[dict[str, Tensor]] = []
    for labels in (y, F.one_hot(y, 5).float()):
        found.append(engine_for(LocalCE(label_smoothing=0.1)).gradients((x, labels)))
    for name, gradient in found[0].items():
        # Soft labels are a sum over classes, of which all but one term are 0, divided by the batch at another place.
        torch.testing.assert_close(found[1][name], gradient, rtol=1e-4, atol=1e-6)


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match=r"got label_smoothing=1\.5"):
        LocalCE(label_smoothing=1.5)
    head: Any = "tree"
    with pytest.raises(ValueError, match="got head='tree', expected one of"):
        engine_for(LocalCE(head=head))
    with pytest.raises(ValueError, match="got head_width=64 with head='linear', which does not read it"):
        LocalCE(head="linear", head_width=64)
    with pytest.raises(ValueError, match=r"got 2 values of alpha='1,0.5' for 3 blocks"):
        engine_for(LocalCE(label_smoothing="sid:1,0.5"))


def test_the_last_block_may_have_a_head_like_the_others_which_is_exported_with_it() -> None:
    method = LocalCE(last="head")
    engine = engine_for(method)
    assert all("head" in block.extras for block in engine.chain.blocks)
    exported = sum(p.numel() for p in method.export(engine.inference_chain).parameters())
    nets = sum(p.numel() for block in engine.chain.blocks for p in block.net.parameters())
    assert exported == nets + sum(p.numel() for p in engine.chain.blocks[-1].extras.parameters())
    with pytest.raises(ValueError, match="got last='both', expected one of classifier, head"):
        LocalCE(last="both")  # pyright: ignore[reportArgumentType]  # the wrong word is the test


def test_heads_on_sums_of_residual_branches_normalise_them_as_the_classifier_does() -> None:
    model = resmlp((2, 8, 8), CLASSES, depth=3, width=6)
    x, _ = some_batch()
    for block in engine_for(LocalCE(), model).chain.blocks[:-1]:
        head = block.extras["head"]
        parameters = dict(head.named_parameters())
        assert sorted(parameters) == ["out.0.bias", "out.0.weight", "trunk.0.bias", "trunk.0.weight"]
        with torch.no_grad():
            x = block.net(x)
            parameters["trunk.0.weight"].copy_(torch.arange(6))
            normalised = F.layer_norm(x, (6,), parameters["trunk.0.weight"], parameters["trunk.0.bias"], 1e-6)
            expected = F.linear(normalised, parameters["out.0.weight"], parameters["out.0.bias"])
        assert torch.equal(head(x), expected)

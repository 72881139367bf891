"""SID against the published algorithm written out: a first sweep without a graph caches beliefs, a second one learns.

B batch, C classes.  The network is an MLP of tanh units without BatchNorm and dropout.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, Literal

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sidestep.core.block import Chain
from sidestep.core.cut import CutPlan
from sidestep.core.task import Classification
from sidestep.engines.streaming import Streaming
from sidestep.engines.update import UpdateRule
from sidestep.measure.descent import QUANTILES, summarise
from sidestep.methods.sid import SID
from sidestep.models.mlp import resmlp
from sidestep.nn.beliefs import Direction, local_objective, population
from tests.conftest import BLOCKS, CLASSES, engine_for, some_batch

STEPS = 3
RATE = 0.1
ALPHA = (0.9, 0.5, 0.2)

Objective = Callable[[Tensor, Tensor, Tensor, float], Tensor]  # (t, log p, log p_before, alpha) -> ()


def mlp() -> nn.Sequential:
    torch.manual_seed(0)
    units = [nn.Sequential(nn.Linear(128 if i == 0 else 16, 16), nn.Tanh()) for i in range(4)]
    return nn.Sequential(nn.Flatten(), *units, nn.Linear(16, CLASSES))


def engine_of(**fields: Any) -> Streaming:
    rule = UpdateRule(lambda parameters: torch.optim.SGD(parameters, lr=RATE))
    return engine_for(SID(**fields), mlp(), rule)


# ---- the published algorithm


def released(t: Tensor, log_p: Tensor, log_prev: Tensor, alpha: float) -> Tensor:
    toward = alpha * F.kl_div(log_p, t, reduction="batchmean")
    return toward + (1 - alpha) * F.kl_div(log_p, log_prev.exp(), reduction="batchmean")


def published(t: Tensor, log_p: Tensor, log_prev: Tensor, alpha: float) -> Tensor:
    toward = alpha * F.kl_div(t.log(), log_p, reduction="batchmean", log_target=True)
    return toward + (1 - alpha) * F.kl_div(log_prev, log_p, reduction="batchmean", log_target=True)


def ours(direction: Direction) -> Objective:
    return lambda t, log_p, log_prev, alpha: local_objective(t, log_p, log_prev, alpha, direction).mean()


def target_of(y: Tensor, smoothing: float) -> Tensor:
    one_hot = F.one_hot(y, CLASSES).float()
    return torch.lerp(one_hot, torch.full_like(one_hot, 1 / CLASSES), smoothing) if smoothing else one_hot


def first_belief(x: Tensor) -> Tensor:
    return torch.full((len(x), CLASSES), 1 / CLASSES).log()


def trunk_step(chain: Chain, x: Tensor, t: Tensor, objective: Objective) -> list[Tensor]:
    """One SGD step of all blocks; their losses."""
    cached: list[tuple[Tensor, Tensor]] = []  # what enters each block
    with torch.no_grad():
        h, log_p = x, first_belief(x)
        for block in chain.blocks:
            cached.append((h, log_p))
            h = block.net(h)
            log_p = F.log_softmax(block.extras["head"](h, log_p.exp()), -1)
    losses: list[Tensor] = []
    for block, (h, log_prev), alpha in zip(chain.blocks, cached, ALPHA, strict=True):
        log_p = F.log_softmax(block.extras["head"](block.net(h), log_prev.exp()), -1)
        losses.append(objective(t, log_p, log_prev, alpha))
    for block, loss in zip(chain.blocks, losses, strict=True):
        descend(block, list(torch.autograd.grad(loss, list(block.parameters()))))
    return [loss.detach() for loss in losses]


def shared_step(
    chain: Chain,
    x: Tensor,
    t: Tensor,
    objective: Objective,
    fold: Callable[[list[Tensor]], list[Tensor]] = lambda gradients: gradients,
) -> list[Tensor]:
    """One SGD step of the modules, each on its own loss, and of the extractor on the sum of all, added up by `fold`."""
    assert chain.hub is not None
    cached = [first_belief(x)]
    with torch.no_grad():
        z = chain.hub(x)
        for block in chain.blocks:
            cached.append(F.log_softmax(block.net(z, cached[-1].exp()), -1))
    z = chain.hub(x)
    losses: list[Tensor] = []
    at_modules: list[list[Tensor]] = []
    at_features: list[Tensor] = []
    for block, log_prev, alpha in zip(chain.blocks, cached, ALPHA, strict=False):
        own = z.detach().requires_grad_()
        loss = objective(t, F.log_softmax(block.net(own, log_prev.exp()), -1), log_prev, alpha)
        gradients = torch.autograd.grad(loss, [own, *block.parameters()])
        at_features.append(gradients[0])
        at_modules.append(list(gradients[1:]))
        losses.append(loss.detach())
    total, *others = fold(at_features)
    for gradient in others:
        total = total + gradient
    at_hub = torch.autograd.grad(z, list(chain.hub.parameters()), total)
    for block, gradients in zip(chain.blocks, at_modules, strict=True):
        descend(block, gradients)
    descend(chain.hub, list(at_hub))
    return losses


@torch.no_grad()
def descend(part: nn.Module, gradients: list[Tensor]) -> None:
    for p, gradient in zip(part.parameters(), gradients, strict=True):
        p.sub_(gradient, alpha=RATE)


DIRECTIONS: dict[Direction, tuple[Objective, float]] = {"code": (released, 0.0), "paper": (published, 0.1)}


@pytest.mark.parametrize("form", ["trunk", "shared"])
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_training_is_the_two_phase_algorithm_bit_for_bit(form: str, direction: Direction) -> None:
    """With our objective in both: that one sweep computes what two do is then a claim without a tolerance."""
    smoothing = DIRECTIONS[direction][1]
    engine = engine_of(form=form, direction=direction, alpha=ALPHA, label_smoothing=smoothing)
    twin = copy.deepcopy(engine.chain)
    step = trunk_step if form == "trunk" else shared_step
    for i in range(STEPS):
        x, y = some_batch(i)
        losses = step(twin, x, target_of(y, smoothing), ours(direction))
        assert torch.equal(engine.step((x, y)).loss, torch.stack(losses))
    for (name, a), (_, b) in zip(engine.chain.named_parameters(), twin.named_parameters(), strict=True):
        assert torch.equal(a, b), name


@pytest.mark.parametrize("form", ["trunk", "shared"])
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_training_is_the_two_phase_algorithm_with_torchs_divergences(form: str, direction: Direction) -> None:
    """Tolerance: F.kl_div takes the two terms apart and sums over batch and classes at once, in float32."""
    objective, smoothing = DIRECTIONS[direction]
    engine = engine_of(form=form, direction=direction, alpha=ALPHA, label_smoothing=smoothing)
    twin = copy.deepcopy(engine.chain)
    step = trunk_step if form == "trunk" else shared_step
    for i in range(STEPS):
        x, y = some_batch(i)
        losses = step(twin, x, target_of(y, smoothing), objective)
        torch.testing.assert_close(engine.step((x, y)).loss, torch.stack(losses), rtol=1e-5, atol=1e-6)
    for (name, a), (_, b) in zip(engine.chain.named_parameters(), twin.named_parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6, msg=name)


# ---- the extractor


def hub_part(gradients: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: g for name, g in gradients.items() if name.startswith("hub.")}


def test_the_extractors_gradient_is_the_sum_of_the_blocks() -> None:
    """Tolerance: summed at the features, before one backward pass, or at the parameters after three."""
    engine = engine_of(form="shared", alpha=ALPHA)
    batch = some_batch()
    apart = [hub_part(engine.gradients(batch, losses={n})) for n in range(BLOCKS)]
    assert len(apart[0]) == 8
    for name, whole in hub_part(engine.gradients(batch)).items():
        torch.testing.assert_close(whole, apart[0][name] + apart[1][name] + apart[2][name], rtol=1e-5, atol=1e-7)
        assert all(bool(one[name].any()) for one in apart)


def test_the_blocks_gradients_are_folded_in_their_order() -> None:
    """Another order has other bits: the bit-for-bit test of the shared form sees the difference."""
    engine = engine_of(form="shared", alpha=ALPHA)
    backwards = copy.deepcopy(engine.chain)
    x, y = some_batch()
    shared_step(backwards, x, target_of(y, 0.0), ours("code"), fold=lambda gradients: gradients[::-1])
    engine.step((x, y))
    assert engine.chain.hub is not None and backwards.hub is not None
    pairs = zip(engine.chain.hub.parameters(), backwards.hub.parameters(), strict=True)
    assert not all(torch.equal(a, b) for a, b in pairs)


# ---- what the fields mean


@pytest.mark.parametrize("form", ["trunk", "shared"])
def test_alpha_1_is_local_cross_entropy_that_sees_the_belief_before(form: str) -> None:
    """Tolerance: cross_entropy picks the label's logarithm where the objective sums over all classes."""
    engine = engine_of(form=form, alpha=1)
    x, y = some_batch()
    found = engine.gradients((x, y))
    h, p = (x if engine.chain.hub is None else engine.chain.hub(x).detach()), torch.full((len(x), CLASSES), 1 / CLASSES)
    for block in engine.chain.blocks:
        if form == "trunk":
            h = block.net(h.detach())
        logits = block.extras["head"](h, p) if form == "trunk" else block.net(h, p)
        gradients = torch.autograd.grad(F.cross_entropy(logits, y), list(block.parameters()))
        for (name, _), gradient in zip(block.named_parameters(), gradients, strict=True):
            torch.testing.assert_close(found[f"blocks.{block.index}.{name}"], gradient, rtol=1e-4, atol=1e-6)
        p = logits.detach().softmax(-1)


@pytest.mark.parametrize("form", ["trunk", "shared"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_soft_one_hot_label_is_the_hard_one(form: str, dtype: torch.dtype) -> None:
    x, y = some_batch()
    engines = [engine_of(form=form, label_smoothing=0.1) for _ in range(2)]
    for engine, labels in zip(engines, (y, F.one_hot(y, CLASSES).to(dtype)), strict=True):
        engine.step((x, labels))
    for (name, a), (_, b) in zip(*(e.chain.named_parameters() for e in engines), strict=True):
        assert torch.equal(a, b), name


def test_mixed_labels_are_the_target() -> None:
    """Mixup: the objective of the first block is alpha KL(t || p) + (1-alpha) KL(u || p) with t as given."""
    x, y = some_batch()
    mixed = 0.7 * F.one_hot(y, CLASSES).float() + 0.3 * F.one_hot(y.flip(0), CLASSES).float()
    engine = engine_of(alpha=0.4)
    block = copy.deepcopy(engine.chain.blocks[0])
    with torch.no_grad():
        log_p = F.log_softmax(block.extras["head"](block.net(x), first_belief(x).exp()), -1)
    expected = released(mixed, log_p, first_belief(x), 0.4)
    # As above: the same sum in another order.
    torch.testing.assert_close(engine.step((x, mixed)).loss[0], expected, rtol=1e-5, atol=1e-6)


def test_one_weight_per_block_reaches_its_block() -> None:
    """Another weight of the second block changes its loss and, within the step, no other's."""
    x, y = some_batch()
    base = engine_of(alpha="0.5,0.5,0.5").step((x, y)).loss
    other = engine_of(alpha="0.5,0.25,0.5").step((x, y)).loss
    assert torch.equal(base[0], other[0])
    assert not torch.equal(base[1], other[1])
    assert torch.equal(base[2], other[2])


def test_the_shared_form_keeps_everything_but_the_classifier() -> None:
    model = mlp()
    classifier = model[-1]
    assert isinstance(classifier, nn.Linear)
    engine = engine_for(SID(form="shared", hidden=32), model)
    assert engine.chain.hub is not None
    body = {id(p) for p in model.parameters()} - {id(p) for p in classifier.parameters()}
    assert {id(p) for p in engine.chain.hub.parameters()} == body
    widths = [
        [layer.weight.shape for layer in b.modules() if isinstance(layer, nn.Linear)] for b in engine.chain.blocks
    ]
    assert widths == [[(32, 16 + CLASSES), (CLASSES, 32)]] * BLOCKS


def test_sums_of_residual_branches_are_normalised_before_they_are_read() -> None:
    torch.manual_seed(0)
    model, x = resmlp((2, 8, 8), CLASSES, depth=3, width=6), some_batch()[0]
    body = nn.Sequential(*list(model.chain().values())[:-1])
    with torch.no_grad():
        expected = F.layer_norm(body(x), (6,), eps=1e-6)
        hub = engine_for(SID(form="shared"), model).chain.hub
        assert hub is not None and torch.equal(hub(x), expected)
        last = engine_for(SID(belief="none"), model).chain.blocks[-1]
        out = last.extras["head"].get_submodule("out")
        assert torch.equal(last.extras["head"](body(x)), out(expected))


def test_the_trunk_form_shares_nothing_and_leaves_the_classifier_out() -> None:
    model = mlp()
    classifier = model[-1]
    assert isinstance(classifier, nn.Linear)
    chain = engine_for(SID(), model).chain
    assert chain.hub is None
    trained = {id(p) for _, p in chain.named_parameters()}
    assert not trained & {id(p) for p in classifier.parameters()}
    assert trained >= {id(p) for p in model[:-1].parameters()}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"direction": "paper"}, "direction='paper' has KL.* give label_smoothing > 0"),
        ({"direction": "sideways"}, "got direction='sideways', expected one of code, paper"),
        ({"form": "twisted"}, "got form='twisted', expected one of trunk, shared"),
        ({"alpha": 0.0}, r"got alpha=0.0, expected values in \(0, 1\]"),
        ({"alpha": 1.5}, "got alpha=1.5, expected values in"),
        ({"alpha": "0.5,-1"}, "got alpha=0.5,-1, expected values in"),
        ({"label_smoothing": 1.0}, r"got label_smoothing=1.0, expected a number in \[0, 1\)"),
        ({"label_smoothing": -0.1}, "got label_smoothing=-0.1, expected a number in"),
        ({"head_width": 0}, "got head_width=0, expected at least 1"),
        ({"head_depth": 0}, "got head_depth=0, expected at least 1"),
        ({"hidden": 512}, "got hidden=512 with form='trunk', which does not read it; leave it out, or use form=shared"),
        ({"module_norm": True}, "got module_norm=True with form='trunk', which does not read it"),
        ({"form": "shared", "head_width": 64}, "got head_width=64 with form='shared', .* or use form=trunk"),
        ({"head": "linear", "head_depth": 2}, "got head_depth=2 with head='linear', .* use head=auto or conv or mlp"),
    ],
)
def test_fields_out_of_range_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SID(**fields)


def test_modules_without_hidden_units_are_refused_when_the_network_is_cut() -> None:
    with pytest.raises(ValueError, match="got hidden=0, expected at least 1"):
        engine_for(SID(form="shared", hidden=0), mlp())


def test_cut_points_are_refused_where_nothing_is_cut() -> None:
    with pytest.raises(ValueError, match="got at=1 with form='shared', which does not cut; leave it out"):
        SID(form="shared").build(mlp(), Classification(CLASSES, some_batch()[0][:2]), CutPlan(2, at=("1",)))


@pytest.mark.parametrize("form", ["trunk", "shared"])
def test_another_number_of_weights_than_blocks_is_refused_when_the_network_is_cut(
    form: Literal["trunk", "shared"],
) -> None:
    with pytest.raises(ValueError, match=r"got 2 values of alpha='1,0.5' for 3 blocks"):
        engine_for(SID(alpha="1,0.5", form=form), mlp())


# ---- what is measured of the theory


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_descent_is_measured_on_the_models_beliefs(direction: Direction) -> None:
    """By hand from the logits; e from the losses, since it is their difference.  Float64 throughout."""
    smoothing, y = 0.1, some_batch()[1]
    method, task = (
        SID(alpha=ALPHA, direction=direction, label_smoothing=smoothing),
        Classification(CLASSES, some_batch()[0][:1]),
    )
    logits = [torch.randn(16, CLASSES, generator=torch.Generator().manual_seed(n)) for n in range(BLOCKS)]
    found = method.descent(logits, y, task)
    t = target_of(y, smoothing).double()
    beliefs = [torch.full_like(t, 1 / CLASSES), *(one.double().softmax(-1) for one in logits)]

    def far(q: Tensor) -> Tensor:
        return (t * (t / q).log()).sum(-1) if direction == "code" else (q * (q / t).log()).sum(-1)

    close: dict[str, Any] = {"rtol": 1e-6, "atol": 1e-6}  # p_0 and the smoothed target are made in float32
    torch.testing.assert_close(found["D"], torch.stack([far(p) for p in beliefs]), **close)
    torch.testing.assert_close(found["identity"], torch.zeros(1, 16).double(), rtol=0, atol=1e-9)
    one_hot = F.one_hot(y, CLASSES).double()
    predicted = [far(p) for p in (beliefs[0], *population(one_hot, ALPHA, smoothing, direction))]
    torch.testing.assert_close(found["D_population"], torch.stack(predicted), **close)
    sure = method.descent(logits, y, task, p_y=one_hot)
    assert torch.equal(sure["D_population"], found["D_population"])
    unsure = method.descent(logits, y, task, p_y=0.5 * one_hot + 0.5 / CLASSES)
    assert bool((unsure["D_population"][1:] > found["D_population"][1:]).all())


def test_descent_of_one_hot_targets_is_finite() -> None:
    found = SID(alpha=1).descent(
        [10 * torch.randn(16, CLASSES) for _ in range(BLOCKS)],
        some_batch()[1],
        Classification(CLASSES, torch.zeros(1, 1)),
    )
    assert all(bool(value.isfinite().all()) for value in found.values())
    assert torch.equal(found["D_population"][1:], torch.zeros(BLOCKS, 16).double())  # certain labels are reached


def test_the_summary_is_over_all_samples_of_all_batches() -> None:
    """Two batches of 2 and 1 samples of one block."""
    parts = [
        {
            "D": torch.tensor([[3.0, 1.0], [2.0, 0.0]]),
            "C": torch.tensor([[1.0, 2.0]]),
            "e": torch.tensor([[-1.0, 1.0]]),
            "identity": torch.tensor([[0.0, -1e-7]]),
        },
        {
            "D": torch.tensor([[2.0], [1.0]]),
            "C": torch.tensor([[6.0]]),
            "e": torch.tensor([[-3.0]]),
            "identity": torch.tensor([[2e-9]]),
        },
    ]
    found = summarise(parts)
    assert found["D"] == [2.0, 1.0]
    assert found["C"] == [3.0]
    assert found["e"] == [-1.0]
    assert found["e_positive"] == [pytest.approx(1 / 3)]
    assert found["identity"] == pytest.approx(1e-7)
    assert found["samples"] == 3
    quantiles = found["e_quantiles"]
    assert isinstance(quantiles, list)
    # -3, -1, 1: linear between them.
    assert quantiles[0] == pytest.approx([4 * q - 3 for q in QUANTILES])


def test_a_method_without_such_a_theory_has_no_summary() -> None:
    assert summarise([]) == {}
    assert summarise([{}, {}]) == {}


def test_parallel_heads_export_the_last_head_only() -> None:
    method = SID(belief="none")
    engine = engine_for(method)
    exported = method.export(engine.inference_chain)
    heads = [sum(p.numel() for p in b.extras["head"].parameters()) for b in engine.chain.blocks]
    nets = sum(p.numel() for b in engine.chain.blocks for p in b.net.parameters())
    assert sum(p.numel() for p in exported.parameters()) == nets + heads[-1]


def test_parallel_heads_wait_for_nothing_in_the_shared_form() -> None:
    """No belief is passed, so the only lock left is the extractor's."""
    derived = engine_for(SID(form="shared", belief="none")).derived
    assert derived.locks == {"forward": False, "backward": False, "update": True}
    assert engine_for(SID(form="shared")).derived.locks["forward"]

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from sidestep.core.cut import CutPlan
from sidestep.core.method import Method
from sidestep.core.task import Classification
from sidestep.engines.streaming import Streaming
from sidestep.engines.update import UpdateRule
from sidestep.measure.flops import flops_per_sample
from sidestep.methods.backprop import Backprop, BackpropCheckpointed
from sidestep.methods.local_ce import LocalCE

BATCH = 6
FIRST, SECOND, READ_OUT = 2 * 12 * 20, 2 * 20 * 20, 2 * 20 * 5  # FLOPs a sample: 2 MACs per weight


def engine(method: Method) -> Streaming:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(12, 20), nn.ReLU(), nn.Linear(20, 20), nn.ReLU(), nn.Linear(20, 5))
    task = Classification(5, torch.randn(2, 12))
    chain = method.build(net, task, CutPlan(blocks=2))
    return Streaming(method, chain, task, UpdateRule(lambda ps: torch.optim.SGD(ps, lr=0.1)))


def cost(method: Method) -> tuple[float, float]:
    """FLOPs a sample of a training step, and of a prediction."""
    x, y = torch.randn(BATCH, 12), torch.randint(5, (BATCH,))
    e = engine(method)
    return flops_per_sample(lambda: e.step((x, y)), BATCH), flops_per_sample(lambda: e.predict(x), BATCH)


def test_a_linear_layer_takes_two_flops_per_weight_and_as_many_for_each_gradient() -> None:
    layer, x = nn.Linear(12, 20), torch.randn(BATCH, 12)
    assert flops_per_sample(lambda: layer(x), BATCH) == FIRST
    assert flops_per_sample(lambda: layer(x).sum().backward(), BATCH) == 2 * FIRST
    assert flops_per_sample(lambda: layer(x.requires_grad_()).sum().backward(), BATCH) == 3 * FIRST


def test_a_convolution_takes_two_flops_per_weight_and_position() -> None:
    conv, x = nn.Conv2d(3, 8, 5, stride=2, padding=2), torch.randn(BATCH, 3, 9, 9)
    assert flops_per_sample(lambda: conv(x), BATCH) == 2 * (3 * 5 * 5) * 8 * (5 * 5)


def test_attention_counts_as_its_two_products() -> None:
    heads, tokens, width = 3, 10, 4
    q = torch.randn(BATCH, heads, tokens, width, requires_grad=True)
    products = 2 * (2 * heads * tokens * tokens * width)
    assert flops_per_sample(lambda: F.scaled_dot_product_attention(q, q, q), BATCH) == products


def test_backprop_takes_a_forward_and_two_products_backward_but_none_for_the_datas_gradient() -> None:
    step, predict = cost(Backprop())
    assert predict == FIRST + SECOND + READ_OUT
    assert step == 3 * predict - FIRST


def test_checkpointing_takes_one_forward_more() -> None:
    step, predict = cost(BackpropCheckpointed())
    assert step == cost(Backprop())[0] + predict


def test_local_losses_pay_for_their_heads_and_send_no_gradient_across_the_cut() -> None:
    head = READ_OUT  # the first block's own, of the same size
    step, predict = cost(LocalCE())
    assert predict == FIRST + SECOND + READ_OUT + head
    assert step == 3 * predict - FIRST - SECOND

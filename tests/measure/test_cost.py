"""What rows of results say a method costs, on a network that is small enough to count by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sidestep.assemble import Data, assemble
from sidestep.config import resolve
from sidestep.data.samples import Samples
from sidestep.measure.cost import cost

BATCH = 8
# Of the network 12-20-20-5, cut before its second layer, by layer: parameters with biases, and two FLOPs a weight.
PARAMS = (260, 420, 105)
FIRST, SECOND, READ_OUT = 480, 800, 200
FORWARD = FIRST + SECOND + READ_OUT
# Backward is as much for the weights, and as much again for the input, but of what nothing is asked a gradient of: the
# data, and what a cut has detached.


def costed(method: str, **keys: object) -> dict[str, object]:
    random = torch.Generator().manual_seed(0)
    data = Samples(torch.randn(2 * BATCH, 12, generator=random), torch.arange(2 * BATCH) % 5, tuple("abcde"))
    net = nn.Sequential(nn.Linear(12, 20), nn.ReLU(), nn.Linear(20, 20), nn.ReLU(), nn.Linear(20, 5))
    flags = {"blocks": 2, "batch_size": BATCH, "precision": "fp32", "device": "cpu"} | keys
    found = cost(assemble(resolve(method, flags, custom=True), data=Data(data, None, None, (), ()), model=net))
    assert found.pop("peak_activation_mb")  # whose values are in test_memory
    return found


def row(params: int, aux: int, training: float, inference: float, readouts: float) -> dict[str, object]:
    return {
        "params": params,
        "aux_params": aux,
        "flops_per_sample": training,
        "inference_flops_per_sample": inference,
        "readouts_flops_per_sample": readouts,
        "network_flops_per_sample": FORWARD,
    }


def test_of_backprop_there_is_the_network_alone() -> None:
    assert costed("backprop") == row(sum(PARAMS), 0, 3 * FORWARD - FIRST, FORWARD, FORWARD)


def test_of_local_heads_only_training_and_read_outs_pay() -> None:
    """The first block's head is a layer from 20 to 5 as the classifier is; the second's input is detached."""
    readouts = FORWARD + READ_OUT
    training = 3 * readouts - FIRST - SECOND
    assert costed("local_ce") == row(sum(PARAMS) + 105, 105, training, FORWARD, readouts)


def test_of_sid_inference_needs_every_head_and_no_classifier() -> None:
    """Two heads of 20 features and a belief of 5 to 5: 130 parameters and 250 FLOPs each."""
    answers = FIRST + SECOND + 2 * 250
    training = 3 * answers - FIRST - SECOND  # of the joined input of a head the gradient is made whole
    assert costed("sid") == row(sum(PARAMS[:2]) + 2 * 130, 2 * 130, training, answers, answers)


def test_of_bll_the_twin_runs_once_a_batch_and_is_not_exported() -> None:
    """A twin of width 8 on 5 classes: last step 5 to 8 (48 parameters), first step 8 to 8 (72), both say 8 to 20 (160).

    And 20 slopes and 20 offsets of precisions a block.  With a forward of 400, 640 and twice 1,600 FLOPs; backward the
    steps, whose inputs are constants, once, what is said twice.  In training a block compares its latents' mean with
    the messages (no gradient), mixes messages by that (gradient of the messages), and compares a sample (of both).
    """
    assert costed("bll", **{"bll.twin_width": 8}) == row(
        params=sum(PARAMS[:2]) + 520,
        aux=48 + 72 + 2 * 160 + 2 * 40,
        training=2 * (FIRST + SECOND) + 2 * (1 + 2 + 3) * READ_OUT + (2 * (400 + 640) + 3 * 3200) / BATCH,
        inference=FORWARD,
        readouts=FORWARD + READ_OUT + (400 + 640 + 3200) / BATCH,
    )


@pytest.mark.parametrize("ema", [None, 0.9])
def test_frozen_parameters_count_and_moving_averages_do_not(ema: float | None) -> None:
    """What is frozen has no gradient of its weights, the first layer then none; it is still sent one."""
    training = 3 * FORWARD - 2 * FIRST
    assert costed("backprop", freeze="0", ema=ema) == row(sum(PARAMS), 0, training, FORWARD, FORWARD)

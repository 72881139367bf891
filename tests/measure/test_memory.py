from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise

import psutil
import pytest
import torch
from torch import Tensor, nn

from sidestep.bench.plain import CheckpointedStep, PlainStep
from sidestep.core.cut import CutPlan
from sidestep.core.task import Classification
from sidestep.engines.streaming import Streaming
from sidestep.engines.update import UpdateRule
from sidestep.measure.memory import MB, activation_bytes, peak_rss_mb
from sidestep.methods.backprop import BackpropCheckpointed

BATCH = 8
FLOAT = 4
UNIT = BATCH * 16 * FLOAT  # one float32 activation of 16 features
LABELS = BATCH * 8 + FLOAT  # what cross-entropy saves beside the log-probabilities: int64 labels, the sum of weights


def mlp(*widths: int) -> nn.Sequential:
    torch.manual_seed(0)
    layers = [nn.Sequential(nn.Linear(a, b), nn.ReLU()) for a, b in pairwise(widths[:-1])]
    return nn.Sequential(*layers, nn.Linear(widths[-2], widths[-1]))


def some_input(features: int) -> Tensor:
    return torch.randn(BATCH, features, generator=torch.Generator().manual_seed(0))


def some_labels(classes: int) -> Tensor:
    return torch.randint(classes, (BATCH,), generator=torch.Generator().manual_seed(1))


def state(*modules: nn.Module) -> Iterator[Tensor]:
    for module in modules:
        yield from module.parameters()
        yield from module.buffers()


def graph_bytes(fn: Callable[[], object], exclude: Iterable[Tensor] = ()) -> int:
    """Bytes that the graph of what `fn` returns holds, counted as on a CPU whatever the device."""
    with activation_bytes(exclude) as measured:
        result = fn()
        held = measured.current
    del result  # until here it kept its graph alive
    return held


def test_a_small_net_saves_its_input_and_its_hidden_layer() -> None:
    # The first layer saves x; ReLU saves its result, which the second layer saves again as its input.
    net, x = mlp(4, 16, 3), some_input(4)
    expected = BATCH * 4 * FLOAT + UNIT
    assert graph_bytes(lambda: net(x).sum(), state(net)) == expected
    # Unless parameters are named, the second weight counts: the gradient of its input needs it.
    assert graph_bytes(lambda: net(x).sum()) == expected + 3 * 16 * FLOAT


def test_batchnorm_saves_its_input_and_two_statistics_beside_the_named_buffers() -> None:
    norm, x = nn.BatchNorm1d(16), some_input(16)
    assert graph_bytes(lambda: norm(x), state(norm)) == UNIT + 2 * 16 * FLOAT


def test_a_storage_saved_twice_counts_once() -> None:
    a = some_input(16).requires_grad_()
    assert graph_bytes(lambda: a * a) == UNIT
    assert graph_bytes(lambda: a[:4] * a[4:]) == UNIT


def test_a_graph_that_is_dropped_without_a_backward_pass_is_counted_off() -> None:
    net, x = mlp(4, 16, 3), some_input(4)
    with activation_bytes(state(net)) as measured:
        out = net(x)
        alive = measured.current
        del out
        assert (alive, measured.current, measured.peak) == (640, 0, 640)


def test_blocks_trained_in_turn_peak_at_the_larger_and_one_graph_at_the_sum() -> None:
    small, large = mlp(4, 16, 8), mlp(8, 32, 3)
    bytes_small, bytes_large = (BATCH * 4 + BATCH * 16) * FLOAT, (BATCH * 8 + BATCH * 32) * FLOAT
    x = some_input(4)
    with activation_bytes(state(small, large)) as in_turn:
        h = small(x)
        h.sum().backward()
        large(h.detach()).sum().backward()
    with activation_bytes(state(small, large)) as together:
        large(small(x)).sum().backward()
    assert in_turn.peak == max(bytes_small, bytes_large)
    assert together.peak == bytes_small + bytes_large
    assert (in_turn.current, together.current) == (0, 0)


def test_gradients_and_the_state_of_the_optimizer_do_not_count() -> None:
    net, x, y = mlp(16, 16, 16), some_input(16), some_labels(16)
    step = PlainStep(net, torch.optim.Adam(net.parameters()), clip=1.0)
    with activation_bytes(state(net)) as measured:
        step.step((x, y))  # the first step makes Adam's state, which is twice the parameters
    assert measured.peak == 3 * UNIT + LABELS  # input, hidden layer, log-probabilities
    assert measured.current == 0


def test_what_a_sweep_without_a_graph_keeps_counts_while_it_lives() -> None:
    net, x = mlp(16, 16, 16), some_input(16)
    with activation_bytes(state(net)) as measured, torch.no_grad():
        h = net[0](x)
        assert measured.current == UNIT
        out = h.view(-1)[:5]
        del h
        assert measured.current == UNIT  # a view keeps all of it
        del out
        assert measured.current == 0
    assert measured.peak == 2 * UNIT  # ReLU's input lived until its result was there


def test_checkpointing_holds_the_segments_inputs_and_the_segment_it_computes_again() -> None:
    net, x, y = mlp(16, 16, 16, 16, 16, 16), some_input(16), some_labels(16)
    plain = PlainStep(net, torch.optim.SGD(net.parameters()))
    with activation_bytes(state(net)) as measured:
        plain.step((x, y))
    assert measured.peak == 6 * UNIT + LABELS  # input, 4 hidden layers, log-probabilities

    segments = [nn.Sequential(net[0], net[1]), nn.Sequential(net[2], net[3]), net[4]]
    checkpointed = CheckpointedStep(segments, torch.optim.SGD(net.parameters()))
    with activation_bytes(state(net)) as measured:
        checkpointed.step((x, y))
    # 3 inputs; then, with the last segment done, 2 inputs and the middle segment again: its first hidden layer, and
    # ReLU's input beside its result at the end.
    assert measured.peak == 5 * UNIT
    assert measured.current == 0


def test_the_checkpointed_program_counts_what_its_sweep_keeps() -> None:
    net, x, y = mlp(16, 16, 16, 16, 16), some_input(16), some_labels(16)
    task, method = Classification(16, x[:2]), BackpropCheckpointed()
    chain = method.build(net, task, CutPlan(blocks=3))
    engine = Streaming(method, chain, task, UpdateRule(lambda ps: torch.optim.SGD(ps)))
    with activation_bytes(state(*(part for _, part in chain.parts()))) as measured:
        engine.step((x, y))
    # When the last block is computed again: the inputs of blocks 1 and 2, the hidden layer and the log-probabilities,
    # and the logits that ended the first sweep if the engine still has them.  The batch is block 0's input and counts
    # only when a graph saves it.
    assert measured.peak in (4 * UNIT + LABELS, 5 * UNIT + LABELS)
    assert measured.current == 0


def test_autocast_copies_of_weights_count() -> None:
    net, x = mlp(16, 16, 16), some_input(16)
    with torch.autocast("cpu", torch.bfloat16):
        saved = graph_bytes(lambda: net(x).sum(), state(net))
    # bfloat16: the input's copy, the hidden layer, and the copy of the second weight.
    assert saved == UNIT // 2 + UNIT // 2 + 16 * 16 * 2


def test_measuring_changes_no_bit() -> None:
    x, y = some_input(16), some_labels(3)
    nets = mlp(16, 16, 3), mlp(16, 16, 3)
    steps = [PlainStep(net, torch.optim.Adam(net.parameters())) for net in nets]
    with activation_bytes():
        steps[0].step((x, y))
    steps[1].step((x, y))
    for a, b in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        assert torch.equal(a, b)


def test_peak_rss_follows_what_is_touched_and_never_falls() -> None:
    before = peak_rss_mb()
    resident = psutil.Process().memory_info().rss / MB
    assert before >= 0.99 * resident  # the kernel counts resident pages in batches
    needed = before - resident + 64  # enough to go past the old peak by 64 MB
    filled = torch.ones(int(needed * MB), dtype=torch.uint8)
    risen = peak_rss_mb()
    assert risen >= before + 48  # allocators may reuse freed pages for a part
    del filled
    assert peak_rss_mb() >= 0.99 * risen  # as above


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA")
def test_on_cuda_the_allocators_peak_is_at_least_what_is_saved() -> None:
    net, x = mlp(1024, 1024, 1024, 1024).cuda(), some_input(1024).cuda()
    net(x).sum().backward()  # gradients and workspaces are there
    saved = graph_bytes(lambda: net(x).sum(), [*state(net), x])
    with activation_bytes(device="cuda") as measured:
        net(x).sum().backward()
    largest = 1024 * 1024 * FLOAT
    assert saved == 2 * BATCH * 1024 * FLOAT
    assert saved <= measured.peak <= saved + 3 * largest  # temporaries: gradients on their way to where they are added
    assert measured.current == 0


def test_peak_rss_of_a_spawned_process_is_its_own() -> None:
    """getrusage says what the process that spawned it has had."""
    kept = torch.ones(128 * MB)  # 512 MB
    code = "from sidestep.measure.memory import peak_rss_mb; print(peak_rss_mb())"
    alone = float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
    assert peak_rss_mb() - alone > 400 and kept.numel()

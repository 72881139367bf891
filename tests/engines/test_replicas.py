"""Gradients of replicas: what is added up, when it goes on its way, and what a replica that is gone looks like."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from sidestep.engines.replicas import PIECE, GradientSum, Replicas, pieces
from sidestep.errors import WireError
from sidestep.methods.local_ce import LocalCE
from sidestep.ranks import world
from tests.conftest import engine_for, small_net, some_batch


def network() -> nn.Sequential:
    """Two layers whose gradients are a piece each, and between them one with running statistics."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(512, 512), nn.BatchNorm1d(512), nn.Linear(512, 512))


def at_each(groups: list[ProcessGroup], work: Callable[[Replicas], None]) -> None:
    """Do this with every replica, at once."""
    failed: list[BaseException] = []

    def guarded(group: ProcessGroup) -> None:
        try:
            work(Replicas(group))
        except BaseException as error:  # of a thread, which a test would not see fail
            failed.append(error)

    threads = [threading.Thread(target=guarded, args=(group,)) for group in groups]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        raise failed[0]


def test_gradients_are_those_of_both_and_what_is_missing_stays_missing(groups: list[ProcessGroup]) -> None:
    """The frozen layer has none; a layer that the loss does not reach keeps none, though it is in a piece."""
    torch.manual_seed(1)
    x = torch.randn(2, 4, 512)
    found = [network(), network()]  # made one after the other, as all threads draw from one generator

    def learn(replicas: Replicas) -> None:
        net = found[replicas.rank]
        net[0].requires_grad_(False)
        total = GradientSum("blocks.0", net, replicas)
        total.begin()
        net[1](net[0](x[replicas.rank])).square().sum().backward()
        total.end()
        total.wait()

    at_each(groups, learn)
    alone = [network() for _ in x]
    for net, part in zip(alone, x, strict=True):
        net[1](net[0](part)).square().sum().backward()
    for net in found:
        assert [name for name, p in net.named_parameters() if p.grad is not None] == ["1.weight", "1.bias"]
        for name in ("weight", "bias"):
            first, second = (getattr(one[1], name).grad for one in alone)
            assert torch.equal(getattr(net[1], name).grad, first + second)
        for name, state in net.named_buffers():
            assert torch.equal(state, alone[0].get_buffer(name))  # the first one's, since its samples made them
    assert not torch.equal(alone[0].get_buffer("1.running_mean"), alone[1].get_buffer("1.running_mean"))


def test_a_gradient_that_one_replica_has_is_there_at_all(groups: list[ProcessGroup]) -> None:
    """As where a layer was dropped for one's samples: replicas that do not all move the layer would drift apart."""
    found, x = [network(), network()], torch.ones(4, 512)

    def learn(replicas: Replicas) -> None:
        net = found[replicas.rank]
        total = GradientSum("blocks.0", net, replicas)
        total.begin()
        (net[0](x) if replicas.rank else net[2](net[0](x))).sum().backward()
        total.end()
        total.wait()

    at_each(groups, learn)
    expected = network()
    expected[2](expected[0](x)).sum().backward()
    first, second, alone = ({name: p.grad for name, p in net.named_parameters()} for net in (*found, expected))
    assert first["1.weight"] is None and second["1.weight"] is None  # which none has
    for name in ("2.weight", "2.bias"):
        torch.testing.assert_close((first[name], second[name]), (alone[name], alone[name]), rtol=0, atol=0)
    torch.testing.assert_close(first["0.weight"], second["0.weight"], rtol=0, atol=0)


class Remembering(nn.Module):
    """A mean that is assigned anew in every forward, a count of samples, and which of the features were above 0."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.m: Tensor
        self.seen: Tensor
        self.above: Tensor
        self.register_buffer("m", torch.zeros(4))
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))
        self.register_buffer("above", torch.zeros(4, dtype=torch.bool))

    def forward(self, x: Tensor) -> Tensor:
        self.m = 0.9 * self.m + 0.1 * x.mean(0)
        self.seen += (x > 0).sum()
        self.above = x[0] > 0
        return self.linear(x)


def test_state_that_is_assigned_or_is_no_float_is_the_first_ones_too(groups: list[ProcessGroup]) -> None:
    torch.manual_seed(2)
    x = torch.randn(2, 3, 8, 4)
    found = [Remembering(), Remembering()]

    def learn(replicas: Replicas) -> None:
        net = found[replicas.rank]
        total = GradientSum("blocks.0", net, replicas)
        for part in x[replicas.rank]:
            total.begin()
            net(part).sum().backward()
            total.end()
            total.wait()

    at_each(groups, learn)
    alone, other = Remembering(), Remembering()
    for net, parts in zip((alone, other), x, strict=True):
        for part in parts:
            net(part)
    for name, state in alone.named_buffers():
        assert not torch.equal(other.get_buffer(name), state)
        assert all(torch.equal(net.get_buffer(name), state) for net in found), name


def test_a_piece_goes_as_soon_as_the_last_backward_call_has_filled_it(groups: list[ProcessGroup]) -> None:
    """Of two calls the second is said to be the last.  How many are on their way is asked between the layers."""
    nets, seen = [network(), network()], ([0], [0])

    def learn(replicas: Replicas) -> None:
        net, said = nets[replicas.rank], seen[replicas.rank]
        total = GradientSum("blocks.0", net, replicas)

        def backward() -> None:
            between: Tensor = net[0](torch.ones(4, 512))
            between.register_hook(lambda _: said.append(len(total.flights)))
            net[2](net[1](between)).sum().backward()
            said.append(len(total.flights))

        backward()
        total.begin()
        backward()
        total.end()
        said.append(len(total.flights))
        total.wait()
        said.append(len(total.flights))

    at_each(groups, learn)
    # The last layer's; all gradients; the running statistics too; all are here.
    assert seen == ([0, 0, 0, 1, 2, 3, 0],) * 2


def test_a_step_that_was_interrupted_leaves_nothing_to_be_sent_by_the_next_backward_call(
    groups: list[ProcessGroup],
) -> None:
    net = network()
    total = GradientSum("blocks.0", net, Replicas(groups[0]))
    total.begin()
    total.forget()
    net(torch.randn(4, 512)).sum().backward()
    assert not total.flights


def test_pieces_are_in_order_of_one_dtype_and_no_longer_than_it_takes() -> None:
    size = PIECE // 4  # numbers
    parameters = [
        nn.Parameter(torch.zeros(n, dtype=dtype))
        for n, dtype in [(2 * size, torch.float32), (size - 1, torch.float32), (1, torch.float32), (7, torch.float32)]
    ] + [nn.Parameter(torch.zeros(3, dtype=torch.bfloat16)) for _ in range(2)]
    assert [[p.numel() for p in piece] for piece in pieces(parameters)] == [[2 * size], [size - 1, 1], [7], [3, 3]]


def test_micro_batches_are_shared_out_evenly_or_refused(groups: list[ProcessGroup]) -> None:
    shares = [Replicas(group).share_of(6) for group in groups]
    assert shares == [range(3), range(3, 6)]
    with pytest.raises(ValueError, match="got accumulate=3 for 2 replicas, expected a multiple"):
        Replicas(groups[0]).share_of(3)


def test_a_value_is_the_first_ones_and_a_mean_is_of_all(groups: list[ProcessGroup]) -> None:
    told: dict[int, tuple[int, Tensor]] = {}

    def ask(replicas: Replicas) -> None:
        told[replicas.rank] = (
            replicas.broadcast(15 + replicas.rank),
            replicas.mean(torch.tensor([1.0, 2.0 * replicas.rank])),
        )

    at_each(groups, ask)
    assert [value for value, _ in told.values()] == [15, 15]
    assert all(torch.equal(mean, torch.tensor([1.0, 1.0])) for _, mean in told.values())


def test_a_replica_that_does_not_answer_is_named(groups: list[ProcessGroup]) -> None:
    net = nn.Linear(4, 4)
    total = GradientSum("blocks.3", net, Replicas(groups[0]))
    total.begin()
    net(torch.randn(2, 4)).sum().backward()
    total.end()
    with pytest.raises(WireError, match=r"^blocks\.3: a replica is gone \(.*\)\.$"):
        total.wait()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA")
def test_a_replica_alone_on_a_gpu_learns_as_without_the_sum_over_nccl() -> None:
    """What can be run of NCCL with one device."""
    dist.init_process_group("cpu:gloo,cuda:nccl", store=dist.HashStore(), rank=0, world_size=1)
    try:
        found: list[dict[str, Tensor]] = []
        x, y = (part.cuda() for part in some_batch())
        for same in (None, Replicas(world())):
            engine = engine_for(LocalCE(), small_net().cuda(), replicas=same)
            engine.step((x, y))
            found.append(engine.state_dict())
        assert all(torch.equal(found[1][name], expected) for name, expected in found[0].items())
    finally:
        dist.destroy_process_group()

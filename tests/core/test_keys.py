from __future__ import annotations

import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from sidestep.core.block import Block
from sidestep.core.cell import Batch, Cell
from sidestep.core.keys import generator, global_rng, key
from sidestep.core.method import Method
from sidestep.methods.backprop import Backprop, BackpropCheckpointed
from sidestep.methods.local_ce import LocalCE
from tests.conftest import CLASSES, engine_for, small_task, some_batch

WIDTH = 32


def test_a_key_is_the_same_in_every_process_and_release() -> None:
    """Pinned: another number here would change what every saved run draws next."""
    assert key(0, 1, 2, 3, "forward") == 168952024680722602


part = st.integers(-(2**63), 2**63) | st.text(max_size=5)


@given(st.lists(part, max_size=5), st.lists(part, max_size=5))
def test_keys_differ_where_any_part_or_their_order_does(a: list[int | str], b: list[int | str]) -> None:
    assert (key(*a) == key(*b)) == (a == b)
    assert 0 <= key(*a) < 2**63


def test_a_number_and_its_digits_are_different_parts() -> None:
    assert key(1) != key("1")
    assert key(1, 2) != key(12)
    assert key("a", "b") != key("ab")


def test_a_generator_gives_the_numbers_of_its_seed() -> None:
    a, b, other = (torch.randn(8, generator=generator(seed)) for seed in (5, 5, 6))
    assert torch.equal(a, b)
    assert not torch.equal(a, other)


def draw() -> tuple[Tensor, float]:
    return torch.rand(4), random.random()


def same(a: tuple[Tensor, float], b: tuple[Tensor, float]) -> bool:
    return torch.equal(a[0], b[0]) and a[1] == b[1]


def seed_globals(seed: int) -> None:
    torch.manual_seed(seed)
    random.seed(seed)


def test_inside_both_global_generators_are_freshly_seeded() -> None:
    seed_globals(7)
    expected = draw()
    seed_globals(1)
    with global_rng(7):
        assert same(draw(), expected)


def test_afterwards_both_go_on_as_if_nothing_had_been_drawn() -> None:
    seed_globals(3)
    expected = draw()
    seed_globals(3)
    with global_rng(7):
        draw()
    assert same(draw(), expected)


def test_nested_use_puts_the_outer_one_back() -> None:
    with global_rng(7):
        first, second = draw(), draw()
    with global_rng(7):
        assert same(draw(), first)
        with global_rng(8):
            assert not same(draw(), second)
        assert same(draw(), second)


def test_an_exception_puts_them_back_too() -> None:
    seed_globals(3)
    expected = draw()
    seed_globals(3)
    with pytest.raises(KeyError), global_rng(7):
        draw()
        raise KeyError
    assert same(draw(), expected)


def test_noise_of_a_cell_is_a_function_of_its_key_alone() -> None:
    x = torch.zeros(2, 3)

    def noise(key: int) -> Tensor:
        return Cell(Block(0, 1, nn.Identity()), Batch(x, None), small_task(), (), {}, key).randn(4)

    first = noise(1)
    torch.manual_seed(99)
    assert torch.equal(noise(1), first)
    assert not torch.equal(noise(2), first)


class Watched(nn.Dropout):
    """Dropout that notes the mask of every call."""

    def __init__(self, seen: list[Tensor]) -> None:
        super().__init__(0.5)
        self.seen = seen

    def forward(self, input: Tensor) -> Tensor:
        out = super().forward(input)
        self.seen.append(out != 0)
        return out


def masks(method: Method, seed: int = 0) -> list[list[Tensor]]:
    """The dropout masks of two steps of two micro-batches: per block, in the order they were drawn."""
    seen: list[list[Tensor]] = [[], [], []]
    units = [nn.Sequential(nn.Linear(128 if i == 0 else WIDTH, WIDTH), Watched(own)) for i, own in enumerate(seen)]
    net = nn.Sequential(nn.Flatten(), *units, nn.Linear(WIDTH, CLASSES))
    engine = engine_for(method, net, seed=seed, accumulate=2)
    for own in seen:
        own.clear()  # what the cut's trial runs drew
    for _ in range(2):
        engine.step(some_batch())
    return seen


def test_a_mask_depends_on_step_micro_batch_and_block() -> None:
    drawn = [mask for block in masks(LocalCE()) for mask in block]
    assert len(drawn) == 2 * 2 * 3
    for i, mask in enumerate(drawn):
        assert not any(torch.equal(mask, other) for other in drawn[:i])


def test_a_mask_depends_on_the_seed_and_on_nothing_else() -> None:
    first = masks(LocalCE())
    torch.manual_seed(77)
    for a, b, other in zip(first, masks(LocalCE()), masks(LocalCE(), seed=1), strict=True):
        assert all(torch.equal(p, q) for p, q in zip(a, b, strict=True))
        assert not any(torch.equal(p, q) for p, q in zip(a, other, strict=True))


def test_a_replayed_pass_draws_the_masks_of_the_pass_it_replays() -> None:
    once, again = masks(Backprop()), masks(BackpropCheckpointed())
    for block, replayed in zip(once, again, strict=True):
        assert len(replayed) == 2 * len(block)  # forward, recomputed; forward, recomputed; ...
        for i, mask in enumerate(block):
            assert torch.equal(replayed[2 * i], mask)
            assert torch.equal(replayed[2 * i + 1], mask)

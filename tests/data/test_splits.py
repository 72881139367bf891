from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sidestep.data.splits import stratified_split

labels = st.lists(st.integers(0, 5), min_size=1, max_size=80).map(torch.tensor)


@settings(deadline=None)
@given(labels, st.floats(0, 0.99), st.integers(0, 3))
def test_a_split_partitions_the_samples_and_takes_every_class_in_proportion(y, fraction, seed):
    kept, held = stratified_split(y, fraction, seed)
    assert sorted(kept.tolist() + held.tolist()) == list(range(len(y)))
    assert kept.tolist() == sorted(kept.tolist())
    assert held.tolist() == sorted(held.tolist())
    for c in y.unique().tolist():
        assert abs(int((y[held] == c).sum()) - fraction * int((y == c).sum())) <= 1
        assert (y[kept] == c).any()


def test_the_held_part_is_the_asked_share_where_every_class_is_too_small_to_give_it_alone():
    y = torch.arange(100).repeat_interleave(4)
    assert len(stratified_split(y, 0.1, seed=0)[1]) == 40


def test_a_split_depends_on_the_seed_and_on_nothing_else():
    y = torch.arange(200) % 10
    torch.manual_seed(1)
    first = stratified_split(y, 0.3, seed=5)
    torch.manual_seed(2)
    assert all(map(torch.equal, first, stratified_split(y, 0.3, seed=5)))
    assert not torch.equal(first[1], stratified_split(y, 0.3, seed=6)[1])

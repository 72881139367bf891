from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sidestep.data.augment import Augment
from sidestep.data.order import Batches, epoch_order, eval_batches
from sidestep.data.samples import Samples
from sidestep.data.sources import as_source
from sidestep.errors import DataError, UsageError

MEAN, STD = (0.3, 0.5), (0.2, 0.1)


def images(n: int = 23) -> Samples:
    x = torch.randint(0, 256, (n, 2, 6, 5), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return Samples(x, torch.arange(n) % 4, tuple("abcd"))


def naive(samples: Samples, i: int) -> torch.Tensor:
    channels = [(samples.x[i, c].float() / 255 - MEAN[c]) / STD[c] for c in range(2)]
    return torch.stack(channels)


@settings(deadline=None)
@given(st.integers(1, 300), st.integers(0, 1000), st.integers(0, 1000))
def test_an_epochs_order_is_a_permutation_given_by_seed_and_epoch(n, seed, epoch):
    order = epoch_order(n, seed, epoch)
    assert order.sort().values.tolist() == list(range(n))
    assert torch.equal(order, epoch_order(n, seed, epoch))


def test_epochs_and_seeds_differ_in_order_and_threads_do_not():
    orders = [epoch_order(1000, seed, epoch) for seed in range(3) for epoch in range(3)]
    assert len({tuple(order.tolist()) for order in orders}) == 9
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        assert torch.equal(epoch_order(1000, 0, 0), orders[0])
    finally:
        torch.set_num_threads(threads)


def test_batches_are_the_epochs_order_cut_up_normalised_and_without_the_last_incomplete_batch():
    samples = images()
    batches = Batches(samples, 5, seed=3, mean=MEAN, std=STD)
    assert batches.steps_per_epoch == 4
    for step in range(8):
        epoch, batch = divmod(step, 4)
        order = epoch_order(23, 3, epoch)[batch * 5 : batch * 5 + 5].tolist()
        x, y = batches(step)
        assert torch.equal(y, torch.tensor([int(samples.y[i]) for i in order]))
        for row, i in zip(x, order, strict=True):
            assert torch.equal(row, naive(samples, i))


def test_a_batch_is_a_function_of_the_step_whatever_was_fetched_before():
    augment = Augment(crop=1, flip=True, randaugment=1, cutout=2, mixup=0.3)
    walked, fresh = (Batches(images(), 4, seed=1, augment=augment, mean=MEAN, std=STD) for _ in range(2))
    for step in range(9):
        walked(step)
    for step in (13, 2, 9):
        assert all(map(torch.equal, walked(step), fresh(step)))


def test_every_step_draws_its_own_augmentation():
    one = images(1)
    same = Samples(one.x.expand(8, -1, -1, -1), one.y.expand(8), one.classes)
    batches = Batches(same, 4, seed=1, augment=Augment(crop=2, flip=True), mean=MEAN, std=STD)
    assert len({batches(step)[0].numpy().tobytes() for step in range(8)}) == 8


def test_batches_leave_their_source_unchanged():
    samples = as_source((torch.randn(8, 3), torch.arange(8) % 2))
    assert isinstance(samples, Samples)
    before = samples.x.clone()
    Batches(samples, 8, seed=0, mean=(1.0, 2.0, 3.0), std=(2.0, 2.0, 2.0))(0)
    list(eval_batches(samples, 3, mean=(1.0, 2.0, 3.0), std=(2.0, 2.0, 2.0)))
    assert torch.equal(samples.x, before)


def test_evaluation_sees_every_sample_once_in_order_normalised_like_training():
    samples = images(7)
    parts = list(eval_batches(samples, 3, mean=MEAN, std=STD))
    assert [len(y) for _, y in parts] == [3, 3, 1]
    assert torch.equal(torch.cat([y for _, y in parts]), samples.y)
    trained, labels = Batches(samples, 7, seed=0, mean=MEAN, std=STD)(0)
    x = torch.cat([x for x, _ in parts])
    order = epoch_order(7, 0, 0)
    assert torch.equal(trained, x[order])
    assert torch.equal(labels, samples.y[order])


def test_without_mean_and_std_floats_pass_unchanged():
    samples = as_source((torch.randn(6, 3), torch.arange(6) % 2))
    x, _ = Batches(samples, 6, seed=0, mean=(), std=())(0)
    assert torch.equal(x, samples.fetch(epoch_order(6, 0, 0))[0])


def test_channels_last_changes_the_layout_and_no_value():
    plain = Batches(images(), 4, seed=0, mean=MEAN, std=STD)(0)[0]
    last = Batches(images(), 4, seed=0, mean=MEAN, std=STD, channels_last=True)(0)[0]
    assert last.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(last, plain)


def test_fewer_samples_than_a_batch_and_a_batch_of_none_are_refused():
    with pytest.raises(DataError, match="got 23 training samples, expected at least one batch of 24"):
        Batches(images(), 24, seed=0, mean=MEAN, std=STD)
    with pytest.raises(UsageError, match="batch size 0"):
        Batches(images(), 0, seed=0, mean=MEAN, std=STD)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA")
def test_a_gpu_gets_the_same_batches_as_the_cpu():
    host = Batches(images(), 5, seed=0, mean=MEAN, std=STD)
    device = Batches(images(), 5, seed=0, mean=MEAN, std=STD, device="cuda")
    for step in range(8):
        (x, y), (on_device, labels) = host(step), device(step)
        assert on_device.is_cuda
        torch.testing.assert_close(on_device.cpu(), x, rtol=0, atol=2e-6)  # the devices may divide differently
        assert torch.equal(labels.cpu(), y)


def test_what_is_reconstructed_is_the_image_a_byte_standing_for_its_whole_width() -> None:
    x = torch.randint(256, (12, 1, 3, 2), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    source = Samples(x, torch.zeros(12, dtype=torch.int64), ("a",))
    batches = Batches(source, 4, seed=0, mean=(0.5,), std=(0.2,), reconstruct=True)
    for step in range(3):
        seen, target = batches(step)
        byte = (255 * (0.2 * seen + 0.5)).round()
        assert target.shape == seen.shape and torch.equal((256 * target).floor(), byte)
    again = Batches(source, 4, seed=0, mean=(0.5,), std=(0.2,), reconstruct=True)
    assert torch.equal(again(0)[1], batches(0)[1])
    noise = (256 * batches(0)[1]).frac()
    assert 0.3 < noise.mean() < 0.7  # 24 uniform numbers: 0.5 within three of its deviations
    held = [torch.cat([y for _, y in eval_batches(source, 5, mean=(), std=(), reconstruct=True)]) for _ in range(2)]
    assert torch.equal(*held) and torch.equal((256 * held[0]).floor(), x.float())
    floats = Samples(torch.randn(12, 4), torch.zeros(12, dtype=torch.int64), ("a",))
    (seen, target), *_ = eval_batches(floats, 12, mean=(), std=(), reconstruct=True)
    assert torch.equal(seen, target)

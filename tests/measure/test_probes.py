"""Probes of blocks whose information is known: all of it, none of it, or lost on the way."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

from sidestep.assemble import Assembly, Data, assemble
from sidestep.core.keys import generator
from sidestep.data.samples import Samples
from sidestep.measure.probes import pooled, probe_table, probes, regressions
from sidestep.methods import method_class
from tests.conftest import small_net, some_batch
from tests.test_train import configured

CLASSES = 4


def points(count: int, seed: int, distance: float) -> Samples:
    """Normal noise in 8 dimensions, the classes' means `distance` apart from 0 along an axis each."""
    g = generator(seed)
    y = torch.randint(CLASSES, (count,), generator=g)
    return Samples(torch.randn(count, 8, generator=g) + distance * torch.eye(CLASSES, 8)[y], y, tuple("abcd"))


def assembled(
    data: Data, method: str = "backprop", model: nn.Module | None = None, blocks: int = 3, **config: str
) -> Assembly:
    made = configured(method, blocks=str(blocks), batch_size="32", **config)
    return assemble(made, data=data, model=model or net(), method=method_class(method)())


def net(*, forgets: bool = False) -> nn.Sequential:
    """Three blocks of one layer; the second of them may answer the same to everything."""
    torch.manual_seed(0)
    layers = [nn.Sequential(nn.Linear(8 if i == 0 else 32, 32), nn.ReLU()) for i in range(3)]
    if forgets:
        nn.init.zeros_(layers[1][0].weight)  # pyright: ignore[reportArgumentType]  # a layer is Module to torch
    return nn.Sequential(*layers, nn.Linear(32, CLASSES))


def data(distance: float, count: int = 600) -> Data:
    return Data(points(count, 0, distance), points(400, 1, distance), None, (), ())


def accuracies(assembly: Assembly, **more: int) -> list[float]:
    return [row["accuracy"] for row in probes(assembly, **more)]


# ---------------------------------------------------------------------- what is known


def test_features_that_separate_the_classes_are_read_without_an_error() -> None:
    """Means 20 standard deviations out: a random layer of 32 units, four times the inputs, keeps them apart."""
    assert accuracies(assembled(data(distance=20))) == [1.0, 1.0, 1.0]


def test_pure_noise_is_read_at_chance() -> None:
    """400 guesses among 4 classes: a standard deviation of sqrt(0.25 * 0.75 / 400) = 0.022, four of them allowed."""
    assert accuracies(assembled(data(distance=0))) == pytest.approx([0.25] * 3, abs=0.087)


def test_the_block_that_loses_information_is_found() -> None:
    """Before it all is there; after it a probe can only name the commonest class of the training samples."""
    some = data(distance=20)
    assert some.val is not None
    found = accuracies(assembled(some, model=net(forgets=True)))
    commonest = some.train.fetch(torch.arange(600))[1].bincount().argmax()
    share = (some.val.fetch(torch.arange(400))[1] == commonest).double().mean().item()
    assert found == [1.0, share, share]


def test_the_regressions_are_scikit_learns() -> None:
    """Of the same objective, sklearn's C being 1 / (N l2).  Both stop near the optimum in float32 and float64: their
    probabilities agree to 2e-3."""
    some = points(300, 0, distance=1.0)
    for l2, w, b in regressions(some.x, some.y, CLASSES):
        expected = LogisticRegression(C=1 / (300 * l2), tol=1e-8, max_iter=1000).fit(some.x.numpy(), some.y.numpy())
        p = torch.from_numpy(expected.predict_proba(some.x.numpy()))
        torch.testing.assert_close((some.x @ w + b).softmax(-1).double(), p.double(), atol=2e-3, rtol=0)


# ---------------------------------------------------------------------- what is read


def test_maps_are_averaged_to_4_by_4_tokens_to_one_and_vectors_left_alone() -> None:
    maps = torch.arange(128.0).view(1, 2, 8, 8)
    assert torch.equal(pooled(maps), nn.functional.avg_pool2d(maps, 2).flatten(1))
    assert torch.equal(
        pooled(maps[..., :3, :5]), nn.functional.adaptive_avg_pool2d(maps[..., :3, :5], (3, 4)).flatten(1)
    )
    assert torch.equal(pooled(torch.tensor([[[1.0, 2.0], [3.0, 6.0]]])), torch.tensor([[2.0, 4.0]]))
    assert torch.equal(pooled(torch.ones(2, 3)), torch.ones(2, 3))


@pytest.mark.parametrize("method", ["backprop", "backprop_checkpointed", "deep_supervision", "local_ce", "sid"])
def test_every_block_is_probed_on_its_features_the_last_one_before_its_classifier(method: str) -> None:
    """small_net has 8 channels: at 8 x 8 positions in the first block, 4 x 4 after its pool, all read at 4 x 4."""
    x, y = some_batch(size=200)
    train = Samples(x, y, tuple("abcde"[: int(y.max()) + 1]))
    found = probes(assembled(Data(train, None, None, (), ()), method, small_net()))
    assert [row["dimension"] for row in found] == [8 * 16] * 3


@pytest.mark.parametrize(("belief", "dimension"), [("features", CLASSES), ("none", None)])
def test_the_shared_form_sends_beliefs_or_nothing(belief: str, dimension: int | None) -> None:
    made = configured("sid", blocks="3", batch_size="32", **{"sid.form": "shared", "sid.belief": belief})
    found = probes(assemble(made, data=data(distance=1), model=net()))
    assert [row["dimension"] for row in found] == [dimension] * 3
    assert probe_table(found).count("(sends no features)") == (0 if dimension else 3)


def test_only_the_first_training_samples_are_read() -> None:
    """Labels of the samples after the 550th are wrong; 550 is no multiple of the batches they are read in."""
    some = data(distance=20, count=1200)
    x, y = some.train.fetch(torch.arange(1200))
    y[550:] = (y[550:] + 1) % CLASSES
    spoilt = replace(some, train=Samples(x, y, tuple("abcd")))
    assert accuracies(assembled(spoilt), samples=550) == [1.0] * 3
    assert max(accuracies(assembled(spoilt), samples=1200)) < 0.9


def test_training_samples_are_read_without_their_augmentation() -> None:
    plain, augmented = (assemble(configured("backprop", augment=how)) for how in ("none", "crop:2,flip"))
    assert not torch.equal(plain.batches(0)[0], augmented.batches(0)[0])
    assert probes(plain, samples=300) == probes(augmented, samples=300)


def test_without_a_validation_split_the_last_fifth_is_held_out() -> None:
    """The first four fifths and the last as two splits give the same numbers."""
    x, y = points(500, 0, distance=1.0).fetch(torch.arange(500))
    parts = [Samples(x[a:b], y[a:b], tuple("abcd")) for a, b in ((0, 400), (400, 500))]
    whole = assembled(Data(Samples(x, y, tuple("abcd")), None, None, (), ()))
    assert accuracies(whole) == accuracies(assembled(Data(parts[0], parts[1], None, (), ())))


def test_the_test_set_is_never_read() -> None:
    made = assembled(data(distance=1))
    assert probes(replace(made, data=replace(made.data, test=Unreadable()))) == probes(made)


class Unreadable:
    shape, num_classes = (8,), CLASSES

    def __len__(self) -> int:
        return 100

    def fetch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        raise AssertionError("the test set was read")


# ---------------------------------------------------------------------- and changes nothing


@pytest.mark.parametrize("ema", ["none", "0.9"])
def test_probing_twice_gives_equal_numbers_and_leaves_the_run_as_it_was(ema: str) -> None:
    """BatchNorm's running statistics and the global generator included."""
    x, y = some_batch(size=200)
    train = Samples(x, y, tuple("abcde"[: int(y.max()) + 1]))
    made = assembled(Data(train, None, None, (), ()), "local_ce", small_net(), ema=ema)
    made.engine.step(made.batches(0))
    before = {k: v.clone() for k, v in made.engine.state_dict().items()}
    assert any("running_mean" in k for k in before)
    random = torch.get_rng_state()
    assert probes(made) == probes(made)
    assert torch.equal(torch.get_rng_state(), random)
    after = made.engine.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(before[k], v) for k, v in after.items())
    assert all(p.grad is None for _, p in made.chain.named_parameters())

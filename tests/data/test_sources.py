from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets
import datasets.config
import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torch.utils.data import Dataset, TensorDataset

from sidestep.data import DATASETS, hub
from sidestep.data.samples import DatasetSamples, Samples
from sidestep.data.sequences import GENERATED
from sidestep.data.sources import as_source, channel_stats, load
from sidestep.data.splits import stratified_split
from tests.data.make import class_folders, parquet_folder, pictures, png, table


class Pairs(Dataset[Any]):
    def __init__(self, items: list[Any]):
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, i: int):
        return self.items[i]


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SIDESTEP_DATA", str(tmp_path))
    return tmp_path


def rows(samples: Samples) -> list[tuple[bytes, int]]:
    return sorted((x.numpy().tobytes(), int(y)) for x, y in zip(samples.x, samples.y, strict=True))


def test_the_list_of_data_sets_needs_no_torch():
    code = "import sys, sidestep.data; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    assert list(DATASETS) == ["digits", *hub.HUB, *hub.HUB_TEXT, *GENERATED]


def test_digits_are_scikit_learns_grey_levels_times_255_over_16():
    splits = load("digits")
    assert [len(part) for part in (splits.train, splits.val, splits.test)] == [1294, 144, 359]
    images, labels = map(np.asarray, load_digits(return_X_y=True))
    want = [
        (bytes(round(level * 255 / 16) for level in image), int(y)) for image, y in zip(images, labels, strict=True)
    ]
    assert sorted(rows(splits.train) + rows(splits.val) + rows(splits.test)) == sorted(want)
    assert splits.train.shape == (1, 8, 8)
    assert splits.train.classes == tuple("0123456789")


def test_the_test_set_of_digits_is_the_same_for_every_seed_and_the_validation_set_is_not():
    first, second = load("digits", seed=0), load("digits", seed=1)
    assert torch.equal(first.test.x, second.test.x)
    assert torch.equal(first.test.y, second.test.y)
    assert not torch.equal(first.val.y, second.val.y)
    again = load("digits", seed=1)
    assert torch.equal(second.train.x, again.train.x)
    # 359 of 1797, each class within one of its fifth.
    labels = torch.as_tensor(load_digits(return_X_y=True)[1])
    assert (torch.bincount(first.test.y) - torch.bincount(labels) / 5).abs().max() <= 1


def test_validation_fraction_zero_trains_on_the_whole_train_split():
    splits = load("digits", val_fraction=0)
    assert len(splits.train) == 1438
    assert len(splits.val) == 0


def test_a_folder_of_the_shelf_is_read_by_its_name_and_any_other_by_its_path(shelf):
    root = parquet_folder(shelf / "shapes-jpeg-q95", names=["a", "b", "c", "d"])
    splits = load("shapes-jpeg-q95", val_fraction=0)
    assert splits.train.name == splits.test.name == "shapes-jpeg-q95"
    assert splits.train.classes == ("a", "b", "c", "d")
    assert np.array_equal(splits.train.x[:, 0], np.stack(pictures(40, seed=0)))
    assert np.array_equal(splits.test.x[:, 0], np.stack(pictures(20, seed=1)))
    assert splits.train.y.tolist() == [i % 4 for i in range(40)]
    assert torch.equal(load(str(root), val_fraction=0).train.x, splits.train.x)


def test_classes_without_names_are_numbers(shelf):
    parquet_folder(shelf / "plain")
    assert load("plain").train.classes == ("0", "1", "2", "3")


def test_the_validation_split_is_a_stratified_part_of_train(shelf):
    parquet_folder(shelf / "plain")
    whole, splits = load("plain", val_fraction=0).train, load("plain", val_fraction=0.25, seed=3)
    kept, held = stratified_split(whole.y, 0.25, seed=3)
    assert rows(splits.train) == rows(whole.take(kept))
    assert rows(splits.val) == rows(whole.take(held))
    assert torch.bincount(splits.val.y).tolist() == [
        2,
        3,
        3,
        2,
    ]  # of 10 each: the running total 2.5, 5, 7.5, 10, rounded


def test_a_validation_file_is_kept_and_train_stays_whole(shelf):
    root = parquet_folder(shelf / "three")
    (root / "test.parquet").rename(root / "val.parquet")
    parquet_folder(shelf / "other", n=60)
    (shelf / "other" / "test.parquet").rename(root / "test.parquet")
    splits = load("three")
    assert [len(part) for part in (splits.train, splits.val, splits.test)] == [40, 20, 30]


def test_an_image_folder_with_train_and_test_keeps_its_split_and_sorts_its_classes(tmp_path):
    root = tmp_path / "animals"
    class_folders(root / "train", {"dog": 6, "cat": 5})
    class_folders(root / "test", {"dog": 3})
    splits = load(str(root), val_fraction=0)
    assert splits.train.classes == splits.test.classes == ("cat", "dog")
    assert splits.train.y.tolist() == [0] * 5 + [1] * 6
    assert splits.test.y.tolist() == [1] * 3
    assert np.array_equal(splits.train.x[5:], np.stack(pictures(6, (4, 4, 3), 0)).transpose(0, 3, 1, 2))
    assert splits.train.name == "animals"


def test_an_image_folder_without_a_test_split_gets_a_fixed_stratified_one_and_says_so(tmp_path):
    root = class_folders(tmp_path / "animals", {"dog": 20, "cat": 10})
    with pytest.warns(UserWarning, match="no test split"):
        first = load(str(root), seed=0)
    with pytest.warns(UserWarning, match="no test split"):
        second = load(str(root), seed=1)
    assert torch.bincount(first.test.y).tolist() == [2, 4]
    assert torch.equal(first.test.x, second.test.x)
    assert len(first.train) + len(first.val) == 24


def test_mean_and_std_are_those_of_the_training_part_in_0_1(shelf):
    parquet_folder(shelf / "plain")
    splits = load("plain")
    pixels = splits.train.x.double() / 255
    # Sums of integers against torch's own running sums: rounding of doubles.
    assert splits.mean == pytest.approx([float(pixels.mean())], rel=1e-12)
    assert splits.std == pytest.approx([float(pixels.std(correction=0))], rel=1e-12)


def test_a_channel_that_is_constant_has_spread_one():
    x = torch.tensor([[1.0, 0.0], [1.0, 4.0]])
    assert channel_stats(x) == ((1.0, 2.0), (1.0, 2.0))


def test_the_hub_is_read_through_datasets_when_no_folder_has_the_name(tmp_path, monkeypatch):
    monkeypatch.delenv("SIDESTEP_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    features = datasets.Features({"img": datasets.Image(), "fine_label": datasets.ClassLabel(names=["a", "b"])})

    def downloaded(repository: str) -> dict[str, datasets.Dataset]:
        assert repository == "uoft-cs/cifar100"
        colours = [Image.fromarray(p) for p in pictures(20, (4, 4, 3))]
        made = datasets.Dataset.from_dict({"img": colours, "fine_label": [i % 2 for i in range(20)]}, features)
        return {"train": made, "test": made.select([3, 0])}

    monkeypatch.setattr(datasets, "load_dataset", downloaded)
    splits = load("cifar100", val_fraction=0)
    assert splits.train.name == "cifar100"
    assert splits.train.classes == ("a", "b")
    assert np.array_equal(splits.train.x, np.stack(pictures(20, (4, 4, 3))).transpose(0, 3, 1, 2))
    assert torch.equal(splits.test.x, splits.train.x[[3, 0]])


def test_a_pair_of_tensors_or_a_tensor_dataset_becomes_samples():
    x, y = torch.randn(10, 3, dtype=torch.float64), torch.arange(10, dtype=torch.int32) % 3
    for data in ((x, y), TensorDataset(x, y)):
        samples = as_source(data)
        assert isinstance(samples, Samples)
        assert torch.equal(samples.x, x.float())
        assert torch.equal(samples.y, y.long())
        assert (samples.num_classes, samples.shape, len(samples)) == (3, (3,), 10)
    assert as_source((x, y), num_classes=5).num_classes == 5
    assert as_source(samples) is samples


def test_a_dataset_is_fetched_item_by_item_and_gives_what_the_same_tensors_give():
    images = pictures(6, (5, 4, 3))
    chw = [np.ascontiguousarray(p.transpose(2, 0, 1)) for p in images]
    labels = [0, 2, 1, 0, 2, 1]
    indices = torch.tensor([4, 1, 1])
    want = as_source((torch.from_numpy(np.stack(chw)), torch.tensor(labels))).fetch(indices)
    for kind in ([Image.fromarray(p) for p in images], chw, [torch.from_numpy(p) for p in chw]):
        source = as_source(Pairs(list(zip(kind, labels, strict=True))))
        assert isinstance(source, DatasetSamples)
        assert (source.num_classes, source.shape, len(source)) == (3, (3, 5, 4), 6)
        assert all(map(torch.equal, source.fetch(indices), want))


@pytest.mark.parametrize("names", [("image", "label"), ("pixel_values", "labels"), ("label", "img")])
def test_a_dataset_of_dicts_is_one_of_pairs(names):
    x, labels = torch.randn(4, 3), [0, 2, 1, 0]
    wanted = as_source(Pairs(list(zip(x, labels, strict=True))))
    items = [{names[0]: a, names[1]: b} for a, b in zip(x, labels, strict=True)]
    if names[0] == "label":
        items = [{"label": b, "img": a, "path": "ignored"} for a, b in zip(x, labels, strict=True)]
    source = as_source(Pairs(items))
    assert source.num_classes == wanted.num_classes == 3
    assert all(map(torch.equal, source.fetch(torch.arange(4)), wanted.fetch(torch.arange(4))))


def test_a_datasets_dataset_of_images_or_of_numbers_becomes_samples():
    images = pictures(5)
    made = datasets.Dataset(table([png(p) for p in images], [1, 0, 1, 0, 1], ["a", "b"]))
    samples = as_source(made.select([2, 0, 1]))
    assert isinstance(samples, Samples)
    assert samples.classes == ("a", "b")
    assert np.array_equal(samples.x[:, 0], np.stack(images)[[2, 0, 1]])
    assert samples.y.tolist() == [1, 1, 0]

    numbers = as_source(datasets.Dataset.from_dict({"pixel_values": [[[1, 2]], [[3, 4]]], "labels": [0, 1]}))
    assert isinstance(numbers, Samples)
    assert torch.equal(numbers.x, torch.tensor([[[1.0, 2.0]], [[3.0, 4.0]]]))


def test_a_datasets_dataset_that_names_image_files_reads_them(tmp_path):
    images = pictures(3)
    for i, pixels in enumerate(images):
        (tmp_path / f"{i}.png").write_bytes(png(pixels))
    files = [str(tmp_path / f"{i}.png") for i in range(3)]
    made = datasets.Dataset.from_dict({"image": files, "label": [0, 1, 0]}).cast_column("image", datasets.Image())
    samples = as_source(made)
    assert isinstance(samples, Samples)
    assert np.array_equal(samples.x[:, 0], np.stack(images))

"""The copies that the project's results come from: counts and pixels."""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from sidestep.data import cache
from sidestep.data.files import labels_of, read_parquet
from sidestep.data.sources import load

SHELF = Path(os.environ.get("SIDESTEP_DATA", ""))
pytestmark = pytest.mark.skipif(not os.environ.get("SIDESTEP_DATA"), reason="no SIDESTEP_DATA")


@pytest.mark.parametrize(("name", "mode"), [("mnist", "L"), ("cifar10-jpeg-q95", "RGB")])
def test_the_decode_cache_holds_the_bytes_that_pillow_decodes(name, mode, monkeypatch):
    path = SHELF / name / "test.parquet"
    part = read_parquet(path)
    images = [Image.open(io.BytesIO(row["bytes"])) for row in pq.read_table(path)["image"].to_pylist()]
    assert {image.mode for image in images} == {mode}
    want = np.stack([np.asarray(image) for image in images])
    want = want[:, None] if mode == "L" else want.transpose(0, 3, 1, 2)
    assert np.array_equal(part.x, want)
    monkeypatch.setattr(cache, "decode", lambda blob: pytest.fail("decoded again"))
    assert np.array_equal(read_parquet(path).x, want)


def test_mnist_is_mnist():
    splits = load("mnist", val_fraction=0)
    assert torch.bincount(splits.train.y).tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert torch.bincount(splits.test.y).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert splits.train.shape == (1, 28, 28)
    # The published figures, to their four decimals.
    assert splits.mean == pytest.approx([0.1307], abs=5e-5)
    assert splits.std == pytest.approx([0.3081], abs=5e-5)


@pytest.mark.parametrize(
    ("name", "classes", "each"),
    [("cifar10-jpeg-q95", 10, 5000), ("cifar100-jpeg-q95", 100, 500), ("fashion-mnist", 10, 6000)],
)
def test_every_class_has_its_count_and_its_name(name, classes, each):
    for split, count in (("train", each), ("test", 1000 if classes == 10 else 100)):
        labels, names = labels_of(pq.read_table(SHELF / name / f"{split}.parquet"), name)
        assert np.bincount(labels).tolist() == [count] * classes
        assert names is not None and len(names) == classes
        assert classes == 100 or name == "fashion-mnist" or names[:2] == ("airplane", "automobile")


def test_ten_percent_of_mnists_train_split_is_held_out_with_every_class_in_proportion():
    splits = load("mnist")
    assert [len(part) for part in (splits.train, splits.val, splits.test)] == [54000, 6000, 10000]
    total = torch.bincount(splits.train.y) + torch.bincount(splits.val.y)
    assert (torch.bincount(splits.val.y) - total / 10).abs().max() <= 1

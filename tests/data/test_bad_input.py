"""Every bad input is one line that says what was got and expected, before any training."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import datasets
import datasets.config
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, IterableDataset

from sidestep.data.samples import Samples
from sidestep.data.sources import as_source, load
from sidestep.errors import DataError, UsageError
from tests.data.make import class_folders, parquet_folder, pictures, png, table
from tests.data.test_sources import Pairs


def refused(kind: type[ValueError], says: str, work: Callable[[], object]) -> None:
    with pytest.raises(kind) as error:
        work()
    assert says in str(error.value)
    assert "\n" not in str(error.value)


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SIDESTEP_DATA", str(tmp_path))
    return parquet_folder(tmp_path / "plain")


def good(n: int = 4) -> list[bytes]:
    return [png(p) for p in pictures(n)]


BLOBS = good()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (table(BLOBS, [0, 1, -100, 1]), "plain, train: sample 2 has label -100; expected 0..1"),
        (table(BLOBS, [0, 1, 2, 1], ["a", "b"]), "plain, train: sample 2 has label 2; expected 0..1"),
        (table([], []), "train.parquet has no rows; expected at least 2"),
        (table(BLOBS[:1], [0]), "plain, train has 1 sample; expected at least 2"),
        (table([*BLOBS[:2], b"broken", BLOBS[3]], [0, 1, 0, 1]), "train.parquet, row 2: the image is not an image"),
        (table([*BLOBS[:3], BLOBS[3][:-30]], [0, 1, 0, 1]), "train.parquet, row 3: the image cannot be decoded"),
        (table([*BLOBS[:3], None], [0, 1, 0, 1]), "train.parquet, row 3: 'image' is null"),
        (table(BLOBS, [0, None, 0, 1]), "train.parquet, row 1: 'label' is null"),
        (table(BLOBS, [0, 1, 0, 1]).drop_columns("label"), "has the columns image; expected one named label"),
        (table(BLOBS, [0, 1, 0, 1]).drop_columns("image"), "has the columns label; expected one named image"),
        (pa.table({"image": [1, 2], "label": [0, 1]}), "column 'image' is int64; expected encoded images"),
        (pa.table({"image": BLOBS[:2], "label": ["a", "b"]}), "column 'label' is string; expected integers"),
        (table(BLOBS, [0, 1, 0, 1]).replace_schema_metadata({"huggingface": "{"}), "metadata is not JSON"),
    ],
)
def test_a_bad_parquet_file_is_refused(root, content, says):
    pq.write_table(content, root / "train.parquet")
    refused(DataError, says, lambda: load("plain"))


def test_a_label_that_only_the_test_split_has_is_refused(root):
    pq.write_table(table(good(), [0, 1, 2, 4]), root / "test.parquet")
    refused(DataError, "plain, test: sample 3 has label 4; expected 0..3", lambda: load("plain"))


def test_a_test_split_of_another_image_size_or_with_other_classes_is_refused(root):
    pq.write_table(table([png(p) for p in pictures(4, (5, 5))], [0, 1, 2, 3]), root / "test.parquet")
    refused(DataError, "plain, test has samples of shape (1, 5, 5); expected train's (1, 6, 5)", lambda: load("plain"))
    pq.write_table(table(good(), [0, 1, 2, 3], ["a", "b", "c", "d"]), root / "test.parquet")
    refused(DataError, "plain, test names other classes than train", lambda: load("plain"))


def test_a_truncated_parquet_file_is_named(root):
    path = root / "test.parquet"
    path.write_bytes(path.read_bytes()[:-20])
    refused(DataError, f"{path} cannot be read", lambda: load("plain"))


def test_damage_in_the_middle_of_a_parquet_file_is_refused(root):
    path = root / "train.parquet"
    content = bytearray(path.read_bytes())
    content[len(content) // 3 : len(content) // 3 + 200] = bytes(200)
    path.write_bytes(content)
    refused(DataError, str(path), lambda: load("plain"))


def test_a_missing_file_or_folder_is_named(root, tmp_path, monkeypatch):
    (root / "test.parquet").unlink()
    refused(
        DataError, f"{root / 'test.parquet'} is missing; expected train.parquet and test.parquet", lambda: load("plain")
    )
    refused(DataError, "no folder ./nowhere", lambda: load("./nowhere"))
    (tmp_path / "empty").mkdir()
    refused(DataError, "holds no images", lambda: load("empty"))
    monkeypatch.setenv("SIDESTEP_DATA", str(tmp_path / "gone"))
    refused(DataError, "gone, which is no folder", lambda: load("mnist"))


def test_a_class_folder_that_only_the_test_split_has_and_a_missing_test_folder_are_refused(tmp_path):
    class_folders(tmp_path / "animals" / "train", {"dog": 3, "cat": 3})
    animals = str(tmp_path / "animals")
    refused(DataError, "test is missing; expected train and test in", lambda: load(animals))
    class_folders(tmp_path / "animals" / "test", {"bird": 3})
    refused(DataError, "bird is no class of the training images; expected cat, dog", lambda: load(animals))


def test_an_odd_image_in_a_folder_is_named_by_its_path(tmp_path):
    root = class_folders(tmp_path / "animals", {"dog": 3, "cat": 3})
    odd = root / "dog" / "1.png"
    odd.write_bytes(png(pictures(1, (9, 4, 3))[0]))
    refused(DataError, f"{odd} is 4x9x3, but", lambda: load(str(root)))


def test_an_unknown_name_is_a_usage_error_that_knows_the_folders_of_the_shelf(root):
    refused(UsageError, "unknown data set 'plane'; did you mean 'plain'?", lambda: load("plane"))
    refused(UsageError, "cifar10, cifar100, digits, fashion-mnist, mnist, plain", lambda: load("zzz"))


@pytest.mark.parametrize("fraction", [-0.1, 1.0, float("nan")])
def test_a_validation_fraction_out_of_range_is_refused(fraction):
    refused(UsageError, "expected at least 0 and less than 1", lambda: load("digits", val_fraction=fraction))


def test_a_validation_fraction_that_holds_nothing_out_is_refused(root):
    refused(DataError, "0.01 of 40 samples leaves none", lambda: load("plain", val_fraction=0.01))


def test_without_a_folder_and_without_the_hub_a_known_name_fails_at_once_and_names_the_variable(tmp_path, monkeypatch):
    monkeypatch.delenv("SIDESTEP_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_ENDPOINT", "http://127.0.0.1:9")  # nothing listens there
    start = time.monotonic()
    refused(DataError, "set SIDESTEP_DATA", lambda: load("mnist"))
    assert time.monotonic() - start < 6  # the probe's timeout, not the Hub client's 20 s of retries


def test_a_hub_that_fails_says_why_and_names_the_variable(tmp_path, monkeypatch):
    def broken(repository: str) -> None:
        raise RuntimeError(f"{repository} is gated\nand more")

    monkeypatch.delenv("SIDESTEP_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets, "load_dataset", broken)
    refused(DataError, "(ylecun/mnist is gated); put train.parquet", lambda: load("mnist"))


X, Y = torch.zeros(4, 3), torch.tensor([0, 1, 2, 1])


@pytest.mark.parametrize(
    ("x", "y", "says"),
    [
        (X, torch.tensor([0, 1, -100, 1]), "sample 2 has label -100; expected 0..1"),
        (X, torch.tensor([-1, -1, -1, -1]), "sample 0 has label -1"),
        (torch.tensor([[0.0], [1.0], [float("nan")], [0.0]]), Y, "sample 2 holds NaN or Inf"),
        (torch.tensor([[0.0], [-float("inf")], [1.0], [0.0]]), Y, "sample 1 holds NaN or Inf"),
        (X[:0], Y[:0], "has 0 samples; expected at least 2"),
        (X[:1], Y[:1], "has 1 sample; expected at least 2"),
        (X, Y[:3], "y is (3,) of torch.int64; expected one integer for each of 4"),
        (X, Y[:3].float(), "y is (3,) of torch.float32; expected one integer"),
        (X, Y.float() / 0, "sample 0 has a target that is NaN or Inf"),
        (X, Y[:, None], "y is (4, 1)"),
        (X.int(), Y, "x is (4, 3) of torch.int32; expected (N, C, H, W) of torch.uint8"),
        (torch.zeros(4, 8, 8, dtype=torch.uint8), Y, "x is (4, 8, 8) of torch.uint8; expected (N, C, H, W)"),
    ],
)
def test_bad_tensors_are_refused(x, y, says):
    refused(DataError, says, lambda: as_source((x, y)))


def test_labels_beyond_the_given_number_of_classes_are_refused():
    refused(DataError, "sample 2 has label 2; expected 0..1", lambda: as_source((X, Y), num_classes=2))
    refused(DataError, "sample 2 has label 2; expected 0..1", lambda: as_source(Samples(X, Y, ("a", "b"))))


@pytest.mark.parametrize(
    ("item", "says"),
    [
        ((torch.zeros(3), 5), "sample 1 has label 5; expected 0..2"),
        ((torch.zeros(3), -100), "sample 1 has label -100"),
        ((torch.full((3,), float("nan")), 1), "sample 1 holds NaN or Inf"),
        ((torch.zeros(4), 1), "sample 1 has shape (4,); expected (3,)"),
        ((torch.zeros(3), 1, 2), "sample 1 is a tuple of 3; expected (x, y), or a dict of both"),
        (torch.zeros(2), "sample 1 is a Tensor; expected (x, y)"),
        ({"picture": 0, "label": 1}, "sample 1 has the columns picture, label; expected one named image or"),
        ((torch.zeros(3), None), "the target of sample 1 is of type NoneType (Could not infer"),
        ((torch.zeros(3), "cat"), "the target of sample 1 is of type str"),
        (("1.png", 1), "the input of sample 1 is of type str"),
        (([torch.zeros(3), torch.zeros(2)], 1), "the input of sample 1 is of type list"),
        ((Image.new("I", (3, 3)), 1), "the input of sample 1 is of type Image (its pixels are of mode I;"),
        ((torch.zeros(3), torch.tensor([1])), "sample 1 has a target of shape (1,) and torch.int64; expected () and"),
        ((torch.zeros(3), 1.5), "sample 1 has a target of shape () and torch.float32; expected () and torch.int64"),
    ],
)
def test_a_bad_item_of_a_dataset_is_refused_when_it_is_fetched(item, says):
    source = as_source(Pairs([(torch.zeros(3), 0), item, (torch.zeros(3), 2)]), num_classes=3)
    refused(DataError, says, lambda: source.fetch(torch.tensor([2, 0, 1])))


@pytest.mark.parametrize("names", [("pixels", "label"), ("x", "y"), ("inputs", "target"), ("features", "targets")])
def test_items_may_be_dicts_by_any_usual_name(names):
    items = [dict(zip(names, (torch.full((3,), float(i)), i), strict=True)) for i in range(3)]
    x, y = as_source(Pairs(items)).fetch(torch.tensor([2, 0]))
    assert x[:, 0].tolist() == y.tolist() == [2, 0]


def test_a_data_loader_is_refused_with_what_to_give():
    refused(UsageError, "give its .dataset", lambda: as_source(DataLoader(Pairs([(torch.zeros(3), 0)]))))


def test_a_bad_item_is_refused_at_once_where_it_is_the_first_or_classes_are_counted():
    good_one = (torch.zeros(3), 0)
    refused(DataError, "sample 0 is a tuple of 3", lambda: as_source(Pairs([(*good_one, 1), good_one])))
    refused(DataError, "the target of sample 1 is of type str", lambda: as_source(Pairs([good_one, (X[0], "cat")])))


class Stream(IterableDataset[tuple[torch.Tensor, int]]):
    def __iter__(self):
        yield X[0], 0


def test_a_dataset_of_none_or_one_and_data_of_another_kind_are_refused():
    refused(DataError, "has 0 samples", lambda: as_source(Pairs([])))
    refused(DataError, "has 1 sample;", lambda: as_source(Pairs([(torch.zeros(3), 0)])))
    refused(UsageError, "data of type dict; expected a Dataset", lambda: as_source({"x": X}))
    refused(UsageError, "data of type Stream", lambda: as_source(Stream()))


def test_a_datasets_dataset_with_a_transform_or_with_arrays_of_many_shapes_is_refused():
    made = datasets.Dataset(table(good(), [0, 1, 0, 1]))
    made.set_transform(lambda batch: batch)
    refused(UsageError, "has a transform", lambda: as_source(made))
    ragged = datasets.Dataset.from_dict({"pixels": [[1, 2], [3]], "label": [0, 1]})
    refused(DataError, "differ in shape", lambda: as_source(ragged))

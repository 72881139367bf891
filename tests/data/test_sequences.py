"""Samples whose tokens have labels: generated tasks by their definition, a text by its own characters."""

from __future__ import annotations

from pathlib import Path

import datasets
import datasets.config
import pytest
import torch

from sidestep.data.augment import parse
from sidestep.data.order import Batches
from sidestep.data.samples import DatasetSamples, Samples
from sidestep.data.sequences import SIZES
from sidestep.data.sources import as_source, load
from sidestep.errors import DataError, UsageError


def test_reversal_is_read_backwards() -> None:
    splits = load("reversal")
    assert torch.equal(splits.train.y, splits.train.x.flip(1))
    assert splits.train.x.shape == (SIZES["train"], 20) and splits.train.x.unique().tolist() == list(range(10))
    assert [len(part) for part in (splits.train, splits.val, splits.test)] == list(SIZES.values())
    assert splits.mean == splits.std == () and not splits.train.text


@pytest.mark.parametrize("hops", [1, 2, 4])
def test_a_pointer_is_followed_as_often_as_the_name_says(hops: int) -> None:
    test = load(f"pointers-{hops}", context=9).test
    assert test.x.shape == (SIZES["test"], 9) and test.classes == tuple(map(str, range(9)))
    for x, y in zip(test.x[:50].tolist(), test.y[:50].tolist(), strict=True):
        assert sorted(x) == list(range(9))
        for at, label in zip(x, y, strict=True):
            for _ in range(hops):
                at = x[at]
            assert label == at


def test_what_is_judged_is_the_same_for_every_seed_and_what_is_learnt_is_not() -> None:
    one, other = load("pointers-1", seed=0), load("pointers-1", seed=1)
    assert torch.equal(one.test.x, other.test.x) and torch.equal(one.val.x, other.val.x)
    assert not torch.equal(one.train.x, other.train.x) and not torch.equal(one.test.x, one.val.x)
    assert torch.equal(load("pointers-1", seed=1).train.x, other.train.x)


def letters(n: int) -> str:
    return "".join("abcdefghij"[i * i % 10] for i in range(n))


def test_a_text_is_cut_into_samples_whose_labels_are_the_next_characters(tmp_path: Path) -> None:
    text = letters(200)
    (tmp_path / "input.txt").write_text(text)
    splits = load(str(tmp_path), context=4)
    vocabulary = sorted(set(text))
    assert splits.train.classes == tuple(vocabulary) and splits.train.text
    # 160, 20 and 20 characters, in this order train, test, val; each sample of 4 needs the character after it.
    for part, start, n in ((splits.train, 0, 39), (splits.test, 160, 4), (splits.val, 180, 4)):
        assert len(part) == n
        for i in range(n):
            here = start + 4 * i
            assert "".join(vocabulary[t] for t in part.x[i]) == text[here : here + 4]
            assert "".join(vocabulary[t] for t in part.y[i]) == text[here + 1 : here + 5]


def test_a_text_from_the_hub_is_its_parts_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SIDESTEP_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    text = letters(3000)

    def downloaded(repository: str) -> dict[str, datasets.Dataset]:
        assert repository == "karpathy/tiny_shakespeare"
        cuts = {"test": text[2900:], "train": text[:2700], "validation": text[2700:2900]}
        return {split: datasets.Dataset.from_dict({"text": [part]}) for split, part in cuts.items()}

    monkeypatch.setattr(datasets, "load_dataset", downloaded)
    from_hub = load("tinyshakespeare")
    (tmp_path / "input.txt").write_text(text)
    from_file = load(str(tmp_path))
    for a, b in ((from_hub.train, from_file.train), (from_hub.test, from_file.test), (from_hub.val, from_file.val)):
        assert torch.equal(a.x, b.x) and torch.equal(a.y, b.y)
    assert from_hub.train.name == "tinyshakespeare" and from_hub.train.shape == (128,)


def test_a_text_too_short_or_not_in_utf_8_is_refused(tmp_path: Path) -> None:
    (tmp_path / "input.txt").write_text(letters(100))
    with pytest.raises(DataError, match=r"has 100 characters, expected at least 2570: two samples of 128.*--context"):
        load(str(tmp_path))
    (tmp_path / "input.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match=r"input\.txt cannot be read .*expected a text in UTF-8"):
        load(str(tmp_path))


def test_batches_of_tokens_are_the_tokens() -> None:
    x, y = torch.arange(12).view(4, 3) % 5, torch.arange(12).view(4, 3) % 2
    source = as_source((x, y))
    assert isinstance(source, Samples) and source.num_classes == 2 and source.shape == (3,)
    batches = Batches(source, 4, seed=0, mean=(), std=())
    found, labels = batches(0)
    order = found[:, 0].argsort()
    assert found.dtype == torch.int64
    assert torch.equal(found[order], x[x[:, 0].argsort()]) and torch.equal(labels[order], y[x[:, 0].argsort()])
    with pytest.raises(UsageError, match="mixup is for images and floats with classes, got tokens"):
        Batches(source, 4, seed=0, mean=(), std=(), augment=parse("mixup"))(0)
    assert torch.equal(DatasetSamples(list(zip(x, y, strict=True))).fetch(torch.tensor([2, 0]))[1], y[[2, 0]])


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (torch.zeros(4, 3, 2, dtype=torch.int64), torch.zeros(4), r"\(N, T\) tokens of torch.int64"),
        (torch.zeros(4, 3, dtype=torch.int64), torch.zeros(4, 2, dtype=torch.int64), "or for each of their tokens"),
        (torch.zeros(4, 3), torch.zeros(4, 3, dtype=torch.int64), r"expected one integer for each of 4 samples\.$"),
        (torch.zeros(4, 3, dtype=torch.int64), torch.tensor([[0, 1, 0], [0, -1, 0]] * 2), "sample 1 has label -1"),
    ],
)
def test_tokens_that_cannot_be_learnt_from_are_refused(x: torch.Tensor, y: torch.Tensor, message: str) -> None:
    with pytest.raises(DataError, match=message):
        as_source((x, y))

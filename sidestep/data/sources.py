"""Where samples come from: a name, a folder, or an object of the user's."""

from __future__ import annotations

import os
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from sidestep.data import DATASETS
from sidestep.data.files import Part, read_digits, read_folder
from sidestep.data.hub import HUB, HUB_TEXT, read_dataset, read_hub, read_hub_text
from sidestep.data.noise import check_rate, symmetric_noise
from sidestep.data.samples import DatasetSamples, Samples, Source, check_values, checked
from sidestep.data.sequences import GENERATED, TEXT, cut_text, generated, read_text
from sidestep.data.splits import stratified_split
from sidestep.errors import DataError, UsageError, unknown


@dataclass(frozen=True)
class Splits:
    """A data set cut in three, with the per-channel mean and spread of its training part (in 0..1 for images)."""

    train: Samples
    val: Samples  # empty where the whole train split is trained on
    test: Samples
    mean: tuple[float, ...]
    std: tuple[float, ...]


def load(
    name_or_path: str,
    *,
    val_fraction: float = 0.1,
    seed: int = 0,
    label_noise: float = 0.0,
    noise_val: bool = False,
    context: int | None = None,
) -> Splits:
    """Read a data set by name, from the folder of that name in $SIDESTEP_DATA, or from the folder at a path.

    val_fraction: the share of the train split held out for validation, stratified and drawn from `seed`; 0 leaves `val`
    empty, and a folder that brings its own `val` keeps it.  label_noise: the rate at which training labels (with
    noise_val validation labels too) are redrawn from all classes; test labels are never touched.  context: tokens a
    sample, of a text or a generated task; None for its own.

    Raises UsageError for an unknown name or a value out of range, DataError for anything missing or bad inside.
    """
    check_rate(label_noise)
    if not 0 <= val_fraction < 1:
        raise UsageError(f"validation fraction {val_fraction:g}; expected at least 0 and less than 1.")
    name, parts = _read(name_or_path, context, seed)
    if "all" in parts:
        everything = checked(parts["all"], None, name, name)
        # Not `seed`: runs that differ in it must be judged on the same images.
        kept, held = stratified_split(everything.y, 0.2, seed=0)
        train, test = everything.take(kept), everything.take(held)
    else:
        train = checked(parts["train"], None, name, f"{name}, train")
        test = _like(train, parts, "test")

    if "val" in parts:
        val = _like(train, parts, "val")
    else:
        kept, held = stratified_split(train.y, val_fraction, seed)
        if val_fraction and not len(held):
            raise DataError(
                f"{name}: {val_fraction:g} of {len(train)} samples leaves none for validation; hold out more."
            )
        val = train.take(held)
        train = train.take(kept) if len(held) else train
    train = train.with_labels(symmetric_noise(train.y, label_noise, train.num_classes, seed))
    if noise_val:
        val = val.with_labels(symmetric_noise(val.y, label_noise, val.num_classes, seed))
    return Splits(train, val, test, *channel_stats(train.x))


def as_source(data: Any, num_classes: int | None = None) -> Source:
    """What `fit` accepts as data: a Source, a pair of tensors, a Dataset of (x, y), or a `datasets.Dataset`.

    num_classes: by default what names the classes, else one more than the largest label, for which every sample of a
    Dataset is looked at once.  Raises DataError for samples that cannot be trained on (those of a Dataset when they
    are fetched) and UsageError for anything else.
    """
    where = "the data set"
    huggingface = sys.modules.get("datasets")  # not imported, so `data` is none of its
    if isinstance(data, DatasetSamples):
        return data
    if isinstance(data, Samples):
        check_values(data.x, data.y, data.num_classes, data.name or where)
        return data
    if isinstance(data, TensorDataset):
        data = data.tensors
    if isinstance(data, tuple | list) and len(data) == 2:
        x, y = data
        return checked(Part(x, y, None), num_classes, "", where)
    if huggingface is not None and isinstance(data, huggingface.Dataset):
        return checked(read_dataset(data, where), num_classes, "", where)
    if isinstance(data, Dataset) and not isinstance(data, IterableDataset):
        return DatasetSamples(data, num_classes)
    if isinstance(data, DataLoader):
        raise UsageError("got a DataLoader, expected what it loads; give its .dataset, and batch_size beside it.")
    raise UsageError(f"data of type {type(data).__name__}; expected a Dataset of (x, y), a pair of tensors or Samples.")


def channel_stats(x: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation (1 where that is 0) of each channel, which is dimension 1; images count as 0..1.

    Tokens have none.
    """
    if x.dtype == torch.int64:
        return (), ()
    total = square = torch.zeros(x.shape[1], dtype=torch.float64)
    for part in x.split(1024):
        values = part.double().transpose(0, 1).flatten(1)
        total, square = total + values.sum(1), square + values.square().sum(1)
    count = x.numel() / x.shape[1]
    scale = 255 if x.dtype == torch.uint8 else 1
    mean = total / count
    std = (square / count - mean.square()).clamp(min=0).sqrt() / scale
    return tuple((mean / scale).tolist()), tuple(torch.where(std > 0, std, 1).tolist())


def from_anywhere(name_or_path: str) -> str:
    """What stands for the same data set in any working directory: a folder's path is absolute, a name is as it was."""
    if name_or_path == "digits" or name_or_path in GENERATED:
        return name_or_path
    at = Path(name_or_path)
    return name_or_path if _on_shelf(name_or_path) or not at.is_dir() else str(at.absolute())


def _on_shelf(name: str) -> Path | None:
    """The folder of that name in $SIDESTEP_DATA."""
    shelf = os.environ.get("SIDESTEP_DATA")
    return path if shelf and (path := Path(shelf, name)).is_dir() else None


def _read(name_or_path: str, context: int | None, seed: int) -> tuple[str, dict[str, Part]]:
    if name_or_path == "digits":
        without_context(context, name_or_path)
        return name_or_path, {"all": read_digits()}
    if name_or_path in GENERATED:
        return name_or_path, generated(name_or_path, context, seed)
    shelf = os.environ.get("SIDESTEP_DATA")
    if shelf and not Path(shelf).is_dir():
        raise DataError(f"SIDESTEP_DATA is {shelf}, which is no folder; set it to the folder that holds the data sets.")
    root = _on_shelf(name_or_path) or Path(name_or_path)
    if root.is_dir():
        if (root / TEXT).exists():
            return root.resolve().name, cut_text(read_text(root / TEXT), context, str(root / TEXT))
        without_context(context, str(root))
        parts = read_folder(root)
        if "all" in parts:
            warnings.warn(f"{root} has no test split: a fixed, stratified 20 % of it becomes one.", stacklevel=3)
        return root.resolve().name, parts
    if name_or_path in HUB:
        without_context(context, name_or_path)
        return name_or_path, read_hub(name_or_path)
    if name_or_path in HUB_TEXT:
        return name_or_path, cut_text(read_hub_text(name_or_path), context, name_or_path)
    if os.sep in name_or_path:
        raise DataError(
            f"no folder {name_or_path}; expected one with train.parquet and test.parquet, class folders, or {TEXT}."
        )
    found = (path.parent.name for path in Path(shelf).glob("*/train*")) if shelf else ()
    raise unknown("data set", name_or_path, {*DATASETS, *found})


def without_context(context: int | None, where: str) -> None:
    if context is not None:
        raise UsageError(f"context={context}, but {where} has no tokens; give it with a text or a generated task.")


def _like(train: Samples, parts: dict[str, Part], split: str) -> Samples:
    """The samples of another split, which must be of the same kind as the training samples."""
    where = f"{train.name}, {split}"
    if parts[split].classes != parts["train"].classes:
        raise DataError(f"{where} names other classes than train; expected the same names in the same order.")
    samples = checked(parts[split], train.num_classes, train.name, where)
    if samples.shape != train.shape:
        raise DataError(f"{where} has samples of shape {samples.shape}; expected train's {train.shape}; resize them.")
    return samples

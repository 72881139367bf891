"""Data through Hugging Face `datasets`, which is imported only here and only when it is asked for."""

from __future__ import annotations

import urllib.request
from typing import Any

import numpy as np
import pyarrow as pa

from sidestep.data.files import IMAGE_COLUMNS, LABEL_COLUMNS, Part, column_of, labels_of, read_table
from sidestep.errors import DataError, UsageError

HUB = {
    "mnist": "ylecun/mnist",
    "fashion-mnist": "zalando-datasets/fashion_mnist",
    "cifar10": "uoft-cs/cifar10",
    "cifar100": "uoft-cs/cifar100",
}
HUB_TEXT = {"tinyshakespeare": "karpathy/tiny_shakespeare"}
"""Where the known names are on the Hugging Face Hub: images, and texts."""


def read_dataset(data: Any, where: str) -> Part:
    """A `datasets.Dataset` with an image column (images, or arrays of one shape) and an integer label column."""
    from datasets.table import embed_table_storage

    if data.format["type"] == "custom":
        raise UsageError(f"{where} has a transform, which is not applied here; pass a Dataset of (x, y) instead.")
    name = column_of(data.column_names, IMAGE_COLUMNS, where)
    data = data.select_columns([name, column_of(data.column_names, LABEL_COLUMNS, where)])
    table = embed_table_storage(data.with_format("arrow")[:])
    kind = table.schema.field(name).type
    if pa.types.is_struct(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        return read_table(table, where)
    x = np.asarray(data.with_format("numpy")[:][name])
    if x.dtype == object:
        raise DataError(f"{where}: the arrays in {name!r} differ in shape; expected one shape; resize them first.")
    return Part(x if x.dtype == np.uint8 else x.astype(np.float32), *labels_of(table, where))


def read_hub(name: str) -> dict[str, Part]:
    """A known name from the Hugging Face Hub, through `datasets`."""
    parts = downloaded(name, HUB[name], "train.parquet and test.parquet")
    return {split: read_dataset(parts[split], f"{HUB[name]}, {split}") for split in ("train", "test")}


def read_hub_text(name: str) -> str:
    """A known text from the Hub, whose splits there are its parts in order."""
    parts = downloaded(name, HUB_TEXT[name], "input.txt")
    return "".join("".join(parts[split]["text"]) for split in ("train", "validation", "test"))


def downloaded(name: str, where: str, files: str) -> Any:
    """The splits of the Hub's data set `where`.  files: what could stand in a folder `name` instead."""
    advice = (
        f"put {files} in a folder {name} and set SIDESTEP_DATA to the folder that holds it "
        "(or HF_HUB_OFFLINE=1 if the Hub's cache has it)."
    )
    try:
        from datasets import config, load_dataset
    except ImportError as error:
        raise DataError(
            f"no data set {name!r} here; pip install 'sidestep[hub]' to download it, or {advice}"
        ) from error
    if not config.HF_HUB_OFFLINE:
        # `datasets` retries for 20 s before it says that there is no network; one short request says so at once.
        try:
            urllib.request.urlopen(f"{config.HF_ENDPOINT}/api/datasets/{where}", timeout=5).close()
        except OSError as error:
            raise DataError(f"no data set {name!r} here, and the Hub does not answer ({error}); {advice}") from error
    try:
        return load_dataset(where)
    except Exception as error:  # network, file and format errors of four libraries share no base class
        reason = str(error).splitlines()[0]
        raise DataError(f"the Hub's {where} cannot be loaded ({reason}); {advice}") from error

"""Readers: a file, folder or table of labelled samples in, one `Part` of arrays out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sidestep.data.cache import decoded
from sidestep.errors import DataError

IMAGE_COLUMNS = ("image", "img", "pixel_values", "pixels")
LABEL_COLUMNS = ("label", "labels", "fine_label")
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")


class Part(NamedTuple):
    """One split as it was found: labels are not checked yet, `classes` is None where nothing names them."""

    x: np.ndarray  # (N, C, H, W) uint8, or (N, T) int64
    y: np.ndarray  # (N,) int64, or (N, T)
    classes: tuple[str, ...] | None
    text: bool = False  # a token's label is the next token


def read_digits() -> Part:
    """scikit-learn's 8x8 digits, whose grey levels 0..16 become round(level * 255 / 16)."""
    from sklearn.datasets import load_digits

    images, labels = map(np.asarray, load_digits(return_X_y=True))
    x = np.rint(images * 255 / 16).astype(np.uint8).reshape(-1, 1, 8, 8)
    return Part(x, labels.astype(np.int64), tuple("0123456789"))


def read_parquet(path: Path) -> Part:
    """A Parquet file in the Hugging Face image layout."""
    try:
        table = pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"{path} cannot be read ({reason}); expected a whole Parquet file; copy it again.") from error
    return read_table(table, str(path))


def read_table(table: pa.Table, where: str) -> Part:
    """An image column (struct{bytes, path} or binary) and an integer label column; class names from the metadata."""
    y, classes = labels_of(table, where)
    name = column_of(table.column_names, IMAGE_COLUMNS, where)
    blobs = table[name]
    if pa.types.is_struct(blobs.type) and (field := blobs.type.get_field_index("bytes")) >= 0:
        blobs = blobs.flatten()[field]
    if not (pa.types.is_binary(blobs.type) or pa.types.is_large_binary(blobs.type)):
        raise DataError(
            f"{where}: column {name!r} is {blobs.type}; expected encoded images: binary, or a struct of bytes."
        )
    _no_nulls(blobs, name, where)
    return Part(decoded(blobs.to_pylist(), lambda row: f"{where}, row {row}: the image"), y, classes)


def read_folder(root: Path) -> dict[str, Part]:
    """The splits in a folder: `train`, `test` and, where it is there, `val`; only `all` where nothing splits it.

    It holds {train,val,test}.parquet, or {train,val,test}/<class>/*.png, or <class>/*.png.
    """
    suffix = ".parquet" if any(root.glob("*.parquet")) else ""
    if not suffix and not (root / "train").is_dir():
        return {"all": _read_classes(root)}
    paths = {split: root / f"{split}{suffix}" for split in ("train", "val", "test")}
    if not paths["val"].exists():
        del paths["val"]
    for path in paths.values():
        if not path.exists():
            raise DataError(f"{path} is missing; expected train{suffix} and test{suffix} in {root}; add it.")
    if suffix:
        return {split: read_parquet(path) for split, path in paths.items()}
    classes = _read_classes(paths["train"]).classes
    return {split: _read_classes(path, classes) for split, path in paths.items()}


def _read_classes(root: Path, classes: tuple[str, ...] | None = None) -> Part:
    """<class>/*.png below `root`, with the labels that `classes` gives, by default the sorted folder names."""
    found = tuple(sorted(path.name for path in root.iterdir() if path.is_dir() and path.name[0] != "."))
    classes = found if classes is None else classes
    for name in found:
        if name not in classes:
            raise DataError(f"{root / name} is no class of the training images; expected {', '.join(classes)}.")
    files = [
        (path, label)
        for label, name in enumerate(classes)
        for path in sorted((root / name).glob("*"))
        if path.suffix.lower() in SUFFIXES
    ]
    if not files:
        raise DataError(
            f"{root} holds no images; expected train.parquet and test.parquet, or one folder of images a class."
        )
    x = decoded([path.read_bytes() for path, _ in files], lambda i: str(files[i][0]))
    return Part(x, np.array([label for _, label in files]), classes)


def column_of(columns: list[str], known: tuple[str, ...], where: str) -> str:
    for name in known:
        if name in columns:
            return name
    raise DataError(f"{where} has the columns {', '.join(columns)}; expected one named {' or '.join(known)}.")


def labels_of(table: pa.Table, where: str) -> tuple[np.ndarray, tuple[str, ...] | None]:
    if table.num_rows == 0:
        raise DataError(f"{where} has no rows; expected at least 2 samples.")
    name = column_of(table.column_names, LABEL_COLUMNS, where)
    labels = table[name]
    if not pa.types.is_integer(labels.type):
        raise DataError(f"{where}: column {name!r} is {labels.type}; expected integers 0..C-1; number the classes.")
    _no_nulls(labels, name, where)
    try:
        about = json.loads((table.schema.metadata or {}).get(b"huggingface", b"{}"))
    except ValueError as error:
        raise DataError(f"{where}: its `huggingface` metadata is not JSON ({error}); write the file again.") from error
    names = about.get("info", {}).get("features", {}).get(name, {}).get("names")
    return labels.to_numpy().astype(np.int64), tuple(names) if names else None


def _no_nulls(column: pa.ChunkedArray, name: str, where: str) -> None:
    if column.null_count:
        row = column.is_null().index(True).as_py()
        raise DataError(f"{where}, row {row}: {name!r} is null; expected a value in every row; drop the row.")

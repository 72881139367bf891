"""Small data sets on disk."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image


def pictures(n: int, shape: tuple[int, ...] = (6, 5), seed: int = 0) -> list[np.ndarray]:
    return list(np.random.default_rng(seed).integers(0, 256, (n, *shape), dtype=np.uint8))


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def table(blobs: Sequence[bytes | None], labels: Sequence[int | None], names: Sequence[str] | None = None) -> pa.Table:
    """The Hugging Face image layout."""
    image = pa.array(
        [{"bytes": b, "path": None} for b in blobs], pa.struct({"bytes": pa.binary(), "path": pa.string()})
    )
    made = pa.table({"image": image, "label": pa.array(labels, pa.int64())})
    if names is None:
        return made
    features = {"image": {"_type": "Image"}, "label": {"names": list(names), "_type": "ClassLabel"}}
    return made.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})


def parquet_folder(root: Path, n: int = 40, classes: int = 4, names: Sequence[str] | None = None) -> Path:
    """`train.parquet` of n and `test.parquet` of n / 2 grey images, whose labels go round the classes."""
    root.mkdir()
    for seed, (split, size) in enumerate({"train": n, "test": n // 2}.items()):
        blobs = [png(p) for p in pictures(size, seed=seed)]
        pq.write_table(table(blobs, [i % classes for i in range(size)], names), root / f"{split}.parquet")
    return root


def class_folders(root: Path, classes: dict[str, int]) -> Path:
    """<class>/<i>.png for each class and its number of colour images."""
    for seed, (name, n) in enumerate(classes.items()):
        (root / name).mkdir(parents=True)
        for i, pixels in enumerate(pictures(n, (4, 4, 3), seed)):
            (root / name / f"{i}.png").write_bytes(png(pixels))
    return root

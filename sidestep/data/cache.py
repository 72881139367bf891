"""Images decoded once: encoded files in, one memory-mapped uint8 array out.

The array's file is named by the SHA-256 of the encoded bytes and of the decoder, so it can be deleted at any time and
is never stale.  It is written aside and renamed: two processes that decode the same images at once both succeed.
"""

from __future__ import annotations

import hashlib
import io
import os
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import PIL
from PIL import Image

from sidestep.errors import DataError

DECODER = f"1, Pillow {PIL.__version__}"

# Pillow would also run Ghostscript on an EPS file and so on: only formats whose decoders are plain code.
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")


def cache_folder() -> Path:
    """$SIDESTEP_CACHE, else $XDG_CACHE_HOME/sidestep, else ~/.cache/sidestep."""
    if own := os.environ.get("SIDESTEP_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sidestep"


def pixels(image: Image.Image) -> np.ndarray:
    """(1, H, W) uint8 of a grey image, (3, H, W) of any other; transparency is dropped."""
    if image.mode[0] in "IF":
        raise ValueError(f"its pixels are of mode {image.mode}; expected 8 bits a channel")
    if image.mode in ("1", "L", "LA"):
        return np.array(image.convert("L"))[None]
    return np.array(image.convert("RGB")).transpose(2, 0, 1)


def decode(blob: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(blob), formats=FORMATS) as image:
        return pixels(image)


def decoded(blobs: Sequence[bytes], where: Callable[[int], str]) -> np.ndarray:
    """(N, C, H, W) uint8 of N encoded images, at least one, memory-mapped (copy-on-write) from the cache.

    where: names image i in an error.  Raises DataError for the first image that cannot be decoded, or whose size or
    number of channels is not the first one's, and for a cache that cannot be written.
    """
    digest = hashlib.sha256(DECODER.encode())
    for blob in blobs:
        digest.update(len(blob).to_bytes(8, "big"))
        digest.update(blob)
    path = cache_folder() / f"{digest.hexdigest()}.npy"
    if not path.exists():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            _write(path, blobs, where)
        except OSError as error:
            raise DataError(
                f"the image cache {path.parent} cannot be written ({error.strerror}); "
                "free some space there or set SIDESTEP_CACHE to another folder."
            ) from error
    return np.load(path, mmap_mode="c")


def _write(path: Path, blobs: Sequence[bytes], where: Callable[[int], str]) -> None:
    first = _image(blobs[0], where(0))
    aside = path.with_suffix(f".{uuid.uuid4().hex}")
    try:
        # Plain writes, not a writable memory map: on a full disk those raise, a map kills the process.
        with aside.open("wb") as file:
            header = {"descr": "|u1", "fortran_order": False, "shape": (len(blobs), *first.shape)}
            np.lib.format.write_array_header_1_0(file, header)
            for i, blob in enumerate(blobs):
                image = _image(blob, where(i))
                if image.shape != first.shape:
                    raise DataError(
                        f"{where(i)} is {_size(image)}, but {where(0)} is {_size(first)}; expected one size and one "
                        "number of channels; resize or convert the images first."
                    )
                file.write(image.tobytes())
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def _image(blob: bytes, where: str) -> np.ndarray:
    try:
        return decode(blob)
    except PIL.UnidentifiedImageError as error:
        raise DataError(
            f"{where} is not an image; expected one of {', '.join(FORMATS)}; replace or drop it."
        ) from error
    except Exception as error:  # a broken image makes Pillow raise OSError, SyntaxError, ValueError, zlib.error, ...
        raise DataError(f"{where} cannot be decoded ({error}); expected a whole image; replace or drop it.") from error


def _size(image: np.ndarray) -> str:
    channels, height, width = image.shape
    return f"{width}x{height}x{channels}"

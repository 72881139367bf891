from __future__ import annotations

import errno
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sidestep.data import cache
from sidestep.data.cache import cache_folder, decoded, pixels
from sidestep.errors import DataError
from tests.data.make import pictures, png


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SIDESTEP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def where(i: int) -> str:
    return f"image {i}"


@pytest.mark.parametrize("shape", [(6, 5), (6, 5, 3)])
def test_decoded_images_are_the_encoded_pixels_grey_in_one_channel_and_colour_in_three(folder, shape):
    images = pictures(7, shape)
    got = decoded([png(p) for p in images], where)
    want = np.stack(images)
    want = want[:, None] if want.ndim == 3 else want.transpose(0, 3, 1, 2)
    assert isinstance(got, np.memmap)
    assert np.array_equal(got, want)


def test_the_second_call_reads_the_cache_and_decodes_nothing(folder, monkeypatch):
    blobs = [png(p) for p in pictures(5)]
    first = decoded(blobs, where)
    monkeypatch.setattr(cache, "decode", lambda blob: pytest.fail("decoded again"))
    assert np.array_equal(decoded(blobs, where), first)
    assert [path.suffix for path in folder.iterdir()] == [".npy"]


def test_other_bytes_another_order_and_another_decoder_are_other_entries(folder, monkeypatch):
    blobs = [png(p) for p in pictures(3)]
    assert np.array_equal(decoded(blobs, where)[::-1], decoded(blobs[::-1], where))
    monkeypatch.setattr(cache, "DECODER", "another")
    decoded(blobs, where)
    assert len(list(folder.iterdir())) == 3


def test_writing_to_what_was_read_never_reaches_the_cache(folder):
    blobs = [png(p) for p in pictures(3)]
    first = decoded(blobs, where)
    first[:] = 0
    assert decoded(blobs, where).any()


def test_decoding_the_same_images_at_once_gives_each_the_whole_array(folder):
    images = pictures(200)
    blobs = [png(p) for p in images]
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda _: decoded(blobs, where), range(8)))
    assert all(np.array_equal(got[:, 0], np.stack(images)) for got in results)
    assert len(list(folder.iterdir())) == 1


def test_a_full_disk_is_one_line_and_leaves_nothing_behind(folder, monkeypatch):
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(cache.os, "fsync", full)
    with pytest.raises(DataError, match=r"cannot be written \(No space left on device\); .*SIDESTEP_CACHE"):
        decoded([png(p) for p in pictures(2)], where)
    assert not list(folder.iterdir())


def test_a_cache_that_cannot_be_made_is_one_line(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("SIDESTEP_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(DataError, match="cannot be written"):
        decoded([png(p) for p in pictures(2)], where)


def test_the_cache_is_where_the_environment_says(monkeypatch):
    monkeypatch.setenv("SIDESTEP_CACHE", "/a")
    monkeypatch.setenv("XDG_CACHE_HOME", "/b")
    assert cache_folder() == Path("/a")
    monkeypatch.delenv("SIDESTEP_CACHE")
    assert cache_folder() == Path("/b/sidestep")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "sidestep"


def test_palettes_and_transparency_become_plain_colour_and_bits_become_grey():
    colours = pictures(1, (4, 4, 3))[0]
    picture = Image.fromarray(colours)
    for mode in ("RGB", "RGBA", "P"):
        converted = picture.convert(mode)
        assert np.array_equal(pixels(converted), np.array(converted.convert("RGB")).transpose(2, 0, 1))
    assert np.array_equal(pixels(picture.convert("1"))[0], np.array(picture.convert("1")) * np.uint8(255))


def bad_images() -> dict[str, tuple[list[bytes], str]]:
    good = png(pictures(1)[0])
    postscript = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 6 5\n"
    deep = np.zeros((6, 5), np.uint16)
    return {
        "corrupt": ([good, b"no image at all"], "image 1 is not an image; expected one of PNG"),
        "empty": ([good, b""], "image 1 is not an image"),
        "truncated": ([good, good[:-30]], "image 1 cannot be decoded"),
        "a program": ([good, postscript], "image 1 is not an image"),
        "16 bits": ([png(deep)], "mode I;16; expected 8 bits"),
        "another size": ([good, good, png(pictures(1, (6, 6))[0])], "image 2 is 6x6x1, but image 0 is 5x6x1"),
        "another mode": ([good, png(pictures(1, (6, 5, 3))[0])], "image 1 is 5x6x3, but image 0 is 5x6x1"),
    }


@pytest.mark.parametrize("name", list(bad_images()))
def test_a_bad_image_is_named_in_one_line_and_leaves_no_cache(folder, name):
    blobs, says = bad_images()[name]
    with pytest.raises(DataError) as error:
        decoded(blobs, where)
    assert says in str(error.value)
    assert "\n" not in str(error.value)
    assert not list(folder.iterdir())

"""Checkpoints that are whole or not there: safetensors files and a JSON manifest with the SHA-256 of each.

    checkpoints/step-40/blocks.0.safetensors  blocks.1.safetensors  hub.safetensors  run.safetensors  manifest.json

A checkpoint is written aside under a name with a leading dot: every file synced to disk, the manifest last, the folder
synced, then renamed.  So whatever kills the writer, a checkpoint's name means all of it.  One that is replaced is
`step-040` until the new one is there, so at every moment one of the two is found.  Nothing is ever unpickled.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from sidestep.errors import DataError, UsageError
from sidestep.files import only_writer, sync_folder, write_synced

FORMAT = 1
MANIFEST = "manifest.json"
ASIDE = ".aside-"


@dataclass(frozen=True)
class Manifest:
    """What a checkpoint says of itself.

    fingerprint: what must be equal to continue from it (method, model, cut, ...).  environment: what must be equal for
    equal bits (device type, torch version, ...).  extra: the caller's own values.
    """

    step: int
    fingerprint: Mapping[str, object]
    environment: Mapping[str, object]
    extra: Mapping[str, object]
    files: Mapping[str, str]  # name -> SHA-256, hexadecimal
    format: int = FORMAT


class Unsound(DataError):
    """No checkpoint, or not all of one.  A newer format is another error: not for us to pass over or to replace."""


# ------------------------------------------------------------------------------------------------------------- writing


def save(
    folder: Path,
    state: Mapping[str, Tensor],
    *,
    step: int,
    fingerprint: Mapping[str, object],
    environment: Mapping[str, object],
    extra: Mapping[str, object],
    keep: int = 2,
    prefix: str = "step",
    replace: bool = False,
) -> Path:
    """Write `folder/<prefix>-<step>/`, delete all but `keep` of this prefix, and return it.

    state: `<part>/<name>` -> tensor of any layout on any device; one file per part, names without "/" go to `run`.
    The three mappings hold what JSON can.  A sound checkpoint of the same name stays, unless `replace` says otherwise;
    an unsound one is replaced.

    Raises OSError (full disk, no permission) with nothing half written left behind, and DataError where another process
    is writing to the same folder.
    """
    if keep < 2:
        raise UsageError(f"got keep={keep}, expected 2 or more: the one before must outlive the one being written.")
    folder.mkdir(parents=True, exist_ok=True)
    final, aside = folder / f"{prefix}-{step}", folder / f"{ASIDE}{prefix}-{step}"
    replaced = folder / f"{prefix}-0{step}"  # the same step to whoever lists them
    with only_writer(folder):
        for left in folder.glob(f"{ASIDE}*"):
            shutil.rmtree(left)
        for number, path in _numbered(folder, prefix):
            proper = folder / f"{prefix}-{number}"
            if path != proper and proper.exists():
                _discard(path)
            elif path != proper:  # a writer died while it replaced this one
                os.rename(path, proper)
        if not replace and final.exists() and _passes(load, final):
            return final
        aside.mkdir()
        try:
            files: dict[str, str] = {}
            for name, tensors in _by_file(state).items():
                files[name] = write_synced(aside / name, _pieces(tensors))
            manifest = {
                "format": FORMAT,
                "step": step,
                "fingerprint": dict(fingerprint),
                "environment": dict(environment),
                "extra": dict(extra),
                "files": files,
            }
            write_synced(aside / MANIFEST, [_sealed(as_read(manifest))])
            sync_folder(aside)
            if final.exists():
                os.rename(final, replaced)
            os.rename(aside, final)
        except BaseException:
            shutil.rmtree(aside, ignore_errors=True)
            raise
        sync_folder(folder)
        if replaced.exists():
            _discard(replaced)
        others = [
            path for _, path in _numbered(folder, prefix) if path != final and _passes(read_manifest, path, DataError)
        ]
        for old in others[keep - 1 :]:
            _discard(old)
    return final


def _by_file(state: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    files: dict[str, dict[str, Tensor]] = {}
    for key, tensor in state.items():
        part = key.partition("/")[0] if "/" in key else "run"
        files.setdefault(f"{part}.safetensors", {})[key] = tensor
    return files


def _pieces(tensors: Mapping[str, Tensor]) -> Iterator[bytes | memoryview]:
    """The very bytes of `safetensors.torch.save`: the header's length, the header, and each tensor's own memory.

    So they are written without Python's lock, which the library would hold for seconds: another thread gives this
    process's signs of life.
    """
    # The library spells dtypes and shapes and chooses the order, of tensors that hold nothing.
    hollow = {key: torch.empty(0, *tensor.shape, dtype=tensor.dtype) for key, tensor in tensors.items()}
    entries: dict[str, Any] = json.loads(safetensors.torch.save(hollow)[8:])
    end = 0
    for key, entry in entries.items():
        start, end = end, end + tensors[key].nbytes
        entry |= {"shape": entry["shape"][1:], "data_offsets": [start, end]}
    header = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    header += b" " * (-len(header) % 8)  # so that all values lie aligned
    yield len(header).to_bytes(8, "little") + header
    for key in entries:
        yield _bytes(tensors[key])


def _bytes(tensor: Tensor) -> memoryview:
    """Its values in C order; of a tensor on the CPU in that order already, its own memory."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


def as_read(body: Mapping[str, object]) -> dict[str, object]:
    """What reading it back gives: lists for tuples, text for keys."""
    return json.loads(json.dumps(dict(body)))


def _sealed(body: Mapping[str, object]) -> bytes:
    """The manifest's one spelling, its own SHA-256 inside: no byte of it can change unseen."""
    seal = hashlib.sha256(json.dumps(body).encode()).hexdigest()
    return (json.dumps({**body, "sha256": seal}, indent=2) + "\n").encode()


def _discard(checkpoint: Path) -> None:
    """Delete so that a kill half-way leaves a leftover to clean up, never a checkpoint with files missing."""
    aside = checkpoint.with_name(f"{ASIDE}old-{checkpoint.name}")
    os.rename(checkpoint, aside)
    shutil.rmtree(aside)


# ------------------------------------------------------------------------------------------------------------- reading


def load(path: Path, without: Collection[str] = ()) -> tuple[dict[str, Tensor], Manifest]:
    """The state, on the CPU in C order, and the manifest, after every file's SHA-256 was found right.

    without: parts whose files are not read.

    Raises Unsound for anything else than a checkpoint with all bytes in place.
    """
    manifest = read_manifest(path)
    state: dict[str, Tensor] = {}
    for name, expected in manifest.files.items():
        if name.removesuffix(".safetensors") in without:
            continue
        try:
            tensors, got = _read(path / name)
        except SafetensorError as error:
            raise Unsound(f"{path / name} is damaged ({error}), expected every byte as it was written") from error
        if got != expected:
            raise Unsound(f"{path / name} is damaged: got SHA-256 {got[:12]}..., expected {expected[:12]}...")
        state |= tensors
    return state, manifest


def _read(file: Path) -> tuple[dict[str, Tensor], str]:
    """What a file in safetensors' format holds, and its SHA-256, without Python's lock as in `_pieces`.

    Raises SafetensorError for a header that is none, or not this file's.
    """
    with safe_open(file, "pt") as mapped:  # the library checks the header; no value is read through the map
        tensors = {key: torch.empty_like(mapped.get_tensor(key)) for key in mapped.offset_keys()}
    # Read once: the bytes that are hashed are the bytes that are used.
    with file.open("rb") as source:
        size = source.read(8)
        digest = hashlib.sha256(size + source.read(int.from_bytes(size, "little")))
        for tensor in tensors.values():
            source.readinto(_bytes(tensor))
            digest.update(_bytes(tensor))
    return tensors, digest.hexdigest()


def complete(folder: Path, prefix: str = "step") -> Iterator[tuple[Path, Manifest]]:
    """The complete checkpoints, highest step first.  Complete: its manifest is sound and its files are there.

    Raises DataError if it comes to one that was written by a later version of sidestep.
    """
    for _, path in _numbered(folder, prefix):
        with suppress(Unsound):
            yield path, read_manifest(path)


def latest(folder: Path, prefix: str = "step") -> Path | None:
    """The complete checkpoint of the highest step.  Raises DataError as `complete`."""
    return next((path for path, _ in complete(folder, prefix)), None)


def check(manifest: Manifest, fingerprint: Mapping[str, object], environment: Mapping[str, object]) -> list[str]:
    """Whether this run can continue from the checkpoint; one warning for each difference of environment.

    Raises DataError, naming the first key that differs, for a checkpoint of another run.  A key that the checkpoint
    does not know is newer than it, and no difference; of environments, one that either does not know.
    """
    known = {key: value for key, value in fingerprint.items() if key in manifest.fingerprint}
    for key, got, expected in differences(manifest.fingerprint, as_read(known)):
        raise DataError(
            f"the checkpoint of step {manifest.step} has {key} = {got}, expected {expected} as in this run; "
            "resume with the settings it was made with, or start a new run in another folder."
        )
    return [
        f"{key} was {got} when the checkpoint was made and is {now} here: equal bits are not promised."
        for key, got, now in differences(manifest.environment, as_read(environment))
        if key in manifest.environment and key in environment
    ]


def differences(
    saved: Mapping[str, object], now: Mapping[str, object], within: str = ""
) -> Iterator[tuple[str, str, str]]:
    for key in dict.fromkeys([*saved, *now]):
        a, b = saved.get(key), now.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            yield from differences(a, b, f"{within}{key}.")
        elif a != b or (key in saved) != (key in now):
            got, expected = (repr(side[key]) if key in side else "nothing" for side in (saved, now))
            yield f"{within}{key}", got, expected


def read_manifest(path: Path) -> Manifest:
    """Raises Unsound for anything else than a checkpoint whose files are there, though perhaps not all their bytes."""
    file = path / MANIFEST
    if not file.is_file():
        raise Unsound(f"{path} is no checkpoint: got no {MANIFEST} in it, expected one")
    raw = file.read_bytes()
    damaged = Unsound(f"{file} is damaged, expected every byte as it was written")
    try:
        body = json.loads(raw)
        newer = body["format"] > FORMAT
        del body["sha256"]
        manifest = None if newer else Manifest(**body)
    except (ValueError, TypeError, KeyError) as error:
        raise damaged from error
    if manifest is None:
        raise DataError(f"{file} has format {body['format']}, expected {FORMAT} or less; upgrade sidestep to read it.")
    if raw != _sealed(body):
        raise damaged
    for name in manifest.files:
        # The seal is no signature: a manifest from a stranger must not lead out of its folder.
        if Path(name).name != name or not (path / name).is_file():
            raise Unsound(f"{path / name} is missing, expected as a file of this checkpoint")
    return manifest


def _numbered(folder: Path, prefix: str) -> list[tuple[int, Path]]:
    """`<prefix>-<step>` folders and their steps, highest first."""
    found: list[tuple[int, Path]] = []
    for path in folder.iterdir() if folder.is_dir() else ():
        before, _, step = path.name.rpartition("-")
        if before == prefix and step.isascii() and step.isdecimal():
            found.append((int(step), path))
    return sorted(found, reverse=True)


def _passes(test: Callable[[Path], object], path: Path, fails: type[DataError] = Unsound) -> bool:
    try:
        test(path)
    except fails:
        return False
    return True

"""Files that survive a crash: replaced as a whole, flushed to the disk, written by one process at a time."""

from __future__ import annotations

import fcntl
import hashlib
import json
import math
import os
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sidestep.errors import Busy, DataError


@contextmanager
def only_writer(folder: Path) -> Generator[None]:
    """Whoever holds the lock knows that all leftovers are of dead writers: the system drops a dead process's locks."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise Busy(
                f"{folder} is being written by another process, expected one run per folder; stop it or use another."
            ) from error
        except OSError:
            pass  # some network file systems know no locks; a run has one writer all the same
        yield
    finally:
        os.close(descriptor)


def write_synced(path: Path, pieces: Iterable[bytes | memoryview]) -> str:
    """Write them one behind the other, down to the disk.  Returns the SHA-256 of all."""
    digest = hashlib.sha256()
    with path.open("wb") as file:
        for piece in pieces:
            file.write(piece)
            digest.update(piece)
        file.flush()
        os.fsync(file.fileno())
    return digest.hexdigest()


def sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_bytes_atomic(path: Path, data: bytes) -> None:
    """Replace a file as a whole: after a crash it is the old one or the new one, of two writers the last one's."""
    aside = path.with_name(f".{path.name}.{os.getpid()}.aside")
    try:
        write_synced(aside, [data])
        os.rename(aside, path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def write_text_atomic(path: Path, text: str) -> None:
    """`write_bytes_atomic` of UTF-8 text."""
    write_bytes_atomic(path, text.encode())


def write_json(path: Path, value: object) -> None:
    """Replace a file by this value as strict JSON, as a whole."""
    write_text_atomic(path, strict_json(value, indent=2) + "\n")


def strict_json(value: object, indent: int | None = None) -> str:
    """JSON that every reader takes: NaN and infinities, for which JSON has no word, become null, a path its text."""
    return json.dumps(_plain(value), indent=indent, allow_nan=False)


def _plain(value: object) -> object:
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value


def append_jsonl(path: Path, row: Mapping[str, object]) -> None:
    """Add one line, in place of a last one that a crash has torn; several processes may do so at once.

    A last line that only lacks its end, as an editor may leave it, stays.  What is added outlives the process; it is
    not synced, so the machine's own death may cost the last lines.
    """
    with path.open("a+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        before = file.read()
        whole = before.rfind(b"\n") + 1
        if _is_json(before[whole:]):
            file.write(b"\n")
        else:
            file.truncate(whole)
        file.write(strict_json(row).encode() + b"\n")


def _is_json(text: bytes) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def read_text(path: Path) -> str:
    """UTF-8 text.  Raises DataError for a file that is none, or cannot be read."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read ({error}), expected text in UTF-8; check that file.") from error


def read_json(path: Path, *keys: str) -> Any:
    """What a JSON file holds; with keys, an object that has them.  Raises DataError for a damaged file."""
    text = read_text(path)
    try:
        value: Any = json.loads(text)
        if lacking := [key for key in keys if not isinstance(value, dict) or key not in value]:
            raise ValueError(f"no {lacking[0]} in it")
    except ValueError as error:
        raise DataError(
            f"{path} is damaged ({error}), expected it as it was written; delete it and run again what wrote it."
        ) from error
    return value


def read_jsonl(path: Path, *keys: str) -> list[dict[str, Any]]:
    """The rows of a file, without a last line torn by a crash; no file is no rows.

    Raises DataError for any other line that is not a JSON object with these keys.
    """
    return [row for row, _ in _rows(path, keys)] if path.exists() else []


def truncate_jsonl(path: Path, keep: Callable[[dict[str, object]], bool]) -> None:
    """Drop the rows that `keep` refuses, and a last line torn by a crash; no file is no rows.

    Raises DataError for any other line that is not a JSON object.
    """
    if path.exists():
        write_bytes_atomic(path, b"".join(line + b"\n" for row, line in _rows(path) if keep(row)))


def _rows(path: Path, keys: Sequence[str] = ()) -> Generator[tuple[dict[str, Any], bytes]]:
    lines = path.read_bytes().splitlines()
    expected = f"JSON object with {', '.join(keys)}" if keys else "JSON object"
    for number, line in enumerate(lines, 1):
        row: Any = None
        try:
            row = json.loads(line)
        except ValueError:
            if number == len(lines):
                return
        if not isinstance(row, dict) or not set(keys) <= row.keys():
            raise DataError(f"{path}, line {number} is no {expected}, expected one a line; delete that line.")
        yield row, line

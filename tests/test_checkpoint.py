from __future__ import annotations

import errno
import fcntl
import hashlib
import itertools
import json
import multiprocessing
import os
import pickle
import random
import resource
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor

from sidestep.checkpoint import MANIFEST, Manifest, Unsound, check, complete, latest, load, read_manifest, save
from sidestep.errors import DataError, UsageError
from sidestep.files import append_jsonl, read_jsonl, strict_json, truncate_jsonl, write_json, write_text_atomic
from sidestep.resuming import rewind

DTYPES = [
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint64, torch.uint32, torch.uint16, torch.uint8),
    *(torch.complex64, torch.bool),
]


def write(folder: Path, state: dict[str, Tensor], step: int = 1, **options: Any) -> Path:
    return save(folder, state, step=step, fingerprint={}, environment={}, extra={}, **options)


def state_of(step: int, numel: int = 1000) -> dict[str, Tensor]:
    """A state that depends on the step in every tensor, in four files."""
    values = torch.randn(numel, generator=torch.Generator().manual_seed(step))
    return {
        "steps": torch.tensor(step),
        "blocks.0/model/net.weight": values,
        "blocks.0/optim/net.weight/exp_avg": values * 2,
        "blocks.1/model/net.weight": values + 1,
        "hub/ema/0.bias": values.bfloat16(),
    }


def raw(tensor: Tensor) -> Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def assert_same(got: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """The same bits, which is more than torch.equal: NaN payloads and the sign of zero count."""
    assert set(got) == set(expected)
    for key, tensor in expected.items():
        assert (got[key].dtype, got[key].shape) == (tensor.dtype, tensor.shape), key
        assert torch.equal(raw(got[key]), raw(tensor)), key


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# ---------------------------------------------------------------------------------------------------------- round trip


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_state_comes_back_bit_for_bit_whatever_its_dtype_and_layout(tmp_path: Path, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    noise = torch.randint(0, 256, (2 * 3 * 4 * 5 * dtype.itemsize,), dtype=torch.uint8, generator=generator)
    dense = (noise % 2).bool() if dtype == torch.bool else noise.view(dtype)
    dense = dense.reshape(2, 3, 4, 5)
    state = {
        "blocks.0/dense": dense,
        "blocks.0/same storage": dense,
        "blocks.0/part of it": dense[1:],
        "blocks.0/channels_last": dense.to(memory_format=torch.channels_last),
        "blocks.0/transposed": dense.transpose(0, 3),
        "blocks.0/strided": dense[..., ::2],
        "blocks.0/expanded": dense[:1].expand(7, 3, 4, 5),
        "blocks.0/0-dim": dense[1, 2, 3, 4],
        "blocks.0/empty": dense[:0],
    }
    loaded, _ = load(write(tmp_path, state))
    assert_same(loaded, state)
    loaded["blocks.0/dense"].zero_()
    assert torch.equal(raw(loaded["blocks.0/same storage"]), raw(dense)), "loaded tensors share memory"


def test_parameters_that_require_grad_are_saved_by_value(tmp_path: Path) -> None:
    net = torch.nn.Conv2d(3, 4, 3)
    net.weight = torch.nn.Parameter(net.weight.detach().to(memory_format=torch.channels_last))
    loaded, _ = load(write(tmp_path, dict(net.named_parameters())))
    assert torch.equal(loaded["weight"], net.weight) and not loaded["weight"].requires_grad


def test_the_manifest_gives_back_what_the_caller_stored(tmp_path: Path) -> None:
    extra = {"epoch": 3, "best": float("-inf"), "name": "β", "at": (4, 8), "by": {"a": None, 7: 0.1}}
    fingerprint, environment = {"method": "sid", "alpha": [0.5, 0.25]}, {"threads": 1}
    path = save(tmp_path, state_of(12), step=12, fingerprint=fingerprint, environment=environment, extra=extra)
    _, manifest = load(path)
    assert (manifest.step, manifest.fingerprint, manifest.environment) == (12, fingerprint, environment)
    assert manifest.extra == {**extra, "at": [4, 8], "by": {"a": None, "7": 0.1}}


def test_each_part_has_a_file_that_json_and_plain_bytes_can_read(tmp_path: Path) -> None:
    """An independent reader of the two formats: there is nothing to unpickle."""
    state = state_of(7)
    path = write(tmp_path, state, step=7)
    files = {"run.safetensors", "blocks.0.safetensors", "blocks.1.safetensors", "hub.safetensors"}
    assert path == tmp_path / "step-7" and names(path) == files | {MANIFEST}
    assert json.loads((path / MANIFEST).read_text())["files"].keys() == files
    seen = set[str]()
    for file in files:
        blob = (path / file).read_bytes()
        size = int.from_bytes(blob[:8], "little")
        for key, entry in json.loads(blob[8 : 8 + size]).items():
            start, stop = entry["data_offsets"]
            assert blob[8 + size + start : 8 + size + stop] == raw(state[key]).numpy().tobytes()
            assert file == (key.split("/")[0] if "/" in key else "run") + ".safetensors"
            seen.add(key)
    assert seen == set(state)


def test_what_is_not_asked_for_is_not_read(tmp_path: Path) -> None:
    """Who has one block of many need not read the others, nor find their damage."""
    path = write(tmp_path, state_of(1))
    (path / "blocks.1.safetensors").write_bytes(b"damaged")
    found, _ = load(path, without={"blocks.1", "hub"})
    assert_same(found, {k: v for k, v in state_of(1).items() if k.partition("/")[0] in ("steps", "blocks.0")})


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_a_file_is_byte_for_byte_what_the_safetensors_library_writes(
    tmp_path: Path, memory_format: torch.memory_format
) -> None:
    """Which orders tensors by dtype, and reads its own files back into equal tensors."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randint(0, 256, (2, 3, 4, 40), dtype=torch.uint8, generator=generator)
    state = {
        f"blocks.0/{dtype} β {kind}": tensor
        for dtype in DTYPES
        for image in [(noise % 2).bool() if dtype == torch.bool else noise.view(dtype)]
        for kind, tensor in {
            "image": image.to(memory_format=memory_format),
            "transposed": image.transpose(0, 3),
            "0-dim": image[0, 0, 0, 0],
            "empty": image[:, :0],
        }.items()
    }
    file = write(tmp_path, state) / "blocks.0.safetensors"
    assert file.read_bytes() == safetensors.torch.save(
        {key: tensor.clone(memory_format=torch.contiguous_format) for key, tensor in state.items()}
    )
    assert_same(safetensors.torch.load_file(file), state)


def test_neither_writing_nor_reading_touches_pickle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("pickle was used")

    for module, used in (
        (pickle, ("load", "loads", "dump", "dumps", "Unpickler", "Pickler")),
        (torch, ("load", "save")),
    ):
        for name in used:
            monkeypatch.setattr(module, name, refuse)
    monkeypatch.setattr(np, "load", refuse)
    assert_same(load(write(tmp_path, state_of(1)))[0], state_of(1))


@pytest.mark.faults
def test_other_threads_go_on_while_a_large_part_is_saved_and_loaded(
    tmp_path: Path, figure: Callable[[str, float], None]
) -> None:
    """One of them gives the rank's sign of life, every half second."""
    state = {"blocks.0/weight": torch.ones(10**8)}
    path = tmp_path / "step-1"
    for what, work in (("saved", lambda: write(tmp_path, state)), ("loaded", lambda: load(path))):
        over, gap = threading.Event(), 0.0

        def tick(over: threading.Event = over) -> None:
            nonlocal gap
            while not over.is_set():
                last = time.monotonic()
                over.wait(0.01)
                gap = max(gap, time.monotonic() - last)

        thread = threading.Thread(target=tick)
        thread.start()
        work()
        over.set()
        thread.join()
        figure(f"longest pause of another thread while 400 MB are {what}, s", gap)
        assert gap < 0.25


# ----------------------------------------------------------------------------------------------------- damage and lies


def test_a_byte_flipped_anywhere_in_any_file_is_refused_with_the_files_name(tmp_path: Path) -> None:
    path = write(tmp_path, state_of(1, numel=100))
    rng = random.Random(0)
    for file in sorted(path.iterdir()):
        sound = file.read_bytes()
        for position in [0, len(sound) - 1, *(rng.randrange(len(sound)) for _ in range(20))]:
            damaged = bytearray(sound)
            damaged[position] ^= rng.randrange(1, 256)
            file.write_bytes(damaged)
            with pytest.raises(DataError, match=file.name):
                load(path)
        file.write_bytes(sound)
    assert_same(load(path)[0], state_of(1, numel=100))


def test_a_missing_or_cut_file_is_refused_with_its_name(tmp_path: Path) -> None:
    path = write(tmp_path, state_of(1))
    (path / "hub.safetensors").write_bytes((path / "hub.safetensors").read_bytes()[:-1])
    with pytest.raises(Unsound, match=r"hub\.safetensors is damaged"):
        load(path)
    (path / "hub.safetensors").unlink()
    for read in (load, read_manifest):
        with pytest.raises(Unsound, match=r"hub\.safetensors is missing"):
            read(path)


def test_a_path_that_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    one = write(tmp_path / "checkpoints", {}, 1)
    (tmp_path / "checkpoints" / "step-2").mkdir()
    for wrong in (tmp_path, tmp_path / "checkpoints", one.with_name("step-2"), one / "run.safetensors"):
        for read in (load, read_manifest):
            with pytest.raises(Unsound, match=rf"^{wrong} is no checkpoint: got no manifest\.json in it"):
                read(wrong)


def forge(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Rewrite a manifest and seal it properly, as an attacker or a later version can."""
    body = json.loads((path / MANIFEST).read_text())
    del body["sha256"]
    change(body)
    body["sha256"] = hashlib.sha256(json.dumps(body).encode()).hexdigest()
    (path / MANIFEST).write_text(json.dumps(body, indent=2) + "\n")


def test_a_newer_format_is_refused_and_neither_passed_over_nor_replaced(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        write(tmp_path, {}, step, keep=3)
    newer = tmp_path / "step-3"
    forge(newer, lambda body: body.update(format=2, unknown_to_us=True))
    before = contents(newer)
    for use in (lambda: load(newer), lambda: latest(tmp_path), lambda: write(tmp_path, {}, 3)):
        with pytest.raises(DataError, match=r"step-3/manifest\.json has format 2, expected 1 or less; upgrade"):
            use()
    for step in (4, 5, 6):
        write(tmp_path, {}, step)
    assert contents(newer) == before


def test_a_manifest_cannot_lead_out_of_its_folder(tmp_path: Path) -> None:
    path = write(tmp_path, state_of(1))
    shutil.copy(path / "hub.safetensors", tmp_path / "secret.safetensors")
    forge(path, lambda body: body["files"].update({"../secret.safetensors": body["files"]["hub.safetensors"]}))
    with pytest.raises(DataError, match=r"secret\.safetensors is missing"):
        load(path)
    (path / MANIFEST).write_text('{"format": 1, "files": {}}')
    with pytest.raises(DataError, match=r"manifest\.json is damaged"):
        load(path)


@pytest.mark.parametrize("text", ["", "[]", "null", "{}", '{"format": "x"}', '{"format": 1}', "\0" * 40, '{"step": 1'])
def test_a_manifest_that_is_not_one_is_refused_and_not_the_latest(tmp_path: Path, text: str) -> None:
    older, newer = write(tmp_path, {}, 1), write(tmp_path, {}, 2)
    (newer / MANIFEST).write_text(text)
    with pytest.raises(DataError, match=r"manifest\.json is damaged"):
        load(newer)
    assert latest(tmp_path) == older


# ------------------------------------------------------------------------------------------------- which ones there are


def test_latest_is_the_highest_step_that_is_complete_and_of_that_prefix(tmp_path: Path) -> None:
    assert latest(tmp_path / "nowhere") is None and latest(tmp_path) is None
    write(tmp_path, state_of(9), 9)
    ten = write(tmp_path, state_of(10), 10)
    write(tmp_path, state_of(11), 11, prefix="best")
    shutil.copytree(ten, tmp_path / ".aside-step-12")
    shutil.copytree(ten, tmp_path / "step-12.bak")
    (shutil.copytree(ten, tmp_path / "step-13") / "hub.safetensors").unlink()
    (shutil.copytree(ten, tmp_path / "step-14") / MANIFEST).unlink()
    (tmp_path / "step-15").write_text("a file")
    assert latest(tmp_path) == ten
    assert [(path.name, manifest.step) for path, manifest in complete(tmp_path)] == [("step-10", 10), ("step-9", 9)]
    assert latest(tmp_path, "best") == tmp_path / "best-11"


def test_keep_holds_the_newest_and_never_deletes_another_prefix_or_what_it_just_wrote(tmp_path: Path) -> None:
    write(tmp_path, {}, 1, prefix="best")
    for step in (10, 20, 30, 40):
        write(tmp_path, {}, step)
    assert names(tmp_path) == {"best-1", "step-30", "step-40"}
    assert write(tmp_path, {}, 5).is_dir(), "an earlier step, as after going back by hand"
    assert names(tmp_path) == {"best-1", "step-5", "step-40"}
    for step in (50, 60):
        write(tmp_path, {}, step, keep=3)
    assert names(tmp_path) == {"best-1", "step-40", "step-50", "step-60"}
    with pytest.raises(UsageError, match="got keep=1, expected 2 or more"):
        write(tmp_path, {}, 70, keep=1)


def test_an_incomplete_one_does_not_count_as_kept(tmp_path: Path) -> None:
    for step in (1, 2):
        write(tmp_path, {}, step)
    (tmp_path / "step-2" / MANIFEST).unlink()
    write(tmp_path, {}, 3)
    assert load(tmp_path / "step-1")[1].step == 1


def test_a_sound_checkpoint_of_the_same_step_is_left_and_an_unsound_one_replaced(tmp_path: Path) -> None:
    path = write(tmp_path, state_of(1), 5)
    before = contents(path)
    assert write(tmp_path, state_of(2), 5) == path and contents(path) == before
    for spoil in (lambda: (path / "hub.safetensors").write_bytes(b"rot"), lambda: (path / MANIFEST).unlink()):
        spoil()
        assert write(tmp_path, state_of(2), 5) == path
        assert_same(load(path)[0], state_of(2))
        assert names(tmp_path) == {"step-5"}


def test_leftovers_of_dead_writers_go_and_a_living_writer_is_not_disturbed(tmp_path: Path) -> None:
    left = tmp_path / ".aside-step-3"
    left.mkdir()
    (left / "hub.safetensors").write_bytes(b"half")
    living = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(living, fcntl.LOCK_EX)
    with pytest.raises(DataError, match=rf"{tmp_path} is being written by another process"):
        write(tmp_path, {}, 4)
    assert names(tmp_path) == {".aside-step-3"}
    os.close(living)
    write(tmp_path, {}, 4)
    assert names(tmp_path) == {"step-4"}


# ------------------------------------------------------------------------------------------------------- crash and kill


class FailingFsync:
    """os.fsync that works `after` times and then finds the disk full."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, after: int) -> None:
        self.left, self.real, self.failed = after, os.fsync, False
        monkeypatch.setattr(os, "fsync", self)

    def __call__(self, descriptor: int) -> None:
        self.left -= 1
        if self.left < 0:
            self.failed = True
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.real(descriptor)


def test_a_full_disk_at_any_sync_leaves_no_half_checkpoint_and_the_older_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for step in (1, 2):
        write(tmp_path, state_of(step), step)
    syncs = 0
    while True:
        with monkeypatch.context() as patch:
            disk = FailingFsync(patch, after=syncs)
            try:
                write(tmp_path, state_of(3), 3)
                break
            except OSError as error:
                assert error.errno == errno.ENOSPC
        # Four files, the manifest and the folder itself come before the rename; the parent's sync after it.
        there = {1, 2} if syncs < 6 else {1, 2, 3}
        assert names(tmp_path) == {f"step-{step}" for step in there}
        for step in there:
            assert_same(load(tmp_path / f"step-{step}")[0], state_of(step))
        syncs += 1
        shutil.rmtree(tmp_path / "step-3", ignore_errors=True)
    assert syncs == 7 and not disk.failed and names(tmp_path) == {"step-2", "step-3"}


def test_a_write_the_system_refuses_leaves_no_half_checkpoint(tmp_path: Path) -> None:
    path = write(tmp_path, state_of(1), 1)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(OSError) as caught:
            write(tmp_path, state_of(2, numel=5000), 2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.errno == errno.EFBIG and names(tmp_path) == {"step-1"} and latest(tmp_path) == path


def test_a_folder_that_cannot_be_made_is_an_oserror(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        write(tmp_path / "file" / "checkpoints", {}, 1)


def forkserver() -> ForkServerContext:
    """torch is imported once; each writer is then a process of its own within milliseconds."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["sidestep.checkpoint", "pytest", "numpy"])
    return context


def keep_saving(folder: Path, step: int, pipe: Any) -> None:
    torch.set_num_threads(1)
    while True:
        step += 1
        write(folder, state_of(step, numel=50_000), step)
        pipe.send(step)


def survive_kills(folder: Path, kills: int, seed: int) -> None:
    """Kill a writer at random moments of a save, again and again; what `save` once returned must never be lost."""
    rng, context, reached = random.Random(seed), forkserver(), 0
    start = time.perf_counter()
    write(folder / "timed", state_of(0, numel=50_000))
    one_save = time.perf_counter() - start
    for _ in range(kills):
        here, there = context.Pipe()
        writer = context.Process(target=keep_saving, args=(folder / "run", reached, there))
        writer.start()
        returned = here.recv()
        time.sleep(1.5 * one_save * rng.random())
        writer.kill()
        writer.join()
        newest = latest(folder / "run")
        assert newest is not None
        state, manifest = load(newest)
        reached = manifest.step
        assert reached >= returned
        assert_same(state, state_of(reached, numel=50_000))
    write(folder / "run", state_of(reached + 1), reached + 1)
    assert names(folder / "run") == {f"step-{reached}", f"step-{reached + 1}"}


def test_a_killed_writer_leaves_the_latest_whole(tmp_path: Path) -> None:
    survive_kills(tmp_path, 10, seed=0)


@pytest.mark.faults
def test_a_writer_killed_fifty_times_loses_nothing(tmp_path: Path) -> None:
    survive_kills(tmp_path, 50, seed=1)


CALLS = ("open", "fsync", "rename", "mkdir", "rmdir", "unlink")


def die_at(folder: Path, call: int, content: int, step: int, options: dict[str, Any]) -> None:
    """Save, and be killed right before the given system call that touches the disk."""
    torch.set_num_threads(1)
    count = 0

    def counted(real: Callable[..., Any]) -> Callable[..., Any]:
        def proxy(*args: Any, **kwargs: Any) -> Any:
            nonlocal count
            count += 1
            if count == call:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **kwargs)

        return proxy

    for name in CALLS:
        setattr(os, name, counted(getattr(os, name)))
    write(folder, state_of(content), step, **options)


def killed_at_each_call(
    tmp_path: Path, before: Mapping[int, int], content: int, step: int, **options: Any
) -> Iterator[tuple[Path, bool]]:
    """Folders in which a writer was killed before its first system call, its second, ...; in the last one it was not.

    before: step -> content of the checkpoints that were there.  Yields the folder, and whether the writer was killed.
    """
    context = forkserver()
    for call in itertools.count(1):
        folder = tmp_path / str(call)
        for there, what in before.items():
            write(folder, state_of(what), there)
        writer = context.Process(target=die_at, args=(folder, call, content, step, options))
        writer.start()
        writer.join()
        assert writer.exitcode in (0, -signal.SIGKILL)
        yield folder, writer.exitcode != 0
        if writer.exitcode == 0:
            assert call > 15
            return


def test_killed_before_each_of_its_system_calls_a_writer_leaves_two_whole_checkpoints(tmp_path: Path) -> None:
    seen = set[int]()
    for folder, killed in killed_at_each_call(tmp_path, {1: 1, 2: 2}, 3, 3):
        newest = latest(folder)
        assert newest is not None
        state, manifest = load(newest)
        assert_same(state, state_of(manifest.step))
        seen.add(manifest.step)
        whole = [path for path in folder.iterdir() if not path.name.startswith(".")]
        assert len(whole) >= 2 and all(load(path) for path in whole)
        if killed:
            write(folder, state_of(4), 4)
            assert names(folder) == {newest.name, "step-4"}, "leftovers stayed"
    assert seen == {2, 3}


def test_killed_before_each_of_its_system_calls_a_writer_that_replaces_the_only_one_leaves_it_or_the_new_one(
    tmp_path: Path,
) -> None:
    """And whichever it is, the next writer keeps it, under its own name."""
    seen = set[int]()
    for folder, killed in killed_at_each_call(tmp_path, {3: 1}, 2, 3, replace=True):
        newest = latest(folder)
        assert newest is not None, f"nothing to go on from among {names(folder)}"
        state, manifest = load(newest)
        found = int(state["steps"])
        assert manifest.step == 3
        assert_same(state, state_of(found))
        seen.add(found)
        if killed:
            write(folder, state_of(4), 4)
            assert names(folder) == {"step-3", "step-4"}, "leftovers stayed"
            assert_same(load(folder / "step-3")[0], state_of(found))
        else:
            assert names(folder) == {"step-3"} and found == 2
    assert seen == {1, 2}


def test_going_back_before_a_checkpoint_that_was_being_replaced_removes_it_too(tmp_path: Path) -> None:
    checkpoints = tmp_path / "checkpoints"
    for step in (10, 20):
        write(checkpoints, state_of(step), step)
    os.rename(checkpoints / "step-20", checkpoints / "step-020")  # where its writer was killed
    assert latest(checkpoints) == checkpoints / "step-020"
    rewind(tmp_path, 10)
    assert latest(checkpoints) == checkpoints / "step-10" and names(checkpoints) == {"step-10"}


# ------------------------------------------------------------------------------------------------------------ same run?


def manifest_with(fingerprint: Mapping[str, object], environment: Mapping[str, object]) -> Manifest:
    return Manifest(40, fingerprint, environment, {}, {})


def test_a_checkpoint_of_another_run_is_refused_by_the_first_key_that_differs() -> None:
    made = {"method": {"name": "sid", "alpha": [0.5, 0.25]}, "model": "mlp", "at": ["0", "3"]}
    saved = manifest_with(made, {})
    assert check(saved, {**made, "method": {"name": "sid", "alpha": (0.5, 0.25)}, "at": ("0", "3")}, {}) == []
    with pytest.raises(
        DataError, match=r"step 40 has method\.name = 'sid', expected 'backprop' as in this run; resume"
    ):
        check(saved, {"method": {"name": "backprop"}, "model": "vgg", "at": []}, {})
    with pytest.raises(DataError, match=r"has at = \['0', '3'\], expected \['0', '4'\]"):
        check(saved, {**made, "at": ["0", "4"]}, {})
    with pytest.raises(DataError, match="has model = 'mlp', expected nothing"):
        check(saved, {key: made[key] for key in ("method", "at")}, {})
    assert check(saved, {**made, "newer": 1}, {}) == []


def test_another_environment_is_a_warning_for_each_difference() -> None:
    saved = manifest_with({"model": "mlp"}, {"threads": 2, "torch": "2.13.0", "device": "cpu"})
    assert check(saved, {"model": "mlp"}, {"threads": 1, "torch": "2.13.0", "device": "cuda"}) == [
        "threads was 2 when the checkpoint was made and is 1 here: equal bits are not promised.",
        "device was 'cpu' when the checkpoint was made and is 'cuda' here: equal bits are not promised.",
    ]


# -------------------------------------------------------------------------------------------------- a run's other files


def test_a_json_file_is_replaced_as_a_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "summary.json"
    value = {"loss": float("nan"), "by_block": (1.5, float("inf"), None), "name": "β"}
    write_json(path, value)
    assert json.loads(path.read_text()) == {"loss": None, "by_block": [1.5, None, None], "name": "β"}
    before = path.read_bytes()
    with monkeypatch.context() as patch:
        FailingFsync(patch, after=0)
        with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
            write_json(path, {"loss": 1})
    assert path.read_bytes() == before and names(tmp_path) == {"summary.json"}
    write_text_atomic(path, "β\n")
    assert path.read_bytes() == "β\n".encode() and names(tmp_path) == {"summary.json"}


def test_of_two_processes_that_replace_a_file_at_once_both_succeed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As two workers that end a study do: one is where the other has written but not yet renamed."""
    path, rename = tmp_path / "page.html", os.rename

    def meanwhile(source: Path, target: Path) -> None:
        monkeypatch.setattr(os, "rename", rename)
        monkeypatch.setattr(os, "getpid", lambda: 1)
        write_text_atomic(path, "the other's")
        rename(source, target)

    monkeypatch.setattr(os, "rename", meanwhile)
    write_text_atomic(path, "one's own")
    assert path.read_text() == "one's own" and names(tmp_path) == {"page.html"}


def test_a_log_is_cut_back_to_the_rows_of_the_checkpoint_without_a_torn_last_line(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    truncate_jsonl(path, lambda row: True)
    assert not path.exists()
    rows = [{"step": step, "loss": [0.1 * step, None]} for step in range(5)]
    for row in rows:
        append_jsonl(path, row)
    whole = path.read_bytes()
    assert [json.loads(line) for line in whole.splitlines()] == rows
    text = strict_json({"step": 5, "loss": [float("nan")]})
    for torn in range(1, len(text)):
        path.write_bytes(whole + text[:torn].encode())
        truncate_jsonl(path, lambda row: True)
        assert path.read_bytes() == whole
    path.write_bytes(whole + text.encode())  # whole but for its line end
    truncate_jsonl(path, lambda row: True)
    assert path.read_bytes() == whole + text.encode() + b"\n"
    truncate_jsonl(path, lambda row: row["step"] in (0, 1, 2))
    append_jsonl(path, {"step": 3})
    assert [json.loads(line) for line in path.read_text().splitlines()] == [*rows[:3], {"step": 3}]


def test_a_broken_line_inside_a_log_is_named_and_nothing_is_lost(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 0}\n{"st{"step": 2}\n{"step": 3}\n')
    before = path.read_bytes()
    with pytest.raises(DataError, match=r"metrics\.jsonl, line 2 is no JSON object"):
        truncate_jsonl(path, lambda row: True)
    assert path.read_bytes() == before


def test_a_row_without_what_it_is_read_for_is_named_though_it_is_the_last(tmp_path: Path) -> None:
    """A line torn by a crash is no JSON; one that is has been written so."""
    path = tmp_path / "metrics.jsonl"
    assert read_jsonl(path, "step") == []
    path.write_text('{"step": 1}\n{"epoch": 1}\n')
    with pytest.raises(DataError, match=r"metrics\.jsonl, line 2 is no JSON object with step, expected one a line"):
        read_jsonl(path, "step")
    assert read_jsonl(path) == [{"step": 1}, {"epoch": 1}]


@pytest.mark.parametrize(("last", "kept"), [('{"step": 2}', [1, 2, 3]), ('{"step": 2', [1, 3]), ("", [1, 3])])
def test_a_row_is_added_after_a_last_one_without_its_end_and_in_place_of_a_torn_one(
    last: str, kept: list[int], tmp_path: Path
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"step": 1}\n' + last)
    append_jsonl(path, {"step": 3})
    assert [row["step"] for row in read_jsonl(path)] == kept
    assert path.read_text().endswith('{"step": 3}\n')

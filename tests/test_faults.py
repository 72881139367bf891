"""What kills a run costs it nothing but time: full disks here, and with `-m faults` twenty kills at random points."""

from __future__ import annotations

import errno
import os
import signal
import stat
import subprocess
import time
from pathlib import Path
from random import Random

import pytest

from sidestep import checkpoint, cli
from tests.test_resume import command, numbers
from tests.test_train import QUICK, rows, trained, weights, words

SAVING = QUICK | {"save_every": "4"}


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run") / "straight"
    trained("sid", out, **SAVING)
    return out


@pytest.mark.parametrize("last", [1, 9, 33, 40])
def test_a_full_disk_is_one_line_and_the_run_goes_on_from_what_was_whole(
    last: int, straight: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The write after the `last` one finds no room, having written half.

    Compared with a run that had room: parameters, every epoch's metrics, and the summary's numbers.
    """
    out = tmp_path / "run"
    sync, written = os.fsync, 0

    def full(descriptor: int) -> None:
        nonlocal written
        if stat.S_ISREG((now := os.fstat(descriptor)).st_mode):
            written += 1
            if written > last:
                os.ftruncate(descriptor, now.st_size // 2)
                path = os.readlink(f"/proc/self/fd/{descriptor}")
                raise OSError(errno.ENOSPC, "No space left on device", path)
        sync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        assert cli.main(["train", "sid", "--out", str(out), *words(SAVING)]) == 1
    *log, error = capsys.readouterr().err.splitlines()
    assert all(line.startswith("sidestep: ") for line in log)
    assert error.startswith(f"sidestep: error: {out}")
    assert error.endswith("No space left on device; check that folder's room and rights, or choose another.")
    assert not (out / "summary.json").exists()
    for path in (out / "checkpoints").glob("*"):
        checkpoint.load(path)  # what has a name is whole
    assert cli.main(["train", "sid", "--resume", "last", "--out", str(out)]) == 0
    assert weights(out) == weights(straight)
    assert rows(out) == rows(straight)
    assert numbers(out) == numbers(straight)


POINTS = 20


def newest(out: Path) -> int:
    return max((int(path.name.split("-")[1]) for path in (out / "checkpoints").glob("step-*")), default=0)


@pytest.mark.faults
def test_interrupted_at_twenty_random_points_a_run_ends_with_the_same_bits(tmp_path: Path) -> None:
    """Half of them are kill -9.  Compared with a run that nothing interrupts: the bytes of model.safetensors, which are
    equal if and only if the parameters and buffers are; every epoch's metrics; and the summary's numbers.
    """
    random = Random(20)
    flags = QUICK | {"epochs": "60", "save_every": "7", "ema": "0.9", "clip": "1.0", "augment": "crop:1"}
    out = tmp_path / "broken"
    kinds = [signal.SIGKILL] * (POINTS // 2) + [signal.SIGTERM] * (POINTS // 4) + [signal.SIGINT] * (POINTS // 4)
    random.shuffle(kinds)
    line = command("sid", "--out", str(out), *words(flags))
    for kind in kinds:
        # In a step, while a checkpoint is written or renamed, or, where the target is none, while python starts.
        target = newest(out) + random.randrange(-10, 45)
        process = subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        time.sleep(2 * random.random())
        while newest(out) < target and process.poll() is None:
            time.sleep(0.001)
        time.sleep(0.02 * random.random())
        assert process.poll() is None, "the run ended before it was interrupted as often as it should"
        process.send_signal(kind)
        _, err = process.communicate(timeout=60)
        # Before the command can answer it a signal ends python itself.
        assert process.returncode in (128 + kind, -kind) or "KeyboardInterrupt" in err, err
        if (out / "config.toml").exists():
            line = command("sid", "--out", str(out), "--resume", "last")
    assert cli.main(["train", "sid", "--out", str(out), "--resume", "last"]) == 0
    trained("sid", tmp_path / "straight", **flags)
    assert weights(out) == weights(tmp_path / "straight")
    assert rows(out) == rows(tmp_path / "straight")
    assert len(rows(out)) == 60
    assert numbers(out) == numbers(tmp_path / "straight")

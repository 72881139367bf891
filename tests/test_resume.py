"""A run that was interrupted and resumed is the run that was not: bit for bit, whatever interrupted it."""

from __future__ import annotations

import fcntl
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from sidestep import checkpoint, cli
from sidestep.assemble import assemble
from sidestep.config import TrainConfig, resolve
from sidestep.errors import UsageError
from sidestep.evaluate import evaluate
from sidestep.methods import METHODS
from sidestep.resuming import enter
from sidestep.run import to_parts
from sidestep.stopping import Stopped
from sidestep.train import Trainer
from tests.test_train import QUICK, contents, rows, sidestep, trained, weights, words

TIMED = {"samples_per_second", "step_ms", "peak_rss_mb", "ranks"}
"""What of a summary is of the clock or of processes, not computed."""


def numbers(out: Path) -> dict[str, Any]:
    summary = json.loads((out / "summary.json").read_text())
    return {key: value for key, value in summary.items() if key not in TIMED}


# ---------------------------------------------------------------------- every method, in this process


class Killed(Exception):
    """As if by SIGKILL: nothing is saved."""


def carry_on(config: TrainConfig, *, stop: int = 0, kill: int = 0) -> Trainer:
    """Begin or go on with the run in its folder; after step `stop` a SIGTERM comes, after step `kill` all is over."""
    config, start = enter(config)
    trainer = Trainer(assemble(config), quiet=True)

    def interrupt(step: int, *_: object, **__: object) -> None:
        if step == kill:
            raise Killed
        if step == stop:
            trainer.stopping.ask(signal.SIGTERM, None)

    trainer.progress.step = interrupt
    with trainer.begin(start):
        trainer.train()
    return trainer


CASES: dict[str, dict[str, str]] = {
    **{method: {"method": method} for method in METHODS},
    "averaged-clipped-accumulated": {"method": "sid", "ema": "0.9", "clip": "0.5", "accumulate": "2"},
    "global-clip": {"method": "backprop", "clip": "0.1", "ema": "0.9"},
    "momentum-last-noise": {"method": "local_ce", "optimizer": "sgd", "select": "last", "label_noise": "0.2"},
    "batchnorm-sgd-augmented": {"method": "sid", "model": "simplecnn_bn", "optimizer": "sgd", "augment": "crop:1,flip"},
    "batchnorm-adam-averaged": {"method": "backprop", "model": "resnet20", "optimizer": "adamw", "ema": "0.9"},
    "shared-extractor": {"method": "sid", "model": "simplecnn", "sid.form": "shared", "blocks": "3"},
    "stacked": {
        "method": "sid",
        "engine": "stacked",
        "model": "simplecnn",
        "sid.form": "shared",
        "ema": "0.9",
        "clip": "0.5",
    },
    "dropout-mixup": {
        "method": "deep_supervision",
        "model": "vit_tiny",
        "model.depth": "4",
        "model.width": "24",
        "model.dropout": "0.2",
        "model.drop_path": "0.1",
        "augment": "randaugment:1,cutout:2,mixup:0.2",
    },
}


def final(trainer: Trainer) -> dict[str, Tensor]:
    """Everything there is at the end: parameters, buffers, optimizer, averages, and what would be judged."""
    state = {k: v.clone() for k, v in trainer.engine.state_dict().items()}
    trainer.select()
    return state | {f"selected {k}": v for k, v in to_parts(trainer.engine.inference_chain).items()}


@pytest.mark.parametrize("name", CASES)
def test_killed_and_stopped_in_mid_epoch_it_ends_with_the_same_bits(name: str, tmp_path: Path) -> None:
    """11 steps an epoch; a checkpoint every 4.  Killed in step 10, it goes on from 8; stopped in step 17, from 17."""
    own = dict(CASES[name])
    method = own.pop("method")
    flags: dict[str, str] = {"epochs": "2", "batch_size": "60", "val_fraction": "0.5", "save_every": "4"} | own
    if "model" not in flags:
        flags |= {"model.depth": "4", "model.width": "32"}
    straight = carry_on(resolve(method, flags | {"out": str(tmp_path / "straight")}))
    asked = flags | {"out": str(tmp_path / "broken"), "resume": "last"}
    with pytest.raises(Killed):
        carry_on(resolve(method, asked), kill=10)
    with pytest.raises(Stopped):
        carry_on(resolve(method, asked), stop=17)
    resumed = carry_on(resolve(method, asked))
    assert resumed.history == straight.history
    assert rows(tmp_path / "broken") == rows(tmp_path / "straight") == straight.history
    assert resumed.best == straight.best
    ours, theirs = final(resumed), final(straight)
    assert ours.keys() == theirs.keys()
    assert [k for k in ours if not torch.equal(ours[k], theirs[k])] == []


def test_an_epoch_whose_judging_a_signal_has_ended_is_judged_first_thing_when_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both epochs of 11 steps; going on from the first it is killed once it has noted what it judged, unsaved."""
    flags = {"epochs": "2", "batch_size": "60", "val_fraction": "0.5", "save_every": "4", "model.depth": "4"}
    straight = carry_on(resolve("sid", flags | {"out": str(tmp_path / "straight")}))
    out = tmp_path / "broken"
    asked = resolve("sid", flags | {"out": str(out), "resume": "last"})

    def interrupted(*_: object, **__: object) -> None:
        signal.raise_signal(signal.SIGTERM)
        raise AssertionError("it went on")

    def killed(trainer: Trainer, prefix: str, *_: object, **__: object) -> None:
        if prefix == "step":
            raise Killed

    for name, steps in (("step-11", []), ("step-22", [11])):
        with monkeypatch.context() as patch:
            calls = iter([evaluate] * len(steps))  # what the checkpoint before has left is judged
            patch.setattr("sidestep.train.evaluate", lambda *a, n=calls, **k: next(n, interrupted)(*a, **k))
            with pytest.raises(Stopped):
                carry_on(asked)
        assert [row["step"] for row in (rows(out) if steps else [])] == steps
        assert (out / "checkpoints" / name).exists()
        if steps == []:
            with monkeypatch.context() as patch, pytest.raises(Killed):
                patch.setattr(Trainer, "write", killed)
                carry_on(asked)
            assert [row["step"] for row in rows(out)] == [11]
    resumed = carry_on(asked)
    assert resumed.history == straight.history == rows(out)
    assert resumed.best == straight.best
    ours, theirs = final(resumed), final(straight)
    assert [k for k in theirs if not torch.equal(ours[k], theirs[k])] == []


# ---------------------------------------------------------------------- three real interruptions


def command(method: str, *more: str) -> list[str]:
    return [sys.executable, "-m", "sidestep", "train", method, *more]


def interrupt(line: list[str], step: Path, how: signal.Signals) -> tuple[int, str]:
    """Run a command until this checkpoint is there, then send the signal; its exit code and stderr."""
    process = subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    while process.poll() is None and not step.exists():
        time.sleep(0.005)
    process.send_signal(how)
    _, err = process.communicate(timeout=60)
    return process.returncode, err


def test_sigterm_sigint_and_sigkill_cost_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Compared with a run that nothing interrupts: parameters, every epoch's metrics, and the summary's numbers."""
    flags = QUICK | {"epochs": "6", "save_every": "7", "batch_size": "64", "model.depth": "12"}
    out = tmp_path / "broken"
    checkpoints = out / "checkpoints"
    begin = command("sid", "--out", str(out), *words(flags))
    # Nothing is repeated: the folder knows the rest.
    go_on = command("sid", "--out", str(out), "--resume", "last")
    code, err = interrupt(begin, checkpoints / "step-14", signal.SIGTERM)
    assert code == 143
    assert err.splitlines()[-1] == f"sidestep: SIGTERM; saved, go on with --resume last --out {out}"
    code, err = interrupt(go_on, checkpoints / "step-49", signal.SIGINT)
    assert code == 130
    assert err.splitlines()[-1] == f"sidestep: SIGINT; saved, go on with --resume last --out {out}"
    code, _ = interrupt(go_on, checkpoints / "step-84", signal.SIGKILL)
    assert code == -signal.SIGKILL
    capsys.readouterr()
    assert cli.main(go_on[3:]) == 0
    assert "sidestep: resuming at step " in capsys.readouterr().err

    trained("sid", tmp_path / "straight", **flags)
    assert weights(out) == weights(tmp_path / "straight")
    assert rows(out) == rows(tmp_path / "straight")
    assert len(rows(out)) == 6
    assert numbers(out) == numbers(tmp_path / "straight")


# ---------------------------------------------------------------------- what --resume means


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run") / "sid"
    trained("sid", out)
    return out


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    return shutil.copytree(finished, tmp_path / "sid")


def resume(out: Path, *more: str, method: str = "sid") -> int:
    return cli.main(["train", method, "--resume", "last", "--out", str(out), *more])


def test_a_finished_run_is_printed_and_left_as_it_is(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = contents(finished)
    assert resume(finished, "--json") == 0
    assert json.loads(capsys.readouterr().out) == json.loads((finished / "summary.json").read_text())
    assert contents(finished) == before


def test_a_report_that_was_not_written_any_more_is_written(copied: Path) -> None:
    page = (copied / "report.html").read_bytes()
    (copied / "report.html").unlink()
    assert resume(copied) == 0
    assert (copied / "report.html").read_bytes() == page


def test_a_run_that_died_while_it_was_judged_is_judged_again(copied: Path, finished: Path) -> None:
    for name in ("summary.json", "report.html", "audit.json"):
        (copied / name).unlink()
    assert resume(copied) == 0
    assert numbers(copied) == numbers(finished)
    assert weights(copied) == weights(finished)


def test_where_there_is_no_complete_checkpoint_it_starts_and_says_so(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new"
    torn = out / "checkpoints" / "step-10"
    torn.mkdir(parents=True)
    shutil.copy(finished / "checkpoints" / "step-10" / "manifest.json", torn)
    shutil.copy(finished / "config.toml", out)
    assert resume(out, *words(QUICK)) == 0
    assert f"{out} has no complete checkpoint; starting from the beginning" in capsys.readouterr().err
    assert weights(out) == weights(finished)


def test_a_run_from_before_a_setting_existed_goes_on_where_that_has_its_default(
    copied: Path, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = copied / "config.toml"
    newer = ("nesterov", '"sid.head"', "freeze")
    lines = config.read_text().splitlines(keepends=True)
    config.write_text("".join(line for line in lines if not line.startswith(newer)))
    assert len(config.read_text().splitlines()) == len(lines) - 3
    path = copied / "checkpoints" / "step-10"
    assert cli.main(["train", "sid", "--resume", str(path), "--set", "sid.head=mlp"]) == 1
    assert "got sid.head = 'mlp', expected None" in capsys.readouterr().err
    assert cli.main(["train", "sid", "--resume", str(path)]) == 0
    assert (weights(copied), rows(copied)) == (weights(finished), rows(finished))


def test_a_path_rewinds_the_run_to_that_checkpoint(copied: Path, finished: Path) -> None:
    first = copied / "checkpoints" / "step-10"
    assert cli.main(["train", "sid", "--resume", str(first)]) == 0
    assert (weights(copied), rows(copied)) == (weights(finished), rows(finished))
    assert numbers(copied) == numbers(finished)


def test_a_checkpoint_of_another_folder_is_refused(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = finished / "checkpoints" / "step-10"
    assert cli.main(["train", "sid", "--resume", str(path), "--out", str(tmp_path / "new")]) == 2
    assert "expected a checkpoint of that run; leave --out out." in capsys.readouterr().err
    assert cli.main(["train", "sid", "--resume", "last"]) == 2
    assert "got --resume last without --out" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("method", "flags", "says"),
    [
        ("sid", "--lr 0.5", "got lr = 0.5, expected 0.01"),
        ("sid", "--epochs 3", "got epochs = 3, expected 2"),
        ("sid", "--seed 1", "got seed = 1, expected 0"),
        ("sid", "--alpha 0.7", "got sid.alpha = 0.7, expected 0.5"),
        ("sid", "--blocks 3", "got blocks = 3, expected 4"),
        ("sid", "--at layer1,layer2,layer3", "got at = ['layer1', 'layer2', 'layer3'], expected ['layer2', "),
        ("sid", "--set model.width=32", "got model.width = 32, expected 64"),
        ("sid", "--model resnet20", "got model = 'resnet20', expected 'mlp'"),
        ("sid", "--recipe sid-authors", "got recipe = 'sid-authors', expected 'mlp-digits'"),
        ("local_ce", "", "got method = 'local_ce', expected 'sid'"),
    ],
)
def test_a_setting_that_contradicts_the_run_is_refused(
    method: str, flags: str, says: str, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(finished)
    assert resume(finished, *flags.split(), method=method) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"sidestep: error: {says}")
    assert line.endswith(
        f"as in the run that {finished} holds; leave it as it was, or start a new run with another --out."
    )
    assert contents(finished) == before


def test_what_does_not_shape_the_run_may_change_and_is_warned_of_where_bits_may(
    copied: Path, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(copied / "checkpoints" / "step-10")
    assert cli.main(["train", "sid", "--resume", path, "--save-every", "3", "--precision", "bf16"]) == 0
    err = capsys.readouterr().err
    assert "sidestep: warning: precision was 'fp32' when the checkpoint was made and is 'bf16' here: equal bits" in err
    assert weights(copied) != weights(finished)


def test_another_engine_and_other_replicas_are_warned_of(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Both add in another order."""
    path = copied / "checkpoints" / "step-10"
    config, _ = enter(resolve("sid", {"resume": str(path)}))
    trainer = Trainer(assemble(config), quiet=True)
    trainer.load(path)
    assert capsys.readouterr().err == ""
    trainer.assembly = replace(trainer.assembly, config=replace(trainer.assembly.config, engine="stacked"))
    two: Any = SimpleNamespace(count=2)
    trainer.engine.replicas = two
    trainer.load(path)
    assert [line.partition(" when")[0] for line in capsys.readouterr().err.splitlines()] == [
        "sidestep: warning: engine was 'streaming'",
        "sidestep: warning: replicas was 1",
    ]


def test_what_was_saved_later_does_not_survive_a_rewind(copied: Path) -> None:
    """Else a run that is interrupted again would go on from bits that are not its own."""
    path = copied / "checkpoints" / "step-10"
    config, start = enter(resolve("sid", {"resume": str(path)}))
    trainer = Trainer(assemble(config), quiet=True)
    with trainer.begin(start):
        assert {p.name for p in path.parent.iterdir()} <= {"step-10", "selected-10"}
        assert [row["step"] for row in rows(copied)] == [10]
        assert not (copied / "summary.json").exists()


@pytest.mark.parametrize("part", ["blocks.2.safetensors", "run.safetensors", "manifest.json"])
def test_a_flipped_byte_is_found_and_the_checkpoint_before_named(
    part: str, copied: Path, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    newest = copied / "checkpoints" / "step-20"
    (copied / "summary.json").unlink()
    spoil(newest / part)
    before = contents(copied)
    if part == "manifest.json":  # then it is no complete checkpoint, and the one before is the last
        assert resume(copied) == 0
        assert weights(copied) == weights(finished)
        return
    assert resume(copied) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{newest / part} is damaged" in line
    assert line.endswith(f"run `sidestep train sid --resume {newest.with_name('step-10')} --out {copied}`.")
    assert contents(copied) == before
    assert cli.main(["train", "sid", "--resume", str(newest.with_name("step-10"))]) == 0
    assert weights(copied) == weights(finished)


def spoil(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


@pytest.mark.parametrize("command", ["evaluate", "last", "path"])
def test_where_what_was_selected_is_damaged_the_command_that_is_named_mends_the_run(
    command: str, copied: Path, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not the step that refers to it, nor parameters alone, nor what `evaluate` does not take."""
    checkpoints = copied / "checkpoints"
    spoil(checkpoints / "selected-20" / "blocks.1.safetensors")
    train = ["train", "sid", "--resume"]
    lines = {"evaluate": ["evaluate", str(copied)], "last": [*train, "last", "--out", str(copied)]}
    if command == "last":
        (copied / "summary.json").unlink()
    before = contents(copied)
    assert cli.main(lines.get(command, [*train, str(checkpoints / "step-20")])) == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert "selected-20/blocks.1.safetensors is damaged: got SHA-256" in line
    assert line.endswith(f"run `sidestep {' '.join(train)} {checkpoints / 'step-10'} --out {copied}`.")
    assert contents(copied) == before
    assert cli.main(shlex.split(line.split("`")[1])[1:]) == 0
    assert (weights(copied), rows(copied)) == (weights(finished), rows(finished))


def test_a_step_whose_selected_parameters_are_gone_is_no_complete_checkpoint(copied: Path, finished: Path) -> None:
    (copied / "summary.json").unlink()
    shutil.rmtree(copied / "checkpoints" / "selected-20")
    assert resume(copied) == 0
    assert (weights(copied), rows(copied)) == (weights(finished), rows(finished))


def test_a_path_to_no_checkpoint_is_refused_before_any_folder_is_made(
    copied: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    typo = tmp_path / "typo" / "checkpoints" / "step-4"
    assert cli.main(["train", "sid", "--resume", str(typo)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{typo} is no checkpoint: got no manifest.json in it, expected one; no other" in line
    assert not (tmp_path / "typo").exists()
    other = copied / "checkpoints" / "step-4"
    assert cli.main(["train", "sid", "--resume", str(other)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith(f"run `sidestep train sid --resume {other.with_name('step-20')} --out {copied}`.")


@pytest.mark.parametrize("row", ['{"epoch": 3}', '{"epoch": 3, "step": 30}', "[]"])
def test_a_history_with_a_row_that_is_none_is_refused_before_anything_is_removed(
    row: str, copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with (copied / "metrics.jsonl").open("a") as log:
        log.write(f"{row}\n")
    before = contents(copied)
    assert cli.main(["train", "sid", "--resume", str(copied / "checkpoints" / "step-10")]) == 1
    assert f"{copied / 'metrics.jsonl'}, line 3 is no JSON object with epoch" in capsys.readouterr().err
    assert contents(copied) == before


def test_a_finished_run_whose_summary_is_damaged_is_named(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (copied / "summary.json").write_text("{}")
    assert resume(copied) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"sidestep: error: {copied / 'summary.json'} is damaged (no method in it)")
    (copied / "summary.json").unlink()  # the next move that the line gives
    assert resume(copied) == 0


def test_parameters_alone_are_nothing_to_go_on_from(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = contents(finished)
    selected = checkpoint.latest(finished / "checkpoints", "selected")
    assert cli.main(["train", "sid", "--resume", str(selected)]) == 1
    assert f"{selected} holds parameters only, expected a checkpoint to go on from" in capsys.readouterr().err
    assert contents(finished) == before


def test_a_checkpoint_of_another_network_is_refused(
    copied: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trained("sid", tmp_path / "wide", **{"model.width": "32"})
    (copied / "summary.json").unlink()
    shutil.rmtree(copied / "checkpoints")
    shutil.copytree(tmp_path / "wide" / "checkpoints", copied / "checkpoints")
    before = contents(copied)
    capsys.readouterr()
    assert resume(copied) == 1
    assert "has model.width = 32, expected 64 as in this run" in capsys.readouterr().err
    assert contents(copied) == before


def test_two_processes_cannot_write_one_run(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = contents(copied)
    lock = os.open(copied, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)  # as the other process holds it while it trains
    try:
        assert cli.main(["train", "sid", "--resume", str(copied / "checkpoints" / "step-10")]) == 1
        assert sidestep("train sid --overwrite", copied) == 1
    finally:
        os.close(lock)
    assert capsys.readouterr().err.count(f"{copied} is being written by another process") == 2
    assert contents(copied) == before


def test_a_run_that_another_process_has_begun_in_the_folder_meanwhile_is_not_lost(
    finished: Path, tmp_path: Path
) -> None:
    config, start = enter(resolve("sid", {**QUICK, "out": str(tmp_path / "run")}))
    trainer = Trainer(assemble(config), quiet=True)
    shutil.copytree(finished, tmp_path / "run")
    before = contents(tmp_path / "run")
    with pytest.raises(UsageError, match="holds a run; give --resume last"), trainer.begin(start):
        pass
    assert contents(tmp_path / "run") == before

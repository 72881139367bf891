"""`sidestep train`: the folder it leaves, what it selects and reports, and what repeats bit for bit."""

from __future__ import annotations

import json
import math
import tomllib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from sidestep import checkpoint, cli
from sidestep import summary as ending
from sidestep import train as training
from sidestep.assemble import assemble
from sidestep.config import TrainConfig, flat, resolve
from sidestep.core.cell import Batch
from sidestep.data.sources import load
from sidestep.errors import Diverged
from sidestep.progress import Progress
from sidestep.run import load_run, to_parts
from sidestep.train import DIAGNOSED, Trainer

QUICK = {"epochs": "2", "batch_size": "128", "model.width": "64", "lr": "0.01", "precision": "fp32"}
"""A second on digits: 10 steps an epoch."""


def words(flags: dict[str, str]) -> list[str]:
    return [word for key, value in flags.items() for word in ("--set", f"{key}={value}")]


def sidestep(command: str, out: Path, flags: dict[str, str] = QUICK) -> int:
    return cli.main([*command.split(), "--out", str(out), *words(flags)])


def trained(method: str, out: Path, **changed: str) -> dict[str, Any]:
    """A run's summary."""
    assert sidestep(f"train {method}", out, QUICK | changed) == 0
    return json.loads((out / "summary.json").read_text())


def rows(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def weights(out: Path) -> bytes:
    return (out / "model" / "model.safetensors").read_bytes()


def configured(method: str = "backprop", **changed: str) -> TrainConfig:
    return resolve(method, QUICK | changed)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run") / "sid"
    assert sidestep("train sid", out) == 0
    return out


# ---------------------------------------------------------------------- the folder


def test_a_run_leaves_what_the_contract_names(finished: Path) -> None:
    names = {path.name for path in finished.iterdir()}
    contract = {"config.toml", "metrics.jsonl", "summary.json", "checkpoints", "model", "report.html"}
    assert names == contract | {"audit.json", "costs.json", "examples.json", "uncertainty.json"}
    summary = json.loads((finished / "summary.json").read_text())
    promised = (
        "method model data blocks at seed epochs val_accuracy test_accuracy test_nll test_ece block_test_accuracy "
        "samples_per_second step_ms peak_activation_mb peak_rss_mb params aux_params flops_per_sample commit torch "
        "device threads"
    )
    assert set(promised.split()) <= summary.keys()
    assert len(summary["block_test_accuracy"]) == 4
    assert summary["block_test_accuracy"][-1] == summary["test_accuracy"]


def test_what_a_methods_theory_speaks_of_is_measured_after_every_epoch_on_validation_samples(tmp_path: Path) -> None:
    summary = trained("bll", tmp_path / "run", select="last")
    every = [row["diagnostics"] for row in rows(tmp_path / "run")]
    assert [sorted(found) for found in every] == [["angle", "bound", "gap"]] * 2
    # Of the parameters that were judged, those of the last step; other samples give others.
    assert summary["diagnostics"] == every[1]
    judged = Trainer(load_run(tmp_path / "run").assembly)
    judged.engine.steps = 20
    assert judged.assembly.data.val is not None and len(judged.assembly.data.val) > DIAGNOSED
    assert judged.diagnostics() == every[1]
    judged.assembly = replace(judged.assembly, data=replace(judged.assembly.data, val=judged.assembly.data.test))
    assert judged.diagnostics()["bound"] != every[1]["bound"]


def test_a_method_without_such_a_theory_has_no_diagnostics(finished: Path) -> None:
    assert all("diagnostics" not in row for row in rows(finished))
    assert "diagnostics" not in json.loads((finished / "summary.json").read_text())


def test_the_configuration_it_wrote_is_the_resolved_one_without_its_place(finished: Path) -> None:
    written = tomllib.loads((finished / "config.toml").read_text())
    asked = flat(resolve("sid", QUICK))
    assert written.keys() == asked.keys()
    asked = {key: list(value) if isinstance(value, tuple) else value for key, value in asked.items()}
    differ = {key for key in asked if written[key] != ("none" if asked[key] is None else asked[key])}
    assert differ == {"at", "device", "engine"}
    assert (written["at"], written["device"]) == (["layer2", "layer4", "layer6"], "cpu")
    assert (written["out"], written["resume"], written["overwrite"]) == ("none", "none", False)


def test_the_last_line_of_json_is_the_summary(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    assert sidestep("train backprop --json", out) == 0
    shown, err = capsys.readouterr()
    assert len(shown.splitlines()) == 1
    assert json.loads(shown) == json.loads((out / "summary.json").read_text())
    assert all(line.startswith("sidestep: ") for line in err.splitlines())


def test_without_out_the_folder_has_date_method_data_and_seed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["train", "backprop", *words(QUICK)]) == 0
    (folder,) = (tmp_path / "runs").iterdir()
    date, time, *rest = folder.name.split("-")
    assert (len(date), len(time), rest) == (8, 6, ["backprop", "digits", "seed0"])
    assert (folder / "summary.json").is_file()


def test_the_exported_file_is_the_network_that_was_judged(finished: Path) -> None:
    run = load_run(finished)
    state = load_file(finished / "model" / "model.safetensors")
    network = run.model
    with torch.no_grad():
        for p in network.parameters():
            p.zero_()
    network.load_state_dict(state)
    test = run.assembly.data.test
    assert test is not None
    right = [(network(x).argmax(-1) == y).sum() for x, y in run.assembly.eval_batches(test)]
    assert int(sum(right)) / len(test) == run.summary["test_accuracy"]


# ---------------------------------------------------------------------- what is selected and judged


def judge_with(evaluate: Callable[..., dict[str, object]], monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever a run's answers are judged: after an epoch, and at the end."""
    for module in (training, ending):
        monkeypatch.setattr(module, "evaluate", evaluate)


@pytest.mark.parametrize(
    ("select", "words", "step", "value"),
    [("best", "best validation accuracy, epoch 2 of 3", 20, 0.9), ("last", "last epoch, 3", 30, 0.5)],
)
def test_the_epoch_that_is_judged_is_the_one_that_was_asked_for(
    select: str, words: str, step: int, value: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Validation accuracies are 0.9, 0.9, 0.2: of two equal epochs the later counts."""
    script = iter([0.9, 0.9, 0.2, value])
    evaluate = training.evaluate
    splits = load("digits")

    def scripted(assembly: Any, source: Any, **more: Any) -> dict[str, object]:
        found = evaluate(assembly, source, **more)
        return found | ({"accuracy": [next(script)]} if len(source) == len(splits.val) else {})

    judge_with(scripted, monkeypatch)
    summary = trained("backprop", tmp_path, epochs="3", select=select)
    assert (summary["selected"], summary["val_accuracy"]) == (words, value)
    state, _ = checkpoint.load(tmp_path / "checkpoints" / f"step-{step}")
    chosen = {key.replace("/model", ""): value for key, value in state.items() if "/model/" in key}
    selected = load_run(tmp_path).assembly.chain
    judged = to_parts(selected)
    assert judged.keys() == chosen.keys()
    assert all(torch.equal(judged[key], chosen[key]) for key in judged)


def test_an_epoch_whose_loss_is_lost_is_not_the_one_that_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = iter([math.nan, 1.0, 1.2, 1.0])
    evaluate = training.evaluate

    def scripted(assembly: Any, source: Any, **more: Any) -> dict[str, object]:
        found = evaluate(assembly, source, **more)
        return found | ({"nll": [next(script)]} if source is assembly.data.val else {})

    judge_with(scripted, monkeypatch)
    own = {"model": "autoencoder", "model.width": "4", "epochs": "3"}
    summary = trained("backprop", tmp_path, **own)
    assert summary["selected"] == "best validation loss, epoch 2 of 3"


@pytest.mark.parametrize("method", ["backprop", "backprop_checkpointed", "local_ce", "deep_supervision"])
def test_smoothing_of_numbers_is_refused_before_there_is_a_folder(
    method: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["train", method, "--data", "digits", "--model", "autoencoder", "--label-smoothing", "0.1"]
    assert cli.main([*line, "--out", str(tmp_path / "run")]) == 2
    error = "sidestep: error: got label_smoothing=0.1 for targets that are numbers, expected 0.\n"
    assert capsys.readouterr().err == error
    assert not (tmp_path / "run").exists()


def test_without_validation_the_last_epoch_counts_if_it_was_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sidestep("train backprop", tmp_path, QUICK | {"val_fraction": "0"}) == 2
    message = "got select=best without validation samples; give --val-fraction above 0, or --select last."
    assert capsys.readouterr().err == f"sidestep: error: {message}\n"
    assert list(tmp_path.iterdir()) == []
    summary = trained("backprop", tmp_path, val_fraction="0", select="last")
    assert (summary["val_accuracy"], summary["selected"], summary["train_samples"]) == (None, "last epoch, 2", 1438)
    assert all("val" not in row for row in rows(tmp_path))


def test_the_test_set_is_judged_once_and_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    judged: list[tuple[int, int]] = []
    evaluate = training.evaluate

    def watched(assembly: Any, source: Any, **more: Any) -> dict[str, object]:
        judged.append((assembly.engine.steps, len(source)))
        return evaluate(assembly, source, **more)

    judge_with(watched, monkeypatch)
    assert sidestep("train backprop", tmp_path) == 0
    splits = load("digits")
    val, test = len(splits.val), len(splits.test)
    assert judged == [(10, val), (20, val), (20, val), (20, test)]


# ---------------------------------------------------------------------- the same bits


def test_the_same_seed_twice_is_the_same_file_and_another_seed_is_not(finished: Path, tmp_path: Path) -> None:
    trained("sid", tmp_path / "again")
    trained("sid", tmp_path / "other", seed="1")
    assert weights(tmp_path / "again") == weights(finished)
    assert rows(tmp_path / "again") == rows(finished)
    assert weights(tmp_path / "other") != weights(finished)


# ---------------------------------------------------------------------- a run of another name is safe


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize(
    ("command", "code", "says"),
    [
        ("train sid", 2, "holds a run; give --resume last to continue it, --overwrite, or another --out."),
        ("train sid --overwrite --resume last", 2, "got resume and overwrite, expected one of them"),
        ("train sid --overwrite --data nowhere", 2, "unknown data set 'nowhere'"),
        ("train sid --overwrite --blocks 9", 2, "can be cut into at most 8"),
        (
            "train sid --overwrite --batch-size 2000",
            1,
            "got 1294 training samples, expected at least one batch of 2000",
        ),
    ],
)
def test_a_run_that_is_refused_leaves_the_one_in_its_folder_alone(
    command: str, code: int, says: str, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(finished)
    assert sidestep(command, finished, {}) == code
    assert says in capsys.readouterr().err
    assert contents(finished) == before


def test_overwrite_replaces_the_run_and_nothing_else(tmp_path: Path) -> None:
    trained("sid", tmp_path, epochs="3")
    (tmp_path / "notes.txt").write_text("mine")
    summary = trained("local_ce", tmp_path, overwrite="true")
    assert (summary["method"], len(rows(tmp_path))) == ("local_ce", 2)
    assert {p.name for p in (tmp_path / "checkpoints").glob("step-*")} == {"step-10", "step-20"}
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_folder_with_a_configuration_of_something_else_is_never_overwritten(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.toml").write_text('title = "my site"\n')
    (tmp_path / "model").mkdir()
    assert sidestep("train sid --overwrite", tmp_path) == 1
    assert "config.toml is no configuration of a run" in capsys.readouterr().err
    assert {p.name for p in tmp_path.iterdir()} == {"config.toml", "model"}


# ---------------------------------------------------------------------- divergence


def test_a_diverged_run_ends_with_one_line_and_its_good_checkpoints(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = QUICK | {"lr": "1e6", "optimizer": "sgd", "schedule": "constant", "save_every": "1"}
    assert sidestep("train backprop", tmp_path, flags) == 1
    *log, error = capsys.readouterr().err.splitlines()
    assert error.startswith("sidestep: error: got a loss or parameters that are infinite or NaN by step")
    assert error.endswith("expected finite ones; start again with a lower --lr, or with --clip 1.")
    assert len(log) == 1 and "the run is kept in" in log[0]
    newest = checkpoint.latest(tmp_path / "checkpoints")
    assert newest is not None
    state, _ = checkpoint.load(newest)
    assert all(bool(value.isfinite().all()) for key, value in state.items() if "/model/" in key)
    assert not (tmp_path / "summary.json").exists()


def test_a_loss_that_is_lost_is_looked_for_once_an_epoch_and_before_a_save(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    check = Trainer.check_finite

    def watched(trainer: Trainer) -> None:
        asked.append(trainer.engine.steps)
        check(trainer)

    monkeypatch.setattr(Trainer, "check_finite", watched)
    Trainer(assemble(configured()), quiet=True).train()
    assert asked == [10, 20]
    asked.clear()
    trainer = Trainer(assemble(configured(save_every="7", out=str(tmp_path))), quiet=True)
    with trainer.begin(None):
        trainer.train()
    assert asked == [7, 10, 14, 20]


def test_a_running_statistic_that_is_infinite_is_lost_numbers_too() -> None:
    trainer = Trainer(assemble(resolve("backprop", {"data": "digits", "model": "simplecnn_bn"})), quiet=True)
    trainer.check_finite()
    next(b for _, b in trainer.assembly.chain.blocks[0].named_buffers()).fill_(math.inf)
    with pytest.raises(Diverged, match="infinite or NaN by step 0"):
        trainer.check_finite()


# ---------------------------------------------------------------------- time and progress


def test_step_time_counts_steps_only_and_none_of_the_first_ten(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    now = [0.0]
    trainer = Trainer(assemble(configured(epochs="3", save_every="4", out=str(tmp_path))), quiet=True)
    step, save, end = trainer.engine.step, trainer.save, trainer.end_epoch

    def taking(seconds: float, work: Any) -> Any:
        def timed(*args: Any) -> Any:
            now[0] += seconds if trainer.engine.steps >= 10 or work is not step else 1000.0
            return work(*args)

        return timed

    monkeypatch.setattr(training.time, "perf_counter", lambda: now[0])
    for owner, name, work, seconds in (
        (trainer.engine, "step", step, 2.0),
        (trainer, "save", save, 50.0),
        (trainer, "end_epoch", end, 70.0),
    ):
        monkeypatch.setattr(owner, name, taking(seconds, work))
    with trainer.begin(None):
        trainer.train()
    assert trainer.timed == (40.0, 20)


def test_where_there_is_no_terminal_a_line_comes_every_ten_seconds(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [0.0]
    monkeypatch.setattr("sidestep.progress.time.monotonic", lambda: now[0])
    progress = Progress(100)
    described: list[int] = []
    with progress:
        for step in range(1, 101):
            now[0] = 0.3 * step
            progress.step(step, lambda s=step: described.append(s) or f"loss {s}", epoch=1 + step // 50)
    assert capsys.readouterr().err.splitlines() == [
        "sidestep: step 34/100, epoch 1, loss 34",
        "sidestep: step 68/100, epoch 2, loss 68",
    ]
    assert described == [34, 68]  # what it would cost to look is not paid in between


def test_a_quiet_run_says_nothing(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sidestep.progress.LINE_SECONDS", 0.0)
    Trainer(assemble(configured()), quiet=True).train()
    assert capsys.readouterr() == ("", "")


def test_diagnostics_are_of_so_many_labels_where_a_sample_has_many(monkeypatch: pytest.MonkeyPatch) -> None:
    """A text's angles take a backward call a class over all its tokens."""
    seen: list[Batch] = []

    def diagnose(method: object, chain: object, batch: Batch, task: object) -> dict[str, list[float]]:
        seen.append(batch)
        return {}

    monkeypatch.setattr("sidestep.methods.bll.diagnose", diagnose)
    Trainer(assemble(configured("bll", data="reversal", model="encoder", blocks="2"))).diagnostics()
    (batch,) = seen
    assert batch.y is not None and DIAGNOSED - batch.y.shape[1] < batch.y.numel() <= DIAGNOSED

"""`sidestep evaluate`: a finished run's numbers again, and SID's belief curves with their identity."""

from __future__ import annotations

import json
import math
import shlex
import shutil
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from sidestep import cli
from sidestep.data.samples import Samples
from sidestep.evaluate import evaluate
from sidestep.measure.calibration import confidence
from sidestep.measure.probes import probes
from sidestep.run import load_run
from sidestep.summary import IDENTITY_TOLERANCE, block_table
from tests.data.make import parquet_folder
from tests.test_train import contents, trained

MEASURES = ("accuracy", "nll", "brier", "ece")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """bf16 where the machine has it, as by default."""
    root = tmp_path_factory.mktemp("runs")
    options = {
        "code": {"sid.alpha": "linear:1:0.3"},
        "paper": {"sid.direction": "paper", "sid.label_smoothing": "0.1"},
        "noisy": {"label_noise": "0.3"},
    }
    for name, own in options.items():
        trained("sid", root / name, precision="auto", **own)
    trained("backprop", root / "backprop", precision="auto")
    return {name: root / name for name in (*options, "backprop")}


def evaluated(run: Path, capsys: pytest.CaptureFixture[str], *more: str) -> dict[str, Any]:
    capsys.readouterr()
    assert cli.main(["evaluate", str(run), "--json", *more]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    return json.loads(line)


@pytest.mark.parametrize("name", ["code", "paper", "noisy", "backprop"])
def test_it_reproduces_the_summary_exactly_and_changes_nothing(
    name: str, finished: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    run = finished[name]
    before = contents(run)
    found = evaluated(run, capsys, "--descent")
    summary = json.loads((run / "summary.json").read_text())
    keys = {f"{kind}test_{m}" for kind in ("", "block_") for m in MEASURES} | {"method", "model", "data", "selected"}
    assert {k: found[k] for k in keys} == {k: summary[k] for k in keys}
    assert found["descent"] == summary.get("descent")
    assert contents(run) == before


def test_the_measures_are_those_of_the_definition(finished: dict[str, Path]) -> None:
    """Accuracy, NLL and Brier score of the last block from its probabilities, sample by sample in float64."""
    run = load_run(finished["backprop"])
    assembly = run.assembly
    test = assembly.data.test
    assert isinstance(test, Samples)
    p, y = run.predict(test.x).double(), test.y
    assert run.summary["test_accuracy"] == float((p.argmax(-1) == y).double().mean())
    # float32 softmax against the float64 log-softmax of the logits.
    assert run.summary["test_nll"] == pytest.approx(float(-p.gather(1, y[:, None]).log().mean()), rel=1e-5)
    assert run.summary["test_brier"] == pytest.approx(float((p - F.one_hot(y, 10)).square().sum(-1).mean()), rel=1e-5)
    assert run.summary["block_test_accuracy"] == [None, None, None, run.summary["test_accuracy"]]


# ---------------------------------------------------------------------- belief curves


@pytest.mark.parametrize("name", ["code", "paper", "noisy"])
def test_the_identity_holds_on_every_sample(
    name: str, finished: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """D_K = D_0 - sum (1-a)/a C + sum e/a.  `identity` is its largest violation over the samples, in float64: some
    1e-16 of the largest term, so 1e-9 of the terms' size is float tolerance with room for confident beliefs.  The
    means obey it too."""
    descent = evaluated(finished[name], capsys, "--descent")["descent"]
    scale = max(1.0, *descent["D"], *descent["C"])
    assert descent["identity"] < IDENTITY_TOLERANCE * scale
    alpha = {"code": [1 - 0.7 * i / 3 for i in range(4)]}.get(name, [0.5] * 4)
    moved = sum((1 - a) / a * c for a, c in zip(alpha, descent["C"], strict=True))
    slack = sum(e / a for a, e in zip(alpha, descent["e"], strict=True))
    assert descent["D"][-1] == pytest.approx(descent["D"][0] - moved + slack, abs=IDENTITY_TOLERANCE * scale)
    assert descent["samples"] == 359


def test_what_theory_predicts_stands_beside_what_was_measured(
    finished: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """T5 for one-hot P, code: p_i gives the label (1 - r_i) + r_i / C, so that D_i = -log of it."""
    descent = evaluated(finished["noisy"], capsys, "--descent")["descent"]
    # With labels redrawn at rate 0.3 the true P(y|x) has 0.73 at the clean label and 0.03 elsewhere.
    for i, found in enumerate(descent["D_population"][1:], 1):
        r = 0.5**i
        assert found == pytest.approx(-math.log((1 - r) * (0.7 + 0.03) + r / 10), abs=1e-12)
    assert len(descent["D_population"]) == len(descent["D"]) == 5
    code = evaluated(finished["code"], capsys, "--descent")["descent"]
    assert code["D_population"][1:] == [0.0] * 4  # the first alpha is 1: every r_i is 0
    assert code["D"][0] == pytest.approx(math.log(10), abs=1e-6)  # p_0 is a float32


def test_the_table_is_80_columns_wide_and_shows_measured_beside_predicted(
    finished: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    run = finished["paper"]
    assert cli.main(["evaluate", str(run), "--descent"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[0].split() == [
        *["block", "acc", "%", "NLL", "Brier", "ECE"],
        *["D", "D", "(T5)", "C", "e", "e", ">", "0", "%"],
    ]
    summary = json.loads((run / "summary.json").read_text())
    descent = summary["descent"]
    for i, line in enumerate(lines[2:6]):
        values = [100 * summary["block_test_accuracy"][i], *(summary[f"block_test_{m}"][i] for m in MEASURES[1:])]
        values += [descent[k][i + 1] for k in ("D", "D_population")] + [descent[k][i] for k in ("C", "e")]
        shown = [float(word) for word in line.split()]
        assert shown == pytest.approx([i + 1, *values, 100 * descent["e_positive"][i]], abs=0.006)
    assert any("identity holds: off by" in line for line in lines)
    assert cli.main(["evaluate", str(run)]) == 0
    assert "(T5)" not in capsys.readouterr().out


def test_an_identity_that_is_broken_is_said_to_be(finished: dict[str, Path]) -> None:
    summary = json.loads((finished["code"] / "summary.json").read_text())
    summary["descent"]["identity"] = 1e-6
    assert "identity DOES NOT HOLD" in block_table(summary)


def test_a_method_without_such_a_theory_has_no_curves(
    finished: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    found = evaluated(finished["backprop"], capsys, "--descent")
    assert found["descent"] is None
    assert cli.main(["evaluate", str(finished["backprop"]), "--descent"]) == 0
    out = capsys.readouterr().out
    assert out.count("(no read-out)") == 3 and "T5" not in out


def test_evaluating_leaves_the_parameters_alone(finished: dict[str, Path]) -> None:
    run = load_run(finished["code"])
    before = {k: v.clone() for k, v in run.assembly.engine.state_dict().items()}
    assert run.assembly.data.val is not None
    first = evaluate(run.assembly, run.assembly.data.val)
    assert evaluate(run.assembly, run.assembly.data.val) == first
    best: Any = run.history[int(str(run.summary["selected"]).split()[4]) - 1]
    assert first == best["val"]
    assert all(torch.equal(before[k], v) for k, v in run.assembly.engine.state_dict().items())


# ---------------------------------------------------------------------- probes


def test_probes_stand_under_the_table_and_in_the_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    trained("backprop", run, epochs="1")
    before = contents(run)
    found = evaluated(run, capsys, "--probes")["probes"]
    assert found == probes(load_run(run).assembly)
    assert [row["dimension"] for row in found] == [64] * 4  # model.width, the last block's before the classifier
    assert "probes" not in evaluated(run, capsys)
    assert cli.main(["evaluate", str(run), "--probes"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[6:8] == ["linear probes on what each block sends on, validation", "block   acc %  features     L2"]
    for i, (row, line) in enumerate(zip(found, lines[8:], strict=True), 1):
        shown = [float(word) for word in line.split()]
        assert shown == pytest.approx([i, 100 * row["accuracy"], 64, row["l2"]], abs=0.006)
    assert contents(run) == before


# ---------------------------------------------------------------------- uncertainty


def some_noise(folder: Path, size: int = 8) -> Path:
    """40 grey images of noise in two classes, split in train and test."""
    g = torch.Generator().manual_seed(0)
    for part in ("train", "test"):
        for name in ("a", "b"):
            (folder / part / name).mkdir(parents=True)
            for i in range(10):
                pixels = torch.randint(256, (size, size), dtype=torch.uint8, generator=g).numpy()
                Image.fromarray(pixels).save(folder / part / name / f"{i}.png")
    return folder


def test_uncertainty_is_two_tables_of_80_columns_with_the_numbers_of_the_json(
    finished: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, noise = finished["code"], some_noise(tmp_path / "noise")
    before = contents(run)
    found = evaluated(run, capsys, "--uncertainty", "--ood", str(noise))["uncertainty"]
    assert "uncertainty" not in evaluated(run, capsys)
    assert found["samples"] == 359 and found["temperature"]["samples"] == 144
    assert found["ood"] == {"data": "noise", "samples": 20}
    assert cli.main(["evaluate", str(run), "--uncertainty", "--ood", str(noise)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    measured = ["NLL", "Brier", "ECE", "aECE", "AURC", "AUROC"]
    assert lines[1].split() == ["block", "acc", "%", *measured]
    assert lines[9].split() == ["block", "T", *measured]
    assert lines[8] == "after temperature: T of least NLL on 144 validation samples"
    names = ["nll", "brier", "ece", "adaptive_ece", "aurc", "ood_auroc"]
    for part, start, first in ((found, 2, "accuracy"), (found["temperature"], 10, "T")):
        scale = 100 if first == "accuracy" else 1
        rows = [[scale * part[first][i], *(part[name][i] for name in names)] for i in range(4)]
        rows.append([scale * part["mean"][first], *(part["mean"][name] for name in names)])
        for label, row, line in zip("1234", rows, lines[start : start + 4], strict=False):
            assert line.split()[0] == label
            assert [float(word) for word in line.split()[1:]] == pytest.approx(row, abs=0.006)
        assert lines[start + 4].split()[0] == "mean"
        assert [float(word) for word in lines[start + 4].split()[1:]] == pytest.approx(rows[4], abs=0.006)
    # What was printed is kept for the report, and nothing else has changed.
    assert lines[-1] == "`sidestep report` of this run draws them."
    after = contents(run)
    assert json.loads(after.pop(run / "uncertainty.json")) == found
    assert after == {path: data for path, data in before.items() if path.name != "uncertainty.json"}


def test_the_report_after_an_evaluation_shows_what_it_found(
    finished: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, noise = shutil.copytree(finished["code"], tmp_path / "run"), some_noise(tmp_path / "noise")
    found = evaluated(run, capsys, "--ood", str(noise))["uncertainty"]
    assert cli.main(["report", str(run)]) == 0
    page = (run / "report.html").read_text()
    assert "Outside: 20 test samples of noise." in page and f"{found['ood_auroc'][-1]:.4f} (AUROC)" in page
    assert f"<td>{found['adaptive_ece'][-1]:.4f}</td>" in page and f"<td>{found['mean']['aurc']:.4f}</td>" in page
    evaluated(run, capsys, "--uncertainty")
    assert cli.main(["report", str(run)]) == 0
    assert "AUROC" not in (run / "report.html").read_text()  # the last evaluation counts


def test_a_run_that_cannot_be_written_is_measured_all_the_same(
    finished: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = shutil.copytree(finished["code"], tmp_path / "run")
    expected = evaluated(run, capsys, "--uncertainty")["uncertainty"]
    (run / "uncertainty.json").write_text("old")

    def refused(path: Path, data: bytes) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("sidestep.files.write_synced", refused)  # what a folder of someone else's answers
    assert cli.main(["evaluate", str(run), "--uncertainty", "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["uncertainty"] == expected
    assert err == f"sidestep: warning: {run / 'uncertainty.json'} was not written ([Errno 13] Permission denied)\n"
    assert cli.main(["evaluate", str(run), "--uncertainty"]) == 0
    assert "draws them" not in capsys.readouterr().out
    assert (run / "uncertainty.json").read_text() == "old"


def test_the_other_data_are_normalised_as_the_runs_own(
    finished: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    noise = some_noise(tmp_path / "noise")
    found = evaluated(finished["backprop"], capsys, "--ood", str(noise))["uncertainty"]["ood_auroc"]
    made = load_run(finished["backprop"]).assembly
    assert isinstance(made.data.test, Samples)
    pictures = [torch.tensor(np.asarray(Image.open(f))) for f in sorted((noise / "test").glob("*/*.png"))]
    sure: list[list[float]] = []
    for x in (made.data.test.x, torch.stack(pictures)[:, None]):
        logits = made.engine.predict((x / 255 - made.data.mean[0]) / made.data.std[0])[-1]
        assert logits is not None
        sure.append(confidence(logits).tolist())
    pairs = [(a > b) + (a == b) / 2 for a in sure[0] for b in sure[1]]
    # Rounding in bf16 may swap a few of the 7,180 pairs.
    assert found[-1] == pytest.approx(sum(pairs) / len(pairs), abs=1e-3)
    assert found[:3] == [None] * 3


def test_of_backprop_only_the_last_block_and_the_mean_have_numbers(
    finished: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    found = evaluated(finished["backprop"], capsys, "--uncertainty")["uncertainty"]
    for part in (found, found["temperature"]):
        for name, value in part["mean"].items():
            assert part[name] == [None, None, None, value]
    assert cli.main(["evaluate", str(finished["backprop"]), "--uncertainty", "--descent"]) == 0
    out = capsys.readouterr().out
    assert out.count("(no read-out)") == 9  # the plain table stands above with --descent
    assert "AUROC" not in out


def test_labels_that_were_noisy_when_the_temperature_was_fitted_are_named(
    finished: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["evaluate", str(finished["noisy"]), "--uncertainty"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "after temperature: T of least NLL on 144 noisily labelled validation samples" in lines
    assert max(map(len, lines)) <= 80


@pytest.mark.parametrize(
    ("read", "says"),
    [
        ("never", "no temperature: it would be fitted on the very samples that are judged here"),
        ("end", "no temperature: the run has no validation samples to fit one on"),
    ],
)
def test_where_no_temperature_can_be_fitted_apart_from_what_is_judged_there_is_none(
    read: str, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    options = {"val_fraction": "0", "select": "last"} if read == "end" else {}
    trained("local_ce", run, epochs="1", test=read, **options)
    found = evaluated(run, capsys, "--uncertainty")
    assert found["uncertainty"]["temperature"] is None
    part = "test" if read == "end" else "val"
    # Added up in batches for the one and at once for the other, in float64.
    assert found["uncertainty"]["nll"] == pytest.approx(found[f"block_{part}_nll"], rel=1e-12)
    assert cli.main(["evaluate", str(run), "--uncertainty"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert says in lines
    assert ("359 test samples" if read == "end" else "144 validation samples") in lines[0]
    assert [line for line in lines if line.lstrip().startswith("block")] == [lines[1]]


def test_an_answer_without_a_temperature_says_so(
    finished: dict[str, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sidestep.measure.uncertainty.temperature", lambda logits, y: None)
    assert cli.main(["evaluate", str(finished["code"]), "--uncertainty"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[10:15] == [
        f"{name:>5}  (no T: validation's NLL has no minimum)" for name in ("1", "2", "3", "4", "mean")
    ]


def test_other_data_that_do_not_fit_are_one_line(
    finished: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(name: str, code: int, *says: str) -> None:
        capsys.readouterr()
        assert cli.main(["evaluate", str(finished["code"]), "--uncertainty", "--ood", name]) == code
        out, err = capsys.readouterr()
        (line,) = err.splitlines()
        assert out == "" and line.startswith("sidestep: error: ")
        assert all(word in line for word in says)

    refused("digit", 2, "unknown data set 'digit'; did you mean 'digits'?")
    refused("digits", 2, "got --ood digits, the run's own data, expected another data set.")
    wide = some_noise(tmp_path / "wide", 9)
    refused(str(wide), 2, "with samples of shape (1, 9, 9), expected (1, 8, 8) as digits has; choose a data set")
    refused(str(tmp_path / "no" / "where"), 1, "no folder")


# ---------------------------------------------------------------------- from another folder


@pytest.mark.parametrize("data", ["./shapes", "mnist"])
def test_a_run_on_data_at_a_path_is_evaluated_and_resumed_from_anywhere(
    data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("SIDESTEP_DATA", raising=False)
    monkeypatch.setenv("SIDESTEP_CACHE", str(tmp_path / "cache"))
    root, run = parquet_folder(tmp_path / PurePath(data).name), tmp_path / "run"
    monkeypatch.chdir(tmp_path)
    words = ["train", "backprop", "--model", "mlp", "--data", data, "--epochs", "1", "--batch-size", "9", "--no-report"]
    assert cli.main([*words, "--out", "run"]) == 0
    assert cli.main([*words, "--out", "run", "--resume", "last"]) == 0
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    assert evaluated(run, capsys)["data"] == str(root)
    (run / "summary.json").unlink()
    assert cli.main(["train", "backprop", "--resume", "last", "--out", str(run)]) == 0


# ---------------------------------------------------------------------- what is no finished run


def test_what_is_no_finished_run_is_refused(
    finished: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(run: Path, says: str) -> None:
        capsys.readouterr()
        assert cli.main(["evaluate", str(run)]) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("sidestep: error: ") and says in line

    refused(tmp_path / "nowhere", f"no folder {tmp_path / 'nowhere'}, expected that of a run; check the path.")
    run = shutil.copytree(finished["code"], tmp_path / "run")
    refused(run / "config.toml", f"no folder {run / 'config.toml'}, expected that of a run")
    refused(run / "checkpoints", f"{run / 'checkpoints'} holds no run (no config.toml), expected a run's folder")
    (selected,) = list((run / "checkpoints").glob("selected-*"))[-1:]
    for path in (run / "checkpoints").glob("selected-*/blocks.1.safetensors"):
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data)
    refused(run, "blocks.1.safetensors is damaged: got SHA-256")
    shutil.rmtree(selected.parent)
    refused(run, "holds no selected parameters; run the training again.")
    (run / "config.toml").write_text("epochs = \n")
    refused(run, "config.toml is no TOML")


@pytest.mark.parametrize("command", ["evaluate", "report"])
def test_a_run_that_has_not_finished_is_refused_with_the_command_that_finishes_it(
    command: str, finished: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = shutil.copytree(finished["code"], tmp_path / "a run")
    summary = json.loads((run / "summary.json").read_text())
    (run / "summary.json").unlink()
    assert cli.main([command, str(run)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"sidestep: error: {run} holds no finished run (no summary.json); to finish it, run `")
    words = shlex.split(line.split("`")[1])
    assert words == ["sidestep", "train", "sid", "--resume", "last", "--out", str(run)]
    assert cli.main([*words[1:], "--no-report", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["test_nll"] == summary["test_nll"]


@pytest.mark.parametrize("command", ["evaluate", "report"])
@pytest.mark.parametrize(
    ("name", "holds"),
    [
        ("summary.json", b'{"method": "si'),
        ("summary.json", b"{}"),
        ("summary.json", b"[]"),
        ("summary.json", b'{"method": "\xff"}'),
        ("metrics.jsonl", b'{"epoch": 1, "st\n{"epoch": 2}\n'),
        ("config.toml", b'method = "\xff"\n'),
        ("config.toml", b"epochs = \n"),
        ("config.toml", b'title = "my site"\n'),
    ],
)
def test_a_damaged_file_of_a_run_is_1_and_named(
    name: str, holds: bytes, command: str, finished: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = shutil.copytree(finished["code"], tmp_path / "run")
    (run / name).write_bytes(holds)
    before = contents(run)
    assert cli.main([command, str(run)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"sidestep: error: {run / name}")
    assert contents(run) == before


def test_a_last_line_that_a_crash_has_torn_is_passed_over(
    finished: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = shutil.copytree(finished["code"], tmp_path / "run")
    expected = evaluated(run, capsys)
    with (run / "metrics.jsonl").open("a") as log:
        log.write('{"epoch": 3, "st')
    assert evaluated(run, capsys) == expected
    assert [row["epoch"] for row in load_run(run).history] == [1, 2]
    assert cli.main(["report", str(run)]) == 0


def test_a_run_that_was_not_to_read_the_test_set_is_judged_on_validation(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train", "local_ce", "--epochs", "1", "--blocks", "2", "--test", "never", "--no-report"]
    assert cli.main([*words, "--out", str(tmp_path / "run"), "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert not [key for key in summary if "test" in key]
    assert cli.main(["evaluate", str(tmp_path / "run"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["val_accuracy"] == summary["val_accuracy"]
    assert found["block_val_accuracy"] == summary["block_val_accuracy"]
    assert not [key for key in found if "test" in key]
    assert cli.main([*words, "--val-fraction", "0", "--select", "last", "--out", str(tmp_path / "blind")]) == 0
    assert "judged on nothing" in capsys.readouterr().out
    assert cli.main(["evaluate", str(tmp_path / "blind")]) == 1
    assert "was trained with test=never and no validation samples" in capsys.readouterr().err


def test_the_test_set_after_every_epoch_ends_in_the_summarys_curve(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = "train sid --epochs 3 --blocks 2 --test epochs --val-fraction 0 --select last --no-report --json"
    assert cli.main([*words.split(), "--out", str(tmp_path / "run")]) == 0
    summary = json.loads(capsys.readouterr().out)
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert summary["curve"] == {
        "train_loss": [math.fsum(row["train_loss"]) for row in rows],
        "test_accuracy": [row["test"]["accuracy"][-1] for row in rows],
    }
    assert summary["curve"]["test_accuracy"][-1] == summary["test_accuracy"]
    assert len(rows) == 3
    assert not (tmp_path / "run" / "report.html").exists()
    assert not (tmp_path / "run" / "audit.json").exists()

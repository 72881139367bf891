"""A study's pieces, its runner and its statistics, on a small study of digits."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from sidestep import cli, studies
from sidestep.errors import Diverged, UsageError
from sidestep.files import only_writer, read_jsonl
from sidestep.report.study import Section
from sidestep.studies import runner
from sidestep.studies.rows import minus, pick, points
from sidestep.studies.statistics import difference, paired
from sidestep.studies.study import Grid, Part, Piece, Row, Study


def parts(rows: Sequence[Row]) -> list[Part]:
    return [(f"{len(rows)} rows.", Section("All"))]


SMALL = Study(
    "Is it so?",
    [
        Grid(
            {"one": "train local_ce", "other": "train sid --alpha 0.7"},
            "--epochs 1 --blocks 2",
            {"rate": {"low": "--lr 0.001", "high": "--lr 0.004"}},
            seeds={"cpu": 2, "gpu": 3},
        ),
        Grid({"speed": "bench step sid --steps 1 --blocks 2"}, seeds={"cpu": 1}),
        Grid({"large": "train sid --model resnet18"}, seeds={"cpu": 0, "gpu": 1}),
    ],
    parts,
)
STUDIES = {"small": "a study for tests"}


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> Study:
    monkeypatch.setitem(studies.STUDIES, "small", "a study for tests")
    monkeypatch.setattr(runner, "study_named", lambda _: SMALL)
    return SMALL


def test_a_study_is_its_arms_by_its_variants_by_its_seeds_and_every_arms_first_seed_comes_first() -> None:
    found = [(p.labels.get("rate"), p.labels["arm"], p.command) for p in SMALL.pieces()]
    assert found == [
        ("low", "one", "sidestep train local_ce --epochs 1 --blocks 2 --lr 0.001 --seed 0 --no-report"),
        ("low", "other", "sidestep train sid --alpha 0.7 --epochs 1 --blocks 2 --lr 0.001 --seed 0 --no-report"),
        ("high", "one", "sidestep train local_ce --epochs 1 --blocks 2 --lr 0.004 --seed 0 --no-report"),
        ("high", "other", "sidestep train sid --alpha 0.7 --epochs 1 --blocks 2 --lr 0.004 --seed 0 --no-report"),
        (None, "speed", "sidestep bench step sid --steps 1 --blocks 2"),
        ("low", "one", "sidestep train local_ce --epochs 1 --blocks 2 --lr 0.001 --seed 1 --no-report"),
        ("low", "other", "sidestep train sid --alpha 0.7 --epochs 1 --blocks 2 --lr 0.001 --seed 1 --no-report"),
        ("high", "one", "sidestep train local_ce --epochs 1 --blocks 2 --lr 0.004 --seed 1 --no-report"),
        ("high", "other", "sidestep train sid --alpha 0.7 --epochs 1 --blocks 2 --lr 0.004 --seed 1 --no-report"),
    ]
    assert len(SMALL.pieces(seeds=1)) == 5
    on_gpu = [p.command for p in SMALL.pieces("gpu")]
    assert len(on_gpu) == 3 * 4 + 1
    assert on_gpu[4] == "sidestep train sid --model resnet18 --seed 0 --no-report --device cuda"
    assert len(SMALL.pieces("gpu", smoke=True)) == 4 + 1 + 4 + 1  # what a GPU runs, and what a CPU runs, once each


def test_a_command_of_two_grids_is_run_once_and_read_under_the_labels_of_both() -> None:
    shared = "train sid --blocks 2"
    study = Study("?", [Grid({"deep": shared}, seeds={"cpu": 1}), Grid({"cut": shared}, seeds={"cpu": 1})], parts)
    (piece,) = study.pieces()
    old = {"labels": {"arm": "gone"}, "command": "sidestep train sid --blocks 3"}
    row = {"labels": dict(piece.labels), "command": piece.command, "seed": 0}
    assert study.labelled([old, row]) == [
        old,
        row | {"labels": {"arm": "deep"}},
        row | {"labels": {"arm": "cut"}},
    ]


def test_a_mean_is_of_the_runs_of_the_choice_that_stands_and_a_run_that_diverged_is_named() -> None:
    """Trials that were made again choose another rate: runs of both would be taken for one arm's seeds."""
    rates = {"low": "--lr 0.001", "high": "--lr 0.004"}
    study = Study("?", [Grid({"SID": "train sid"}, seeds={"cpu": 2}, candidates=rates)], parts)
    rows: list[Row] = [
        {"labels": dict(piece.labels), "command": piece.command, "val_accuracy": accuracy}
        for piece, accuracy in zip(study.pieces(), (0.8, 0.9), strict=True)
    ]
    pieces = study.pieces(rows=rows)[2:]
    first, lost = ({"labels": dict(piece.labels), "command": piece.command} for piece in pieces)
    lost |= {"failed": "the loss is not finite"}
    was = pieces[0].command.replace("0.004", "0.001")
    old: Row = {"labels": {**pieces[0].labels, "tuned": "low"}, "command": was}
    shown = study.shown([*rows, old, first, lost])
    assert shown.rows == [*rows, first, lost]
    assert shown.answer == f"4 rows. Diverged, and in no mean: SID, high (`{lost['command']}`)."
    assert study.shown([old]) == study.page([])


def test_rows_of_a_cpu_and_of_a_gpu_stand_apart_on_the_page() -> None:
    """Equal arms and seeds: else the GPU's backprop would be paired with the CPU's SID."""
    grid = Grid({"SID": "train sid", "backprop": "train backprop"}, seeds={"cpu": 1, "gpu": 1})

    def gap(rows: Sequence[Row]) -> list[Part]:
        sid, backprop = (pick(rows, arm=arm) for arm in ("SID", "backprop"))
        return [(f"{points(minus(sid, backprop))}.", Section("All"))]

    study = Study("Is it so?", [grid], gap)
    accuracies = [0.90, 0.89, 0.97, 0.95]
    pieces = [*study.pieces("cpu"), *study.pieces("gpu")]
    rows = [
        {"labels": dict(piece.labels), "command": piece.command, "seed": 0, "test_accuracy": accuracy}
        for piece, accuracy in zip(pieces, accuracies, strict=True)
    ]
    both = study.shown(rows)
    assert both.answer == "On a CPU: +1.00. On a GPU: +2.00."
    assert [section.heading for section in both.sections] == ["All, on a CPU", "All, on a GPU"]
    assert both.rows == rows
    assert study.shown(rows[:2]) == study.page(rows[:2])


class Fake:
    """Stands for the command line: notes what it was asked, and answers or fails."""

    def __init__(self, fails: Callable[[int], BaseException | None] = lambda _: None) -> None:
        self.asked: list[list[str]] = []
        self.fails = fails

    def __call__(self, argv: Sequence[str]) -> dict[str, Any]:
        self.asked.append(list(argv))
        if error := self.fails(len(self.asked)):
            raise error
        return {"text": "for people", "seed": 0, "test_accuracy": 0.5, "commit": "of the run"}


def rows_of(folder: Path) -> list[Row]:
    return read_jsonl(folder / "results" / "small.jsonl")


def run(folder: Path, fake: Fake, **more: Any) -> dict[str, object]:
    return runner.run("small", fake, results=folder / "results", runs=folder / "runs", **more)


def test_every_piece_leaves_one_row_with_the_command_that_reruns_it(small: Study, tmp_path: Path) -> None:
    fake = Fake()
    found = run(tmp_path, fake)
    rows = rows_of(tmp_path)
    assert [row["command"] for row in rows] == [p.command for p in small.pieces()]
    assert rows[0]["labels"] == {"arm": "one", "rate": "low"}
    assert (rows[0]["study"], rows[0]["commit"], rows[0]["test_accuracy"]) == ("small", "of the run", 0.5)
    assert "text" not in rows[0]
    assert (found["rows"], found["left"]) == (9, 0)
    assert "9 rows." in (tmp_path / "results" / "small.html").read_text()
    for argv, piece in zip(fake.asked, small.pieces(), strict=True):
        assert argv[: len(piece.words)] == list(piece.words)
    assert fake.asked[0][-2:] == ["--resume", "last"]
    assert "--out" not in fake.asked[4], "a bench keeps no run"
    assert len({argv[argv.index("--out") + 1] for argv in fake.asked if "--out" in argv}) == 8, "one folder a run"


def test_one_trial_serves_the_variants_whose_trials_are_the_same_line() -> None:
    budgets = {"epochs": {"5": "--epochs 5", "10": "--epochs 10"}}
    rates = {"low": "--lr 0.001", "high": "--lr 0.004"}
    study = Study("?", [Grid({"a": "train sid"}, variants=budgets, candidates=rates, trial="--epochs 5")], parts)
    trials = study.pieces()
    assert [piece.labels["trial"] for piece in trials] == ["low", "high"]
    rows = [{"command": p.command, "val_accuracy": a} for p, a in zip(trials, (0.1, 0.2), strict=True)]
    runs = study.pieces(rows=rows)[2:]
    assert [p.labels for p in runs] == [{"arm": "a", "epochs": n, "tuned": "high"} for n in ("5", "10")]
    assert all(" --lr 0.004 --seed 0" in p.command for p in runs)


@pytest.mark.parametrize("stops", [1, 3, 9])
def test_a_study_that_was_stopped_goes_on_and_repeats_or_loses_no_row(stops: int, small: Study, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, Fake(lambda n: KeyboardInterrupt() if n == stops else None))
    assert len(rows_of(tmp_path)) == stops - 1
    again = Fake()
    run(tmp_path, again)
    assert len(again.asked) == 10 - stops
    assert [row["command"] for row in rows_of(tmp_path)] == [p.command for p in small.pieces()]


def test_a_torn_last_row_is_made_anew(small: Study, tmp_path: Path) -> None:
    run(tmp_path, Fake())
    file = tmp_path / "results" / "small.jsonl"
    whole = file.read_bytes()
    file.write_bytes(whole[:-20])
    fake = Fake()
    run(tmp_path, fake)
    assert len(fake.asked) == 1
    assert len(rows_of(tmp_path)) == 9


def test_a_run_that_diverged_is_a_row_that_says_so(small: Study, tmp_path: Path) -> None:
    run(tmp_path, Fake(lambda n: Diverged("got a loss that is infinite") if n == 2 else None))
    assert [row.get("failed") for row in rows_of(tmp_path)[:3]] == [None, "got a loss that is infinite", None]


def test_a_piece_that_fails_keeps_no_other_back_leaves_no_row_and_is_tried_another_time(
    small: Study, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    second = small.pieces()[1].command
    fake = Fake(lambda n: RuntimeError("no memory\nleft") if n == 2 else None)
    found = run(tmp_path, fake)
    assert found["failed"] == [{"command": second, "error": "RuntimeError: no memory left"}]
    assert "sidestep: failed, RuntimeError: no memory left" in capsys.readouterr().err
    assert len(fake.asked) == 9 and second not in [row["command"] for row in rows_of(tmp_path)]
    again = run(tmp_path, fake)
    assert len(fake.asked) == 10 and rows_of(tmp_path)[-1]["command"] == second
    assert (again["left"], again["failed"]) == (0, [])


def test_the_page_may_be_left_for_later(small: Study, tmp_path: Path) -> None:
    found = run(tmp_path, Fake(), rows_only=True)
    assert (found["rows"], found["page"]) == (9, None)
    assert not (tmp_path / "results" / "small.html").exists()


def test_a_second_worker_leaves_what_the_first_is_at_and_takes_up_what_it_drops(
    small: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "WAIT", 0.01)
    held = tmp_path / "runs" / "small" / runner.slug(small.pieces()[0])
    held.mkdir(parents=True)
    worker = ExitStack()
    worker.enter_context(only_writer(held))
    fake = Fake()

    def drop(seconds: float) -> None:
        assert len(fake.asked) == 8, "all but the piece that is held"
        worker.close()

    monkeypatch.setattr(runner.time, "sleep", drop)
    assert run(tmp_path, fake, wait=False)["left"] == 1
    assert run(tmp_path, fake)["left"] == 0
    first = small.pieces()[0].command
    assert [row["command"] for row in rows_of(tmp_path)] == [*(p.command for p in small.pieces()[1:]), first]


def tuning(rows: Sequence[Row] = (), **more: Any) -> list[tuple[dict[str, str], str]]:
    return [(dict(piece.labels), piece.command) for piece in TUNED.pieces(rows=rows, **more)]


TUNED = Study(
    "Which rate?",
    [Grid({"a": "train sid", "b": "train local_ce"}, candidates={"low": "--lr 0.001", "high": "--lr 0.004"})],
    parts,
)


def test_candidates_are_tried_first_on_a_seed_of_their_own_and_without_the_test_set() -> None:
    assert tuning() == [
        ({"arm": arm, "trial": name}, f"sidestep train {method} --lr {lr} --test never --seed 1000 --no-report")
        for arm, method in (("a", "sid"), ("b", "local_ce"))
        for name, lr in (("low", "0.001"), ("high", "0.004"))
    ]


def test_an_arm_is_run_with_the_candidate_that_is_best_on_validation_once_all_were_tried() -> None:
    tried = [
        row | {"command": command}
        for row, (_, command) in zip(
            [{"val_accuracy": 0.7}, {"val_accuracy": 0.9}, {"val_accuracy": 0.8}, {"failed": "diverged"}],
            tuning(),
            strict=True,
        )
    ]
    assert tuning(tried[:1])[4:] == []
    a = ({"arm": "a", "tuned": "high"}, "sidestep train sid --lr 0.004 --seed 0 --no-report")
    b = ({"arm": "b", "tuned": "low"}, "sidestep train local_ce --lr 0.001 --seed 0 --no-report")
    assert tuning(tried[:3])[4:] == [a]
    assert tuning(tried)[4:] == [a, b]
    # A run that is judged by its loss is chosen by it, whatever else it has.
    losses: list[dict[str, Any]] = [
        {"val_loss": 0.5},
        {"val_loss": -0.25, "val_accuracy": None},
        {"val_loss": 1.0, "val_accuracy": 0.9},
    ]
    again = [loss | {"command": command} for loss, (_, command) in zip(losses, tuning(), strict=False)]
    assert tuning([*again, tried[3]])[4:] == [a, b]
    # As strict JSON has a loss that is NaN.
    again[0] |= {"val_loss": None}
    assert tuning([*again, tried[3]])[4:] == [a, b]
    assert len(tuning(smoke=True)) == 12, "trials and arms, as a GPU and as a CPU would run them"


def test_when_the_time_is_up_the_work_stops_and_nothing_fails(small: Study, tmp_path: Path) -> None:
    def slow(argv: Sequence[str]) -> dict[str, Any]:
        time.sleep(0.2)
        return {"text": "", "seed": 0}

    before = signal.getsignal(signal.SIGTERM)
    found = runner.run("small", slow, results=tmp_path / "results", runs=tmp_path / "runs", minutes=0.5 / 60)
    assert len(rows_of(tmp_path)) == 2
    assert found["left"] == 7
    assert signal.getsignal(signal.SIGTERM) == before
    with pytest.raises(SystemExit, match="143"):  # somebody else's SIGTERM is not the clock's
        run(tmp_path, Fake(lambda n: os.kill(os.getpid(), signal.SIGTERM) or time.sleep(1)))


def test_only_the_pieces_with_these_words_are_run(small: Study, tmp_path: Path) -> None:
    fake = Fake()
    found = run(tmp_path, fake, only="--lr 0.004 --seed 1")
    assert [row["command"] for row in rows_of(tmp_path)] == [
        piece.command for piece in small.pieces() if "--lr 0.004 --seed 1 " in piece.command
    ]
    assert (found["rows"], found["left"], len(fake.asked)) == (2, 0, 2)
    assert run(tmp_path, Fake())["rows"] == 9


def test_words_that_no_command_has_are_told_from_all_done(small: Study, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="got --only zzz, expected words of a command of small, such as `sidestep "):
        run(tmp_path, Fake(), only="zzz")
    assert not any(tmp_path.iterdir())


def test_the_page_alone_runs_nothing(small: Study, tmp_path: Path) -> None:
    run(tmp_path, Fake(), seeds=1)
    (tmp_path / "results" / "small.html").unlink()
    fake = Fake()
    assert run(tmp_path, fake, page_only=True)["left"] == 4
    assert not fake.asked
    assert "5 rows." in (tmp_path / "results" / "small.html").read_text()


def test_an_unknown_study_is_named_with_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["study", "reproductoin"]) == 2
    assert "unknown study 'reproductoin'; did you mean 'reproduction'?" in capsys.readouterr().err


KILLED = """
import sys
from sidestep import cli, commands, studies
from sidestep.studies import runner
from sidestep.studies.rows import minus, pick, points
from tests.studies.test_study import SMALL
studies.STUDIES["small"] = ""
runner.study_named = commands.study_named = lambda _: SMALL
sys.exit(cli.main(["study", "small", "--seeds", "1", *sys.argv[1:]]))
"""


def test_a_killed_study_goes_on_and_its_rows_are_those_of_one_never_killed(tmp_path: Path) -> None:
    """kill -9 again and again, at moments that differ, until a try gets through."""

    def words(name: str) -> list[str]:
        return ["--results", str(tmp_path / name), "--runs", str(tmp_path / name / "runs"), "--json"]

    def start(name: str) -> subprocess.Popen[str]:
        return subprocess.Popen([sys.executable, "-c", KILLED, *words(name)], stdout=subprocess.PIPE, text=True)

    out, _ = start("straight").communicate()
    assert json.loads(out.splitlines()[-1])["left"] == 0
    tries, wait = 0, 3.0
    while True:
        tries += 1
        process = start("killed")
        try:
            process.communicate(timeout=wait)
            break
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            wait += 0.7
    assert process.returncode == 0
    assert tries > 1, "it was never killed; shorten the first wait"

    def trained(name: str) -> list[tuple[object, ...]]:
        rows = [row for row in read_jsonl(tmp_path / name / "small.jsonl") if row["command"].startswith("sidestep tr")]
        return [(row["command"], row["test_accuracy"], row["test_nll"], row["curve"]) for row in rows]

    assert trained("killed") == trained("straight")
    assert len(read_jsonl(tmp_path / "killed" / "small.jsonl")) == 5


def test_an_interval_of_paired_differences_by_hand() -> None:
    """Differences 1, 2, 3: mean 2, sd 1, t(0.975, 2) = 4.302653 by the tables, half width 4.302653 / sqrt(3).

    Tolerance: the tables have six digits after the point.
    """
    found = paired({0: 2.0, 1: 4.0, 2: 7.0, 3: 0.0}, {2: 4.0, 1: 2.0, 0: 1.0, 9: 5.0})
    assert found is not None
    assert (found.mean, found.values) == (2.0, (1.0, 2.0, 3.0))
    assert found.low == pytest.approx(2 - 4.302653 / 3**0.5, abs=1e-6)
    assert found.high == pytest.approx(2 + 4.302653 / 3**0.5, abs=1e-6)
    assert found.verdict == "not distinguishable"


def test_above_is_said_only_where_the_interval_excludes_zero() -> None:
    verdicts = [difference(values) for values in ([1.0, 1.1, 0.9], [-1.0, -1.1, -0.9], [5.0], [])]
    assert [found and found.verdict for found in verdicts] == ["above", "below", "one seed, no interval", None]


def test_pieces_have_folders_of_their_own() -> None:
    a, b = (Piece({"arm": "SID, α = 0.5"}, ("train", "sid", "--seed", s)) for s in "01")
    assert runner.slug(a).startswith("sid-0-5-")
    assert runner.slug(a) != runner.slug(b)

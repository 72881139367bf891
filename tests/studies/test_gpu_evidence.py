"""`make gpu-evidence`: its studies, one after the other under one budget, and the smoke of the one made for it."""

from __future__ import annotations

import html
import json
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import sidestep
from sidestep import cli, commands
from sidestep.files import read_jsonl
from sidestep.studies import STUDIES, study_named
from sidestep.studies.gpu_core import ARMS, STUDY
from tests.studies.made import timed, trained, weighed
from tests.studies.pages import columns, written_of_every_part

ROOT = Path(sidestep.__file__).parents[1]
BENCHED = [
    make({"arm": "SID", "run": run, "units": str(depth)}, numbers)
    for run, faster in (("eager", 1.0), ("compiled", 2.0))
    for depth in (64, 8)
    for make, numbers in (
        (timed, {"sid (streaming)": 12.0 / faster, "plain backprop": 10.0, "plain checkpointed/8": 14.0}),
        (weighed, {"sid (streaming)": 100.0, "plain backprop": 10.0 * depth, "plain checkpointed/8": 160.0}),
    )
]
ROWS = [*(trained({"arm": arm}, 0.95 - 0.01 * n) for n, arm in enumerate(ARMS)), *BENCHED]


@pytest.mark.parametrize(
    ("study", "only", "sections"),
    [
        ("gpu-core", "--device cuda", {"ResNet-18 on CIFAR-10": 1, "Cost over depth": 4}),
        ("bll-images", "--device cuda", {"ResNet-18 on CIFAR-10": 3}),
        (
            "engines",
            "--set cuda_graph=true",  # half of them, the others being the same words with less
            {
                "Equal blocks computed as one": 2,
                "One block at a time, over depth": 2,
                "One block at a time, over how many blocks": 2,
            },
        ),
    ],
)
def test_the_smoke_of_what_is_for_a_gpu_leaves_a_page_with_every_number_and_repeats_nothing(
    study: str, only: str, sections: dict[str, int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["study", study, "--smoke", "--only", only, "--json"]
    words += ["--results", str(tmp_path), "--runs", str(tmp_path / "runs")]
    assert cli.main(words) == 0
    pieces = [piece for piece in study_named(study).pieces(smoke=True) if only in piece.command]
    file = tmp_path / f"{study}.jsonl"
    rows, left = read_jsonl(file), file.read_bytes()
    assert [row["command"] for row in rows] == [piece.command for piece in pieces]
    assert not [row for row in rows if "failed" in row]
    found = study_named(study).shown(rows)
    assert {s.heading: len(s.tables) for s in found.sections} == sections
    cells = [cell for s in found.sections for _, table in s.tables for row in table.rows for cell in row]
    assert "not measured" not in cells
    assert found.answer in html.unescape((tmp_path / f"{study}.html").read_text(encoding="utf-8"))

    capsys.readouterr()
    assert cli.main(words) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["left"] == 0
    assert file.read_bytes() == left


def test_the_page_says_accuracies_beside_backprop_and_costs_at_the_greatest_depth() -> None:
    """SID trunk K = 4 is the second arm, a point less.  64 units: 640 MiB of backprop's, 100 of SID's."""
    answer = STUDY.page(ROWS).answer
    assert "ResNet-18 reaches 95.00 % by backprop; 94.00 % by SID, trunk, K = 4;" in answer
    assert "Less backprop, in points (one seed, no interval): SID, trunk, K = 4 −1.00;" in answer
    for run, share in (("eager", "1.20 (1.08–1.32)"), ("compiled", "0.60 (0.54–0.66)")):
        assert (
            f"With 64 units, {run}: SID takes 0.16 of the memory and {share} of the step time of plain backprop;"
        ) in answer
    found = columns(STUDY.page(ROWS), "Cost over depth", "Peak memory of a step, eager")
    assert found["units"] == ["8", "64"]
    assert found["plain backprop, MiB"] == ["80.0", "640"]
    assert found["SID ÷ that"] == ["1.25", "0.16"]


def test_any_part_of_the_rows_makes_a_page(tmp_path: Path) -> None:
    written_of_every_part(STUDY.page, ROWS, tmp_path)


def test_the_first_evidence_is_training_and_all_of_it_is_for_a_gpu() -> None:
    study = study_named("gpu-core")
    assert not study.pieces("cpu")
    pieces = study.pieces("gpu")
    assert [piece.labels["arm"] for piece in pieces[: len(ARMS)]] == list(ARMS)
    assert all(piece.words[-2:] == ("--device", "cuda") for piece in pieces)


@pytest.mark.parametrize(("part", "first"), [("core", "gpu-core"), ("bll", "bll-images"), ("engines", "engines")])
def test_make_gpu_evidence_runs_known_studies_with_the_python_and_minutes_it_is_given(part: str, first: str) -> None:
    words = ["make", "-n", "--no-print-directory", "gpu-evidence"]
    words += [f"PART={part}", "MINUTES=7", "RESULTS=there", "RUNS=elsewhere", "PYTHON=some-python"]
    line = subprocess.run(words, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split()
    flags = line.index("--gpu")
    assert line[:4] == ["some-python", "-m", "sidestep", "study"]
    assert line[flags:] == ["--gpu", "--minutes", "7", "--results", "there", "--runs", "elsewhere", "--no-page"]
    names = line[4:flags]
    assert names[0] == first
    assert set(names) <= set(STUDIES)
    assert all(study_named(name).pieces("gpu") for name in names)


class Clock:
    """Stands for the runner and for time: a study takes four minutes, or what it is given, and is not over then."""

    def __init__(self) -> None:
        self.now = 0.0
        self.asked: list[tuple[str, float | None, bool]] = []

    def run(self, name: str, execute: object, **how: Any) -> dict[str, Any]:
        self.asked.append((name, how["minutes"], how["page_only"]))
        if not how["page_only"]:
            self.now += 60 * min(4.0, how["minutes"] or 4.0)
        left = 0 if how["minutes"] is None else 2
        return {"study": name, "rows": 1, "left": left, "failed": [], "page": None, "text": f"{name}: 1 row"}


def studied(monkeypatch: pytest.MonkeyPatch, words: Sequence[str]) -> Clock:
    clock = Clock()
    monkeypatch.setattr("sidestep.studies.runner.run", clock.run)
    monkeypatch.setattr(commands.time, "monotonic", lambda: clock.now)
    assert cli.main(["study", *words]) == 0
    return clock


def test_several_studies_share_the_minutes_and_those_left_over_get_their_page(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ["gpu-core", "reproduction", "cifar100", "backbones"]
    clock = studied(monkeypatch, [*names, "--minutes", "9", "--json"])
    assert clock.asked == [
        ("gpu-core", 9, False),
        ("reproduction", 5, False),
        ("cifar100", 1, False),
        ("backbones", 0, True),
    ]
    found = json.loads(capsys.readouterr().out)
    assert found["left"] == 8
    assert [study["study"] for study in found["studies"]] == names
    assert studied(monkeypatch, names[:2]).asked == [("gpu-core", None, False), ("reproduction", None, False)]
    assert capsys.readouterr().out == "gpu-core: 1 row\nreproduction: 1 row\n"


def test_an_unknown_name_among_several_stops_all_before_any_work(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["study", "gpu-core", "backbonez"]) == 2
    assert "unknown study 'backbonez'; did you mean 'backbones'?" in capsys.readouterr().err

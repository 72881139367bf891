"""`sidestep compare` and `ss.compare`: one recipe for every method, and numbers that separate runs would give."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

import pytest
import torch

import sidestep as ss
from sidestep import cli
from sidestep.config import TrainConfig, resolve
from sidestep.errors import UsageError
from sidestep.run import to_parts
from sidestep.train import Trainer
from tests.test_fit import TEST, TRAIN, net
from tests.test_resume import carry_on
from tests.test_train import QUICK, contents, trained, weights, words

LINE = ["compare", "sid", "local_ce", "--seeds", "2", "--seed", "5", *words(QUICK)]
OPTION = ["--set", "local_ce.label_smoothing=sid"]


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("compare") / "digits"
    assert cli.main([*LINE, *OPTION, "--out", str(out)]) == 0
    return out


def summary(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "summary.json").read_text())


# ---------------------------------------------------------------------- the command


def test_it_leaves_a_folder_a_run_a_table_and_a_report(compared: Path) -> None:
    runs = {f"{method}-seed{seed}" for method in ("backprop", "sid", "local_ce") for seed in (5, 6)}
    assert {path.name for path in compared.iterdir()} == runs | {"compare.json", "report.html"}
    for name in runs:
        method, seed = name.split("-seed")
        assert (summary(compared / name)["method"], summary(compared / name)["seed"]) == (method, int(seed))
        assert (compared / name / "audit.json").is_file()
        assert not (compared / name / "costs.json").exists()  # measured once a method, for the table
    assert len((compared / "report.html").read_text()) > 10_000


def test_the_rows_are_mean_and_standard_deviation_of_the_runs(compared: Path) -> None:
    found = json.loads((compared / "compare.json").read_text())
    assert [row["method"] for row in found["rows"]] == ["backprop", "sid", "local_ce", "backprop_checkpointed"]
    assert (found["seeds"], found["data"], found["model"], found["epochs"]) == (2, "digits", "mlp", 2)
    for row in found["rows"][:3]:
        runs = [summary(compared / f"{row['method']}-seed{seed}") for seed in (5, 6)]
        for name in ("test_accuracy", "test_nll", "test_ece", "val_accuracy"):
            values = [run[name] for run in runs]
            assert row[f"{name}_mean"] == statistics.fmean(values)
            assert row[f"{name}_std"] == pytest.approx(abs(values[0] - values[1]) / 2**0.5)
        assert row["n"] == 2
        assert row["params"] == runs[0]["params"]
        assert row["peak_activation_mb"] == runs[0]["peak_activation_mb"]
    checkpointed = found["rows"][3]
    assert (checkpointed["n"], "test_accuracy_mean" in checkpointed) == (0, False)
    assert checkpointed["peak_activation_mb"] < found["rows"][0]["peak_activation_mb"]


def test_the_table_is_80_columns_wide_with_mean_and_spread(compared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*LINE, *OPTION, "--out", str(compared), "--resume", "last"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines[:-1])) <= 80
    assert lines[0] == "digits, mlp, 4 blocks, mean ± standard deviation of 2 seeds"
    for row in json.loads((compared / "compare.json").read_text())["rows"][:3]:
        (line,) = [line for line in lines if line.split()[0] == row["method"]]
        assert f"{100 * row['test_accuracy_mean']:.2f} ±{100 * row['test_accuracy_std']:.2f}" in line
    assert lines[5].split()[:3] == ["backprop_checkpointed", "as", "backprop"]
    assert lines[6] == f"report: {compared / 'report.html'}"


def test_a_run_of_a_comparison_is_the_run_that_train_makes(compared: Path, tmp_path: Path) -> None:
    alone = trained("local_ce", tmp_path, seed="6", **{"local_ce.label_smoothing": "sid"})
    beside = summary(compared / "local_ce-seed6")
    assert weights(tmp_path) == weights(compared / "local_ce-seed6")
    assert [alone[k] for k in ("test_accuracy", "test_nll")] == [beside[k] for k in ("test_accuracy", "test_nll")]
    plain = trained("local_ce", tmp_path / "plain", seed="6")
    assert plain["test_nll"] != beside["test_nll"]  # the option reached the run


def test_resumed_after_a_kill_it_repeats_no_finished_run(
    compared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It dies in the fourth of six runs, in mid-epoch."""
    began: list[str] = []
    init, step = Trainer.__init__, Trainer.check_finite

    def counted(trainer: Trainer, assembly: Any, *more: Any, **options: Any) -> None:
        init(trainer, assembly, *more, **options)
        began.append(f"{assembly.config.method}-seed{assembly.config.seed}")

    def dying(trainer: Trainer) -> None:
        if len(began) == 4 and trainer.engine.steps == 20:
            raise MemoryError
        step(trainer)

    monkeypatch.setattr(Trainer, "__init__", counted)
    line = [*LINE, *OPTION, "--out", str(tmp_path)]
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "check_finite", dying)
        assert cli.main(line) == 1
    assert began == ["backprop-seed5", "sid-seed5", "local_ce-seed5", "backprop-seed6"]
    done = {name: contents(tmp_path / name) for name in began[:3]}
    began.clear()
    assert cli.main([*line, "--resume", "last"]) == 0
    assert began == ["backprop-seed6", "sid-seed6", "local_ce-seed6"]
    assert {name: contents(tmp_path / name) for name in done} == done
    for name in ("backprop-seed6", "sid-seed6", "local_ce-seed6"):
        assert weights(tmp_path / name) == weights(compared / name)


def test_a_folder_with_runs_is_refused_unless_it_is_said_what_to_do(
    compared: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(compared)
    assert cli.main([*LINE, "--out", str(compared)]) == 2
    assert "holds runs; give --resume last to continue them, --overwrite, or another --out." in capsys.readouterr().err
    assert cli.main([*LINE, *OPTION, "--out", str(compared), "--resume", "last", "--epochs", "3"]) == 1
    assert "got epochs = 3, expected 2 as in the run that" in capsys.readouterr().err
    assert cli.main([*LINE, "--out", str(compared), "--resume", "last"]) == 1  # without the option of local_ce
    assert "got local_ce.label_smoothing = 0.0, expected 'sid'" in capsys.readouterr().err
    assert contents(compared) == before


@pytest.mark.parametrize("more", [[], ["--overwrite"], ["--resume", "last"]])
def test_the_folder_of_a_run_takes_no_comparison(
    more: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not even to overwrite: the page of one would stand over the other's files."""
    (tmp_path / "config.toml").write_text('method = "sid"\n')
    (tmp_path / "report.html").write_text("the run's")
    before = contents(tmp_path)
    assert cli.main(["compare", "local_ce", "--seeds", "1", *words(QUICK), "--out", str(tmp_path), *more]) == 2
    assert f"{tmp_path} holds a run, expected" in capsys.readouterr().err
    assert contents(tmp_path) == before


@pytest.mark.parametrize("more", [[], ["--overwrite"], ["--resume", "last"]])
def test_the_folder_of_a_comparison_takes_no_run(
    more: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "compare.json").write_text("{}")
    assert cli.main(["train", "sid", *words(QUICK), "--out", str(tmp_path), *more]) == 2
    assert f"{tmp_path} holds a comparison, expected none or a run" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["compare.json"]


# ---------------------------------------------------------------------- backprop's twin


@pytest.mark.parametrize("model", [{"model.depth": "4"}, {"model": "simplecnn_bn", "val_fraction": "0.5"}])
def test_checkpointed_backprop_ends_with_backprops_parameters(model: dict[str, str], tmp_path: Path) -> None:
    """So its accuracy needs no runs of its own.  Dropout and BatchNorm are replayed: the statistics are equal too."""

    def configured(method: str) -> TrainConfig:
        return resolve(method, {"epochs": "1", "batch_size": "64", "out": str(tmp_path / method)} | model)

    plain, checkpointed = (carry_on(configured(m)).assembly for m in ("backprop", "backprop_checkpointed"))
    ours, theirs = to_parts(plain.chain), to_parts(checkpointed.chain)
    assert ours.keys() == theirs.keys()
    assert [k for k in ours if not torch.equal(ours[k], theirs[k])] == []


# ---------------------------------------------------------------------- in Python

SETTINGS: dict[str, Any] = {"epochs": 2, "lr": 0.01, "batch_size": 100, "quiet": True}


def test_in_python_its_numbers_are_those_of_separate_fits() -> None:
    model = net()
    start = {k: v.clone() for k, v in model.state_dict().items()}
    found = ss.compare(model, [ss.SID(), ss.SID(alpha=0.7)], TRAIN, None, TEST, seeds=2, seed=3, **SETTINGS)
    assert [row["method"] for row in found.rows] == ["backprop", "sid", "sid(alpha=0.7)"]
    assert all(torch.equal(start[k], v) for k, v in model.state_dict().items())
    for row, method in zip(found.rows, (ss.Backprop(), ss.SID(), ss.SID(alpha=0.7)), strict=True):
        alone = [ss.fit(net(), method, TRAIN, None, TEST, seed=seed, **SETTINGS).accuracy for seed in (3, 4)]
        assert row["accuracies"] == alone
        assert (row["accuracy"], row["std"], row["n"]) == (statistics.fmean(alone), statistics.stdev(alone), 2)
    shown = str(found).splitlines()
    assert (
        shown[2] == f"{'sid(alpha=0.7)':<22} {100 * found.rows[2]['accuracy']:.2f} % ± {100 * found.rows[2]['std']:.2f}"
    )
    assert f"<td>{100 * found.rows[1]['accuracy']:.2f}</td>" in found._repr_html_()


def test_a_function_makes_a_network_for_every_seed_the_same_for_every_method() -> None:
    starts: list[torch.Tensor] = []

    def make() -> torch.nn.Module:
        last = torch.nn.Linear(64, 10)
        starts.append(last.weight.detach().clone())
        layers = [torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU()) for _ in range(4)]
        return torch.nn.Sequential(*layers, last)

    found = ss.compare(make, [ss.LocalCE()], TRAIN, seeds=2, **SETTINGS | {"epochs": 1})
    assert [row["n"] for row in found.rows] == [2, 2]
    assert torch.equal(starts[0], starts[2]) and torch.equal(starts[1], starts[3])
    assert not torch.equal(starts[0], starts[1])


def test_what_a_method_adds_is_drawn_apart_from_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a head would begin as the network's first layer does."""
    of_networks: list[torch.Tensor] = []
    of_methods: list[torch.Tensor] = []
    build = ss.LocalCE.build

    def noted(*args: Any) -> Any:
        of_methods.append(torch.rand(4))
        return build(*args)

    def make() -> torch.nn.Module:
        of_networks.append(torch.rand(4))
        return net()

    monkeypatch.setattr(ss.LocalCE, "build", noted)
    ss.compare(make, ss.LocalCE(), TRAIN, seeds=1, **SETTINGS | {"epochs": 1})
    assert of_methods and not any(torch.equal(a, b) for a in of_networks for b in of_methods)


def test_a_single_method_is_a_list_of_one() -> None:
    settings = SETTINGS | {"epochs": 1, "seeds": 1}
    alone, listed = (ss.compare(net(), methods, TRAIN, **settings) for methods in (ss.LocalCE(), [ss.LocalCE()]))
    assert alone == listed and [row["method"] for row in alone.rows] == ["backprop", "local_ce"]


def test_it_has_no_folder_in_python() -> None:
    with pytest.raises(UsageError, match="`sidestep compare` keeps runs"):
        ss.compare(net(), [ss.LocalCE()], TRAIN, out="runs/x", **SETTINGS)

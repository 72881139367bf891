"""`ss.fit` and a loop of one's own: any chain-shaped network, any method, in three lines."""

from __future__ import annotations

import copy
import json
import os
import re
import signal
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import datasets
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import sidestep as ss
from sidestep import api, files
from sidestep.core.block import Block, Chain
from sidestep.core.cell import Cell
from sidestep.core.emit import Emit
from sidestep.core.method import Method
from sidestep.core.program import Program, Up
from sidestep.errors import DataError, UsageError
from sidestep.report.read import read
from sidestep.run import to_parts
from tests.conftest import CLASSES, small_net, some_batch
from tests.data.test_sources import Pairs
from tests.test_resume import numbers
from tests.test_train import contents, weights

IMAGES, LABELS = (torch.tensor(a) for a in load_digits(return_X_y=True))
X, Y = IMAGES.float() / 16, LABELS
TRAIN, TEST = (X[:1400], Y[:1400]), (X[1400:], Y[1400:])


def net(seed: int = 0, width: int = 64) -> nn.Sequential:
    torch.manual_seed(seed)
    layers = [nn.Sequential(nn.Linear(64 if i == 0 else width, width), nn.ReLU()) for i in range(4)]
    return nn.Sequential(*layers, nn.Linear(width, 10))


def fitted(model: nn.Module | None = None, method: Method | None = None, **changed: Any) -> ss.Run:
    given: dict[str, Any] = {
        "train_set": TRAIN,
        "test_set": TEST,
        "epochs": 3,
        "lr": 0.01,
        "batch_size": 100,
        "precision": "fp32",
        "quiet": True,
    }
    return ss.fit(model or net(), method or ss.LocalCE(), **given | changed)


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


# ---------------------------------------------------------------------- what it returns


def test_three_lines_train_a_network_of_ones_own() -> None:
    run = fitted(method=ss.SID(alpha=0.5), epochs=10)
    right = (run.predict(TEST[0]).argmax(-1) == TEST[1]).sum()
    assert run.accuracy == int(right) / len(TEST[1]) == run.summary["test_accuracy"]
    assert run.accuracy > 0.85
    audit = run.audit()
    assert audit["isolated"] and audit["agrees"] and audit["method"] == "sid"
    assert len(run.history) == 10 and not run.interrupted


@pytest.mark.parametrize("method", [ss.SID(), ss.Backprop()], ids=["beliefs passed on", "the plain network"])
def test_what_is_predicted_is_the_softmax_of_the_exported_network(method: Method) -> None:
    run = fitted(method=method)
    p = run.predict(TEST[0])
    # float32: a sum of ten rounded terms is off by some units in the last place.
    torch.testing.assert_close(p.sum(-1), torch.ones(len(p)), rtol=0, atol=1e-6)
    with torch.no_grad():
        logits = run.model(TEST[0])
    assert torch.equal(p.argmax(-1), logits.argmax(-1))
    torch.testing.assert_close(p, logits.softmax(-1))  # one batch here and pieces of it there: other sums
    assert not run.model.training


def test_the_network_is_trained_in_place_and_ends_with_what_was_selected() -> None:
    model = net()
    run = fitted(model, ss.Backprop())
    with torch.no_grad():
        assert torch.equal(model(TEST[0]), run.model(TEST[0]))
    assert not same(model, net())


def test_with_averaging_the_network_ends_with_the_averages() -> None:
    model = net()
    run = fitted(model, ss.Backprop(), ema=0.95)
    averages = to_parts(run.assembly.engine.inference_chain)
    assert all(torch.equal(averages[k], v) for k, v in to_parts(run.assembly.chain).items())
    with torch.no_grad():
        assert torch.equal(model(TEST[0]), run.model(TEST[0]))
    assert not same(model, fit_without_averaging())


def fit_without_averaging() -> nn.Module:
    model = net()
    fitted(model, ss.Backprop())
    return model


def test_a_run_shows_itself_as_a_table() -> None:
    run = fitted(epochs=1)
    shown = run._repr_html_()
    assert f"<td>{run.summary['test_accuracy']}</td>" in shown
    assert "<td>local_ce</td>" in shown and "<td>Sequential</td>" in shown
    assert "None" not in shown


def test_without_test_data_the_accuracy_is_that_of_validation_and_without_any_there_is_none() -> None:
    run = fitted(test_set=None)
    assert run.accuracy == run.summary["val_accuracy"] and "test_accuracy" not in run.summary
    with pytest.raises(UsageError, match="give fit one of them"):
        _ = fitted(test_set=None, val_fraction=0.0, epochs=1).accuracy


# ---------------------------------------------------------------------- what it takes


def test_every_form_of_data_trains_the_same_network() -> None:
    """Pair, TensorDataset, a Dataset of items and a datasets.Dataset hold the same samples."""
    x, y = (IMAGES[:300].reshape(-1, 1, 8, 8) * 15).to(torch.uint8), LABELS[:300]
    pictures = [Image.fromarray(image[0].numpy()) for image in x]
    items = [(image, int(label)) for image, label in zip(x.float() / 255, y, strict=True)]
    columns = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    table = datasets.Dataset.from_dict({"image": pictures, "label": y.tolist()}, features=columns)
    forms: list[tuple[object, object]] = [
        ((x, y), (x, y)),
        (TensorDataset(x, y), TensorDataset(x, y)),
        (table, table),
        ((x.float() / 255, y), (x.float() / 255, y)),
        (Pairs(items), Pairs(items)),
    ]
    models: list[nn.Module] = []
    for train, val in forms:
        model = nn.Sequential(nn.Flatten(), *net())
        fitted(model, train_set=train, val_set=val, test_set=None, epochs=1)
        models.append(model)
    # Bytes are normalised by their own statistics, floats are taken as they are: two groups.
    assert same(models[0], models[1]) and same(models[0], models[2])
    assert same(models[3], models[4])
    assert not same(models[0], models[3])


def test_without_a_validation_set_a_tenth_is_held_out_where_samples_are_tensors() -> None:
    run = fitted()
    assert run.summary["train_samples"] == 1260 and str(run.summary["selected"]).startswith("best validation")
    items = [(x, int(y)) for x, y in zip(*TRAIN, strict=True)]
    run = fitted(train_set=Pairs(items))
    assert run.summary["train_samples"] == 1400 and run.summary["selected"] == "last epoch, 3"


def test_the_number_of_classes_may_be_more_than_are_seen() -> None:
    few = TRAIN[1] < 7
    with pytest.raises(UsageError, match=r"answers with shape \(10,\), expected \(7,\)"):
        fitted(train_set=(TRAIN[0][few], TRAIN[1][few]), test_set=None)
    run = fitted(train_set=(TRAIN[0][few], TRAIN[1][few]), test_set=None, num_classes=10, epochs=1)
    assert run.predict(TEST[0]).shape == (397, 10)


@pytest.mark.parametrize("setting", [{"label_noise": 0.2}, {"context": 9}])
def test_what_would_change_a_data_set_read_by_name_is_refused_beside_ones_own(setting: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="label_noise and context change data sets that are read by name"):
        fitted(**setting)


def test_sequences_train_too() -> None:
    torch.manual_seed(0)
    x = torch.randn(300, 6, 8)
    y = (x.mean((1, 2)) > 0).long()

    class Mean(nn.Module):
        def forward(self, h: Tensor) -> Tensor:
            return h.mean(1)

    units = [nn.Sequential(nn.Linear(8, 8), nn.GELU()) for _ in range(3)]
    model = nn.Sequential(*units, Mean(), nn.Linear(8, 2))
    assert fitted(model, ss.SID(), train_set=(x, y), test_set=None, blocks=3, epochs=12, batch_size=30).accuracy > 0.8


class Views(nn.Module):
    """A network as the tutorials have it, which only computes on contiguous images."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 6, 3)
        self.pool, self.fc1, self.fc2 = nn.MaxPool2d(2), nn.Linear(6 * 2 * 2, 16), nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv2(F.relu(self.conv1(x))))
        x = self.pool(x).view(-1, 6 * 2 * 2)
        return self.fc2(F.relu(self.fc1(x)))


@pytest.mark.parametrize("method", [ss.Backprop(), ss.LocalCE()], ids=["backprop", "local_ce"])
def test_a_network_that_computes_on_contiguous_images_only_trains_and_still_answers_its_owner(method: Method) -> None:
    model, images = Views(), X.view(-1, 1, 8, 8)
    start = copy.deepcopy(model)
    run = fitted(model, method, train_set=(images[:1400], Y[:1400]), blocks=3, epochs=1, test_set=None)
    assert not run.assembly.channels_last
    assert not any(torch.equal(p, q) for p, q in zip(start.parameters(), model.parameters(), strict=True))
    with torch.no_grad():
        assert torch.equal(model(images[1400:]).argmax(-1), run.predict(images[1400:]).argmax(-1))


def test_any_other_network_of_images_computes_in_channels_last() -> None:
    x, y = some_batch(size=40)
    run = ss.fit(small_net(), ss.Backprop(), (x, y), (x, y), blocks=3, epochs=1, batch_size=20, quiet=True)
    assert run.assembly.channels_last
    assert run.assembly.batches(0)[0].is_contiguous(memory_format=torch.channels_last)


def test_a_device_may_be_torchs_own() -> None:
    assert fitted(epochs=1, device=torch.device("cpu")).assembly.config.device == "cpu"


def test_inputs_that_ask_for_gradients_train_as_any() -> None:
    models = [net(), net()]
    for model, x in zip(models, (X[:1400], X[:1400].clone().requires_grad_()), strict=True):
        fitted(model, train_set=(x, Y[:1400]), epochs=1)
    assert same(*models)


# ---------------------------------------------------------------------- what it leaves alone


def test_a_frozen_backbone_stays_and_the_rest_trains() -> None:
    model = net()
    backbone = model[:4].requires_grad_(False)
    fitted(model, ss.Backprop(), epochs=1)
    assert same(backbone, net()[:4]) and not same(model, net())
    assert not any(p.requires_grad for p in backbone.parameters())


def test_what_a_fit_has_frozen_the_next_one_trains() -> None:
    model = net()
    fitted(model, ss.Backprop(), epochs=1, freeze=(0,))
    assert same(model[0], net()[0]) and all(p.requires_grad for p in model.parameters())
    fitted(model, ss.Backprop(), epochs=1)
    assert not same(model[0], net()[0])


# ---------------------------------------------------------------------- what it predicts


def test_arrays_and_lists_are_predicted_as_the_tensor_they_hold() -> None:
    run, x = fitted(epochs=1), TEST[0][:5]
    expected = run.predict(x)
    for form in (x.numpy(), x.double(), x.tolist(), [list(row) for row in x]):
        assert torch.equal(run.predict(form), expected)
    assert run.predict(x[:0]).shape == (0, 10)


@pytest.mark.parametrize(
    ("x", "says"),
    [
        (TEST[0][0], r"x of shape (64,) and torch.float32, expected (B, 64) of torch.float32 as in the training set."),
        (TEST[0][:, :9], r"x of shape (397, 9) and torch.float32, expected (B, 64)"),
        (TEST[0].byte(), r"and torch.uint8, expected (B, 64) of torch.float32"),
        (TEST[0].long(), r"and torch.int64, expected (B, 64) of torch.float32"),
        (TEST[0] / 0, "x: sample 0 holds NaN or Inf; expected finite values"),
        (TensorDataset(*TEST), "x is of type TensorDataset ("),
        ("digits", "x is of type str ("),
    ],
)
def test_what_is_unlike_the_training_set_is_not_predicted(x: object, says: str) -> None:
    run = fitted(train_set=(X[:200], Y[:200]), epochs=1, num_classes=10)
    with pytest.raises(ValueError, match=re.escape(says)) as error:
        run.predict(x)
    assert "\n" not in str(error.value)


def test_floats_are_not_predicted_by_a_network_trained_on_bytes() -> None:
    x, model = IMAGES.byte().view(-1, 1, 8, 8), nn.Sequential(nn.Flatten(), *net())
    run = fitted(model, train_set=(x[:200], Y[:200]), test_set=None, num_classes=10, epochs=1)
    assert run.predict(x[:2]).shape == (2, 10)
    with pytest.raises(UsageError, match=r"and torch\.float32, expected \(B, 1, 8, 8\) of torch\.uint8"):
        run.predict(x[:2].float())


# ---------------------------------------------------------------------- methods of one's own


@dataclass(frozen=True)
class Shrinking(Method):
    """Local least squares on one-hot targets, the first `width` features being the read-out."""

    reference: ClassVar[str] = "this test"
    scale: float = 1.0

    def build(self, model: nn.Module, task: ss.Task, plan: ss.CutPlan) -> Chain:
        slices = plan(model, task.sample)
        nets = [*slices.bodies[:-1], nn.Sequential(slices.bodies[-1], slices.readout)]
        return Chain([Block(i, len(nets), net) for i, net in enumerate(nets)], at=slices.at)

    def program(self) -> Program:
        return (Up(self.learn),)

    def inference(self) -> Program:
        return (Up(self.learn),)

    def learn(self, cell: Cell, h: Tensor) -> Emit:
        out = cell.block.net(h)
        logits = out[:, :10]
        loss = None
        if cell.training:
            loss = self.scale * (logits - F.one_hot(cell.y, 10)).square().mean()
        return Emit(send=(out,), loss=loss, logits=logits)


def test_a_method_of_ones_own_trains_is_audited_and_named_by_its_class(tmp_path: Path) -> None:
    run = fitted(method=Shrinking(scale=2.0), epochs=8, out=tmp_path)
    assert run.accuracy > 0.6
    assert (run.summary["method"], run.audit()["isolated"]) == ("Shrinking", True)
    assert 'method = "Shrinking"' in (tmp_path / "config.toml").read_text()
    assert '"Shrinking.scale" = 2.0' in (tmp_path / "config.toml").read_text()
    costs = json.loads((tmp_path / "costs.json").read_text())
    assert [row["method"] for row in costs] == ["Shrinking", "backprop", "backprop_checkpointed"]


def test_a_class_that_only_has_the_name_of_a_method_is_another() -> None:
    @dataclass(frozen=True)
    class SID(Shrinking):
        pass

    run = fitted(method=SID(scale=0.5), epochs=1)
    assert (run.summary["method"], run.assembly.config.method_options) == ("SID", {"scale": 0.5})


# ---------------------------------------------------------------------- its folder


def test_with_out_it_leaves_the_folder_that_train_leaves(tmp_path: Path) -> None:
    run = fitted(method=ss.SID(), out=tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    contract = {"config.toml", "metrics.jsonl", "summary.json", "checkpoints", "model", "report.html"}
    assert names == contract | {"audit.json", "costs.json", "examples.json", "uncertainty.json"}
    assert json.loads((tmp_path / "summary.json").read_text()) == json.loads(files.strict_json(run.summary))
    assert [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == run.history
    with pytest.raises(UsageError, match="holds a run"):
        fitted(method=ss.SID(), out=tmp_path)
    with pytest.raises(DataError, match="trained by fit on a network and data of the caller's own"):
        ss.load_run(tmp_path)
    (tmp_path / "summary.json").unlink()
    again = "call fit again with the same arguments and resume='last'"
    for look in (lambda: ss.load_run(tmp_path), lambda: read(tmp_path)):
        with pytest.raises(DataError, match=again):
            look()


@pytest.mark.parametrize("asked", [{}, {"overwrite": True}, {"resume": "last"}])
def test_what_no_run_of_ours_left_in_a_folder_is_not_replaced(asked: dict[str, Any], tmp_path: Path) -> None:
    step = tmp_path / "checkpoints/step-500"
    step.mkdir(parents=True)
    for path in (step / "weights.pt", tmp_path / "summary.json"):
        path.write_text("somebody's")
    before = contents(tmp_path)
    with pytest.raises(UsageError, match=r"holds checkpoints, summary\.json, which a run would replace, but no config"):
        fitted(epochs=1, out=tmp_path, **asked)
    assert contents(tmp_path) == before


def test_the_end_says_what_of_the_network_is_not_trained(capsys: pytest.CaptureFixture[str]) -> None:
    said = "does not train the network's own 4: run.model and run.predict answer"
    fitted(method=ss.SID(), epochs=1, quiet=False)
    assert f"sidestep: sid {said}" in capsys.readouterr().err
    fitted(method=ss.LocalCE(), epochs=1, quiet=False)
    assert "does not train" not in capsys.readouterr().err


def test_a_run_is_short_where_it_is_printed() -> None:
    run = fitted(epochs=1)
    assert repr(run).startswith("Run(method='local_ce', ") and len(repr(run)) < 300
    assert f"test_accuracy={run.accuracy!r}" in repr(run)


@pytest.mark.parametrize(("scale", "shift"), [(5e4, 2e5), (1.0, 2e5), (5e4, 0.0), (1e-4, 0.0)])
def test_targets_of_a_natural_scale_are_refused(scale: float, shift: float) -> None:
    y = shift + scale * X[:200, 20:21]
    with pytest.raises(UsageError, match=r"got targets with mean .* expected about 0 and 1"):
        fitted(nn.Sequential(net(), nn.Linear(10, 2)), train_set=(X[:200], y), test_set=None, epochs=1)


def test_the_same_call_with_resume_has_a_finished_run_back(tmp_path: Path) -> None:
    model = net()
    first = fitted(model, out=tmp_path)
    before = contents(tmp_path)
    again = net(seed=1)
    second = fitted(again, out=tmp_path, resume="last")
    assert contents(tmp_path) == before
    assert same(again, model)
    assert (second.accuracy, second.history) == (first.accuracy, first.history)
    with pytest.raises(DataError, match=r"got lr = 0\.02, expected 0\.01 as in the run that"):
        fitted(out=tmp_path, resume="last", lr=0.02)
    with pytest.raises(DataError, match="has train_samples = 1260, expected 450"):
        fitted(out=tmp_path, resume="last", train_set=(X[:500], Y[:500]))


def test_a_finished_run_is_not_had_back_for_another_network_or_other_data(tmp_path: Path) -> None:
    fitted(out=tmp_path, epochs=1, report=False)
    wide = net(width=32)
    before = {k: v.clone() for k, v in wide.state_dict().items()}
    with pytest.raises(ValueError, match=r"^the saved state and this network differ at 'blocks\.0/[^\n]*$"):
        fitted(wide, out=tmp_path, epochs=1, report=False, resume="last")
    assert all(torch.equal(before[k], v) for k, v in wide.state_dict().items())
    for x, y in ((X + 1, Y), (X, Y.roll(1))):
        with pytest.raises(DataError, match=r"has train_data = '[0-9a-f]{12}', expected '[0-9a-f]{12}' as in this run"):
            fitted(train_set=(x[:1400], y[:1400]), out=tmp_path, epochs=1, report=False, resume="last")
    fitted(out=tmp_path, epochs=1, report=False, resume="last")


# ---------------------------------------------------------------------- Ctrl-C, and calling it again


class Interrupting:
    """A Dataset whose item `at`, when it is fetched for the `times`-th time, sends this process a signal, Ctrl-C's."""

    def __init__(self, at: int, times: int, number: signal.Signals = signal.SIGINT) -> None:
        self.at, self.left, self.number = at, times, number
        self.items = Pairs([(x, int(y)) for x, y in zip(*TRAIN, strict=True)])

    def wrapped(self) -> Pairs:
        outer = self

        class Watched(Pairs):
            def __getitem__(self, i: int) -> Any:
                if i == outer.at:
                    outer.left -= 1
                    if outer.left == 0:
                        os.kill(os.getpid(), outer.number)
                return self.items[i]

        return Watched(self.items.items)


def test_ctrl_c_keeps_the_network_and_a_second_fit_goes_on(tmp_path: Path) -> None:
    """The item is fetched once to count the classes; its third fetch is in the second epoch."""
    model = net()
    test_before = TEST[0].clone()
    handler = signal.getsignal(signal.SIGINT)  # Python's own, but where the tests were started in a shell's background
    run = fitted(model, train_set=Interrupting(at=5, times=3).wrapped(), val_set=TEST, out=tmp_path)
    assert run.interrupted
    steps = run.assembly.engine.steps
    assert 14 < steps <= 28
    assert "test_accuracy" not in run.summary  # the test set is for the end
    assert run.accuracy == run.summary["val_accuracy"]
    assert run.summary["selected"] == "best validation accuracy, epoch 1 of 3"
    assert not same(model, net()) and torch.equal(test_before, TEST[0])
    assert not (tmp_path / "summary.json").exists()
    assert signal.getsignal(signal.SIGINT) is handler

    items = Pairs([(x, int(y)) for x, y in zip(*TRAIN, strict=True)])
    resumed = fitted(net(seed=1), train_set=items, val_set=TEST, out=tmp_path, resume="last")
    straight = fitted(net(), train_set=items, val_set=TEST, out=tmp_path / "straight")
    assert not resumed.interrupted
    assert resumed.history == straight.history
    assert weights(tmp_path) == weights(tmp_path / "straight")
    assert numbers(tmp_path) == numbers(tmp_path / "straight")


def test_stopped_before_any_epoch_it_says_where() -> None:
    run = fitted(train_set=Interrupting(at=5, times=2).wrapped(), val_set=TEST)
    assert run.interrupted
    assert run.summary["selected"] == f"where it was stopped, step {run.assembly.engine.steps} of 42"
    assert run.history == []


def test_a_sigterm_leaves_python_once_the_run_is_saved(tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as left:
        fitted(train_set=Interrupting(5, 3, signal.SIGTERM).wrapped(), val_set=TEST, out=tmp_path)
    assert left.value.code == 143
    assert list((tmp_path / "checkpoints").glob("step-*"))


def test_ctrl_c_ends_a_comparison(monkeypatch: pytest.MonkeyPatch) -> None:
    fits: list[int] = []
    real = api.fit
    monkeypatch.setattr(api, "fit", lambda *given, **more: (fits.append(1), real(*given, **more))[1])
    with pytest.raises(KeyboardInterrupt):
        ss.compare(net(), [ss.LocalCE()], Interrupting(5, 3).wrapped(), TEST, epochs=3, lr=0.01, seeds=2, quiet=True)
    assert len(fits) == 1


class Noisy(Pairs):
    """A Dataset with a transform of its own, random as torchvision's are."""

    def __getitem__(self, i: int) -> Any:
        x, y = super().__getitem__(i)
        return x + 0.1 * torch.randn(x.shape), y


def test_what_a_datasets_own_transforms_draw_is_the_runs_whatever_was_drawn_before(tmp_path: Path) -> None:
    items = Noisy([(x, int(y)) for x, y in zip(*TRAIN, strict=True)])
    found: list[nn.Module] = []
    for _ in range(2):
        torch.randn(3)
        found.append(net())
        fitted(found[-1], train_set=items, val_set=TEST)
    assert same(*found)
    plain, other = net(), net()
    fitted(plain, train_set=Pairs(items.items), val_set=TEST)
    fitted(other, train_set=items, val_set=TEST, seed=1)
    assert not same(plain, found[0]) and not same(other, found[0])


def test_a_network_can_be_fitted_again_and_by_another_method() -> None:
    model = net()
    fitted(model, ss.Backprop())
    once = {k: v.clone() for k, v in model.state_dict().items()}
    again = fitted(model, ss.LocalCE())
    assert again.accuracy > 0.6
    assert not all(torch.equal(once[k], v) for k, v in model.state_dict().items())


def test_it_works_outside_of_the_main_thread_where_signals_cannot_be_taken() -> None:
    expected, found = net(), net()
    fitted(expected, ss.Backprop(), epochs=1)
    thread = threading.Thread(target=fitted, args=(found, ss.Backprop()), kwargs={"epochs": 1})
    thread.start()
    thread.join()
    assert same(found, expected) and not same(found, net())


# ---------------------------------------------------------------------- a loop of one's own


def loop(steps: int) -> ss.Streaming:
    method = ss.SID(alpha=0.5)
    task = ss.Classification(num_classes=10, sample=TRAIN[0][:2])
    chain = method.build(net(), task, ss.CutPlan(blocks=4))
    engine = ss.Streaming(method, chain, task, ss.UpdateRule(lambda ps: torch.optim.SGD(ps, lr=0.2, momentum=0.9)))
    order = torch.randperm(1400, generator=torch.Generator().manual_seed(0))
    for step in range(steps):
        batch = order[step * 50 % 1400 :][:50]
        engine.step((TRAIN[0][batch], TRAIN[1][batch]))
    return engine


def test_a_loop_of_ones_own_learns_and_continues_from_its_state() -> None:
    torch.manual_seed(0)
    engine = loop(200)
    last = engine.predict(TEST[0])[-1]
    assert last is not None
    assert (last.argmax(-1) == TEST[1]).float().mean() > 0.85
    found = ss.audit(engine, (TRAIN[0][:32], TRAIN[1][:32]))
    assert found["isolated"] and found["agrees"]

    torch.manual_seed(0)
    other = loop(0)
    other.load_state_dict(engine.state_dict())
    for e in (engine, other):
        e.step((TRAIN[0][:50], TRAIN[1][:50]))
    ours, theirs = engine.state_dict(), other.state_dict()
    assert all(torch.equal(ours[k], theirs[k]) for k in ours)


@pytest.mark.parametrize("method", [ss.Backprop(), ss.LocalCE()], ids=["backprop", "local_ce"])
@pytest.mark.parametrize("outputs", [9, 11])
def test_a_network_with_another_number_of_classes_is_not_built(outputs: int, method: Method) -> None:
    task = ss.Classification(num_classes=10, sample=TRAIN[0][:2])
    model = nn.Sequential(*list(net().children())[:4], nn.Linear(64, outputs))
    with pytest.raises(UsageError, match=rf"answers with shape \({outputs},\), expected \(10,\) logits for"):
        method.build(model, task, ss.CutPlan(blocks=4))


def test_a_network_with_batchnorm_and_dropout_takes_part() -> None:
    """The running statistics move with training, and evaluation leaves them alone."""
    model = small_net()
    x, y = some_batch(size=200)
    run = ss.fit(model, ss.SID(), (x, y), (x, y), blocks=3, epochs=2, batch_size=50, quiet=True, num_classes=CLASSES)
    tracked = [m.num_batches_tracked for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    best = int(str(run.summary["selected"]).split()[4])
    assert [int(n) for n in tracked if n is not None] == [4 * best] * 4
    before = {k: v.clone() for k, v in model.state_dict().items()}
    run.predict(x)
    run.audit()
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())

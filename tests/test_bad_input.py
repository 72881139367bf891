"""Every bad input is one line with what was got, what was expected and the next move; nothing is lost by it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import sidestep as ss
from sidestep import cli
from sidestep.data.cache import decoded
from sidestep.data.sources import load
from sidestep.errors import DataError, UsageError
from sidestep.measure.uncertainty import other_data
from tests.conftest import CLASSES, small_net, some_batch
from tests.data.make import parquet_folder, pictures, png, table
from tests.data.test_sources import Pairs
from tests.test_train import contents


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIDESTEP_CACHE", str(tmp_path / "cache"))


def refused(capsys: pytest.CaptureFixture[str], line: list[str], code: int, *says: str) -> None:
    """The command ends with this code and one line of error, after the log if there is one."""
    assert cli.main(line) == code
    out, err = capsys.readouterr()
    *log, error = err.splitlines()
    assert out == ""
    assert error.startswith("sidestep: error: ")
    assert all(row.startswith("sidestep: ") and "error" not in row for row in log)
    for words in says:
        assert words in error


# ---------------------------------------------------------------------- words and values, found before any work


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("train sidd", "unknown method 'sidd'; did you mean 'sid'?"),
        ("train sid --model resnet21", "unknown model 'resnet21'; did you mean 'resnet20'?"),
        ("train sid --data nowhere", "unknown data set 'nowhere'; expected"),
        ("train sid --alhpa 0.5", "unknown flag '--alhpa'; did you mean '--alpha'?"),
        ("train sid --set model.dept=3", "unknown key 'model.dept'; did you mean 'model.depth'?"),
        ("train sid --alpha 0", "got alpha=0.0, expected values in (0, 1]; alpha=1 is plain local cross-entropy."),
        ("train sid --alpha 1.5", "got alpha=1.5, expected values in (0, 1]"),
        ("train sid --alpha nan", "got alpha=nan, expected values in (0, 1]"),
        ("train sid --alpha 0.5,0.5", "got 2 values of alpha='0.5,0.5' for 4 blocks; give one, or one per block."),
        ("train sid --direction paper", "infinite for one-hot targets; give label_smoothing > 0, such as 0.1."),
        ("train sid --blocks 9", "blocks=9, but Chained can be cut into at most 8"),
        ("train sid --blocks 0", "got blocks=0, expected an integer of at least 1"),
        ("train sid --blocks 3 --at layer3,layer3", "at=layer3,layer3 is not in the model's order, which is layer0, "),
        ("train sid --blocks 2 --at layer0", "block 0 (no unit) would have no parameters when cut at layer0"),
        ("train sid --blocks 2 --at layer33", "unknown cut point 'layer33'; did you mean 'layer3'?"),
        ("train sid --at layer3", "at=layer3 makes 2 blocks, but blocks=4; give as many names as blocks less one."),
        ("train sid --accumulate 3", "got batch_size=64 and accumulate=3, expected a batch of equal micro-batches"),
        ("train sid --augment crop,flop", "unknown augmentation 'flop'; did you mean 'flip'?"),
        ("train sid --context 9", "context=9, but digits has no tokens; give it with a text or a generated task."),
        ("train bll --target inputs --label-noise 0.2", "got label_noise=0.2 and target=inputs, which reads no label"),
        ("train sid --cuda-graph --compile", "got compile=true and cuda_graph=true, expected one of them"),
        ("train sid --cuda-graph --ema 0.9", "got cuda_graph=true and ema=0.9, whose count a recorded step would not"),
        ("train sid --cuda-graph --device cpu", "got a CUDA graph on cpu, expected a CUDA device; leave --cuda-graph"),
        ("train sid --device cpuu", "unknown device 'cpuu'; did you mean 'cpu'?"),
        ("train sid --device mps", "unknown device 'mps'; expected one of auto, cpu, cuda, cuda:N."),
        ("train sid --device meta", "unknown device 'meta'; expected one of auto, cpu, cuda, cuda:N."),
        ("train sid --device cpu:3", "unknown device 'cpu:3'; did you mean 'cpu'?"),
        ("train sid --device cuda:01", "unknown device 'cuda:01'; did you mean 'cuda:N'?"),
        ("train sid --device cuda:x", "unknown device 'cuda:x'; did you mean 'cuda:N'?"),
        ("train sid --device cuda:999", "got device 'cuda:999', but this machine has"),
        ("train sid --augment none,flip", "augmentation 'none,flip'; expected none to stand alone; leave it"),
        ("train sid --resume lst", "unknown checkpoint 'lst'; did you mean 'last'?"),
        (
            "train sid --resume runs/digits",
            "unknown checkpoint 'runs/digits'; expected one of RUN/checkpoints/step-N, last.",
        ),
        ("compare sid --set sid.alpha=2", "got alpha=2.0, expected values in (0, 1]"),
        ("compare local_ce --set local_ce.head=conv --seeds 1", "got head='conv' for features of shape (256,)"),
    ],
)
def test_a_word_or_value_that_cannot_be_is_2_and_leaves_nothing(
    line: str, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    refused(capsys, [*line.split(), "--out", str(tmp_path / "run")], 2, says)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("command", ["train sid", "compare sid"])
def test_a_folder_without_a_name_is_not_the_working_directory(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As `--out "$OUT"` asks for where nobody has set it."""
    monkeypatch.chdir(tmp_path)
    refused(capsys, [*command.split(), "--out", ""], 2, "got out='', expected a path or none")
    monkeypatch.setenv("SIDESTEP_OUT", "")
    refused(capsys, command.split(), 2, "SIDESTEP_OUT: got out='', expected a path or none")
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("line", ["methods --record", "report . --out"])
def test_a_folder_where_a_file_is_to_be_written_is_2(
    line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command, flag = line.split()[0], line.split()[-1]
    says = f"argument {flag}: got '{tmp_path}', a folder, expected a file; see sidestep {command} --help"
    refused(capsys, [*line.split(), str(tmp_path)], 2, says)
    assert not any(tmp_path.iterdir())


def test_an_unknown_key_in_a_file_is_2_and_names_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "exp.toml"
    file.write_text("[sid]\nalpa = 0.5\n")
    line = ["train", "sid", "--config", str(file), "--out", str(tmp_path / "run")]
    refused(capsys, line, 2, f"{file}: unknown key 'sid.alpa'; did you mean 'sid.alpha'?")
    assert not (tmp_path / "run").exists()


# ---------------------------------------------------------------------- data that is bad inside


def images(n: int) -> list[bytes]:
    return [png(p) for p in pictures(n, (8, 8))]


def bad_label(root: Path) -> None:
    pq.write_table(table(images(4), [0, 1, -100, 3]), root / "train.parquet")


def truncated(root: Path) -> None:
    whole = (root / "train.parquet").read_bytes()
    (root / "train.parquet").write_bytes(whole[: len(whole) // 2])


def corrupt_image(root: Path) -> None:
    pq.write_table(table([*images(3), images(1)[0][:-30]], [0, 1, 2, 3]), root / "test.parquet")


def no_rows(root: Path) -> None:
    pq.write_table(table([], []), root / "train.parquet")


def one_row(root: Path) -> None:
    pq.write_table(table(images(1), [0]), root / "train.parquet")


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (bad_label, "shapes, train: sample 2 has label -100; expected 0..3; correct or drop it."),
        (truncated, "train.parquet cannot be read"),
        (corrupt_image, "test.parquet, row 3: the image cannot be decoded"),
        (no_rows, "train.parquet has no rows; expected at least 2 samples."),
        (one_row, "shapes, train has 1 sample; expected at least 2; add more."),
        (lambda root: (root / "test.parquet").unlink(), "test.parquet is missing; expected train.parquet and test"),
        (
            lambda root: None,
            "got 36 training samples, expected at least one batch of 128; use a batch size of at most 36",
        ),
    ],
)
def test_bad_data_is_1_and_costs_the_run_in_the_folder_nothing(
    spoil: Callable[[Path], None], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = parquet_folder(tmp_path / "shapes")
    spoil(root)
    out = tmp_path / "run"
    out.mkdir()
    (out / "config.toml").write_text('method = "sid"\n')
    (out / "summary.json").write_text("{}")
    before = contents(out)
    line = ["train", "sid", "--model", "mlp", "--data", str(root), "--out", str(out), "--overwrite"]
    refused(capsys, line, 1, says)
    assert contents(out) == before


def test_the_images_of_the_folder_above_are_good(tmp_path: Path) -> None:
    """Guards the test above: what it spoils can be read."""
    assert decoded(images(2), str).shape == (2, 1, 8, 8)


@pytest.mark.parametrize("place", ["file", "below"])
def test_a_folder_that_cannot_be_written_is_1(place: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "taken"
    file.write_text("mine")
    out = file if place == "file" else file / "run"
    refused(capsys, ["train", "backprop", "--epochs", "1", "--out", str(out)], 1, str(out))
    assert file.read_text() == "mine"


# ---------------------------------------------------------------------- fit, and the network it was given


X, Y = some_batch(size=200)


def with_value(value: float) -> Tensor:
    x = X.clone()
    x[57, 1, 3, 3] = value
    return x


def with_label(label: int) -> Tensor:
    y = Y.clone()
    y[57] = label
    return y


def items(x: Tensor, y: Tensor) -> Pairs:
    return Pairs([(one, int(label)) for one, label in zip(x, y, strict=True)])


SEQUENCES = (torch.zeros(200, 8, 3), Y)
TOKENS = (torch.zeros(200, 8, 3), Y[:, None].expand(200, 8))

FIT: list[tuple[type[ValueError], str, dict[str, Any]]] = [
    (DataError, "sample 57 has label -100; expected 0..4; correct or drop it.", {"train_set": (X, with_label(-100))}),
    (DataError, "sample 57 has label 5; expected 0..4", {"train_set": (X, with_label(5)), "num_classes": CLASSES}),
    (DataError, "sample 57 has label 7; expected 0..4", {"val_set": (X, with_label(7))}),
    (DataError, "sample 57 holds NaN or Inf; expected finite values", {"train_set": (with_value(torch.nan), Y)}),
    (DataError, "sample 57 holds NaN or Inf", {"train_set": TensorDataset(with_value(-torch.inf), Y)}),
    (DataError, "sample 57 holds NaN or Inf", {"test_set": (with_value(torch.inf), Y)}),
    (DataError, "has 0 samples; expected at least 2", {"train_set": (X[:0], Y[:0])}),
    (DataError, "has 1 sample; expected at least 2", {"train_set": Pairs([(X[0], 1)])}),
    (DataError, "got 18 training samples, expected at least one batch", {"train_set": (X[:20], Y[:20])}),
    (DataError, "expected one integer for each of 200 samples", {"train_set": (X, Y[:100])}),
    (UsageError, "the network answers with shape (5,), expected (6,) logits", {"train_set": (X, with_label(5))}),
    (UsageError, "val_set has samples of shape (2, 4, 4), expected (2, 8, 8)", {"val_set": (X[:, :, :4, :4], Y)}),
    (UsageError, "data of type str; expected a Dataset of (x, y), a pair of tensors", {"train_set": "mnist"}),
    (UsageError, "unknown key 'learning_rate'", {"learning_rate": 0.1}),
    (UsageError, "got the class SID as method, expected a method such as ss.SID(", {"method": ss.SID}),
    (UsageError, "got an object of type str as method, expected a method", {"method": "sid"}),
    (UsageError, "got an object of type Sequential as method, expected a method", {"method": small_net()}),
    (UsageError, "test_set has targets of torch.float32, expected torch.int64 as in", {"test_set": (X, Y.float())}),
    (
        UsageError,
        "val_set has targets of torch.int64, expected torch.float32 as",
        {"train_set": (X, Y.float()), "val_set": (X, Y)},
    ),
    (UsageError, "test_set has samples of torch.uint8, expected torch.float32", {"test_set": (X.byte(), Y)}),
    (UsageError, "test_set has targets of shape (8,), expected () as in", {"test_set": TOKENS, "train_set": SEQUENCES}),
    (DataError, "sample 57 has label 7; expected 0..4", {"test_set": items(X, with_label(7))}),
    (DataError, "sample 57 holds NaN or Inf", {"val_set": items(with_value(torch.nan), Y)}),
    (UsageError, "got data='mnist', expected samples as train_set", {"data": "mnist"}),
    (UsageError, "got num_classes=0, expected at least 1", {"num_classes": 0}),
    (UsageError, "got num_classes=5 and targets that are numbers", {"train_set": (X, Y.float()), "num_classes": 5}),
    (UsageError, "all of whose parameters are frozen", {"freeze": (0, 1, 2, 3)}),
    (UsageError, "got select=best without validation samples", {"val_fraction": 0.0, "select": "best"}),
    (UsageError, "blocks=9, but Sequential can be cut into at most", {"blocks": 9}),
    (UsageError, "crop, flip, randaugment and cutout are for uint8 images", {"augment": "crop"}),
]


@pytest.mark.parametrize(("kind", "says", "changed"), FIT)
def test_a_refused_fit_leaves_the_network_as_it_was(
    kind: type[ValueError], says: str, changed: dict[str, Any], tmp_path: Path
) -> None:
    """Parameters, BatchNorm's running statistics, how they lie in memory, what is frozen, and which modules train."""
    model = small_net()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    strides = {k: v.stride() for k, v in model.state_dict().items()}
    given: dict[str, Any] = {"method": ss.SID(), "train_set": (X, Y), "epochs": 1, "out": tmp_path / "run"} | changed
    with pytest.raises(kind) as error:
        ss.fit(model, **given)
    assert says in str(error.value)
    assert "\n" not in str(error.value)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert {k: v.stride() for k, v in model.state_dict().items()} == strides
    assert all(p.requires_grad for p in model.parameters())
    assert all(module.training for module in model.modules())
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("model", "says"),
    [
        (ss.LocalCE(), "got an object of type LocalCE as model, expected a network; the order is model, method, "),
        (nn.Sequential, "got the class Sequential as model, expected a network"),
    ],
)
def test_what_is_no_network_is_refused(model: Any, says: str) -> None:
    with pytest.raises(UsageError) as error:
        ss.fit(model, small_net(), (X, Y))  # pyright: ignore[reportArgumentType]  # the two swapped
    assert says in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_training_where_nothing_can_be_differentiated_is_refused(mode: Callable[[], Any]) -> None:
    with mode(), pytest.raises(UsageError, match=r"got training inside torch\.no_grad\(\) or inference_mode\(\)"):
        ss.fit(small_net(), ss.SID(), (X, Y))


COMPARE: list[tuple[str, dict[str, Any]]] = [
    ("got seeds=0, expected at least 1.", {"seeds": 0}),
    ("got no data to judge the methods on, expected a val_set or a test_set", {"train_set": items(X, Y)}),
    ("got no data to judge the methods on", {"val_fraction": 0.0}),
    ("got targets that are numbers, which have no accuracy to compare", {"train_set": (X, Y.float())}),
    ("got the class SID as one of methods, expected a method such as", {"methods": [ss.LocalCE(), ss.SID]}),
    ("got an object of type int as one of methods", {"methods": 3}),
    ("unknown key 'learning_rate'", {"learning_rate": 0.1}),
]


@pytest.mark.parametrize(("says", "changed"), COMPARE)
def test_what_cannot_be_compared_is_refused_before_a_network_is_made(says: str, changed: dict[str, Any]) -> None:
    given: dict[str, Any] = {"methods": [ss.LocalCE()], "train_set": (X, Y)} | changed
    with pytest.raises(UsageError) as error:
        ss.compare(lambda: pytest.fail("a network was made"), **given)
    assert says in str(error.value) and "\n" not in str(error.value)


def test_a_bad_sample_that_only_shows_when_it_is_fetched_ends_training_before_its_step() -> None:
    items = [(x, int(y)) for x, y in zip(with_value(torch.nan), Y, strict=True)]
    model = small_net()
    with pytest.raises(DataError, match="sample 57 holds NaN or Inf; expected finite values"):
        ss.fit(model, ss.LocalCE(), Pairs(items), blocks=2, epochs=1, batch_size=50, quiet=True)
    assert all(bool(v.isfinite().all()) for v in model.state_dict().values())


def test_a_network_whose_blocks_share_a_parameter_is_refused() -> None:
    shared = nn.Linear(16, 16)
    model = nn.Sequential(nn.Flatten(), nn.Linear(128, 16), shared, nn.Tanh(), shared, nn.Linear(16, CLASSES))
    with pytest.raises(UsageError, match="weight"):
        ss.fit(model, ss.SID(), (X, Y), blocks=3, epochs=1, quiet=True)


def test_texts_of_another_alphabet_are_no_other_data(tmp_path: Path) -> None:
    """Symbols are numbered by text: the same number would be another letter."""
    for name, text in {"own": "abc" * 400, "alike": "bca" * 400, "other": "bcd" * 400}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "input.txt").write_text(text)
    run: Any = SimpleNamespace(
        data=SimpleNamespace(train=load(str(tmp_path / "own"), context=8).train), config=SimpleNamespace(context=8)
    )
    assert other_data(run, str(tmp_path / "alike")).shape == (8,)
    with pytest.raises(UsageError, match="whose symbols are not those of own, expected the same"):
        other_data(run, str(tmp_path / "other"))

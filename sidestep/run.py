"""A run: the folder it leaves behind, and the object that Python gets."""

from __future__ import annotations

import html
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import MISSING, dataclass, field, fields, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sidestep import __version__, checkpoint, files, models
from sidestep.assemble import Assembly, assemble
from sidestep.checkpoint import Manifest, Unsound
from sidestep.config import OPTIONS, TrainConfig, from_toml, literal, to_toml
from sidestep.core.block import Chain
from sidestep.core.task import Regression
from sidestep.data.samples import Samples, as_tensor, check_values
from sidestep.engines.parts import check_fits
from sidestep.errors import DataError, UsageError
from sidestep.folder import CUSTOM, check_finished, read_history, read_settings, read_summary, settings, to_go_on
from sidestep.layout import CHECKPOINTS, COMPARISON, CONFIG, EVIDENCE, METRICS, MODEL, REPORT, SUMMARY
from sidestep.methods import METHODS, method_class


@dataclass
class Run:
    """What training left: a network that answers, what was measured, and the means to look closer."""

    assembly: Assembly
    summary: dict[str, object]
    history: list[dict[str, object]] = field(default_factory=list[dict[str, object]])
    folder: Path | None = None
    interrupted: bool = False

    @property
    def accuracy(self) -> float:
        """A fraction, on the test set where there is one, else on the validation split."""
        for name in ("test_accuracy", "val_accuracy"):
            value = self.summary.get(name)
            if isinstance(value, float):
                return value
        if isinstance(self.assembly.task, Regression):
            raise UsageError("this run's targets are numbers, which have no accuracy; its summary has their loss.")
        raise UsageError("this run was judged on no data, expected a val_set or a test_set; give fit one of them.")

    @property
    def model(self) -> nn.Module:
        """The network inference needs, normalised images -> logits, in eval mode."""
        return self.assembly.method.export(self.assembly.engine.inference_chain).eval()

    def predict(self, x: object) -> Tensor:
        """Class probabilities (B, ..., C) of inputs x (B, ...), raw like those of the training set.

        x: a tensor, an array, or nested numbers.  Raises ValueError for inputs unlike the training set's in shape or in
        kind (bytes, floats, tokens), and for NaN or Inf.
        """
        if isinstance(self.assembly.task, Regression):
            raise UsageError("this run's targets are numbers, not classes; run.model gives means and log-precisions.")
        train = self.assembly.data.train
        (like, _), raw = train.fetch(torch.tensor([0])), as_tensor(x, "x")
        if raw.shape[1:] != train.shape or raw.dtype != like.dtype:
            raise UsageError(
                f"got x of shape {tuple(raw.shape)} and {raw.dtype}, expected (B, {', '.join(map(str, train.shape))}) "
                f"of {like.dtype} as in the training set."
            )
        nothing = torch.zeros(len(raw), dtype=torch.int64)
        check_values(raw, nothing, 1, "x")
        samples = Samples(raw, nothing, ("",))
        answers = [self.assembly.engine.predict(x)[-1] for x, _ in self.assembly.eval_batches(samples)]
        return torch.cat([logits for logits in answers if logits is not None]).float().softmax(-1)

    def audit(self) -> dict[str, object]:
        """Which parameters each block's loss reaches on this very network, and what its update depends on."""
        from sidestep.measure.isolation import audit_assembly

        return audit_assembly(self.assembly)

    def _repr_html_(self) -> str:
        shown = (
            "method",
            "model",
            "data",
            "selected",
            "val_accuracy",
            "test_accuracy",
            "test_nll",
            "test_ece",
            "params",
        )
        rows = "".join(
            f"<tr><th style='text-align:left'>{name}</th><td>{html.escape(str(self.summary[name]))}</td></tr>"
            for name in shown
            if self.summary.get(name) is not None
        )
        return f"<table>{rows}</table>"


def enter(config: TrainConfig) -> tuple[TrainConfig, Path | None]:
    """The configuration to run in its folder, and the checkpoint to go on from; nothing is written yet.

    Raises UsageError if the folder holds a comparison, or a run and neither resume nor overwrite was asked for,
    DataError if it is no folder, if the run to resume was made with other settings, or if there is no checkpoint at the
    path to resume from.
    """
    folder = config.out
    assert folder is not None
    if folder.exists() and not folder.is_dir():
        raise DataError(f"--out {folder} is a file, expected a folder; choose another name.")
    if (folder / COMPARISON).exists():
        raise UsageError(f"{folder} holds a comparison, expected none or a run; choose another --out.")
    start = Path(config.resume) if config.resume not in (None, "last") else None
    if start is not None:
        with naming_another(start):
            checkpoint.read_manifest(start)
    if not (folder / CONFIG).exists():
        return config, start
    saved, now = read_settings(folder), settings(to_toml(config))
    if not config.resume:
        if not config.overwrite:
            raise UsageError(f"{folder} holds a run; give --resume last to continue it, --overwrite, or another --out.")
        return config, None
    if not config.at:
        now["at"] = saved.get("at")  # the cut was resolved when the run began
    for key in dict.fromkeys([*saved, *now]):
        newer = key not in saved and now[key] == default_of(key, config.model)  # than the run is
        if saved.get(key) != now.get(key) and not newer:
            raise DataError(
                f"got {key} = {now.get(key)!r}, expected {saved.get(key)!r} as in the run that {folder} holds; "
                "leave it as it was, or start a new run with another --out."
            )
    config = replace(config, at=tuple(saved.get("at", ())))
    return config, start or next((path for path, _ in starts(folder)), None)


def starts(folder: Path) -> Iterator[tuple[Path, Manifest]]:
    """The checkpoints that the run in a folder can go on from, newest first: complete, as is what was selected then."""
    selected = {path.name for path, _ in checkpoint.complete(folder / CHECKPOINTS, "selected")}
    for path, manifest in checkpoint.complete(folder / CHECKPOINTS):
        if selected_at(manifest) in {None, *selected}:
            yield path, manifest


def selected_at(manifest: Manifest) -> str | None:
    """The name of the checkpoint that holds the parameters which validation had chosen when this one was made."""
    best: Any = manifest.extra["best"]
    return f"selected-{best[1]}" if best else None


@contextmanager
def naming_another(path: Path) -> Generator[None, None, None]:
    """Read a checkpoint of a run; where it is unsound, the error says from which other one the run can go on."""
    try:
        yield
    except Unsound as error:
        folder = path.parent.parent
        for start, manifest in starts(folder):
            if path.name not in (start.name, selected_at(manifest)):
                move = to_go_on(manifest.fingerprint, folder, start)
                raise DataError(f"{error}; to go on from another checkpoint, {move}.") from error
        raise DataError(
            f"{error}; no other checkpoint is there to go on from; check the path, or run the training again."
        ) from error


@contextmanager
def open_folder(config: TrainConfig) -> Generator[Path, None, None]:
    """The run's folder, made if need be, without the run to be overwritten, and closed to other processes meanwhile."""
    folder = config.out
    assert folder is not None
    folder.mkdir(parents=True, exist_ok=True)
    with files.only_writer(folder):
        if config.overwrite and (folder / CONFIG).exists():
            for name in (CONFIG, METRICS, SUMMARY, REPORT, *EVIDENCE):
                (folder / name).unlink(missing_ok=True)
            for name in (CHECKPOINTS, MODEL):
                shutil.rmtree(folder / name, ignore_errors=True)
        yield folder


def rewind(folder: Path, step: int, *, judged: bool = True) -> list[dict[str, Any]]:
    """Remove what a run wrote after a step, all of which is about to be written again; returns its history until then.

    judged: whether the epoch that ended with that step was, if one did.

    Raises DataError for a damaged history, with nothing removed.
    """

    def until_then(row: Mapping[str, Any]) -> bool:
        return row["step"] in range(step + judged)

    kept = [row for row in read_history(folder) if until_then(row)]
    (folder / SUMMARY).unlink(missing_ok=True)
    for path in (folder / CHECKPOINTS).glob("*-*"):
        kind, _, number = path.name.rpartition("-")
        if kind in ("step", "selected") and number.isdecimal() and int(number) > step:
            shutil.rmtree(path)
    files.truncate_jsonl(folder / METRICS, until_then)
    return kept


def load_run(path: Path) -> Run:
    """A finished run, its network with the parameters that were selected.

    Raises DataError if it is not one, or if it was trained by `fit` on what only its caller has.
    """
    path = Path(path)
    saved = read_settings(path)
    if saved.get("data") == CUSTOM:
        raise DataError(
            f"{path} was trained by fit on a network and data of the caller's own, expected a run of `sidestep train`; "
            f"{to_go_on(saved, path)} to have it back."
        )
    check_finished(path)
    config = from_toml(files.read_text(path / CONFIG), str(path / CONFIG))
    if config.device.startswith("cuda") and not torch.cuda.is_available():
        config = replace(config, device="cpu")
    return restored(assemble(config), path)


def restored(assembly: Assembly, folder: Path) -> Run:
    """A finished run from its folder, with the selected parameters put into this network."""
    selected = checkpoint.latest(folder / CHECKPOINTS, prefix="selected")
    if selected is None:
        raise DataError(f"{folder / CHECKPOINTS} holds no selected parameters; run the training again.")
    with naming_another(selected):
        state, manifest = checkpoint.load(selected)
    warn(checkpoint.check(manifest, fingerprint(assembly), environment(assembly)))
    use(assembly, state)
    return Run(assembly, read_summary(folder), read_history(folder), folder)


def use(assembly: Assembly, state: Mapping[str, Tensor]) -> None:
    """Put these parameters where inference finds them, and into the network that was handed in.

    Raises ValueError, before it is touched, for those of another network.
    """
    check_fits(to_parts(assembly.chain), state)
    plain = {k.replace("/", ".", 1): v for k, v in state.items()}
    assembly.engine.inference_chain.load_state_dict(plain)
    assembly.chain.load_state_dict(plain)


def warn(warnings: Iterable[str]) -> None:
    for warning in warnings:
        print(f"sidestep: warning: {warning}", file=sys.stderr)


def to_parts(chain: Chain) -> dict[str, Tensor]:
    """`Chain.state_dict` keyed `<part>/<name>`: a checkpoint holds one file a part."""
    return {f"{part}/{k}": v for part, module in chain.parts() for k, v in module.state_dict().items()}


def default_of(key: str, model: str) -> object:
    """What a key is where nobody sets it, as a written configuration has it; None for a key that must be set."""
    owner, _, name = key.rpartition(".")
    if owner == "model" and model in models.MODELS:
        default = models.options(model)[name]
    elif owner in METHODS:
        default = next(f.default for f in fields(method_class(owner)) if f.name == name)
    else:
        default = OPTIONS[key].default if key in OPTIONS else MISSING
    return None if default is MISSING else tomllib.loads(f"value = {literal(default)}")["value"]


def fingerprint(assembly: Assembly) -> Mapping[str, object]:
    """What must be equal for a checkpoint to fit: everything that shapes the trajectory, nothing that does not."""
    train = assembly.data.train
    data = {"train_data": train.digest} if isinstance(train, Samples) else {}  # a Dataset may draw its samples anew
    return settings(to_toml(assembly.config)) | {"train_samples": len(train)} | data


def environment(assembly: Assembly) -> dict[str, object]:
    """What must be equal for equal bits."""
    return {
        "device": assembly.device.type,
        "torch": torch.__version__,
        "precision": assembly.config.precision,
        "memory_format": "channels_last" if assembly.channels_last else "contiguous",
        "threads": torch.get_num_threads(),
        "engine": assembly.config.engine,
    }


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        models = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
        return f"{models[0].partition(': ')[2]} x{len(models)}"
    except (OSError, IndexError):
        return "cpu"


@cache
def commit() -> str:
    """The commit of the checkout this package runs from, with `+` if it has uncommitted changes, or the version.

    As it was when first asked: a process goes on with the code that it has read.
    """

    def git(*words: str) -> str:
        here = Path(__file__)
        done = subprocess.run(["git", *words], cwd=here.parent, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        git("ls-files", "--error-unmatch", Path(__file__).name)  # else it is the repository around an installed package
        return git("rev-parse", "--short=12", "HEAD") + ("+" if git("status", "--porcelain", "--", ".") else "")
    except (OSError, subprocess.CalledProcessError):
        return f"v{__version__}"

"""A run: the folder it leaves behind, and the object that Python gets."""

from __future__ import annotations

import html
import json
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from sidestep import checkpoint
from sidestep.assemble import Assembly, assemble
from sidestep.config import TrainConfig, from_toml, to_toml
from sidestep.core.block import Chain
from sidestep.data.samples import Samples
from sidestep.errors import DataError, UsageError

CONFIG, METRICS, SUMMARY = "config.toml", "metrics.jsonl", "summary.json"


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
        """On the test set where there is one, else on the validation split."""
        for name in ("test_accuracy", "val_accuracy"):
            value = self.summary.get(name)
            if isinstance(value, float):
                return value
        raise UsageError("this run was not judged on any data; give fit a val_set or a test_set.")

    @property
    def model(self) -> nn.Module:
        """The network inference needs, normalised images -> logits, in eval mode."""
        return self.assembly.method.export(self.assembly.engine.inference_chain).eval()

    def predict(self, x: Tensor) -> Tensor:
        """Class probabilities (B, C) of raw inputs like those of the training set."""
        nothing = Samples(x, torch.zeros(len(x), dtype=torch.int64), ("",))
        answers = [self.assembly.engine.predict(x)[-1] for x, _ in self.assembly.eval_batches(nothing)]
        return torch.cat([logits for logits in answers if logits is not None]).float().softmax(-1)

    def audit(self) -> dict[str, object]:
        """Which parameters each block's loss reaches on this very network, and what its update depends on."""
        from sidestep.measure.isolation import audit

        return audit(self.assembly)

    def _repr_html_(self) -> str:
        shown = (
            "method",
            "model",
            "data",
            "val_accuracy",
            "test_accuracy",
            "test_nll",
            "test_ece",
            "step_ms",
            "params",
        )
        rows = "".join(
            f"<tr><th style='text-align:left'>{name}</th><td>{html.escape(str(self.summary.get(name)))}</td></tr>"
            for name in shown
        )
        return f"<table>{rows}</table>"


def open_folder(config: TrainConfig) -> tuple[Path, Path | None]:
    """The run's folder, made if need be, and the checkpoint to resume from.

    Raises UsageError if the folder holds a run and neither resume nor overwrite was asked for.
    """
    assert config.out is not None
    folder = config.out
    if folder.exists() and not folder.is_dir():
        raise DataError(f"--out {folder} is a file, expected a folder; choose another name.")
    if (folder / CONFIG).exists() and not config.resume and not config.overwrite:
        raise UsageError(f"{folder} holds a run; give --resume last to continue it, --overwrite, or another --out.")
    if config.overwrite and not config.resume:
        clear(folder)
    folder.mkdir(parents=True, exist_ok=True)
    checkpoints = folder / "checkpoints"
    if config.resume in (None, "last"):
        return folder, checkpoint.latest(checkpoints) if config.resume else None
    return folder, Path(config.resume)


def clear(folder: Path) -> None:
    """Remove what a run leaves, and nothing else."""
    import shutil

    for name in (CONFIG, METRICS, SUMMARY, "report.html", "audit.json", "costs.json", "examples.json"):
        (folder / name).unlink(missing_ok=True)
    for name in ("checkpoints", "model"):
        shutil.rmtree(folder / name, ignore_errors=True)


def load_run(path: Path) -> Run:
    """A finished run, its network with the parameters that were selected.  Raises DataError if it is not one."""
    path = Path(path)
    if not (path / SUMMARY).is_file() or not (path / CONFIG).is_file():
        raise DataError(f"{path} holds no finished run (no {SUMMARY}); finish it with `sidestep train --resume last`.")
    config = from_toml((path / CONFIG).read_text())
    summary = json.loads((path / SUMMARY).read_text())
    assembly = assemble(config)
    selected = checkpoint.latest(path / "checkpoints", prefix="selected")
    if selected is None:
        raise DataError(f"{path / 'checkpoints'} holds no selected parameters; run the training again.")
    state, manifest = checkpoint.load(selected)
    checkpoint.check(manifest, fingerprint(assembly), environment(assembly))
    assembly.engine.inference_chain.load_state_dict(from_parts(state))
    history = [json.loads(line) for line in (path / METRICS).read_text().splitlines()]
    return Run(assembly, summary, history, path)


def to_parts(chain: Chain) -> dict[str, Tensor]:
    """`Chain.state_dict` keyed `<part>/<name>`: a checkpoint holds one file a part."""
    return {f"{part}/{k}": v for part, module in chain.parts() for k, v in module.state_dict().items()}


def from_parts(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {k.replace("/", ".", 1): v for k, v in state.items()}


def fingerprint(assembly: Assembly) -> dict[str, object]:
    """What must be equal for a checkpoint to fit: everything that shapes the trajectory, nothing that does not."""
    free = {"out", "resume", "overwrite", "threads", "device", "precision", "save_every", "engine", "recipe"}
    lines = (line.partition(" = ") for line in to_toml(assembly.config).splitlines() if " = " in line)
    return {key: value for key, _, value in lines if key not in free}


def environment(assembly: Assembly) -> dict[str, object]:
    """What must be equal for equal bits."""
    return {
        "device": assembly.device.type,
        "torch": torch.__version__,
        "precision": assembly.config.precision,
        "memory_format": "channels_last" if assembly.channels_last else "contiguous",
        "threads": torch.get_num_threads(),
    }


def commit() -> str:
    """The commit of the checkout this package runs from, with `+` if it has uncommitted changes, or the version."""
    here = Path(__file__).parent

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=here, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "--short=12", "HEAD") + ("+" if git("status", "--porcelain", "--", ".") else "")
    except (OSError, subprocess.CalledProcessError):
        from importlib.metadata import version

        return f"v{version('sidestep')}"

"""A run as the object that Python gets, after training or from its folder."""

from __future__ import annotations

import html
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from sidestep import checkpoint, files
from sidestep.assemble import Assembly, assemble
from sidestep.config import from_toml
from sidestep.core.block import Chain
from sidestep.core.task import Regression
from sidestep.data.samples import Samples, as_tensor, check_values
from sidestep.engines.parts import check_fits
from sidestep.errors import DataError, UsageError
from sidestep.folder import CUSTOM, check_finished, read_history, read_settings, read_summary, to_go_on
from sidestep.layout import CHECKPOINTS, CONFIG
from sidestep.resuming import environment, fingerprint, naming_another, warn

SHOWN = (
    "method",
    "model",
    "data",
    "selected",
    "val_loss",
    "val_accuracy",
    "test_loss",
    "test_accuracy",
    "test_nll",
    "test_ece",
    "params",
)
"""What of the summary a run shows of itself."""


@dataclass(repr=False)
class Run:
    """What training left: a network that answers, what was measured, and the means to look closer.

    assembly: what the run is made of, the selected parameters in place.  summary: what `summary.json` says; of an
    interrupted run neither test results nor costs.  history: what was measured after every epoch, a row each.
    folder: where the run is kept, None for nowhere.  interrupted: whether Ctrl-C ended training before its last step.
    """

    assembly: Assembly
    summary: dict[str, object]
    history: list[dict[str, object]] = field(default_factory=list[dict[str, object]])
    folder: Path | None = None
    interrupted: bool = False

    @property
    def accuracy(self) -> float:
        """A fraction, on the test set where there is one, else on the validation split.

        Raises UsageError where targets are numbers, which have none, and for a run that was judged on no data.
        """
        for name in ("test_accuracy", "val_accuracy"):
            value = self.summary.get(name)
            if isinstance(value, float):
                return value
        if isinstance(self.assembly.task, Regression):
            raise UsageError("this run's targets are numbers, which have no accuracy; its summary has their loss.")
        raise UsageError("this run was judged on no data, expected a val_set or a test_set; give fit one of them.")

    @property
    def model(self) -> nn.Module:
        """The network inference needs, normalised inputs -> logits, or means and log-precisions, in eval mode."""
        return self.assembly.method.export(self.assembly.engine.inference_chain).eval()

    def predict(self, x: object) -> Tensor:
        """Class probabilities (B, ..., C) of inputs x (B, ...), raw like those of the training set.

        x: a tensor, an array, or nested numbers.  Raises UsageError where targets are numbers, ValueError for inputs
        unlike the training set's in shape or in kind (bytes, floats, tokens), and for NaN or Inf.
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

    def __repr__(self) -> str:
        return f"Run({', '.join(f'{name}={value!r}' for name, value in self._shown().items())})"

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><th style='text-align:left'>{name}</th><td>{html.escape(str(value))}</td></tr>"
            for name, value in self._shown().items()
        )
        return f"<table>{rows}</table>"

    def _shown(self) -> dict[str, object]:
        return {name: value for name in SHOWN if (value := self.summary.get(name)) is not None}


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


def to_parts(chain: Chain) -> dict[str, Tensor]:
    """`Chain.state_dict` keyed `<part>/<name>`: a checkpoint holds one file a part."""
    return {f"{part}/{k}": v for part, module in chain.parts() for k, v in module.state_dict().items()}

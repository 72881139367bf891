"""What BLL can be told, and what of it does not go together."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal, Self

from sidestep.core.cut import Slices
from sidestep.core.method import Method
from sidestep.core.task import Regression, Task
from sidestep.families import family_class
from sidestep.families.family import Family
from sidestep.nn.heads import HIDDEN, HeadKind, check_hidden
from sidestep.nn.mixing import Mixing, mixing
from sidestep.nn.per_block import check_smoothing
from sidestep.nn.twins import TwinKind

Centre = Literal["classes", "prediction"]
Likelihood = Literal["sample", "closed", "plug-in"]
ReadOutKind = Literal["auto", "linear", "lifted"]


@dataclass(frozen=True)
class Fields(Method):
    """The hyperparameters of BLL; the words in their comments are those of `methods/bll.py`."""

    family: Literal["gaussian", "bernoulli", "categorical", "laplace"] = "gaussian"  # of the latents
    states: int = 4  # of a categorical latent
    least_precision: float | None = None  # of Laplace latents (1), or of Gaussian ones (100) whose mean square is 1
    m: Mixing = 1.0  # of the twin's message in rho: a number, linear:1:0, cosine:1:0, or SHARE:M,SHARE:M,...
    centre: Centre = "prediction"  # what a label's message is less: its mean over classes, or under p_k(y | alpha_k)
    m_warmup: float = 0.0  # share of training in which m climbs from 0
    kl_weight: float = 1.0  # w, of the divergence
    likelihood: Likelihood = "sample"  # E_rho[log p_k]: at a sample of rho, in closed form, or (plug-in) at its mean
    detach: Literal["none", "kl", "both"] = "none"  # rho is a constant: nowhere, in the KL, in both terms
    bootstrap: bool = False  # in training the next block gets rho instead of alpha
    twin: TwinKind = "mlp"  # the network back from the targets: a map a block, a chain, or the blocks mirrored
    twin_width: int = 128  # W, of twin mlp
    read_out: ReadOutKind = "auto"  # lifted: a learned map of z meets the twin's embeddings; auto: if a head has one
    head: HeadKind = "auto"  # lifted: that map is a local head of this kind but for its last layer
    head_width: int = 128  # lifted, or a decoder of numbers: channels or hidden units
    head_depth: int = 1  # the same: hidden layers
    predict: Literal["twin", "classifier"] = "twin"  # what answers, and is exported
    draws: int = 0  # samples of alpha that an answer is the mean of; 0: it is that of alpha's mean
    label_smoothing: float = 0.0  # share of the uniform distribution in the targets

    def __post_init__(self) -> None:
        self.check_choices()
        mixing(self.m)
        self.check_read(
            {
                "states": ("family", ("categorical",)),
                "least_precision": ("family", ("gaussian", "laplace")),
                "twin_width": ("twin", ("mlp",)),
                "centre": ("family", ("gaussian", "bernoulli", "categorical")),
            }
        )
        self.law()
        check_hidden(self.head_width, self.head_depth)
        if self.twin_width < 1:
            raise ValueError(f"got twin_width={self.twin_width}, expected at least 1.")
        if self.draws < 0:
            raise ValueError(f"got draws={self.draws}, expected 0 for the mean, or a number of samples.")
        if self.draws and self.predict == "classifier":
            raise ValueError("got draws with predict='classifier', which reads the mean; use predict='twin'.")
        if not 0 <= self.m_warmup < 1:
            raise ValueError(f"got m_warmup={self.m_warmup}, expected a share of training in [0, 1).")
        if not any(mixing(self.m).values):
            # rho is alpha, and the divergence 0.
            self.check_left_out(("m_warmup", "kl_weight", "detach", "bootstrap"), "m=0")
        check_smoothing(self.label_smoothing)
        if not 0 <= self.kl_weight < math.inf:
            raise ValueError(f"got kl_weight={self.kl_weight}, expected a finite number of at least 0.")
        if self.likelihood == "closed" and self.read_out == "lifted":
            raise ValueError(
                "got likelihood='closed' with read_out='lifted'; a closed form is known of a read-out linear in T(z) "
                "only; use read_out='linear', or likelihood='sample'."
            )
        if self.detach == "both" and self.read_out == "lifted":
            raise ValueError(
                "got detach='both' with read_out='lifted', where nothing would teach the messages; use "
                "read_out='linear', or detach='kl'."
            )

    def lift_norms(self, slices: Slices) -> list[bool]:
        """Whether a lifted read-out of each block has to normalise: where no map to natural parameters does so."""
        return [norm and self.law().mean_is_output for norm in slices.may_be_sums]

    def fitted(self, task: Task, slices: Slices) -> Self:
        """With the read-out that these blocks get; auto: lifted where a local head is more than a linear layer.

        Raises ValueError for fields that these targets, or that read-out, do not read.
        """
        more = any(len(shape) == 3 for shape in slices.features) or any(self.lift_norms(slices))
        lifted = more if self.read_out == "auto" else self.read_out == "lifted"
        if self.draws and self.likelihood == "plug-in" and (lifted or isinstance(task, Regression)):
            raise ValueError(
                "got draws and likelihood='plug-in' with a read-out that is a network, whose running statistics are "
                "then of no sample; use likelihood='sample'."
            )
        if isinstance(task, Regression):
            for name, value in (("likelihood", "closed"), ("detach", "both")):
                if getattr(self, name) == value:
                    raise ValueError(f"got {name}={value!r} for targets that are numbers; it is for classes only.")
            self.check_left_out(("read_out", "label_smoothing", "centre"), "targets that are numbers")
            self.check_read({"head_width": HIDDEN, "head_depth": HIDDEN})
            return self
        where = ("read_out", ("lifted",))
        chosen = replace(self, read_out="lifted" if lifted else "linear")
        chosen.check_read({"head": where, "head_width": where, "head_depth": where})
        chosen.check_read({"head_width": HIDDEN, "head_depth": HIDDEN})
        return chosen

    def law(self) -> Family:
        least = {} if self.least_precision is None else {"least_precision": self.least_precision}
        fields = {"categorical": {"states": self.states}, "gaussian": least, "laplace": least}
        return family_class(self.family)(**fields.get(self.family, {}))

"""Strong training recipes, one for every (data, model): what a method is compared under unless the user says otherwise.

Nets with BatchNorm get Nesterov SGD, weight decay and a cosine (He et al., arXiv:1512.03385; Goyal et al.,
arXiv:1706.02677, for the warm-up); nets without, and transformers, get AdamW and one cycle (Loshchilov & Hutter,
arXiv:1711.05101; Smith & Topin, arXiv:1708.07120).  To change a number, change its row; to add one, add a row.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import PurePath
from typing import Literal

from sidestep.errors import unknown
from sidestep.schedules import Schedule

Optimizer = Literal["sgd", "adam", "adamw"]
Select = Literal["best", "last"]


@dataclass(frozen=True)
class Recipe:
    """The training fields a recipe fixes; what each means stands in `sidestep.config.TrainConfig`."""

    name: str
    note: str  # where the numbers come from
    optimizer: Optimizer
    lr: float
    weight_decay: float
    schedule: Schedule
    warmup: float
    batch_size: int
    epochs: int
    augment: str = "none"
    val_fraction: float = 0.1
    select: Select = "best"
    clip: float | None = None
    ema: float | None = None
    per_method: Mapping[str, Mapping[str, object]] = field(default_factory=dict[str, Mapping[str, object]])
    """What differs for one method: its own fields, or a training field such as its own `lr`."""

    def keys_for(self, method: str) -> dict[str, object]:
        """The recipe as configuration keys: training fields as they are, the method's own as `<method>.<field>`."""
        training = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("name", "note", "per_method")}
        own = self.per_method.get(method, {})
        return training | {key if key in training else f"{method}.{key}": value for key, value in own.items()}


CONV = Recipe(
    name="conv",
    note="the usual recipe of ResNets on small images (arXiv:1512.03385), with warm-up and a cosine",
    optimizer="sgd",
    lr=0.1,
    weight_decay=5e-4,
    schedule="cosine",
    warmup=0.05,
    batch_size=128,
    epochs=10,
)
MLP = Recipe(
    name="mlp",
    note="AdamW and one cycle; for user networks too",
    optimizer="adamw",
    lr=1e-3,
    weight_decay=0.01,
    schedule="onecycle",
    warmup=0.3,
    batch_size=128,
    epochs=10,
)
SIMPLECNN = replace(
    MLP,
    name="simplecnn",
    note="four times the authors' learning rate and half their batch, under one cycle",
    lr=4e-3,
    batch_size=64,
    per_method={"sid": {"form": "shared"}},
)
CASCADE = replace(MLP, name="cascade", note="as simplecnn, at the authors' learning rate", batch_size=64)
VIT = replace(MLP, name="vit", note="the usual recipe of small transformers (arXiv:2012.12877)", weight_decay=0.05)
GPT = replace(
    MLP,
    name="gpt",
    note="that of small GPTs, as in nanoGPT: clipped, with a cosine",
    weight_decay=0.1,
    schedule="cosine",
    warmup=0.05,
    batch_size=64,
    clip=1.0,
)
AUTOENCODER = replace(
    MLP,
    name="autoencoder",
    note="as mlp, at a higher rate and clipped: a likelihood's gradient grows with the precision",
    lr=1e-2,
    clip=1.0,
)
AUTHORS = replace(
    MLP,
    name="sid-authors",
    note="SID's released code (arXiv:2510.03273): no schedule, the whole train split, the last epoch reported",
    optimizer="adam",
    weight_decay=0.0,
    schedule="constant",
    warmup=0.0,
    epochs=20,
    val_fraction=0.0,
    select="last",
    per_method={"sid": {"alpha": 0.5, "form": "shared"}},
)

# A row named <family>-<data> is for that data; a family's own row is for all the rest.
RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        CONV,
        replace(CONV, name="conv-digits", batch_size=64, epochs=30),
        replace(CONV, name="conv-fashion-mnist", augment="flip"),
        replace(CONV, name="conv-cifar", augment="crop,flip"),
        MLP,
        replace(MLP, name="mlp-digits", lr=3e-3, batch_size=64, epochs=30),
        SIMPLECNN,
        replace(SIMPLECNN, name="simplecnn-digits", epochs=30),
        replace(SIMPLECNN, name="simplecnn-fashion-mnist", augment="flip"),
        replace(SIMPLECNN, name="simplecnn-cifar", augment="crop,flip"),
        CASCADE,
        replace(CASCADE, name="cascade-digits", epochs=30),
        replace(CASCADE, name="cascade-fashion-mnist", augment="flip"),
        replace(CASCADE, name="cascade-cifar", augment="crop,flip"),
        VIT,
        replace(VIT, name="vit-digits", batch_size=64, epochs=30),
        replace(VIT, name="vit-fashion-mnist", augment="flip"),
        replace(VIT, name="vit-cifar", augment="crop,flip"),
        GPT,
        AUTOENCODER,
        replace(AUTOENCODER, name="autoencoder-digits", batch_size=64, epochs=30),
        AUTHORS,
    )
}

RECIPE_OF: dict[str, str] = {
    "mlp": "mlp",
    "resmlp": "mlp",
    "simplecnn": "simplecnn",
    "simplecnn_bn": "conv",
    "belief_cascade": "cascade",
    "vgg11_bn": "conv",
    "resnet20": "conv",
    "resnet18": "conv",
    "resnet34": "conv",
    "resnet50": "conv",
    "vit_tiny": "vit",
    "gpt": "gpt",
    "encoder": "gpt",
    "autoencoder": "autoencoder",
}
"""Which rows are for which model."""


def kind_of(data: str) -> str:
    """The data set's name as rows have it, whatever copy of it this is."""
    name = PurePath(data).name
    return next((kind for kind in ("cifar", "pointers") if name.startswith(kind)), name)


def model_for(data: str) -> str:
    """The model that a data set is tried with first."""
    first = {"digits": "mlp", "tinyshakespeare": "gpt", "reversal": "encoder", "pointers": "encoder"}
    return first.get(kind_of(data), "simplecnn")


def recipe_for(data: str, model: str) -> Recipe:
    """The recipe of a model on a data set.  A model that is not listed, a user's own, gets `mlp`'s."""
    family = RECIPE_OF.get(model, "mlp")
    return RECIPES.get(f"{family}-{kind_of(data)}", RECIPES[family])


def recipe_named(name: str) -> Recipe:
    """The recipe of that name.  Raises UsageError for a name that is not in RECIPES."""
    if name not in RECIPES:
        raise unknown("recipe", name, ["auto", *RECIPES])
    return RECIPES[name]

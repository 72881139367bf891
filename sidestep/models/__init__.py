"""Plain networks that know no method: `build("resnet18", (3, 32, 32), 10)`; importing this loads no torch."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from sidestep.errors import UsageError
from sidestep.named import named

if TYPE_CHECKING:
    from sidestep.models.chained import Chained

# A factory is `f(input_shape, num_classes, **its own options)`; the first line of its docstring names its source.  It
# takes images, or tokens where it stands in SEQUENCE; it answers with logits, or where it stands in RECONSTRUCTING with
# maps of the images' size.
MODELS: dict[str, str] = {
    "mlp": "mlp:mlp",
    "resmlp": "mlp:resmlp",
    "simplecnn": "simplecnn:simplecnn",
    "simplecnn_bn": "simplecnn:simplecnn_bn",
    "belief_cascade": "simplecnn:belief_cascade",
    "vgg11_bn": "vgg:vgg11_bn",
    "resnet20": "resnet:resnet20",
    "resnet18": "resnet:resnet18",
    "resnet34": "resnet:resnet34",
    "resnet50": "resnet:resnet50",
    "vit_tiny": "vit:vit_tiny",
    "gpt": "gpt:gpt",
    "encoder": "gpt:encoder",
    "autoencoder": "autoencoder:autoencoder",
}
SEQUENCE = ("gpt", "encoder")
RECONSTRUCTING = ("autoencoder",)


def factory(name: str) -> Callable[..., Chained]:
    """The function that makes model `name`; its docstring gives the source.  An unknown name is a `UsageError`."""
    return named("model", name, MODELS, __name__)


def options(name: str) -> dict[str, Any]:
    """The options of model `name` and their defaults; an option has the type of its default."""
    own = list(inspect.signature(factory(name)).parameters.values())[2:]
    return {option.name: option.default for option in own}


def build(name: str, input_shape: tuple[int, ...], num_classes: int, **given: Any) -> Chained:
    """A new model for images of `input_shape` (channels, height, width) that returns logits (B, num_classes).

    Those of SEQUENCE are for (T,) tokens, which are the classes, and return logits (B, T, num_classes); those of
    RECONSTRUCTING return maps (B, num_classes, height, width): means, and then log-precisions.
    Its parameters are drawn from torch's global generator.  A word, type or value that the model does not
    know is a `UsageError`.
    """
    own = options(name)
    for key, value in given.items():
        if key not in own:
            raise UsageError(f"unknown option {key!r} of model {name!r}; it has: {', '.join(own) or 'none'}.")
        expected = type(own[key])
        if not (type(value) is expected or (expected is float and type(value) is int)):
            raise UsageError(f"{name}.{key}={value!r}; expected a value of type {expected.__name__}.")
    length, words = (1, "(tokens,)") if name in SEQUENCE else (3, "(channels, height, width)")
    if len(input_shape) != length or min(input_shape) < 1:
        advice = "" if name in SEQUENCE else f"; tokens are for {' and '.join(SEQUENCE)}"
        raise UsageError(f"input shape {tuple(input_shape)}; expected {words} for {name}, each at least 1{advice}.")
    if num_classes < 1:
        raise UsageError(f"num_classes={num_classes}; expected at least 1.")
    return factory(name)(tuple(input_shape), num_classes, **given)

"""One run's configuration: what can be set, where it comes from, and its form on disk.

Every setting has one flat key: a field of `TrainConfig`, `model.<option>`, or `<method>.<field>`.  Recipe, TOML file,
environment, flags and `--set` all speak these keys, and one validator reads them all.
"""

from __future__ import annotations

import json
import time
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from functools import cache
from math import inf
from pathlib import Path, PurePath
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

from sidestep import models
from sidestep.errors import DataError, UsageError, unknown
from sidestep.files import read_text
from sidestep.layout import CHECKPOINTS, CONFIG
from sidestep.methods import METHODS, method_class, method_fields, method_name
from sidestep.recipes import Optimizer, Select, model_for, recipe_for, recipe_named
from sidestep.schedules import Schedule

if TYPE_CHECKING:
    from sidestep.core.method import Method

NO_KEYS = ("SIDESTEP_DATA", "SIDESTEP_CACHE", "SIDESTEP_COMMIT")
"""Environment variables that say where things are or come from; all other `SIDESTEP_<KEY>` set keys, `__` for a dot."""
PLACE = ("out", "resume", "overwrite")
"""Keys that say where a run is kept and how it was begun, not what it is."""


class Range(NamedTuple):
    """The values a field admits, in words and as a test."""

    words: str
    holds: Callable[[Any], bool]


POSITIVE = Range("a number above 0", lambda v: 0 < v < inf)
NOT_NEGATIVE = Range("a number of at least 0", lambda v: 0 <= v < inf)
COUNT = Range("an integer of at least 1", lambda v: v >= 1)
FRACTION = Range("a number in [0, 1)", lambda v: 0 <= v < 1)
BLOCKS = Range("block numbers from 0, by commas", lambda v: all(n >= 0 for n in v))
RATE = Range("a number in [0, 1]", lambda v: 0 <= v <= 1)
DECAY = Range("a number between 0 and 1", lambda v: 0 < v < 1)
SEED = Range("an integer from 0 to 2^63 - 1", lambda v: 0 <= v < 2**63)


def about(group: str, text: str, admits: Range | None = None) -> dict[str, Any]:
    """What help and checks need to know of a field."""
    return {"group": group, "help": text, "admits": admits}


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Everything that decides a run.  `resolve` makes one from all its sources.  Raises UsageError out of range."""

    # Fields without a default get theirs from the recipe, but for the model, which follows the data.
    method: str = field(metadata=about("", "the learning rule"))
    data: str = field(default="digits", metadata=about("data", "name of a data set, or path of its folder"))
    augment: str = field(metadata=about("data", "none, or some of crop,flip,cutout:8,randaugment:2,mixup:0.2"))
    label_noise: float = field(default=0.0, metadata=about("data", "share of training labels drawn anew", RATE))
    val_fraction: float = field(metadata=about("data", "share of training samples held out to select on", FRACTION))
    target: Literal["labels", "inputs"] = field(
        default="labels", metadata=about("data", "what is learnt; an autoencoder's is inputs")
    )
    context: int | None = field(
        default=None, metadata=about("data", "tokens a sample, of a text or generated task; none is its own", COUNT)
    )
    model: str = field(metadata=about("model", "name of a network (default: one that fits the data)"))
    blocks: int = field(default=4, metadata=about("model", "how many blocks it is cut into", COUNT))
    at: tuple[str, ...] = field(
        default=(), metadata=about("model", "units that open the blocks after the first, by commas")
    )
    balance: Literal["flops", "memory", "params", "time"] = field(
        default="flops", metadata=about("model", "what the cut makes equal")
    )
    recipe: str = field(default="auto", metadata=about("training", "name of a recipe; auto follows data and model"))
    epochs: int = field(metadata=about("training", "passes over the training samples", COUNT))
    batch_size: int = field(metadata=about("training", "samples a step", COUNT))
    accumulate: int = field(default=1, metadata=about("training", "micro-batches a step is computed in", COUNT))
    optimizer: Optimizer = field(metadata=about("training", "how gradients become steps"))
    lr: float = field(metadata=about("training", "peak learning rate", POSITIVE))
    momentum: float = field(default=0.9, metadata=about("training", "of sgd", FRACTION))
    nesterov: bool = field(default=True, metadata=about("training", "Nesterov's momentum in sgd"))
    weight_decay: float = field(metadata=about("training", "on weights, not on biases and norms", NOT_NEGATIVE))
    schedule: Schedule = field(metadata=about("training", "how the learning rate moves"))
    warmup: float = field(metadata=about("training", "share of the steps in which it climbs to its peak", FRACTION))
    clip: float | None = field(
        metadata=about("training", "largest norm of a gradient, a block's or, where they cross, all", POSITIVE)
    )
    ema: float | None = field(metadata=about("training", "decay of averaged parameters, or none", DECAY))
    freeze: tuple[int, ...] = field(
        default=(), metadata=about("training", "blocks, from 0, that are not trained, by commas", BLOCKS)
    )
    select: Select = field(metadata=about("training", "the epoch that is reported; best is on validation"))
    test: Literal["end", "epochs", "never"] = field(
        default="end", metadata=about("training", "when the test set is read; nothing is ever chosen by it")
    )
    seed: int = field(default=0, metadata=about("run", "of split, order, initial parameters, all noise", SEED))
    device: str = field(default="auto", metadata=about("run", "auto, cpu, cuda or cuda:N"))
    precision: Literal["auto", "fp32", "bf16"] = field(default="auto", metadata=about("run", "bf16 is autocast"))
    threads: int | None = field(default=None, metadata=about("run", "CPU threads; none leaves torch's", COUNT))
    engine: Literal["auto", "streaming", "stacked"] = field(
        default="auto", metadata=about("run", "auto is streaming, block by block; stacked: equal blocks as one")
    )
    compile: bool = field(default=False, metadata=about("run", "torch.compile the blocks"))
    cuda_graph: bool = field(default=False, metadata=about("run", "replay a step's kernels as one CUDA graph"))
    save_every: int | None = field(default=None, metadata=about("run", "steps a checkpoint; none is an epoch", COUNT))
    report: bool = field(default=True, metadata=about("run", "audit the run and write its page when it ends"))
    out: Path | None = field(default=None, metadata=about("run", "folder; none is runs/<date>-<method>-<data>"))
    resume: str | None = field(default=None, metadata=about("run", "last, or path of a checkpoint, to go on from"))
    overwrite: bool = field(default=False, metadata=about("run", "replace the run that the folder holds"))
    model_options: Mapping[str, object] = field(default_factory=dict[str, object])
    method_options: Mapping[str, object] = field(default_factory=dict[str, object])

    def __post_init__(self) -> None:
        for name in OPTIONS:
            _check(name, getattr(self, name))
        if self.batch_size % self.accumulate:
            raise UsageError(
                f"got batch_size={self.batch_size} and accumulate={self.accumulate}, expected a batch of equal "
                "micro-batches; change one of them."
            )
        if self.cuda_graph and self.compile:
            raise UsageError("got compile=true and cuda_graph=true, expected one of them; drop the other.")
        if self.cuda_graph and self.ema:
            raise UsageError(
                f"got cuda_graph=true and ema={self.ema:g}, whose count a recorded step would not move; drop one."
            )
        if self.resume and self.overwrite:
            raise UsageError("got resume and overwrite, expected one of them: go on with the run, or replace it.")
        if self.label_noise and self.target == "inputs":
            raise UsageError(f"got label_noise={self.label_noise:g} and target=inputs, which reads no label; drop one.")


OPTIONS = {f.name: f for f in fields(TrainConfig) if not f.name.endswith("_options")}
"""The fields that are keys."""


class Given(NamedTuple):
    """A value as it was found, and what an error about it begins with."""

    value: object
    where: str = ""


def resolve(
    method: str | Method | None,
    flags: Mapping[str, object] | None = None,
    config_file: Path | None = None,
    env: Mapping[str, str] | None = None,
    *,
    custom: bool = False,
) -> TrainConfig:
    """The configuration of a run: defaults < recipe < file < environment < flags, and over all of them `method`.

    flags: by key; a value may be text, as the command line has it.  method: None takes it from the other sources, an
    object is taken as it is.  custom: the network is the caller's own; `model` is only its name and has no options.
    Where a run is resumed, its own configuration stands in place of defaults and recipe.

    Raises UsageError for an unknown key or a value out of range, DataError for a file that cannot be read.
    """
    own = None if method is None or isinstance(method, str) else method
    layers = [
        _from_file(config_file),
        {k[9:].lower().replace("__", "."): Given(v, f"{k}: ") for k, v in (env or {}).items() if _is_key(k)},
        {k: Given(v) for k, v in (flags or {}).items()},
        {} if method is None else {"method": Given(method_name(own) if own else method)},
    ]
    words = {key: given for layer in layers for key, given in layer.items()}

    def word(key: str, default: Any = None) -> Any:
        return _valid(key, words[key], "") if key in words else default

    home = _home(word("resume"), word("out"))
    layers.insert(0, _from_run(home, word("model")) if home and not custom else {})
    words = layers[0] | words
    name = word("method", "")
    rule: Any = None if own else method_class(name)
    data = word("data", "digits")
    model = word("model", model_for(data))
    options = {} if custom else models.options(model)
    wanted = word("recipe", "auto")
    recipe = recipe_for(data, model) if wanted == "auto" else recipe_named(wanted)

    values: dict[str, Any] = {"target": "inputs"} if model in models.RECONSTRUCTING else {}
    for layer in ({k: Given(v, f"recipe {recipe.name}: ") for k, v in recipe.keys_for(name).items()}, *layers):
        values |= {key: _valid(key, given, model) for key, given in layer.items()}
    # Here, not at the top: help needs none of what reads data.
    from sidestep.data.augment import parse
    from sidestep.data.sources import from_anywhere

    values |= {"model": model, "recipe": recipe.name} | ({"out": home} if home else {})
    values |= {} if custom else {"data": from_anywhere(data)}
    chosen = own or rule(**_below(name, values))
    config = _assemble(values, options | _below("model", values), method_fields(chosen))
    parse(config.augment)
    return config


def build_method(config: TrainConfig) -> Method:
    """The method with its own fields.  Raises ValueError for a value it refuses."""
    return method_class(config.method)(**config.method_options)


def named_by_time(config: TrainConfig) -> Path:
    """The folder of a run that was given none."""
    words = (time.strftime("%Y%m%d-%H%M%S"), config.method, PurePath(config.data).name, f"seed{config.seed}")
    return Path("runs") / "-".join(words)


def flat(config: TrainConfig) -> dict[str, object]:
    """The configuration by key."""
    return (
        {name: getattr(config, name) for name in OPTIONS}
        | {f"model.{name}": value for name, value in config.model_options.items()}
        | {f"{config.method}.{name}": value for name, value in config.method_options.items()}
    )


def to_toml(config: TrainConfig) -> str:
    """One `key = value` a line; `from_toml` reads it back exactly, and `--config` takes it."""
    return "".join(f"{json.dumps(k) if '.' in k else k} = {literal(v)}\n" for k, v in flat(config).items())


def from_toml(text: str, where: str = CONFIG) -> TrainConfig:
    """The configuration that `to_toml` wrote.  Raises DataError if it is no TOML or incomplete, else as `resolve`."""
    given = parse_toml(text, where)
    if missing := [f.name for f in OPTIONS.values() if f.default is MISSING and f.name not in given]:
        raise DataError(f"{where}: {', '.join(missing)} missing; expected the {CONFIG} that a run writes.")
    model = str(given["model"].value)
    values = {key: _valid(key, value, model) for key, value in given.items()}
    return _assemble(values, _below("model", values), _below(values["method"], values))


_hints = cache(get_type_hints)
"""Of a class: asked for with every key, and slow."""


def kinds(owner: str, model: str = "") -> dict[str, Any]:
    """Names below an owner with their types: a method's fields, `model`'s options for "model", plain keys for ""."""
    if owner == "model":
        return {name: type(default) for name, default in models.options(model).items()}
    cls: Any = method_class(owner) if owner else TrainConfig
    hints = _hints(cls)
    return {f.name: hints[f.name] for f in fields(cls) if owner or f.name in OPTIONS}


def _valid(key: str, given: Given, model: str) -> Any:
    """The value that a key was given, as the first member of its type that takes it."""
    from pydantic import TypeAdapter, ValidationError

    owner, _, name = key.rpartition(".")
    owners = ("model", *METHODS)
    if owner and owner not in owners:
        raise UsageError(given.where + str(unknown("key", key, [*OPTIONS, *(f"{o}.{name}" for o in owners)])))
    known = kinds(owner, model)
    if name not in known:
        raise UsageError(given.where + str(unknown("key", key, [f"{owner}.{k}" if owner else k for k in known])))
    kind, value = known[name], given.value
    members = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
    if NoneType in members and value in (None, "none"):
        return None
    if get_origin(kind) is tuple and isinstance(value, str):
        value = [part for part in value.split(",") if part]
    for member in members:
        if isinstance(value, bool) and member is not bool:
            continue  # true is no number, though Python counts with it
        if value == "" and member is Path:
            continue  # a variable that nobody set is not the working directory
        try:
            result = TypeAdapter(member).validate_python(value)
        except ValidationError:
            continue
        _check(key, result, given.where)
        return result
    if get_origin(kind) is Literal:
        raise UsageError(given.where + str(unknown(key, str(value), get_args(kind))))
    raise UsageError(f"{given.where}got {key}={given.value!r}, expected {_expected(key, members)}.")


def _check(key: str, value: object, where: str = "") -> None:
    """Refuse a value outside of its field's range."""
    admits = OPTIONS[key].metadata["admits"] if key in OPTIONS else None
    if admits and value is not None and not admits.holds(value):
        raise UsageError(f"{where}got {key}={value}, expected {admits.words} ({OPTIONS[key].metadata['help']}).")


def _expected(key: str, members: tuple[Any, ...]) -> str:
    if key in OPTIONS and OPTIONS[key].metadata["admits"]:
        return OPTIONS[key].metadata["admits"].words
    words = {int: "an integer", float: "a number", bool: "true or false", str: "text", Path: "a path", NoneType: "none"}
    return " or ".join(words.get(member, "a list") for member in members)


def _assemble(values: Mapping[str, Any], model: dict[str, Any], method: dict[str, Any]) -> TrainConfig:
    own = {key: value for key, value in values.items() if key in OPTIONS}
    return TrainConfig(**own, model_options=model, method_options=method)


def _below(owner: str, values: Mapping[str, Any]) -> dict[str, Any]:
    return {key.removeprefix(f"{owner}."): value for key, value in values.items() if key.startswith(f"{owner}.")}


def _is_key(variable: str) -> bool:
    return variable.startswith("SIDESTEP_") and variable not in NO_KEYS


def _from_file(path: Path | None) -> dict[str, Given]:
    return {} if path is None else parse_toml(read_text(path), str(path))


def _home(resume: str | None, out: Path | None) -> Path | None:
    """The folder of the run to resume; a checkpoint lies in its run's folder."""
    if resume is None:
        return None
    if resume == "last":
        if out is None:
            raise UsageError("got --resume last without --out, expected the folder of the run to go on with.")
        return out
    checkpoints = Path(resume).absolute().parent
    if checkpoints.name != CHECKPOINTS:
        raise unknown("checkpoint", resume, ["last", f"RUN/{CHECKPOINTS}/step-N"])
    home = checkpoints.parent
    if out is not None and out.absolute() != home:
        raise UsageError(f"got --resume {resume} with --out {out}, expected a checkpoint of that run; leave --out out.")
    return out or home


def _from_run(folder: Path, model: str | None) -> dict[str, Given]:
    """The configuration a run wrote, without its place and, if another network is asked for, the options of its own."""
    file = folder / CONFIG
    found = _from_file(file) if file.is_file() else {}
    other = model is not None and "model" in found and found["model"].value != model
    return {k: v for k, v in found.items() if k not in PLACE and not (other and k.startswith("model."))}


def parse_toml(text: str, where: str) -> dict[str, Given]:
    """TOML with its tables flattened by dots.  Raises DataError for text that is none."""

    def flatten(table: Mapping[str, Any], prefix: str = "") -> dict[str, Given]:
        found: dict[str, Given] = {}
        for key, value in table.items():
            name = prefix + key
            found |= flatten(value, f"{name}.") if isinstance(value, dict) else {name: Given(value, f"{where}: ")}
        return found

    try:
        return flatten(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise DataError(f"{where} is no TOML ({error}), expected lines like epochs = 3; correct it.") from None


def literal(value: object) -> str:
    """A TOML value; None, which TOML lacks, is the word none."""
    if value is None:
        return '"none"'
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(literal, value))}]"
    return json.dumps(str(value), ensure_ascii=False).replace(
        "\x7f", "\\u007f"
    )  # JSON's strings are TOML's but for DEL

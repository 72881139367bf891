"""Every (data, model) has a strong recipe, and every recipe is a configuration that can run."""

from __future__ import annotations

import pytest

from sidestep.config import resolve
from sidestep.errors import UsageError
from sidestep.methods import METHODS
from sidestep.models import MODELS, SEQUENCE
from sidestep.recipes import RECIPE_OF, RECIPES, recipe_for, recipe_named

DATA = ("digits", "mnist", "fashion-mnist", "cifar10", "cifar10-jpeg-q95")
SEQUENCES = ("reversal", "pointers-4", "tinyshakespeare")
AUGMENT = {"digits": "none", "mnist": "none", "fashion-mnist": "flip", "cifar10": "crop,flip"}


def test_every_model_has_a_family_and_every_family_a_row_of_its_own() -> None:
    assert set(RECIPE_OF) == set(MODELS)
    assert set(RECIPE_OF.values()) <= set(RECIPES)


@pytest.mark.parametrize(
    ("data", "model"),
    [(d, m) for m in MODELS for d in (SEQUENCES if m in SEQUENCE else DATA)],
)
def test_a_recipe_resolves_within_every_range_for_every_method(data: str, model: str) -> None:
    for method in METHODS:
        config = resolve(method, {"data": data, "model": model})
        assert config.recipe == recipe_for(data, model).name
        assert config.epochs == (30 if data == "digits" else 10)


@pytest.mark.parametrize(
    ("data", "model"),
    [
        ("digits", "mlp"),
        ("mnist", "simplecnn"),
        ("reversal", "encoder"),
        ("pointers-2", "encoder"),
        ("tinyshakespeare", "gpt"),
    ],
)
def test_a_data_set_has_a_model_that_fits_it(data: str, model: str) -> None:
    assert resolve("sid", {"data": data}).model == model


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_can_be_asked_for_by_name(name: str) -> None:
    assert resolve("sid", {"recipe": name}).recipe == name
    assert recipe_named(name).name == name


@pytest.mark.parametrize("model", ["vgg11_bn", "resnet20", "resnet18", "resnet34", "resnet50", "simplecnn_bn"])
@pytest.mark.parametrize("data", AUGMENT)
def test_nets_with_batch_norm_get_nesterov_and_a_cosine(data: str, model: str) -> None:
    config = resolve("backprop", {"data": data, "model": model})
    assert (config.optimizer, config.momentum, config.nesterov, config.lr) == ("sgd", 0.9, True, 0.1)
    assert (config.schedule, config.warmup, config.weight_decay) == ("cosine", 0.05, 5e-4)
    assert config.batch_size == (64 if data == "digits" else 128)
    assert config.augment == AUGMENT[data]


@pytest.mark.parametrize("model", ["mlp", "resmlp", "simplecnn", "belief_cascade", "vit_tiny"])
def test_nets_without_get_adamw_and_one_cycle(model: str) -> None:
    config = resolve("backprop", {"data": "mnist", "model": model})
    assert (config.optimizer, config.schedule) == ("adamw", "onecycle")


def test_the_data_set_is_recognised_as_a_copy_and_by_its_folder() -> None:
    assert recipe_for("/somewhere/cifar10-jpeg-q95", "resnet18") is recipe_for("cifar10", "resnet18")
    assert recipe_for("/somewhere/mine", "resnet18") is RECIPES["conv"]


def test_simplecnn_trains_the_published_form_of_sid_and_nothing_else_of_it() -> None:
    sid = resolve("sid", {"data": "mnist", "model": "simplecnn"})
    assert (sid.lr, sid.batch_size, sid.method_options["form"]) == (4e-3, 64, "shared")
    assert "form" not in resolve("backprop", {"data": "mnist", "model": "simplecnn"}).method_options
    assert resolve("sid", {"data": "mnist", "model": "simplecnn_bn"}).method_options["form"] == "trunk"


def test_the_authors_recipe_is_theirs() -> None:
    config = resolve("sid", {"data": "mnist", "recipe": "sid-authors"})
    assert (config.optimizer, config.lr, config.weight_decay, config.schedule) == ("adam", 1e-3, 0.0, "constant")
    assert (config.batch_size, config.epochs, config.val_fraction, config.select) == (128, 20, 0.0, "last")
    assert (config.method_options["alpha"], config.method_options["form"]) == (0.5, "shared")


def test_a_recipe_may_give_one_method_a_learning_rate_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import replace

    mine = replace(RECIPES["mlp"], name="mine", per_method={"sid": {"lr": 0.25, "alpha": 0.75}})
    monkeypatch.setitem(RECIPES, "mine", mine)
    sid, backprop = (resolve(m, {"recipe": "mine"}) for m in ("sid", "backprop"))
    assert (sid.lr, sid.method_options["alpha"], backprop.lr) == (0.25, 0.75, mine.lr)


def test_an_unknown_recipe_is_refused_with_the_nearest() -> None:
    with pytest.raises(UsageError, match="unknown recipe 'sid-author'; did you mean 'sid-authors'"):
        resolve("sid", {"recipe": "sid-author"})

"""Where a setting comes from, what is refused, and that a configuration survives being written down."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidestep.config import OPTIONS, TrainConfig, build_method, flat, from_toml, kinds, resolve, to_toml
from sidestep.core.cut import Balance
from sidestep.errors import DataError, UsageError
from sidestep.methods import METHODS
from sidestep.methods.sid import SID
from sidestep.recipes import RECIPES


def written(folder: Path, text: str) -> Path:
    path = folder / "exp.toml"
    path.write_text(text, encoding="utf-8")
    return path


# ---------------------------------------------------------------------- precedence


def test_each_of_the_five_layers_beats_the_one_below(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = replace(RECIPES["mlp"], name="mine", per_method={"sid": {"alpha": 0.6}})
    monkeypatch.setitem(RECIPES, "mine", mine)
    file = written(tmp_path, "[sid]\nalpha = 0.7\n")
    env = {"SIDESTEP_SID__ALPHA": "0.8"}
    recipe = {"recipe": "mine"}

    def alpha(flags: Mapping[str, object], file: Path | None = None, env: Mapping[str, str] | None = None) -> object:
        return resolve("sid", flags, file, env).method_options["alpha"]

    assert alpha({}) == 0.5
    assert alpha(recipe) == 0.6
    assert alpha(recipe, file) == 0.7
    assert alpha(recipe, file, env) == 0.8
    assert alpha({**recipe, "sid.alpha": "0.9"}, file, env) == 0.9


def test_a_training_field_has_the_same_precedence(tmp_path: Path) -> None:
    file, env = written(tmp_path, "epochs = 3\n"), {"SIDESTEP_EPOCHS": "4"}
    assert resolve("backprop").epochs == RECIPES["mlp-digits"].epochs
    assert resolve("backprop", {}, file).epochs == 3
    assert resolve("backprop", {}, file, env).epochs == 4
    assert resolve("backprop", {"epochs": "5"}, file, env).epochs == 5


def test_the_recipe_follows_data_and_model_from_any_layer(tmp_path: Path) -> None:
    file = written(tmp_path, 'data = "mnist"\n')
    assert resolve("sid", {}, file).recipe == "simplecnn"
    assert resolve("sid", {}, file, {"SIDESTEP_MODEL": "resnet18"}).recipe == "conv"


def test_the_model_follows_the_data() -> None:
    assert resolve("backprop").model == "mlp"
    assert resolve("backprop", {"data": "mnist"}).model == "simplecnn"


def test_the_word_of_the_command_beats_a_method_in_the_file(tmp_path: Path) -> None:
    file = written(tmp_path, 'method = "sid"\n"sid.alpha" = 0.7\n')
    assert resolve("backprop", {}, file).method == "backprop"
    assert resolve(None, {}, file).method_options["alpha"] == 0.7


def test_tables_and_quoted_keys_are_the_same(tmp_path: Path) -> None:
    tables = resolve("sid", {}, written(tmp_path, "[model]\ndepth = 16\n[sid]\nalpha = [1, 0.5]\n"))
    quoted = resolve("sid", {}, written(tmp_path, '"model.depth" = 16\n"sid.alpha" = [1, 0.5]\n'))
    assert tables == quoted
    assert tables.model_options["depth"] == 16
    assert tables.method_options["alpha"] == (1.0, 0.5)


def test_another_methods_keys_are_allowed_and_left_alone() -> None:
    config = resolve("backprop", {"sid.alpha": "0.7"})
    assert config.method_options == {"label_smoothing": 0.0}


def test_variables_that_name_folders_are_no_keys() -> None:
    env = {"SIDESTEP_DATA": "/somewhere", "SIDESTEP_CACHE": "/elsewhere", "PATH": "/bin"}
    assert resolve("backprop", {}, None, env) == resolve("backprop")


def test_a_users_own_network_has_a_name_and_no_options() -> None:
    config = resolve("sid", {"data": "custom", "model": "MyNet", "epochs": 2}, custom=True)
    assert (config.model, config.model_options, config.recipe) == ("MyNet", {}, "mlp")
    assert from_toml(to_toml(config)) == config


# ---------------------------------------------------------------------- what is refused


def test_an_unknown_key_is_refused_and_its_layer_named(tmp_path: Path) -> None:
    file = written(tmp_path, "epoch = 3\n")
    with pytest.raises(UsageError, match=r"exp\.toml: unknown key 'epoch'; did you mean 'epochs'"):
        resolve("sid", {}, file)
    with pytest.raises(UsageError, match="SIDESTEP_EPOCH: unknown key 'epoch'; did you mean 'epochs'"):
        resolve("sid", {}, None, {"SIDESTEP_EPOCH": "3"})
    with pytest.raises(UsageError, match=r"^unknown key 'epoch'; did you mean 'epochs'"):
        resolve("sid", {"epoch": "3"})


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("sid.alpa", "sid.alpha"),
        ("siid.alpha", "sid.alpha"),
        ("model.dept", "model.depth"),
        ("local_cee.head", "local_ce"),
    ],
)
def test_an_unknown_dotted_key_is_refused_with_the_nearest(key: str, meant: str) -> None:
    with pytest.raises(UsageError, match=f"unknown key '{key}'; did you mean '{meant}"):
        resolve("sid", {key: 1})


def test_a_bad_value_is_refused_even_where_a_later_layer_overrides_it(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"exp\.toml: got epochs=0, expected an integer of at least 1"):
        resolve("sid", {"epochs": 3}, written(tmp_path, "epochs = 0\n"))
    with pytest.raises(UsageError, match="SIDESTEP_LR: got lr='fast', expected a number above 0"):
        resolve("sid", {"lr": 1}, None, {"SIDESTEP_LR": "fast"})


@pytest.mark.parametrize(
    ("key", "bad"),
    [
        ("epochs", "0"),
        ("epochs", "2.5"),
        ("epochs", True),
        ("blocks", "0"),
        ("batch_size", "-1"),
        ("accumulate", "0"),
        ("lr", "0"),
        ("lr", "nan"),
        ("lr", "inf"),
        ("weight_decay", "-0.1"),
        ("momentum", "1"),
        ("warmup", "1.5"),
        ("clip", "0"),
        ("ema", "1"),
        ("label_noise", "1.1"),
        ("val_fraction", "1"),
        ("seed", "-1"),
        ("seed", str(2**63)),
        ("threads", "0"),
        ("freeze", "-1"),
        ("freeze", "two"),
        ("save_every", "0"),
        ("nesterov", "perhaps"),
        ("data", 3),
        ("model.depth", "1.5"),
        ("sid.hidden", "many"),
        ("sid.alpha", [1, "x"]),
    ],
)
def test_a_value_out_of_range_or_of_another_type_is_refused(key: str, bad: object) -> None:
    with pytest.raises(UsageError, match=f"got {key}=.*, expected "):
        resolve("sid", {key: bad})


@pytest.mark.parametrize(
    ("key", "bad", "meant"),
    [
        ("optimizer", "sdg", "sgd"),
        ("precision", "bf17", "bf16"),
        ("schedule", "cosin", "cosine"),
        ("sid.form", "trunck", "trunk"),
    ],
)
def test_a_word_that_is_no_choice_is_refused_with_the_nearest(key: str, bad: str, meant: str) -> None:
    with pytest.raises(UsageError, match=f"unknown {key} '{bad}'; did you mean '{meant}'"):
        resolve("sid", {key: bad})


def test_unknown_words_are_refused_with_the_nearest() -> None:
    for flags, message in (
        ({"model": "rsnet18"}, "unknown model 'rsnet18'; did you mean 'resnet18'"),
        ({"augment": "cropp"}, "unknown augmentation 'cropp'; did you mean 'crop'"),
    ):
        with pytest.raises(UsageError, match=message):
            resolve("sid", flags)
    with pytest.raises(UsageError, match="unknown method 'sidd'; did you mean 'sid'"):
        resolve("sidd")


def test_what_the_method_itself_refuses_is_found_at_once() -> None:
    with pytest.raises(ValueError, match=r"alpha=1\.5, expected values in \(0, 1\]"):
        resolve("sid", {"sid.alpha": "1.5"})
    with pytest.raises(ValueError, match="label_smoothing > 0"):
        resolve("sid", {"sid.direction": "paper"})


def test_a_range_holds_for_a_configuration_made_by_hand_too() -> None:
    with pytest.raises(UsageError, match="got epochs=0, expected an integer of at least 1"):
        replace(resolve("sid"), epochs=0)


def test_a_file_that_cannot_be_read_is_bad_data(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"missing\.toml cannot be read"):
        resolve("sid", {}, tmp_path / "missing.toml")
    with pytest.raises(DataError, match=r"exp\.toml is no TOML"):
        resolve("sid", {}, written(tmp_path, "epochs 3"))
    (tmp_path / "latin.toml").write_bytes(b"# caf\xe9\n")
    with pytest.raises(DataError, match=r"latin\.toml cannot be read"):
        resolve("sid", {}, tmp_path / "latin.toml")


# ---------------------------------------------------------------------- what text means


def test_text_becomes_the_type_of_its_key() -> None:
    config = resolve(
        "sid",
        {
            "lr": "3",
            "threads": "2",
            "clip": "none",
            "ema": "0.99",
            "nesterov": "no",
            "at": "layer2,layer5",
            "freeze": "2,0",
            "blocks": "3",
            "out": "runs/x",
            "sid.alpha": "0.25",
        },
    )
    assert (config.lr, config.threads, config.clip, config.ema, config.nesterov) == (3.0, 2, None, 0.99, False)
    assert (config.at, config.freeze, config.out) == (("layer2", "layer5"), (2, 0), Path("runs/x"))
    assert config.method_options["alpha"] == 0.25
    assert resolve("sid", {"sid.alpha": "1,0.5"}).method_options["alpha"] == "1,0.5"
    assert resolve("backprop", {"backprop.label_smoothing": "sid:0.5"}).method_options["label_smoothing"] == "sid:0.5"


def test_the_method_is_built_with_its_own_fields() -> None:
    config = resolve("sid", {"sid.alpha": 0.75, "sid.head": "linear"})
    assert build_method(config) == SID(alpha=0.75, head="linear")


# ---------------------------------------------------------------------- on disk


@pytest.mark.parametrize("method", METHODS)
def test_a_resolved_configuration_round_trips(method: str) -> None:
    config = resolve(
        method, {"data": "mnist", "lr": "1e-17", "clip": "0.1", "at": "conv2,conv3", "out": 'a "b" \\ \x7f\n'}
    )
    assert from_toml(to_toml(config)) == config


def test_a_written_configuration_is_a_config_file(tmp_path: Path) -> None:
    config = resolve("sid", {"data": "mnist", "sid.alpha": "linear:1:0.1", "ema": "0.9", "threads": "1", "freeze": "1"})
    assert resolve(None, {}, written(tmp_path, to_toml(config))) == config


@given(
    st.text(), st.floats(min_value=1e-300, max_value=1e300), st.lists(st.text(st.characters(codec="utf-8"), min_size=1))
)
def test_any_text_number_and_list_round_trips_exactly(data: str, lr: float, at: list[str]) -> None:
    config = replace(BASE, data=data, lr=lr, at=tuple(at))
    assert from_toml(to_toml(config)) == config


BASE = resolve("backprop")


def test_the_keys_of_a_configuration_are_flat_and_complete() -> None:
    keys = flat(resolve("sid", {"model": "mlp"}))
    own = {"alpha", "form", "belief", "direction", "label_smoothing", "head", "head_width", "head_depth"}
    own |= {"hidden", "module_norm"}
    model = {"model.depth", "model.width", "model.activation"}
    assert set(keys) == {*OPTIONS, *model, *(f"sid.{name}" for name in own)}


def test_an_incomplete_file_of_a_run_is_bad_data() -> None:
    text = "".join(line for line in to_toml(BASE).splitlines(keepends=True) if not line.startswith(("lr ", "model ")))
    with pytest.raises(DataError, match=r"config\.toml: model, lr missing"):
        from_toml(text)
    with pytest.raises(DataError, match=r"run/config\.toml is no TOML"):
        from_toml("lr = ", "run/config.toml")
    with pytest.raises(UsageError, match=r"config\.toml: unknown key 'lrr'; did you mean 'lr'"):
        from_toml(to_toml(BASE) + "lrr = 1\n")


# ---------------------------------------------------------------------- the table of fields


def test_every_field_says_what_it_is() -> None:
    assert all(f.metadata["help"] for f in OPTIONS.values())
    assert {f.metadata["group"] for f in OPTIONS.values()} == {"", "data", "model", "training", "run"}


def test_a_methods_fields_and_the_runs_have_different_names() -> None:
    # Else `--name` would mean two things.
    for method in METHODS:
        assert not set(kinds(method)) & set(OPTIONS), method


def test_the_words_for_a_balance_are_those_of_the_cut() -> None:
    # Written twice, since the cut's module imports torch.
    assert get_args(kinds("")["balance"]) == get_args(Balance)


def test_a_configuration_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        TrainConfig.__setattr__(BASE, "lr", 1.0)

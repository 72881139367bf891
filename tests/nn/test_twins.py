"""B batch, C classes, D channels, S positions, W width of a twin's state."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sidestep.errors import UsageError
from sidestep.families.bernoulli import Bernoulli
from sidestep.families.categorical import Categorical
from sidestep.families.family import Family, inner
from sidestep.families.gaussian import Gaussian
from sidestep.families.laplace import Laplace
from sidestep.nn.latents import Latents, by_position
from sidestep.nn.twins import Equalised, Twin, TwinKind, twins

CLASSES = 5
WIDTH = 16
KINDS: tuple[TwinKind, ...] = ("linear", "mlp", "mirror")
LAWS: list[Family] = [Bernoulli(), Gaussian(), Categorical(states=2), Laplace()]
MAPS, TOKENS, VECTORS = [(4, 6, 6), (8, 3, 3), (8, 2, 2)], [(3, 8), (3, 8), (3, 8)], [(8,), (6,), (6,)]
every_kind = pytest.mark.parametrize("kind", KINDS)
every_law = pytest.mark.parametrize("law", LAWS, ids=lambda law: type(law).__name__)
every_shape = pytest.mark.parametrize("shapes", [MAPS, TOKENS, VECTORS], ids=["maps", "tokens", "vectors"])


def chain_of(
    kind: TwinKind, shapes: list[tuple[int, ...]], law: Family | None = None, width: int = WIDTH, lifted: int = 0
) -> tuple[list[Latents], list[Twin]]:
    torch.manual_seed(0)
    latents = [Latents(law or Bernoulli(), torch.Size(shape), mapped=False) for shape in shapes]
    return latents, twins(kind, latents, CLASSES, width, [lifted] * len(shapes) if lifted else [])


def states_of(chain: list[Twin]) -> list[Tensor]:
    """The state of every block, the first block's first."""
    states = [torch.eye(CLASSES)]
    for twin in reversed(chain):
        states.insert(0, twin(states[0]))
    return states[:-1]


def scale(reader: nn.Module) -> float:
    """What a layer's input is multiplied by."""
    found = [m.scale for m in reader.modules() if isinstance(m, Equalised)]
    return found[0] if found else 1.0


# ---- states


def test_a_linear_twin_reads_the_classes_themselves_and_has_one_map() -> None:
    _, chain = chain_of("linear", MAPS)
    for twin, shape in zip(chain, MAPS, strict=True):
        assert torch.equal(twin(torch.eye(CLASSES)), torch.eye(CLASSES))
        assert [tuple(p.shape) for p in twin.parameters()] == [(shape[0], CLASSES)]


@every_shape
def test_an_mlp_twins_states_grow_by_a_kth_of_a_hidden_layer_each(shapes: list[tuple[int, ...]]) -> None:
    _, chain = chain_of("mlp", shapes)
    state = torch.eye(CLASSES)
    for twin in reversed(chain):
        (layer,) = (m for m in twin.step.modules() if isinstance(m, nn.Linear))
        found = F.linear(state * scale(twin.step), layer.weight, layer.bias).relu()
        expected = found if twin is chain[-1] else state + found * (1 / 3)
        state = twin(state)
        assert state.shape == (CLASSES, WIDTH)
        assert torch.equal(state, expected)


def test_what_a_block_of_64_adds_is_not_rounded_away_in_bfloat16() -> None:
    """bfloat16 keeps 8 binary digits; a 64th of a layer beside the state would keep two of them."""
    _, chain = chain_of("mlp", [(8,)] * 64)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        below, above = states_of(chain)[:2]
        added = below - above
        layer = chain[0].step.get_submodule("layer")(above) / 64
    # bfloat16's layer, computed twice the same; float32 sums of numbers around 1.
    torch.testing.assert_close(added, layer.float(), rtol=1e-4, atol=1e-6)


@every_shape
def test_a_mirrors_states_are_shaped_like_the_features(shapes: list[tuple[int, ...]]) -> None:
    _, chain = chain_of("mirror", shapes)
    assert [state.shape[1:] for state in states_of(chain)] == [torch.Size(shape) for shape in shapes]
    assert all(bool((state >= 0).all()) for state in states_of(chain))


def test_a_mirror_of_maps_grows_by_repeating_pixels_before_a_convolution() -> None:
    _, chain = chain_of("mirror", MAPS)
    state = torch.rand(CLASSES, 8, 3, 3)
    (conv,) = (m for m in chain[0].step.modules() if isinstance(m, nn.Conv2d))
    larger = state.repeat_interleave(2, 2).repeat_interleave(2, 3) * scale(chain[0].step)  # 3 x 3 to 6 x 6
    assert torch.equal(chain[0](state), F.conv2d(larger, conv.weight, conv.bias, padding=1).relu())


def test_a_mirror_of_a_vector_opens_to_maps() -> None:
    _, chain = chain_of("mirror", [(4, 2, 2), (6,)])
    assert [state.shape for state in states_of(chain)] == [(CLASSES, 4, 2, 2), (CLASSES, 6)]


@pytest.mark.parametrize("shapes", [[(8,), (4, 2, 2)], [(3, 8), (4, 2, 2)], [(4, 2, 2), (3, 8)], [(5, 8), (3, 8)]])
def test_two_blocks_of_another_kind_have_no_mirror(shapes: list[tuple[int, ...]]) -> None:
    with pytest.raises(UsageError, match=r"got blocks of shape \(.*\) and \(.*\), expected two of a kind .* twin=mlp"):
        chain_of("mirror", shapes)


def test_an_unknown_twin_is_named_with_the_nearest() -> None:
    kind: Any = "miror"
    with pytest.raises(UsageError, match="unknown twin 'miror'; did you mean 'mirror'"):
        chain_of(kind, MAPS)


@pytest.mark.parametrize(
    ("layer", "state", "scale"),
    [(nn.Linear(16, 3), torch.randn(5, 16), 0.25), (nn.Conv2d(4, 3, 3, padding=1), torch.randn(5, 4, 6, 6), 0.5)],
    ids=["vector", "maps"],
)
def test_an_equalised_layer_computes_the_same_and_a_sign_step_moves_what_it_says_less(
    layer: nn.Linear | nn.Conv2d, state: Tensor, scale: float
) -> None:
    """A step of Adam at its first moves every weight by the rate: its effect is scaled as the input is."""
    plain, equal = copy.deepcopy(layer), Equalised(layer)
    assert equal.scale == scale
    before = plain(state)
    torch.testing.assert_close(equal(state), before)  # powers of 2, but sums are float32
    moved: list[Tensor] = []
    with torch.no_grad():
        for reader in (plain, equal):
            for p in reader.parameters():
                p += 0.01 * (p.dim() > 1)
            moved.append(reader(state))
    torch.testing.assert_close(moved[1] - before, (moved[0] - before) * scale, rtol=1e-3, atol=1e-5)  # differences


@every_kind
@every_shape
def test_all_but_a_table_over_classes_is_equalised(shapes: list[tuple[int, ...]], kind: TwinKind) -> None:
    """Of three layers a block, the last block's first reads the classes; linear twins read nothing else."""
    _, chain = chain_of(kind, shapes, lifted=7)
    counts = [sum(isinstance(m, Equalised) for m in twin.modules()) for twin in chain]
    assert counts == ([0, 0, 0] if kind == "linear" else [3, 3, 2])


# ---- messages


@every_kind
@every_shape
@every_law
def test_messages_are_centred_or_precisions_with_a_0_in_every_unit(
    law: Family, shapes: list[tuple[int, ...]], kind: TwinKind
) -> None:
    latents, chain = chain_of(kind, shapes, law)
    for own, twin, state in zip(latents, chain, states_of(chain), strict=True):
        messages = twin.messages(state)
        positions = own.positions if kind == "mirror" else 1
        assert messages.shape == (CLASSES, positions, own.channels)
        assert bool((messages != 0).any())
        if isinstance(law, Laplace):
            assert torch.equal(messages.amin(0), torch.zeros(messages.shape[1:]))
        else:
            # A mean of five float32 numbers around 1.
            torch.testing.assert_close(messages.mean(0), torch.zeros(messages.shape[1:]), rtol=0, atol=1e-6)


@every_law
def test_the_message_in_a_laws_own_layout_by_hand(law: Family) -> None:
    """Maps of 1 x 2: what is said of channel c holds of both positions, half each."""
    (own,), (twin,) = chain_of("linear", [(2, 1, 2)], law)
    assert isinstance(twin.say, nn.Linear)
    said = twin.say.weight.T  # (C, D), of the one-hot classes
    expected = law.message(said)[:, None] / 2
    torch.testing.assert_close(twin.messages(twin(torch.eye(CLASSES))), expected)
    assert expected.shape[2] == own.channels == 2


@pytest.mark.parametrize("kind", ["linear", "mlp"])
@pytest.mark.parametrize("shapes", [MAPS, TOKENS], ids=["maps", "tokens"])
def test_a_read_out_by_shared_messages_is_a_mean_over_positions(shapes: list[tuple[int, ...]], kind: TwinKind) -> None:
    (own, *_), (twin, *_) = latents, chain = chain_of(kind, shapes)
    assert len(latents) == len(chain)
    state = states_of(chain)[0]
    said = twin.say(state)
    h = torch.rand(7, *own.shape)
    pooled = h.mean((2, 3)) if len(own.shape) == 3 else h.mean(1)
    found = inner(by_position(h), twin.messages(state))
    torch.testing.assert_close(found, pooled @ (said - said.mean(0)).T, rtol=1e-4, atol=1e-5)  # float32 sums


@pytest.mark.parametrize("shapes", [MAPS, TOKENS], ids=["maps", "tokens"])
def test_a_mirrors_messages_differ_by_position_and_are_laid_out_as_the_features_are(
    shapes: list[tuple[int, ...]],
) -> None:
    latents, chain = chain_of("mirror", shapes)
    own, twin, state = latents[0], chain[0], states_of(chain)[0]
    centred = twin.say(state) - twin.say(state).mean(0)  # (C, *shape), as one natural parameter a unit has
    h = torch.rand(7, *own.shape)
    expected = torch.einsum("bx,cx->bc", h.flatten(1), centred.flatten(1)) / own.positions
    torch.testing.assert_close(
        inner(by_position(h), twin.messages(state)), expected, rtol=1e-4, atol=1e-5
    )  # float32 sums
    first = centred.flatten(2) if len(own.shape) == 3 else centred.mT
    assert bool((first[..., 0] - first[..., 1]).abs().max() > 1e-3)


@every_kind
@every_shape
@every_law
def test_read_outs_begin_with_the_deviation_of_a_linear_layers_weights(
    law: Family, shapes: list[tuple[int, ...]], kind: TwinKind
) -> None:
    """Uniform within 1/sqrt(D) as nn.Linear has it, whose variance is 1/(3 D)."""
    latents, chain = chain_of(kind, shapes, law, lifted=7)
    for own, twin, state in zip(latents, chain, states_of(chain), strict=True):
        for spread, features in ((twin.say(state).std(0), own.channels), (twin.embeddings(state).std(0), 7)):
            # A mean of float32 deviations.
            torch.testing.assert_close(spread.mean(), torch.tensor((3 * features) ** -0.5), rtol=1e-4, atol=0.0)


def test_a_chain_of_64_still_tells_its_last_blocks_classes_apart_as_its_first_ones() -> None:
    """Layers add to a state, so that it keeps what the classes were."""
    _, chain = chain_of("mlp", [(8,)] * 64)
    with torch.no_grad():
        first, *_, last = (state - state.mean(0) for state in states_of(chain))
    assert bool((F.cosine_similarity(last, first) > 0.5).all())


def test_a_state_so_narrow_that_it_is_0_for_all_classes_says_nothing_and_no_nan() -> None:
    dead = 0
    for seed in range(20):
        torch.manual_seed(seed)
        latents = [Latents(Bernoulli(), torch.Size([4]), mapped=False) for _ in range(3)]
        chain = twins("mlp", latents, 2, 1)
        state = torch.eye(2)
        for twin in reversed(chain):
            state = twin(state)
            assert bool(twin.messages(state).isfinite().all())
            dead += not bool(state.any())
    assert dead


# ---- embeddings


@every_kind
@every_shape
def test_embeddings_are_a_linear_map_of_the_whole_state_centred_over_classes(
    shapes: list[tuple[int, ...]], kind: TwinKind
) -> None:
    _, chain = chain_of(kind, shapes, lifted=7)
    for twin, state in zip(chain, states_of(chain), strict=True):
        assert twin.embed is not None
        (layer,) = (m for m in twin.embed.modules() if isinstance(m, nn.Linear))
        found = state.flatten(1) * scale(twin.embed) @ layer.weight.T
        torch.testing.assert_close(twin.embeddings(state), found - found.mean(0), rtol=1e-4, atol=1e-6)  # float32 sums
        assert twin.embeddings(state).shape == (CLASSES, 7)


def test_a_twin_of_a_linear_read_out_has_no_embeddings() -> None:
    assert all(twin.embed is None for twin in chain_of("mlp", MAPS)[1])

"""`cut`: the blocks compute what the model computes, on its parameters, and are as even as they can be."""

from __future__ import annotations

import re
from collections.abc import Sequence
from copy import deepcopy
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from sidestep.core.cut import CutPlan, Slices, cut, partition
from sidestep.errors import UsageError
from sidestep.models import build
from sidestep.models.mlp import ResidualMLP

IMAGE = (3, 12, 12)


def run(slices: Slices, x: Tensor) -> Tensor:
    for body in slices.bodies:
        x = body(x)
    return slices.readout(x)


def names(slices: Slices) -> list[list[str]]:
    return [[name for name, _ in body.named_children()] for body in slices.bodies]


def images(seed: int = 0) -> Tensor:
    return torch.randn(2, *IMAGE, generator=torch.Generator().manual_seed(seed))


class Block(nn.Module):
    """A residual block as people write it: functional activations, the addition in place."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, out, 3, padding=1)
        self.bn = nn.BatchNorm2d(out)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1)
        self.shortcut = nn.Conv2d(channels, out, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn(self.conv1(x)))
        y = self.conv2(y)
        y += self.shortcut(x)
        return F.relu(y)


class InlineResNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.layer1 = nn.Sequential(Block(4, 4), Block(4, 4))
        self.layer2 = nn.Sequential(Block(4, 8), Block(8, 8))
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        x = F.relu(self.stem(x))
        if mask is not None:
            x = x * mask
        x = self.layer2(F.max_pool2d(self.layer1(x), 2))
        x = F.adaptive_avg_pool2d(x, 1)
        return self.fc(x.view(x.size(0), -1))


# --- balance ---------------------------------------------------------------------------------------------------------


@given(st.data(), st.lists(st.integers(0, 12), min_size=1, max_size=9))
def test_partition_is_the_best_of_all_cuts(data: st.DataObject, costs: list[int]) -> None:
    blocks = data.draw(st.integers(1, len(costs)))

    def key(cuts: tuple[int, ...]) -> tuple[int, int, list[int]]:
        parts = [sum(costs[a:b]) for a, b in pairwise([0, *cuts, len(costs)])]
        return max(parts), sum(part * part for part in parts), [-c for c in cuts]

    assert partition(costs, blocks) == min(combinations(range(1, len(costs)), blocks - 1), key=key)


@given(st.data(), st.lists(st.integers(0, 12), min_size=1, max_size=7), st.lists(st.integers(0, 4), min_size=7))
def test_partition_into_parts_that_fit(data: st.DataObject, costs: list[int], sizes: list[int]) -> None:
    """The best of those cuts that leave no part above a size, or an error where there is none."""
    blocks, limit = data.draw(st.integers(1, len(costs))), data.draw(st.integers(0, 12))

    def fits(i: int, j: int) -> bool:
        return sum(sizes[i:j]) <= limit

    def parts(cuts: tuple[int, ...]) -> list[tuple[int, int]]:
        return list(pairwise([0, *cuts, len(costs)]))

    def key(cuts: tuple[int, ...]) -> tuple[int, int, list[int]]:
        sums = [sum(costs[a:b]) for a, b in parts(cuts)]
        return max(sums), sum(part * part for part in sums), [-c for c in cuts]

    able = [c for c in combinations(range(1, len(costs)), blocks - 1) if all(fits(*part) for part in parts(c))]
    if able:
        assert partition(costs, blocks, fits) == min(able, key=key)
    else:
        with pytest.raises(ValueError, match="expected a cut into"):
            partition(costs, blocks, fits)


def test_eight_equal_layers_are_cut_in_pairs() -> None:
    slices = cut(build("mlp", (1, 8, 8), 10), 4, sample=torch.zeros(2, 1, 8, 8))
    assert slices.at == ("layer2", "layer4", "layer6")
    assert names(slices) == [["layer0", "layer1"], ["layer2", "layer3"], ["layer4", "layer5"], ["layer6", "layer7"]]
    assert slices.shapes == (torch.Size([256]),) * 4


@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 28, 28), (3, 32, 32)])
def test_resmlp_is_cut_into_sixteen_equal_blocks_whatever_the_image(shape: tuple[int, int, int]) -> None:
    slices = cut(build("resmlp", shape, 10), 16, sample=torch.zeros(1, *shape))
    assert names(slices) == [[f"block{i}"] for i in range(16)]


def test_each_balance_counts_its_own_cost() -> None:
    #                   products  parameters  floats kept: its output and its ReLU's
    # a  Linear(4, 8)        32        40       8 + 8
    # b  Linear(8, 8)        64        72       8 + 8
    # c  Linear(8, 64)      512       576      64 + 64
    # d  Linear(64, 4)      256       260       4, and with it the read-out Linear(4, 2): 8, 10, 2
    model = nn.Sequential(
        nn.Linear(4, 8),
        nn.ReLU(),
        nn.Linear(8, 8),
        nn.ReLU(),
        nn.Linear(8, 64),
        nn.ReLU(),
        nn.Linear(64, 4),
        nn.Linear(4, 2),
    )
    x = torch.ones(2, 4)
    for balance in ("flops", "params"):
        assert cut(model, 3, sample=x, balance=balance).at == ("4", "6")  # a b | c | d
        assert cut(model, 2, sample=x, balance=balance).at == ("6",)  # a b c | d
    assert cut(model, 2, sample=x, balance="memory").at == ("4",)  # a b | c d: 134 floats against 160


def test_memory_counts_a_convolution_by_its_pixels_not_its_parameters() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1), nn.MaxPool2d(12), nn.Flatten(),
        nn.Linear(4, 200), nn.Linear(200, 200), nn.Linear(200, 2),
    )  # fmt: skip
    assert cut(model, 2, sample=images(), balance="memory").at == ("1",)
    assert cut(model, 2, sample=images(), balance="params").at == ("5",)


def test_time_is_the_median_of_timed_forwards(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0]

    class Takes(nn.Linear):
        def __init__(self, nanoseconds: int) -> None:
            super().__init__(2, 2)
            self.nanoseconds = nanoseconds

        def forward(self, input: Tensor) -> Tensor:
            clock[0] += self.nanoseconds
            return super().forward(input)

    monkeypatch.setattr("sidestep.core.cut.perf_counter_ns", lambda: clock[0])
    model = nn.Sequential(Takes(70), Takes(10), Takes(20), Takes(30), Takes(10))
    assert cut(model, 2, sample=torch.ones(1, 2), balance="time").at == ("1",)  # 70 | 70
    assert cut(model, 2, sample=torch.ones(1, 2), balance="flops").at == ("3",)  # 3 | 2, the later of the even cuts


def test_parameterless_units_stay_with_the_layer_before_them() -> None:
    model = nn.Sequential(
        nn.Flatten(), nn.Linear(432, 8), nn.ReLU(), nn.Dropout(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2)
    )
    assert names(cut(model, 2, sample=images(), balance="memory")) == [["0", "1", "2", "3"], ["4", "5"]]


# --- units and read-out ----------------------------------------------------------------------------------------------


class ToTokens(nn.Conv1d):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input).transpose(1, 2)


@pytest.mark.parametrize(
    ("unit", "sample", "read"),
    [
        (nn.Sequential(nn.Conv1d(2, 8, 3), nn.ReLU()), torch.zeros(2, 2, 20), None),
        (nn.Sequential(nn.Conv1d(2, 8, 3), nn.BatchNorm1d(8)), torch.zeros(2, 2, 20), None),
        (nn.Conv3d(2, 8, 3), torch.zeros(2, 2, 4, 4, 4), None),
        (ToTokens(2, 8, 3), torch.zeros(2, 2, 20), (18, 8)),
        (nn.Linear(20, 8), torch.zeros(2, 2, 20), (2, 8)),
    ],
)
def test_features_that_no_head_can_read_are_told_from_tokens_by_the_layer_that_made_them(
    unit: nn.Module, sample: Tensor, read: tuple[int, ...] | None
) -> None:
    slices = cut(nn.Sequential(unit, nn.Flatten(), nn.LazyLinear(3)), 1, sample=sample)
    if read:
        assert slices.features == slices.shapes == (torch.Size(read),)
    else:
        with pytest.raises(UsageError, match=r"^block 0 ends in features of shape \(8, .*expected \(D,\), tokens"):
            _ = slices.features


RESIDUAL = ResidualMLP(4, 1)


@pytest.mark.parametrize(
    ("body", "shape", "summed"),
    [
        (nn.Sequential(nn.Linear(4, 4), nn.ReLU()), (4,), False),
        (nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.GELU(), nn.Dropout(), nn.Identity())), (4,), False),
        (nn.Sequential(RESIDUAL, nn.LayerNorm(4)), (3, 4), False),
        (nn.Sequential(nn.ReLU(), RESIDUAL), (4,), True),
        (nn.Sequential(nn.ReLU(), nn.Sequential(RESIDUAL, nn.Dropout())), (3, 4), True),
        (nn.Sequential(RESIDUAL, nn.Linear(4, 4)), (3, 4), False),
        (nn.Sequential(nn.Dropout()), (4,), False),
        (nn.Sequential(RESIDUAL), (4, 3, 3), False),
    ],
    ids=["activation", "inside", "norm", "sum", "sum-inside", "layer", "nothing", "maps"],
)
def test_what_a_module_with_layers_of_its_own_leaves_may_be_a_sum(
    body: nn.Sequential, shape: tuple[int, ...], summed: bool
) -> None:
    assert Slices((body,), nn.Identity(), (torch.Size(shape),), (), torch.Size([1])).may_be_sums == (summed,)


def test_a_nested_sequential_is_flattened_and_its_read_out_begins_at_the_pool() -> None:
    features = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 6, 3), nn.ReLU())
    model = nn.Sequential()
    model.add_module("features", features)
    model.add_module("tail", nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(), nn.Linear(6, 5)))
    slices = cut(model.eval(), 2, sample=images())
    assert slices.at == ("features.3",)
    assert names(slices) == [["features_0", "features_1", "features_2"], ["features_3", "features_4"]]
    assert [name for name, _ in slices.readout.named_children()] == ["tail_0", "tail_1", "tail_2", "tail_3"]
    assert slices.shapes == (torch.Size([4, 10, 10]), torch.Size([6, 8, 8]))
    assert torch.equal(run(slices, images(1)), model(images(1)))


@pytest.mark.parametrize("name", ["mlp", "simplecnn_bn", "belief_cascade", "resnet20", "vit_tiny"])
def test_blocks_are_the_models_own_parameters_and_compute_its_output_and_gradient(name: str) -> None:
    torch.manual_seed(0)
    model = build(name, IMAGE, 5)
    twin = deepcopy(model)
    slices = cut(model, 4, sample=images())
    parts = [*slices.bodies, slices.readout]
    assert [id(p) for part in parts for p in part.parameters()] == [id(p) for p in model.parameters()]
    y = twin(images(1))  # train mode: BatchNorm uses and updates its statistics in both
    assert torch.equal(run(slices, images(1)), y)
    run(slices, images(2)).sum().backward()
    twin(images(2)).sum().backward()
    for ours, theirs in zip(model.parameters(), twin.parameters(), strict=True):
        assert ours.grad is not None and theirs.grad is not None and torch.equal(ours.grad, theirs.grad)
    assert all(torch.equal(a, b) for a, b in zip(model.buffers(), twin.buffers(), strict=True))


def test_a_model_with_an_inline_forward_is_cut_between_its_residual_additions() -> None:
    torch.manual_seed(0)
    model = InlineResNet()
    twin = deepcopy(model)
    with pytest.raises(UsageError, match=r"it can be cut at layer1\.0, layer1\.1, layer2\.0, layer2\.1;"):
        cut(model, 6, sample=images())
    slices = cut(model, 5, sample=images())
    assert slices.at == ("layer1.0", "layer1.1", "layer2.0", "layer2.1")
    assert slices.shapes[1:4] == (torch.Size([4, 12, 12]), torch.Size([4, 6, 6]), torch.Size([8, 6, 6]))
    parts = [*slices.bodies, slices.readout]
    assert {id(p) for part in parts for p in part.parameters()} == {id(p) for p in model.parameters()}
    y = twin(images(1))
    assert torch.equal(run(slices, images(1)), y)
    run(slices, images(2)).sum().backward()
    twin(images(2)).sum().backward()
    for ours, theirs in zip(model.parameters(), twin.parameters(), strict=True):
        assert ours.grad is not None and theirs.grad is not None and torch.equal(ours.grad, theirs.grad)
    assert all(torch.equal(a, b) for a, b in zip(model.buffers(), twin.buffers(), strict=True))


def test_a_traced_read_out_is_pool_flatten_and_linear() -> None:
    slices = cut(InlineResNet(), 2, sample=images())
    features = torch.randn(3, 8, 6, 6)
    fc = next(part for part in slices.readout.modules() if isinstance(part, nn.Linear))
    assert torch.equal(slices.readout(features), fc(F.adaptive_avg_pool2d(features, 1).view(3, 8)))


def test_a_trace_follows_buffers_constants_and_values_that_are_not_tensors() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 2)
            self.gain = nn.Parameter(torch.tensor(0.3))
            self.register_buffer("shift", torch.tensor(0.5))

        def forward(self, x: Tensor) -> Tensor:
            left, right = self.a(x).chunk(2, 1)  # a tuple is alive here, which no block may send
            x = torch.cat([left * torch.tensor([2.0]), right], 1)
            return self.c(self.b(x) * self.gain.exp() + self.get_buffer("shift").exp())

    model = Odd()
    slices = cut(model, 2, sample=torch.randn(2, 4))
    assert slices.at == ("b",)
    model.get_buffer("shift").fill_(0.7)
    with torch.no_grad():
        model.gain.fill_(-0.2)
    x = torch.randn(3, 4)
    assert torch.equal(run(slices, x), model(x))  # the blocks see the new values: nothing was frozen


def test_a_models_own_chain_comes_before_tracing() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            for i in range(3 if x.sum() == x.sum() else 0):  # control flow on data: cannot be traced
                x = self.layers[i](x)
            return x

        def chain(self) -> dict[str, nn.Module]:
            return {"bottom": self.layers[0], "middle": self.layers[1], "top": self.layers[2]}

    model = Own()
    slices = cut(model, 2, sample=torch.randn(2, 4))
    assert slices.at == ("middle",) and slices.readout is model.layers[2]


def test_a_submodule_called_chain_is_no_chain_method() -> None:
    class Holder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.chain = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.Linear(4, 2))

        def forward(self, x: Tensor) -> Tensor:
            return self.chain(x)

    assert cut(Holder(), 2, sample=torch.randn(2, 4)).at == ("chain.2",)


def test_names_that_fall_together_stay_apart() -> None:
    model = nn.Sequential()
    model.add_module("a", nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)))
    model.add_module("a_0", nn.Linear(2, 2))
    model.add_module("out", nn.Linear(2, 2))
    assert names(cut(model, 1, sample=torch.ones(1, 2))) == [["a_0", "a_1", "a_0_"]]


def test_cutting_leaves_the_model_the_sample_and_the_generator_as_they_were() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Dropout(), nn.Conv2d(4, 4, 3),
        nn.Flatten(), nn.Linear(256, 2),
    )  # fmt: skip
    model[1].eval()
    modes = [part.training for part in model.modules()]
    sample, state, random = images(), deepcopy(model.state_dict()), torch.get_rng_state()
    for balance in ("flops", "memory", "params", "time"):
        cut(model, 2, sample=sample, balance=balance)
    assert [part.training for part in model.modules()] == modes
    assert torch.equal(sample, images()) and torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


# --- named cuts ------------------------------------------------------------------------------------------------------


def test_names_override_balance_and_a_modules_name_stands_for_its_first_unit() -> None:
    model = InlineResNet()
    assert cut(model, 3, sample=images(), at=("layer1", "layer2")).at == ("layer1.0", "layer2.0")
    assert names(cut(build("mlp", (1, 8, 8), 10), 2, sample=torch.zeros(1, 1, 8, 8), at=("layer1",)))[0] == ["layer0"]


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_the_cuts_of_blls_released_code_are_those_the_documents_name(name: str) -> None:
    """Stem, units and tail in a row, in four parts of round(len / 4), the last with what is left."""
    text = (Path(__file__).parents[2] / "docs/bll.md").read_text(encoding="utf-8")
    at = re.findall(rf"--model {name} --at (\S+)`", text)
    model = build(name, IMAGE, 10, width=8)
    units = [unit for unit, _ in model.named_children()]
    inc = round(len(units) / 4)
    parts = [units[i * inc : (i + 1) * inc if i < 3 else None] for i in range(4)]
    assert [",".join(part[0] for part in parts[1:])] == at
    bodies = names(cut(model, sample=images(), at=tuple(at[0].split(","))))
    assert bodies == [*parts[:3], parts[3][:-1]]


@pytest.mark.parametrize("model", [InlineResNet(), build("vit_tiny", IMAGE, 5, depth=6, width=24)])
def test_the_names_of_a_cut_give_the_same_cut(model: nn.Module) -> None:
    first = cut(model, 4, sample=images(), balance="time")
    again = CutPlan(4, at=first.at)(model, images())
    assert names(again) == names(first) and again.shapes == first.shapes


class Encoder(nn.Module):
    """Attention over tokens, whose layers may have the batch second, as is torch's default; read out token by token."""

    def __init__(self, *, batch_first: bool) -> None:
        super().__init__()
        self.batch_first = batch_first
        self.embed = nn.Embedding(9, 8)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(8, 2, 8, dropout=0.0, batch_first=batch_first) for _ in range(3)
        )
        self.turned = nn.Linear(8, 8)
        self.out = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x)
        h = h if self.batch_first else h.transpose(0, 1)
        for layer in self.layers:
            h = layer(h)
        h = h if self.batch_first else h.transpose(0, 1)
        return self.out(self.turned(h))


@pytest.mark.parametrize("tokens", [5, 3, 4])  # of 3 samples, and of one more
def test_no_cut_is_made_where_the_batch_does_not_come_first(tokens: int) -> None:
    """A head there would pair one sample's features with another's label."""
    sample = torch.arange(3 * tokens).view(3, tokens) % 9
    first = cut(Encoder(batch_first=True), 4, sample=sample)
    assert [shape[0] for shape in first.shapes] == [tokens] * 4
    second = Encoder(batch_first=False)
    assert cut(second, 2, sample=sample).at == ("turned",)
    with pytest.raises(
        UsageError, match=r"at most 2: .* at turned \(what reaches layers.0, layers.1, layers.2 does not"
    ):
        cut(second, 3, sample=sample)
    with pytest.raises(
        UsageError, match=rf"what reaches 'layers.1' has shape \({tokens}, 3, 8\) for a batch of 3, expec"
    ):
        cut(second, 2, sample=sample, at=("layers.1",))


class DropPath(nn.Module):
    """Stochastic depth, as people write it."""

    def forward(self, x: Tensor) -> Tensor:
        return x * (torch.rand(len(x), 1) > 0.5) if self.training else x


class Stochastic(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(linears(4))
        self.drop = DropPath()
        self.out = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = x + self.drop(layer(x))
        return self.out(x)


def test_a_module_that_reads_whether_it_is_trained_goes_on_reading_it() -> None:
    torch.manual_seed(0)
    model, x = Stochastic(), torch.randn(6, 4)
    slices = cut(model, 4, sample=x)
    assert slices.at == ("layers.1", "layers.2", "layers.3")
    for mode in (True, False):
        model.train(mode)
        for body in slices.bodies:
            body.train(mode)
        torch.manual_seed(1)
        expected = model(x)
        torch.manual_seed(1)
        assert torch.equal(run(slices, x), expected)
    assert not torch.equal(model.train()(x), expected)


# --- errors ----------------------------------------------------------------------------------------------------------


def layers(*modules: nn.Module) -> nn.Sequential:
    return nn.Sequential(*modules)


def linears(count: int) -> Sequence[nn.Linear]:
    return [nn.Linear(4, 4) for _ in range(count)]


class Branches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = linears(2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        if x.sum() > 0:
            return self.b(x)
        return x


class FunctionalDropout(Branches):
    def forward(self, x: Tensor) -> Tensor:
        return self.b(F.dropout(self.a(x), 0.5, self.training))


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = linears(2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.a(x), self.b(x)


class Swapped(Branches):
    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x))

    def chain(self) -> dict[str, nn.Module]:
        return {"b": self.b, "a": self.a}


class Scaled(nn.Module):
    """One parameter used in two places, outside any module."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = linears(3)
        self.gain = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.gain * self.b(self.gain * self.a(x)))


def tied() -> nn.Module:
    first, second, third = linears(3)
    third.weight = first.weight
    return layers(first, second, third, nn.Linear(4, 2))


def shared_norm() -> nn.Module:
    norm = nn.BatchNorm1d(4, affine=False)
    a, b, c = linears(3)
    return layers(a, norm, b, norm, c)


ERRORS = {
    "no blocks": (layers(*linears(3)), {"blocks": 0}, "blocks=0; expected at least 1"),
    "balance": (layers(*linears(3)), {"balance": "flop"}, "unknown balance 'flop'; did you mean 'flops'"),
    "at against blocks": (layers(*linears(4)), {"blocks": 4, "at": ("1",)}, "at=1 makes 2 blocks, but blocks=4"),
    "unknown name": (build("mlp", (1, 2, 2), 3), {"blocks": 2, "at": ("layer11",)}, "unknown cut point 'layer11'"),
    "read-out": (layers(*linears(3)), {"blocks": 2, "at": ("2",)}, "unknown cut point '2'"),
    "order": (layers(*linears(5)), {"blocks": 3, "at": ("2", "1")}, "at=2,1 is not in the model's order"),
    "empty first": (layers(*linears(3)), {"blocks": 2, "at": ("0",)}, r"block 0 \(no unit\) would have no parameters"),
    "empty": (
        layers(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.Linear(4, 2)),
        {"blocks": 3, "at": ("1", "2")},
        r"block 1 \(1\) would have no parameters when cut at 1, 2 before the read-out '3'",
    ),
    "too few": (layers(*linears(3)), {"blocks": 3}, "at most 2: before its read-out '2' it can be cut at 1; ask"),
    "one layer": (
        layers(nn.Linear(4, 4)),
        {"blocks": 1},
        "Sequential has no parameters before its read-out '0', expected",
    ),
    "no layer": (layers(nn.ReLU()), {}, "Sequential has no unit with parameters"),
    "leaf": (nn.Linear(4, 4), {}, "Linear has no parameters before its read-out '_0', expected some to make blocks of"),
    "control flow": (
        Branches(),
        {},
        r"Branches cannot be traced at test_cut.py:\d+, `if x.sum\(\) > 0:`: symbolically traced .* method chain\(\)",
    ),
    "training": (FunctionalDropout(), {}, "FunctionalDropout.forward reads `self.training`"),
    "two outputs": (Pair(), {}, "the model returns a tuple; a chain passes one tensor"),
    "wrong chain": (Swapped(), {"blocks": 1}, "the units of Swapped, run in order, do not give the model's own output"),
    "wrong shape": (layers(nn.Linear(5, 4), *linears(2)), {}, r"the model fails on an input of shape \(2, 4\): mat1"),
    "tied": (tied(), {"blocks": 3}, "'0.weight' of block 0 and '2.weight' of block 2 are the same Parameter"),
    "tied in a trace": (
        Scaled(),
        {"blocks": 2},
        "'mul.gain' of block 0 and 'mul_1.gain' of block 1 are the same Parameter",
    ),
    "shared statistics": (shared_norm(), {"blocks": 2}, "'1' of block 0 and '3' of block 1 are the same BatchNorm1d"),
    "in place": (
        layers(nn.Linear(4, 4), layers(nn.Linear(4, 4)), nn.ReLU(inplace=True), *linears(2)),
        {"blocks": 2, "at": ("2",)},
        "block 1 writes into its input, which block 0 sent",
    ),
}


@pytest.mark.parametrize("mistake", ERRORS)
def test_what_cannot_be_cut_is_refused_with_the_reason(mistake: str) -> None:
    model, asked, message = ERRORS[mistake]
    options: dict[str, Any] = {"blocks": 2, **asked}
    with pytest.raises(UsageError, match=message):
        cut(model, **options, sample=torch.linspace(-1, 1, 8).view(2, 4))


def test_an_empty_sample_is_refused() -> None:
    with pytest.raises(UsageError, match=r"a sample of shape \(0, 4\)"):
        cut(layers(*linears(3)), 2, sample=torch.zeros(0, 4))


def test_a_shared_parameter_within_one_block_and_a_shared_activation_are_no_error() -> None:
    model = tied()
    assert cut(model, 1, sample=torch.ones(1, 4)).at == ()
    act, (a, b, c) = nn.ReLU(), linears(3)
    assert cut(layers(a, act, b, act, c), 2, sample=torch.ones(1, 4)).at == ("2",)

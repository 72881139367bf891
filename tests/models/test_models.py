"""The models: published sizes, hand-worked layers, and one chain for any image."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from sidestep.core.cut import cut
from sidestep.errors import UsageError
from sidestep.models import MODELS, RECONSTRUCTING, SEQUENCE, build, factory, options
from sidestep.models.chained import Chained
from sidestep.models.mlp import ResidualMLP
from sidestep.models.resnet import PadShortcut, Residual
from sidestep.models.transformer import Attention, DropPath, Layer
from sidestep.models.vit import Embed, patch_for

SHAPES = [(1, 8, 8), (3, 32, 32), (1, 28, 28), (3, 64, 64)]
SMALL: dict[str, dict[str, Any]] = {
    "vgg11_bn": {"width": 8}, "resnet18": {"width": 8}, "resnet34": {"width": 8}, "resnet50": {"width": 8},
    "vit_tiny": {"depth": 4, "width": 24},
}  # fmt: skip
IMAGE = [name for name in MODELS if name not in SEQUENCE]


def small(name: str, shape: tuple[int, int, int]) -> Chained:
    torch.manual_seed(0)
    return build(name, shape, 7, **SMALL.get(name, {}))


def images(*shape: int, batch: int = 3) -> Tensor:
    return torch.randn(batch, *shape, generator=torch.Generator().manual_seed(0))


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


# --- every model -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", IMAGE)
def test_the_chain_is_the_forward_and_every_parameter_gets_a_finite_gradient(
    name: str, shape: tuple[int, int, int]
) -> None:
    model = small(name, shape)
    x = h = images(*shape)
    units = model.chain()
    assert list(units)[-1] == "classifier"
    for unit in units.values():
        h = unit(h)
    y = model(x)
    assert y.shape == (3, 7, *(shape[1:] if name in RECONSTRUCTING else ())) and torch.equal(h, y)
    y.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("name", IMAGE)
def test_channels_last_gives_the_same_logits(name: str) -> None:
    model, x = small(name, (3, 32, 32)).eval(), images(3, 32, 32)
    y = model(x)
    model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]  # missing in torch's overloads
    y_last = model(x.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(y_last, y, rtol=1e-4, atol=1e-5)  # other kernels add in another order


@pytest.mark.parametrize("name", IMAGE)
def test_every_default_depth_can_be_cut_into_four_blocks(name: str) -> None:
    model, x = build(name, (1, 8, 8), 10).eval(), images(1, 8, 8)
    slices = cut(model, 4, sample=x[:1])
    h = x
    for body in slices.bodies:
        h = body(h)
    assert len(slices.bodies) == 4 and torch.equal(slices.readout(h), model(x))


@pytest.mark.parametrize("name", MODELS)
def test_a_model_names_its_source_in_one_line(name: str) -> None:
    first, *rest = (factory(name).__doc__ or "").splitlines()
    assert ("arXiv:" in first or "SID's" in first) and first.endswith(".") and (not rest or not rest[0].strip())


@pytest.mark.parametrize(
    ("name", "shape", "classes", "total"),
    [
        ("resnet18", (3, 224, 224), 1000, 11_689_512),
        ("resnet34", (3, 224, 224), 1000, 21_797_672),
        ("resnet50", (3, 224, 224), 1000, 25_557_032),
        ("resnet20", (3, 32, 32), 10, 269_722),
        ("vgg11_bn", (3, 32, 32), 10, 9_225_984 + 512 * 10 + 10),
        ("simplecnn", (3, 32, 32), 10, 257_344 + 128 * 10 + 10),
        ("simplecnn_bn", (3, 32, 32), 10, 257_344 + 128 * 10 + 10 + 32 + 64 + 128 + 128),  # beta for bias, and gamma
        ("belief_cascade", (3, 32, 32), 10, 257_344 + 5 * 38_154),
        ("belief_cascade", (3, 32, 32), 100, 257_344 + 5 * 84_324),
        ("mlp", (1, 8, 8), 10, (64 + 1) * 256 + 7 * (256 + 1) * 256 + (256 + 1) * 10),
    ],
)
def test_the_parameters_are_as_many_as_published(
    name: str, shape: tuple[int, int, int], classes: int, total: int
) -> None:
    with torch.device("meta"):
        assert count(build(name, shape, classes)) == total


def test_vit_tiny_has_the_parameters_of_the_published_one_less_its_class_token() -> None:
    width, tokens = 192, (224 // 16) ** 2
    embed = (3 * 16 * 16 + 1) * width + tokens * width
    attention = (width + 1) * 3 * width + (width + 1) * width
    mlp = (width + 1) * 4 * width + (4 * width + 1) * width
    total = embed + 12 * (2 * 2 * width + attention + mlp) + 2 * width + (width + 1) * 1000
    assert total == 5_717_416 - 2 * width  # published: also a class token and its position
    assert count(build("vit_tiny", (3, 224, 224), 1000)) == total


# --- each model ------------------------------------------------------------------------------------------------------


def test_simplecnn_multiplies_as_often_as_the_released_extractor() -> None:
    model = build("simplecnn", (3, 32, 32), 10)
    with FlopCounterMode(display=False) as counter:
        model[:-1](images(3, 32, 32, batch=1))
    assert counter.get_total_flops() == 2 * 76_398_592


def test_the_pooled_extractor_is_three_convolutions_each_pooled_and_flattened() -> None:
    model = build("simplecnn_bn", (3, 32, 32), 10, pooled=True)
    convolutions, batch_norms, flat = 9 * (3 * 32 + 32 * 64 + 64 * 128), 2 * (32 + 64 + 128), 128 * 4 * 4
    assert count(model) == convolutions + batch_norms + (flat + 1) * 128 + (128 + 1) * 10
    with FlopCounterMode(display=False) as counter:
        model(images(3, 32, 32, batch=1))
    macs = 9 * (3 * 32 * 32**2 + 32 * 64 * 16**2 + 64 * 128 * 8**2) + flat * 128 + 128 * 10
    assert counter.get_total_flops() == 2 * macs
    cascade = build("belief_cascade", (3, 32, 32), 10, norm=True, pooled=True)
    assert count(cascade) == count(model) - (128 + 1) * 10 + 5 * 38_154


def test_the_strided_extractor_is_the_released_one_with_steps_of_two_in_place_of_pools() -> None:
    model = build("simplecnn_bn", (3, 32, 32), 10, strided=True)
    convolutions, batch_norms = 9 * (3 * 32 + 32 * 64 + 64 * 128 + 128 * 128), 2 * (32 + 64 + 128 + 128)
    assert count(model) == convolutions + batch_norms + (128 + 1) * 128 + (128 + 1) * 10
    with FlopCounterMode(display=False) as counter:
        model(images(3, 32, 32, batch=1))
    each = zip((3 * 32, 32 * 64, 64 * 128, 128 * 128), (32, 16, 8, 4), strict=True)
    macs = sum(9 * channels * side**2 for channels, side in each) + 128 * 128 + 128 * 10
    assert counter.get_total_flops() == 2 * macs
    assert not any(isinstance(part, nn.MaxPool2d) for part in model.modules())
    cascade = build("belief_cascade", (3, 32, 32), 10, norm=True, strided=True, module_norm=True)
    assert count(cascade) == count(model) - (128 + 1) * 10 + 5 * (38_154 + 2 * 256)


def test_an_extractor_is_pooled_or_strided() -> None:
    with pytest.raises(UsageError, match="got pooled=true and strided=true, expected one of them; drop the other"):
        build("simplecnn_bn", (3, 32, 32), 10, pooled=True, strided=True)


@pytest.mark.parametrize(
    ("name", "side", "pools"),
    [("vgg11_bn", 32, 5), ("vgg11_bn", 28, 4), ("vgg11_bn", 8, 3), ("simplecnn", 2, 1), ("simplecnn", 1, 0)],
)
def test_a_pool_that_would_go_below_one_pixel_is_left_out(name: str, side: int, pools: int) -> None:
    model = build(name, (1, side, side), 10, **({"width": 4} if name == "vgg11_bn" else {}))
    assert sum(isinstance(part, nn.MaxPool2d) for part in model.modules()) == pools
    assert model(images(1, side, side)).isfinite().all()


def test_belief_cascade_refines_a_uniform_belief_module_by_module() -> None:
    torch.manual_seed(0)
    model, x = build("belief_cascade", (1, 8, 8), 4, modules=3), images(1, 8, 8)
    units = model.chain()
    z = x
    for name in ("conv1", "conv2", "conv3", "conv4"):
        z = units[name](z)
    z = units["embed"].get_submodule("0")(z)
    belief = torch.full((3, 4), 0.25)
    for net in (units["module1"].get_submodule("net"), units["module2"].get_submodule("net")):
        belief = torch.softmax(net(torch.cat([belief, z], 1)), 1)
    assert torch.equal(model(x), units["classifier"](torch.cat([belief, z], 1)))


def test_mlp_starts_with_he_weights_and_no_bias() -> None:
    torch.manual_seed(0)
    model = build("mlp", (1, 28, 28), 10, width=512)
    for unit, fan_in in (("layer0", 784), ("layer5", 512)):
        linear = next(part for part in model.chain()[unit].modules() if isinstance(part, nn.Linear))
        # The spread of n = 512 fan_in weights is known to 1 / sqrt(2 n) < 0.2 %.
        assert linear.weight.std().item() == pytest.approx((2 / fan_in) ** 0.5, rel=0.01)
        assert torch.equal(linear.bias, torch.zeros(512))


def tokens(n: int = 3, length: int = 6) -> Tensor:
    return torch.randint(7, (n, length), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", SEQUENCE)
def test_a_sequence_model_is_its_chain_has_gradients_everywhere_and_can_be_cut_into_four(name: str) -> None:
    torch.manual_seed(0)
    model, x = build(name, (6,), 7, width=16), tokens()
    y = model(x)
    slices = cut(model, 4, sample=x[:1])
    h = x
    for net in slices.nets:
        h = net(h)
    assert y.shape == (3, 6, 7) and torch.equal(h, y)
    y.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert torch.equal(model(x[:, :4]), model(x)[:, :4]) == (name == "gpt")  # a shorter text is read by the same model


def test_only_the_encoder_lets_a_token_see_later_ones() -> None:
    for name in SEQUENCE:
        torch.manual_seed(0)
        model, x = build(name, (6,), 7, width=16, depth=2), tokens()
        other = x.clone()
        other[:, 4] = (other[:, 4] + 1) % 7
        same = (model(x) == model(other)).all(-1)
        assert same[:, :4].all() == (name == "gpt") and not same[:, 4:].any()


def test_gpt_has_gpt_2s_parameters_and_an_untied_classifier() -> None:
    with torch.device("meta"):
        made = count(build("gpt", (1024,), 50257, depth=12, width=768, heads=12))
    assert made == 124_439_808 + 50257 * (768 + 1)


def test_gpts_residual_stream_starts_with_layers_that_add_little() -> None:
    torch.manual_seed(0)
    model = build("gpt", (6,), 7, depth=8, width=256)
    layers = [part for part in model.modules() if isinstance(part, Layer)]
    # The spread of n = 65,536 weights is known to 1 / sqrt(2 n) < 0.3 %.
    for last in (layers[3].attention.project, layers[3].mlp[3]):
        assert isinstance(last, nn.Linear) and last.weight.std().item() == pytest.approx(0.02 / 4, rel=0.02)
    assert layers[3].attention.qkv.weight.std().item() == pytest.approx(0.02, rel=0.02)


def test_a_residual_mlp_block_is_its_equation() -> None:
    torch.manual_seed(0)
    block, x = ResidualMLP(6, expansion=2), torch.randn(3, 6)
    normed = (x - x.mean(1, keepdim=True)) / (x.var(1, unbiased=False, keepdim=True) + 1e-5).sqrt()
    expected = x + (normed @ block.up.weight.T + block.up.bias).relu() @ block.down.weight.T + block.down.bias
    torch.testing.assert_close(block(x), expected)  # LayerNorm is fused


def test_resmlp_has_equal_blocks() -> None:
    units = list(build("resmlp", (3, 32, 32), 10, depth=5, width=32).chain().values())
    assert [count(unit) for unit in units[1:-1]] == [2 * 32 + 2 * (32 + 1) * 32] * 4
    assert count(units[0]) == count(units[1]) + (3072 + 1) * 32


def test_a_resnet_starts_as_its_shortcuts_unless_told_otherwise() -> None:
    x = images(8, 4, 4).relu()
    for zero, same in ((True, True), (False, False)):
        model = build("resnet18", (3, 32, 32), 7, width=8, zero_init_residual=zero)
        assert torch.equal(model.chain()["layer1_1"](x), x) is same


def test_option_a_subsamples_and_pads_with_zero_channels() -> None:
    x = torch.arange(9.0).view(1, 1, 3, 3)
    corners = torch.tensor([[0.0, 2.0], [6.0, 8.0]])
    zeros = torch.zeros(2, 2)
    assert torch.equal(PadShortcut(2, stride=2)(x), torch.stack([zeros, corners, zeros])[None])


def test_resnet50_strides_in_its_3x3_convolution() -> None:
    unit = build("resnet50", (3, 32, 32), 7, width=8).chain()["layer2_0"]
    assert isinstance(unit, Residual)
    convs = [part for part in unit.branch if isinstance(part, nn.Conv2d)]
    assert [(conv.kernel_size[0], conv.stride[0], conv.out_channels) for conv in convs] == [
        (1, 1, 16), (3, 2, 16), (1, 1, 64)
    ]  # fmt: skip


@pytest.mark.parametrize(("side", "after_stem"), [(8, 8), (64, 64), (65, 17), (224, 56)])
def test_the_stem_of_a_resnet_follows_the_image(side: int, after_stem: int) -> None:
    model = build("resnet18", (3, side, side), 7, width=8)
    assert model[:1](images(3, side, side, batch=1)).shape == (1, 8, after_stem, after_stem)


def test_the_patch_follows_the_image_and_divides_it() -> None:
    sides = {8: 4, 28: 4, 32: 4, 64: 8, 96: 16, 224: 16, 30: 3, 14: 2, 7: 1, 1: 1}
    assert {side: patch_for(side, side) for side in sides} == sides
    assert patch_for(32, 24) == 4 and patch_for(32, 30) == 2


def test_a_token_is_a_linear_map_of_its_patch_plus_its_position() -> None:
    torch.manual_seed(0)
    embed, x = Embed(channels=2, width=5, patch=4, tokens=6, dropout=0.0), images(2, 8, 12)
    weight = embed.project.weight.flatten(1)
    for token, (row, column) in enumerate([(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)]):
        patch = x[:, :, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4].flatten(1)
        expected = patch @ weight.T + embed.get_parameter("project.bias") + embed.position[0, token]
        torch.testing.assert_close(embed(x)[:, token], expected)  # a convolution adds in another order


def test_attention_is_softmax_of_scaled_products_per_head() -> None:
    torch.manual_seed(0)
    attention, x = Attention(width=6, heads=2, dropout=0.0), torch.randn(2, 4, 6)
    q, k, v = attention.qkv(x).chunk(3, 2)
    heads = []
    for h in (slice(0, 3), slice(3, 6)):
        scores = q[..., h] @ k[..., h].transpose(1, 2) / 3**0.5
        heads.append(scores.softmax(2) @ v[..., h])
    expected = attention.project(torch.cat(heads, 2))
    torch.testing.assert_close(attention(x), expected)  # the kernel is fused
    with torch.autocast("cpu", torch.bfloat16):
        found = attention(x)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), expected, rtol=0, atol=0.02)  # five roundings to 8 bits, numbers below 1


def test_drop_path_drops_whole_samples_in_training_only_and_rises_with_depth() -> None:
    torch.manual_seed(0)
    drop, x = DropPath(0.75), torch.randn(64, 3, 2)
    y = drop(x)
    kept = y.flatten(1).any(1)
    assert 0 < kept.sum() < 64 and torch.equal(y, torch.where(kept[:, None, None], 4 * x, 0))
    assert torch.equal(drop.eval()(x), x)
    model = build("vit_tiny", (1, 8, 8), 7, depth=3, width=24, drop_path=0.2)
    assert [part.drop_path.rate for part in model.modules() if isinstance(part, Layer)] == [0.0, 0.1, 0.2]


def test_the_vit_classifier_normalises_then_averages_the_tokens() -> None:
    model = small("vit_tiny", (1, 8, 8))
    classifier = model.chain()["classifier"]
    norm, _, linear = classifier.children()
    tokens = torch.randn(2, 4, 24)
    assert torch.equal(classifier(tokens), linear(norm(tokens).mean(1)))


# --- building --------------------------------------------------------------------------------------------------------


def test_options_are_read_from_the_factory() -> None:
    assert options("mlp") == {"depth": 8, "width": 256, "activation": "relu"}
    assert options("simplecnn") == {}
    assert options("resnet20") == {"width": 16, "zero_init_residual": True}


def test_listing_the_models_does_not_load_torch() -> None:
    code = "import sys, sidestep.models as m; assert 'vit_tiny' in m.MODELS; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2]).returncode == 0


@pytest.mark.parametrize(
    ("name", "shape", "classes", "given", "message"),
    [
        ("resnet8", (1, 8, 8), 10, {}, "unknown model 'resnet8'; did you mean 'resnet18'"),
        ("mlp", (1, 8, 8), 10, {"dept": 3}, "unknown option 'dept' of model 'mlp'; it has: depth, width"),
        ("simplecnn", (1, 8, 8), 10, {"depth": 3}, "unknown option 'depth' of model 'simplecnn'; it has: none"),
        ("mlp", (1, 8, 8), 10, {"depth": 2.5}, "mlp.depth=2.5; expected a value of type int"),
        ("mlp", (1, 8, 8), 10, {"depth": True}, "mlp.depth=True; expected a value of type int"),
        ("mlp", (1, 8, 8), 10, {"activation": "sigmod"}, "unknown activation 'sigmod'; did you mean 'sigmoid'"),
        ("mlp", (1, 8, 8), 10, {"depth": 0}, "depth=0; expected an integer of at least 1"),
        ("resmlp", (1, 8, 8), 10, {"width": -1}, "width=-1; expected an integer of at least 1"),
        ("belief_cascade", (1, 8, 8), 10, {"modules": 0}, "modules=0; expected an integer of at least 1"),
        ("vit_tiny", (1, 8, 8), 10, {"heads": 5}, "width=192 does not divide into heads=5"),
        ("vit_tiny", (1, 28, 28), 10, {"patch": 16}, "patch=16 does not divide an image of 28x28"),
        ("vit_tiny", (1, 8, 8), 10, {"dropout": 1}, r"dropout=1; expected a number in \[0, 1\)"),
        ("mlp", (1, 8, 0), 10, {}, r"input shape \(1, 8, 0\); expected \(channels, height, width\)"),
        ("mlp", (1, 8, 8), 0, {}, "num_classes=0; expected at least 1"),
        (
            "mlp",
            (20,),
            10,
            {},
            r"input shape \(20,\); expected .* for mlp, .*; tokens are for gpt and encoder",
        ),
        ("gpt", (1, 8, 8), 10, {}, r"input shape \(1, 8, 8\); expected \(tokens,\) for gpt, each at least 1"),
        ("gpt", (8,), 10, {"heads": 3}, "width=128 does not divide into heads=3"),
    ],
)
def test_what_a_model_does_not_know_is_refused(
    name: str, shape: tuple[int, ...], classes: int, given: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        build(name, shape, classes, **given)


def test_the_cascade_of_the_published_log_has_a_batchnorm_after_each_convolution() -> None:
    kinds = [type(m).__name__ for m in build("belief_cascade", (3, 32, 32), 10, norm=True).modules()]
    order = [kind for kind in kinds if kind in ("Conv2d", "BatchNorm2d", "ReLU")][:12]
    assert order == ["Conv2d", "BatchNorm2d", "ReLU"] * 4
    plain = [type(m).__name__ for m in build("belief_cascade", (3, 32, 32), 10).modules()]
    assert "BatchNorm2d" not in plain

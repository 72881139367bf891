from __future__ import annotations

import math
import random

import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor

from sidestep.data.augment import OPS, Augment, apply_ops, crop_flip, cutout, mixup, parse
from sidestep.errors import UsageError


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(n: int, channels: int = 3, height: int = 7, width: int = 9) -> Tensor:
    return torch.randint(0, 256, (n, channels, height, width), dtype=torch.uint8, generator=seeded(99))


def ops(x: Tensor, name: str, strength: float) -> Tensor:
    return apply_ops(x, torch.full((len(x),), OPS.index(name)), torch.full((len(x),), strength))


@pytest.mark.parametrize(("padding", "flip"), [(0, True), (2, False), (3, True)])
def test_crop_and_flip_equal_a_loop_over_samples_with_the_same_draws(padding, flip):
    x, draws = images(20), seeded()
    n, channels, height, width = x.shape
    got = crop_flip(x, padding, flip, seeded())
    corner = torch.randint(2 * padding + 1, (2, n, 1), generator=draws)
    flipped = torch.rand((n, 1), generator=draws) < 0.5
    for i in range(n):
        padded = torch.zeros(channels, height + 2 * padding, width + 2 * padding, dtype=torch.uint8)
        padded[:, padding : padding + height, padding : padding + width] = x[i]
        top, left = int(corner[0, i]), int(corner[1, i])
        want = padded[:, top : top + height, left : left + width]
        assert torch.equal(got[i], want.flip(2) if flip and flipped[i] else want)


def test_flip_turns_about_half_of_the_images_and_crop_reaches_every_corner():
    x = torch.arange(1, 10, dtype=torch.uint8).view(1, 1, 3, 3).expand(2000, 1, 3, 3)
    flipped = (crop_flip(x, 0, True, seeded())[:, 0, 0] == torch.tensor([3, 2, 1])).all(1).sum()
    assert 888 < int(flipped) < 1112  # five standard deviations
    centres = crop_flip(x, 1, False, seeded())[:, 0, 1, 1]
    assert sorted(centres.unique().tolist()) == list(range(1, 10))


@pytest.mark.parametrize("side", [1, 3, 4])
def test_cutout_blackens_the_part_inside_of_a_square_around_a_pixel_of_the_same_draws(side):
    x, draws = images(20).float() / 255 + 1, seeded()
    got = cutout(x, side, seeded())
    rows, columns = (torch.randint(size, (20, 1), generator=draws) for size in x.shape[2:])
    for i in range(20):
        want = x[i].clone()
        for row in range(int(rows[i]) - side // 2, int(rows[i]) - side // 2 + side):
            for column in range(int(columns[i]) - side // 2, int(columns[i]) - side // 2 + side):
                if 0 <= row < x.shape[2] and 0 <= column < x.shape[3]:
                    want[:, row, column] = 0
        assert torch.equal(got[i], want)


def test_mixup_is_the_naive_mixture_of_images_and_of_targets():
    x, y = images(16).float() / 255, torch.arange(16) % 5
    mixed, target = mixup(x, y, 0.4, seeded(7), 5)
    weight = random.Random(7).betavariate(0.4, 0.4)
    partner = torch.randperm(16, generator=seeded(7))
    for i, j in enumerate(partner.tolist()):
        want = torch.zeros(5)
        want[y[i]] += weight
        want[y[j]] += 1 - weight
        assert torch.equal(target[i], want)
        assert torch.equal(mixed[i], x[i] * weight + x[j] * (1 - weight))
    # A weight and one minus it, each rounded to float32.
    torch.testing.assert_close(target.sum(1), torch.ones(16), rtol=0, atol=1.2e-7)


def test_mixups_weights_follow_beta():
    x, y = torch.eye(2), torch.tensor([0, 1])
    weights = torch.cat([mixup(x, y, 0.5, seeded(seed), 2)[1].max(1).values[:1] for seed in range(1000)])
    # max(w, 1 - w) of Beta(1/2, 1/2), the arcsine law, has mean 1/2 + 1/pi and variance 1/8 - 1/pi^2; where the
    # partner is the sample itself, half of the time, it is 1.
    mean = (0.5 + 1 / math.pi + 1) / 2
    assert abs(float(weights.mean()) - mean) < 5 * 0.18 / math.sqrt(1000)


def test_every_pointwise_operation_is_pillows_up_to_its_rounding_to_8_bits():
    x = images(4)
    for i, strength in enumerate((-0.8, -0.3, 0.3, 0.9)):
        picture = Image.fromarray(x[i].permute(1, 2, 0).numpy())
        enhance = {
            "brightness": ImageEnhance.Brightness,
            "contrast": ImageEnhance.Contrast,
            "colour": ImageEnhance.Color,
        }
        want = {name: (kind(picture).enhance(1 + 0.9 * strength), 2.0) for name, kind in enhance.items()}
        want["solarize"] = (ImageOps.solarize(picture, math.ceil(255 * (1 - abs(strength)))), 1e-4)
        want["posterize"] = (ImageOps.posterize(picture, 8 - round(4 * abs(strength))), 1e-4)
        for name, (expected, levels) in want.items():
            pixels = torch.tensor(list(expected.tobytes())).view(7, 9, 3).permute(2, 0, 1)
            got = ops(x[i : i + 1].float() / 255, name, strength)[0] * 255
            assert (got - pixels).abs().max() <= levels, name


@pytest.mark.parametrize("name", ["rotate", "shear_x", "shear_y"])
@pytest.mark.parametrize("strength", [-0.83, 0.47])
def test_rotation_and_shear_equal_a_loop_over_pixels(name, strength):
    x = images(1).float() / 255
    height, width = x.shape[2:]
    angle = math.radians(30) * strength
    matrix = {
        "rotate": (math.cos(angle), -math.sin(angle), math.sin(angle), math.cos(angle)),
        "shear_x": (1, 0.3 * strength, 0, 1),
        "shear_y": (1, 0, 0.3 * strength, 1),
    }[name]
    want = torch.zeros_like(x)
    for row in range(height):
        for column in range(width):
            across, down = column - (width - 1) / 2, row - (height - 1) / 2
            source_column = round(matrix[0] * across + matrix[1] * down + (width - 1) / 2)
            source_row = round(matrix[2] * across + matrix[3] * down + (height - 1) / 2)
            if 0 <= source_row < height and 0 <= source_column < width:
                want[0, :, row, column] = x[0, :, source_row, source_column]
    assert torch.equal(ops(x, name, strength), want)


def test_translation_moves_by_whole_pixels_and_fills_with_black():
    x = images(2, width=11).float() / 255
    moved = ops(x, "translate_x", 0.6)  # 150 / 331 * 11 * 0.6 = 2.99
    assert torch.equal(moved[..., :8], x[..., 3:])
    assert not moved[..., 8:].any()
    moved = ops(x, "translate_y", -0.3)  # 150 / 331 * 7 * -0.3 = -0.95
    assert torch.equal(moved[:, :, 1:], x[:, :, :-1])
    assert not moved[:, :, 0].any()


def test_each_image_gets_its_own_operation_and_the_identity_changes_no_bit():
    x = images(len(OPS)).float() / 255
    strength = torch.linspace(0.2, 0.9, len(OPS))
    together = apply_ops(x, torch.arange(len(OPS)), strength)
    assert torch.equal(together[0], x[0])
    for i, name in enumerate(OPS):
        alone = ops(x[i : i + 1], name, float(strength[i]))[0]
        # Means over pixels may be summed in another order in a larger batch.
        torch.testing.assert_close(together[i], alone, rtol=0, atol=1e-6)
        assert name == "identity" or not torch.equal(alone, x[i])


def test_grey_images_pass_every_operation_and_colour_leaves_them_as_they_are():
    x = images(3, channels=1).float() / 255
    # Blending a value with itself may lose its last bit.
    torch.testing.assert_close(ops(x, "colour", 0.7), x, rtol=0, atol=1.2e-7)
    assert torch.equal(ops(x, "solarize", 1.0), 1 - x)


def test_the_parts_of_an_augmentation_run_in_the_documented_order_from_one_generator():
    x, y = images(12), torch.arange(12) % 3
    augment = Augment(crop=2, flip=True, randaugment=2, magnitude=12, cutout=3, mixup=0.5)
    got = augment(x, y, seeded(4), 3)
    draws = seeded(4)
    by_hand = crop_flip(x, 2, True, draws).float() / 255
    for _ in range(2):
        op = torch.randint(len(OPS), (12,), generator=draws)
        by_hand = apply_ops(by_hand, op, (torch.randint(2, (12,), generator=draws) * 2 - 1) * 0.4)
    want = mixup(cutout(by_hand, 3, draws), y, 0.5, draws, 3)
    assert all(map(torch.equal, got, want))


def test_no_augmentation_scales_images_to_0_1_and_leaves_labels():
    x, y = images(3), torch.tensor([2, 0, 1])
    got, labels = Augment()(x, y, seeded(), 3)
    assert torch.equal(got, x.float() / 255)
    assert torch.equal(labels, y)


def test_samples_that_are_no_images_admit_mixup_only():
    x, y = torch.randn(4, 3), torch.tensor([0, 1, 0, 1])
    assert torch.equal(parse("mixup")(x, y, seeded(), 2)[0], mixup(x, y, 0.2, seeded(), 2)[0])
    for word in ("crop", "flip", "cutout", "randaugment"):
        with pytest.raises(UsageError, match="uint8 images"):
            parse(word)(x, y, seeded(), 2)


def test_words_are_parsed_with_their_usual_numbers_or_the_given_ones():
    assert parse("none") == Augment()
    assert parse("crop,flip,cutout,randaugment,mixup") == Augment(4, True, 2, 9, 8, 0.2)
    assert parse("crop:2, cutout:3,randaugment:1,magnitude:30,mixup:1") == Augment(2, False, 1, 30, 3, 1.0)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("crop,flap", "unknown augmentation 'flap'; did you mean 'flip'?"),
        ("", "unknown augmentation ''"),
        ("crop:many", "'crop:many'; expected for example 'crop:4'"),
        ("flip:2", "'flip:2'; expected for example 'flip'"),
        ("crop:-1", "crop:-1"),
        ("mixup:inf", "mixup:inf"),
        ("mixup:nan", "mixup:nan"),
        ("magnitude:31", "magnitude:31"),
    ],
)
def test_an_unknown_word_or_a_bad_number_is_refused(text, says):
    with pytest.raises(UsageError) as error:
        parse(text)
    assert says in str(error.value)

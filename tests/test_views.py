"""Random crops and RandAugment: their bounds, their randomness, and torchvision's operations."""

import dataclasses
import io
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from tests.pictures import encode, make_pixels
from tests.torch_or_none import import_torchvision, torch
from train.config.fields import DataFields
from train.data.decode import Box, Picture
from train.data.views import FILL, OPERATIONS, rand_augment, random_box, train_view

FIELDS = DataFields(image_size=32)


@pytest.mark.torch
@pytest.mark.parametrize(("height", "width"), [(375, 500), (500, 333), (60, 61), (300, 2400)])
@pytest.mark.parametrize("min_area", [0.08, 0.35])
def test_a_crop_lies_in_the_image_and_is_distributed_as_torchvisions(height, width, min_area):
    boxes = draw_boxes(height, width, min_area)
    assert (boxes[:, :2] >= 0).all()
    assert (boxes[:, :2] + boxes[:, 2:] <= (height, width)).all()
    ratios, areas = boxes[:, 3] / boxes[:, 2], boxes[:, 2] * boxes[:, 3] / (height * width)
    assert ratios.min() > 3 / 4 * 0.97  # of whole pixels
    assert ratios.max() < 4 / 3 * 1.03
    middle = min(height, width) * min(round(4 / 3 * min(height, width)), max(height, width))
    assert areas.min() > min(min_area, middle / (height * width)) * 0.97
    theirs = draw_torchvision_boxes(height, width, min_area)
    np.testing.assert_allclose(boxes.mean(0), theirs.mean(0), atol=0.02 * max(height, width))
    np.testing.assert_allclose(boxes.std(0), theirs.std(0), atol=0.02 * max(height, width))


def draw_boxes(height: int, width: int, min_area: float) -> np.ndarray:
    generator = np.random.default_rng(0)
    return np.array([random_box(height, width, generator, min_area) for _ in range(4_000)])


def draw_torchvision_boxes(height: int, width: int, min_area: float) -> np.ndarray:
    import_torchvision()
    from torchvision.transforms import RandomResizedCrop

    image = torch.empty(3, height, width, device="meta")
    limits = [min_area, 1.0], [3 / 4, 4 / 3]
    return np.array([RandomResizedCrop.get_params(image, *limits) for _ in range(4_000)])


@pytest.mark.torch
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("form", ["JPEG", "PNG"])
def test_a_training_image_has_torchvisions_pixels(form, interpolation):
    """Of `RandomResizedCrop`, for the same box; enlarged, shrunk, and decoded in part."""
    functional = import_torchvision().transforms.functional
    mode = import_torchvision().transforms.InterpolationMode(interpolation)
    content = encode(make_pixels(3, 375, 500), form)
    whole = Image.open(io.BytesIO(content))
    generator = np.random.default_rng(0)
    boxes = [random_box(375, 500, generator, 0.08) for _ in range(12)]
    cases = [(box, (32, 64, 224)[number % 3]) for number, box in enumerate(boxes)]
    cases += [(Box(300, 400, 75, 100), 32), (Box(255, 377, 120, 123), 224)]  # the last corner
    cases += [(Box(0, 0, 112, 56), 224), (Box(100, 7, 201, 224), 224), (Box(50, 60, 1, 1), 64)]
    for box, size in cases:
        ours = Picture(content).cut(box, size, interpolation).astype(int)
        theirs = np.asarray(functional.resized_crop(whole, *box, [size, size], mode))
        difference = np.abs(ours - theirs)
        if form == "JPEG" and min(box.height, box.width) >= 4 * size:
            assert difference.mean() < 1
        elif interpolation == "bilinear" and max(box.height, box.width) <= size:
            assert difference.max() <= 1
            assert difference.mean() < 0.002
        else:
            assert difference.max() == 0
    box = Box(20, 30, 300, 350)
    area = Picture(content).cut(box, 64).astype(int)
    assert np.abs(area - Picture(content).cut(box, 64, interpolation)).max() > 1


def test_the_options_interpolation_is_that_of_the_training_view():
    content = encode(np.random.default_rng(0).integers(0, 256, (90, 120, 3), np.uint8), "PNG")
    views = {}
    for name in ("area", "bilinear", "bicubic"):
        fields = dataclasses.replace(FIELDS, train_interpolation=name)
        views[name] = train_view(content, np.random.default_rng(1), fields)
    assert len({view.tobytes() for view in views.values()}) == 3
    usual = train_view(content, np.random.default_rng(1), FIELDS)
    np.testing.assert_array_equal(usual, views["area"])
    sharpness = {name: cv2.Laplacian(view, cv2.CV_64F).var() for name, view in views.items()}
    assert sharpness["area"] > sharpness["bilinear"]


def test_an_image_that_no_crop_fits_shows_its_middle():
    box = random_box(10, 1000, np.random.default_rng(0), 0.5)
    assert box == (0, 493, 10, 13)
    assert random_box(1000, 10, np.random.default_rng(0), 0.5) == (493, 0, 13, 10)
    assert random_box(1, 1, np.random.default_rng(0), 0.08) == (0, 0, 1, 1)


def test_half_of_the_images_are_mirrored_and_none_where_that_is_off():
    left_dark = np.zeros((40, 40, 3), np.uint8)
    left_dark[:, 20:] = 200
    content = encode(left_dark, "PNG")

    def mirrored(flip: bool) -> int:
        fields = dataclasses.replace(FIELDS, flip=flip, min_crop_area=0.95)
        views = [train_view(content, np.random.default_rng(i), fields) for i in range(400)]
        return sum(int(view[:, 0].mean() > view[:, -1].mean()) for view in views)

    assert mirrored(False) == 0
    assert 160 < mirrored(True) < 240


@pytest.mark.torch
@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_is_torchvisions(name):
    import_torchvision()
    from torchvision.transforms import InterpolationMode, RandAugment
    from torchvision.transforms.autoaugment import _apply_op

    picture: Any = Image.fromarray(make_pixels(height=224, width=224))
    magnitudes, has_sign = RandAugment()._augmentation_space(31, (224, 224))[name]
    for bin_, sign in [(0, 1), (9, 1), (9, -1), (17, 1), (30, 1), (30, -1)]:
        magnitude = float(magnitudes[bin_]) if magnitudes.ndim else 0.0
        if has_sign:
            magnitude *= sign
        theirs = _apply_op(picture, name, magnitude, InterpolationMode.BILINEAR, list(FILL))
        ours = OPERATIONS[name](picture, sign * bin_ / 30)
        difference = np.abs(np.asarray(ours).astype(int) - np.asarray(theirs))
        if name.startswith("Shear"):  # theirs goes through an angle and back
            assert difference.max() <= 1
        else:
            np.testing.assert_array_equal(difference, 0)


def test_the_magnitude_of_rand_augment_is_out_of_thirty(monkeypatch):
    seen = []

    def note(image: np.ndarray, generator: Any, count: int, strength: float) -> np.ndarray:
        seen.append((count, strength))
        return image

    monkeypatch.setattr("train.data.views.rand_augment", note)
    fields = dataclasses.replace(FIELDS, rand_augment=2, rand_augment_magnitude=9)
    train_view(encode(make_pixels(40, 40)), np.random.default_rng(0), fields)
    assert seen == [(2, pytest.approx(0.3))]


def test_a_crop_is_as_often_wide_as_high():
    """Its ratio is drawn evenly between 3:4 and 4:3 by its logarithm: 1 is the middle."""
    generator = np.random.default_rng(0)
    boxes = [random_box(1000, 1000, generator, 0.08) for _ in range(4000)]
    boxes = [box for box in boxes if box.height * box.width < 700_000]  # no wider one is refused
    wide = np.mean([box.width > box.height for box in boxes])
    assert abs(wide - 0.5) < 0.03, wide


def test_rand_augment_draws_every_operation_and_nothing_but_its_generator():
    image = make_pixels(height=32, width=32)
    drawn = [rand_augment(image, np.random.default_rng(i), 1, 0.5).tobytes() for i in range(300)]
    kinds = (
        len(OPERATIONS)
        + sum(  # two directions
            name[:5] in ("Shear", "Trans", "Rotat", "Brigh", "Color", "Contr", "Sharp")
            for name in OPERATIONS
        )
    )
    assert len(set(drawn)) == kinds - int(OPERATIONS["AutoContrast"] is None)
    again = rand_augment(image, np.random.default_rng(7), 1, 0.5)
    assert again.tobytes() == drawn[7]
    assert rand_augment(image, np.random.default_rng(0), 0, 1.0).tobytes() == image.tobytes()

"""What a network sees of an image: a random crop with RandAugment in training, else the centre."""

import math
from collections.abc import Callable

import cv2
import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from resnet_spec import PREPROCESSINGS
from train.config.fields import DataFields
from train.data.decode import Box, Picture

Operation = Callable[[Image.Image, float], Image.Image]
FILL = tuple(round(255 * mean) for mean in PREPROCESSINGS["imagenet"].mean)
_RATIOS = (3 / 4, 4 / 3)  # width to height of a random crop
_TRIES = 10


def train_view(data: bytes, generator: np.random.Generator, fields: DataFields) -> np.ndarray:
    """(image_size, image_size, 3) uint8, by the generator's draws; DamagedImageError if damaged."""
    picture = Picture(data)
    box = random_box(picture.height, picture.width, generator, fields.min_crop_area)
    image = picture.cut(box, fields.image_size, fields.train_interpolation)
    if fields.flip and generator.random() < 0.5:
        image = cv2.flip(image, 1)  # a flipped NumPy view is copied later, which is slow
    if fields.rand_augment:
        strength = fields.rand_augment_magnitude / 30
        image = rand_augment(image, generator, fields.rand_augment, strength)
    return image


def test_view(data: bytes, fields: DataFields) -> np.ndarray:
    """(image_size, image_size, 3) uint8, see `Preprocessing`; DamagedImageError if damaged."""
    shorter_side = int(fields.image_size / fields.crop_fraction)
    return Picture(data).middle(shorter_side, fields.image_size, fields.interpolation)


def random_box(height: int, width: int, generator: np.random.Generator, min_area: float) -> Box:
    """A box anywhere in an image, of `min_area` to all of its area, 3:4 to 4:3 wide.

    Szegedy et al. 2015, section 6 ("Going deeper with convolutions"). If ten draws do not fit into
    the image, it is the largest centred box of at most 4:3, as in torchvision's RandomResizedCrop.
    """
    for _ in range(_TRIES):
        area = height * width * generator.uniform(min_area, 1)
        ratio = math.exp(generator.uniform(math.log(_RATIOS[0]), math.log(_RATIOS[1])))
        box_height, box_width = round(math.sqrt(area / ratio)), round(math.sqrt(area * ratio))
        if 0 < box_height <= height and 0 < box_width <= width:
            top = int(generator.integers(height - box_height + 1))
            left = int(generator.integers(width - box_width + 1))
            return Box(top, left, box_height, box_width)
    box_height = min(height, round(width * _RATIOS[1]))
    box_width = min(width, round(height * _RATIOS[1]))
    return Box((height - box_height) // 2, (width - box_width) // 2, box_height, box_width)


def rand_augment(
    image: np.ndarray, generator: np.random.Generator, operations: int, strength: float
) -> np.ndarray:
    """RandAugment (Cubuk et al. 2020): random operations of one strength, from 0 to 1.

    (h, w, 3) uint8 to the same. Pillow has each operation, as in the paper's code. Only the choice
    among them is ours: no maintained library has it without torch (augmax and dm_pix lack half of
    the operations, albumentations is no longer developed). Names and strengths are those of
    torchvision's `RandAugment`, but uncovered pixels get ImageNet's mean colour, which is zero for
    the network, instead of black.
    """
    picture = Image.fromarray(image)
    names = tuple(OPERATIONS)
    for _ in range(operations):
        name = names[generator.integers(len(names))]
        sign = 1 if generator.random() < 0.5 else -1
        picture = OPERATIONS[name](picture, sign * strength)
    return np.asarray(picture)


def _affine(picture: Image.Image, *matrix: float) -> Image.Image:
    """Pixel (x, y) is taken from (a x + b y + c, d x + e y + f) of the picture."""
    transform, bilinear = Image.Transform.AFFINE, Image.Resampling.BILINEAR
    return picture.transform(picture.size, transform, matrix, resample=bilinear, fillcolor=FILL)


def _shift(length: int, strength: float) -> int:
    """Whole pixels, to the right or down."""
    return -int(length * 150 / 331 * strength)


def _rotate(picture: Image.Image, strength: float) -> Image.Image:
    return picture.rotate(30 * strength, Image.Resampling.BILINEAR, fillcolor=FILL)


def _enhance(kind: Callable[[Image.Image], ImageEnhance._Enhance]) -> Operation:
    return lambda picture, strength: kind(picture).enhance(1 + 0.9 * strength)


OPERATIONS: dict[str, Operation] = {
    "Identity": lambda picture, _: picture,
    "ShearX": lambda picture, strength: _affine(picture, 1, 0.3 * strength, 0, 0, 1, 0),
    "ShearY": lambda picture, strength: _affine(picture, 1, 0, 0, 0.3 * strength, 1, 0),
    "TranslateX": lambda picture, strength: _affine(
        picture, 1, 0, _shift(picture.width, strength), 0, 1, 0
    ),
    "TranslateY": lambda picture, strength: _affine(
        picture, 1, 0, 0, 0, 1, _shift(picture.height, strength)
    ),
    "Rotate": _rotate,
    "Brightness": _enhance(ImageEnhance.Brightness),
    "Color": _enhance(ImageEnhance.Color),
    "Contrast": _enhance(ImageEnhance.Contrast),
    "Sharpness": _enhance(ImageEnhance.Sharpness),
    "Posterize": lambda picture, strength: ImageOps.posterize(
        picture, 8 - round(4 * abs(strength))
    ),
    "Solarize": lambda picture, strength: ImageOps.solarize(
        picture, math.ceil(255 * (1 - abs(strength)))
    ),
    "AutoContrast": lambda picture, _: ImageOps.autocontrast(picture),
    "Equalize": lambda picture, _: ImageOps.equalize(picture),
}
"""By name: a function of a picture and a strength from -1 to 1, whose sign is a direction."""

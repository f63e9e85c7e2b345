"""RandAugment (Cubuk et al. 2020): operations drawn at random, all of one strength.

Pillow, in whose terms the paper's code is written, has each operation; the choice among them is
ours, as no library that is kept up has it without torch: augmax (last release May 2025) and dm_pix
lack half of the operations and act on the device, albumentations (May 2025) is no longer developed.
Names and strengths are those of torchvision's `RandAugment`; what a turn or a shift uncovers is
ImageNet's mean colour, zero for the network, in the place of black.
"""

import math
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from resnet_spec import PREPROCESSINGS

Operation = Callable[[Image.Image, float], Image.Image]
FILL = tuple(round(255 * mean) for mean in PREPROCESSINGS["imagenet"].mean)


def rand_augment(
    image: np.ndarray, generator: np.random.Generator, operations: int, strength: float
) -> np.ndarray:
    """(h, w, 3) uint8 to the same; so many operations, of a strength from 0 to 1."""
    picture = Image.fromarray(image)
    names = tuple(OPERATIONS)
    for _ in range(operations):
        name = names[generator.integers(len(names))]
        sign = 1 if generator.random() < 0.5 else -1
        picture = OPERATIONS[name](picture, sign * strength)
    return np.asarray(picture)


def _affine(picture: Image.Image, *matrix: float) -> Image.Image:
    """`matrix`: a pixel (x, y) is taken from (a x + b y + c, d x + e y + f) of the picture."""
    return picture.transform(
        picture.size,
        Image.Transform.AFFINE,
        matrix,
        resample=Image.Resampling.BILINEAR,
        fillcolor=FILL,
    )


def _shift(length: int, strength: float) -> int:
    """In whole pixels, to the right or down."""
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
"""By name: a picture and a strength from -1 to 1 to a picture; the sign is a direction."""

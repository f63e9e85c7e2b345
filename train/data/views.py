"""What a network sees of an image: a random crop of it in training, its middle in a test."""

import math

import cv2
import numpy as np

from train.config.fields import DataFields
from train.data.decode import Box, Picture
from train.data.rand_augment import rand_augment

_RATIOS = (3 / 4, 4 / 3)
_TRIES = 10


def train_view(data: bytes, generator: np.random.Generator, fields: DataFields) -> np.ndarray:
    """(image_size, image_size, 3) uint8, a function of the image and the generator's state.

    Raises:
        DamagedImageError: it is not an image, or not the whole of one.
    """
    picture = Picture(data)
    box = random_box(picture.height, picture.width, generator, fields.min_crop_area)
    image = picture.cut(box, fields.image_size)
    if fields.flip and generator.random() < 0.5:
        image = cv2.flip(image, 1)  # a view by NumPy would be copied by steps of -3 bytes: slow
    if fields.rand_augment:
        image = rand_augment(
            image, generator, fields.rand_augment, fields.rand_augment_magnitude / 30
        )
    return image


def test_view(data: bytes, fields: DataFields) -> np.ndarray:
    """(image_size, image_size, 3) uint8 as `resnet_spec.Preprocessing` describes it.

    Raises:
        DamagedImageError: it is not an image, or not the whole of one.
    """
    return Picture(data).middle(int(fields.image_size / fields.crop_fraction), fields.image_size)


def random_box(height: int, width: int, generator: np.random.Generator, min_area: float) -> Box:
    """A box of `min_area` to all of an image's area, 3:4 to 4:3 wide, anywhere in it.

    Szegedy et al. 2015, section 6 ("Going deeper with convolutions"). Where ten draws do not fit
    into the image, it is the largest box in its middle that is no longer than 4:3, as torchvision's
    RandomResizedCrop has it.
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

"""Decodes images of any format to RGB pixels, at no more resolution than is needed.

simplejpeg (libjpeg-turbo) decodes JPEGs. It says what is wrong with a file, and decodes to a half,
a quarter or an eighth of the size; the result differs from the mean of 2x2, 4x4 or 8x8 pixels by
half a grey level on average. OpenCV decodes all else. Both release Python's global lock.

Grey, CMYK and YCCK become RGB, 16 bits become 8, the alpha channel is dropped, and an animation
gives its first picture. EXIF's orientation is ignored, as by TensorFlow's `decode_jpeg` and
torchvision's `ImageFolder`: networks that were trained so must be tested so.
"""

import math
import re
from typing import NamedTuple

import cv2
import numpy as np
import simplejpeg
from PIL import Image

from resnet_spec.preprocessing import Interpolation
from train.config.fields import TrainInterpolation
from train.data import MOST_PIXELS

FACTORS = (8, 4, 2)
_SUPPORT = 4  # rows of the smaller picture that Lanczos reads above and below, and one for rounding
_FLAGS = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
# kind, width, height, maximum; comments may be between them
_NETPBM = re.compile(rb"P([2356])" + rb"(?:\s|#[^\n]*\n)+(\d{1,9})" * 3)
# Many images are decoded at once, each in a thread of its own: more threads gain nothing.
cv2.setNumThreads(1)
# The trainer reports what cannot be read.
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)


class DamagedImageError(ValueError):
    """Not a complete image."""


class Box(NamedTuple):
    """A rectangle of an image, in pixels."""

    top: int
    left: int
    height: int
    width: int


class Picture:
    """An encoded image; DamagedImageError here, or when pixels are needed, if it is damaged."""

    def __init__(self, data: bytes):
        self._data = data
        self._pixels: np.ndarray | None = None
        try:
            height, width, *_ = simplejpeg.decode_jpeg_header(data)
            self.height, self.width = int(height), int(width)
        except ValueError as error:  # not a JPEG, or an unusual one
            self._pixels = _decode(data, str(error))
            self.height, self.width = self._pixels.shape[:2]
        if self.height * self.width > MOST_PIXELS:
            raise DamagedImageError(f"{self.height} x {self.width} pixels are too many")

    def cut(self, box: Box, size: int, interpolation: TrainInterpolation = "area") -> np.ndarray:
        """A box resized to (size, size, 3).

        `area` takes the mean of the pixels under a new one, and decodes a JPEG to no less than an
        eighth and no less than `size`. The others are Pillow's: they equal torchvision's
        `RandomResizedCrop` of this box, bit for bit where the box is less than four times `size`;
        of a larger one a JPEG is decoded to no less than twice `size`. A box that `bilinear` only
        enlarges is OpenCV's, of which one value in 1,000 is one grey level from Pillow's.
        """
        least = size if interpolation == "area" else 2 * size
        pixels, factor = self._decoded(min(box.height, box.width), least)
        if interpolation != "area":
            return _cut_by_pillow(pixels, factor, box, size, interpolation)
        top, left, height, width = (edge // factor for edge in box)  # off by under 1 / size of it
        part = pixels[top : top + height, left : left + width]
        if min(height, width) < size:
            # bilinear looks at four pixels only, which is enough to enlarge
            return cv2.resize(part, (size, size), interpolation=cv2.INTER_LINEAR)
        # float32 gives the same bits as OpenCV's resizing of bytes, in two thirds of the time
        means = cv2.resize(part.astype(np.float32), (size, size), interpolation=cv2.INTER_AREA)
        return cv2.convertScaleAbs(means)

    def middle(
        self, shorter_side: int, size: int, interpolation: Interpolation = "bilinear"
    ) -> np.ndarray:
        """The centre square of the picture after its shorter side is resized to `shorter_side`.

        It equals torchvision's `Resize(shorter_side)` and `CenterCrop(size)` of a Pillow image, up
        to rounding; a JPEG at least four times as large is decoded to no less than twice the size.
        """
        shorter = min(self.height, self.width)
        pixels, factor = self._decoded(shorter, 2 * shorter_side)
        top, bottom = _middle(self.height, int(shorter_side * self.height / shorter), size)
        left, right = _middle(self.width, int(shorter_side * self.width / shorter), size)
        height, width = pixels.shape[:2]
        right, bottom = min(right / factor, width), min(bottom / factor, height)
        left, top = left / factor, top / factor
        # Pillow rounds between its two passes. It resizes a whole picture along its rows first, and
        # so is this part of it. (Pillow 13 begins with the columns where a picture more than twice
        # as high as wide shrinks. Pixels here do not depend on the release.)
        margin = _SUPPORT * max(1, math.ceil((bottom - top) / size))
        first, last = max(0, int(top) - margin), min(height, math.ceil(bottom) + margin)
        filter = Image.Resampling[interpolation.upper()]
        picture = Image.fromarray(pixels[first:last])
        rows = (left, 0, right, last - first)
        narrow = picture.resize((size, last - first), filter, rows)
        return np.asarray(
            narrow.resize((size, size), filter, (0, top - first, size, bottom - first))
        )

    def _decoded(self, length: int, least: int) -> tuple[np.ndarray, int]:
        """Pixels, and the factor of their reduction: `length` stays at least `least`."""
        if self._pixels is None:
            factor = next((factor for factor in FACTORS if length >= factor * least), 1)
            height, width = self.height // factor, self.width // factor
            try:
                return simplejpeg.decode_jpeg(
                    self._data, min_height=height, min_width=width, min_factor=factor
                ), factor
            except ValueError as error:
                # OpenCV refuses truncated files, and accepts what libjpeg only warns of, as Pillow
                # and TensorFlow do
                self._pixels = _decode(self._data, str(error))
        return self._pixels, 1


def _cut_by_pillow(
    pixels: np.ndarray, factor: int, box: Box, size: int, interpolation: TrainInterpolation
) -> np.ndarray:
    """A box of the whole picture, of which `pixels` are the reduced ones."""
    filter, (height, width) = Image.Resampling[interpolation.upper()], pixels.shape[:2]
    bottom, right = box.top + box.height, box.left + box.width
    if factor == 1:  # torchvision cuts first: no pixel beside the box counts
        # Pillow takes the box out of the bytes itself: it copies an array that is not whole twice.
        content = pixels.reshape(-1)[3 * (box.top * width + box.left) :]
        shape, layout = (box.width, box.height), ("raw", "RGB", 3 * width, 1)
        if interpolation == "bilinear" and max(shape) <= size:
            return _enlarge(
                pixels[box.top : box.top + box.height, box.left :][:, : box.width], size
            )
        part = Image.frombuffer("RGB", shape, content, *layout)
        return np.asarray(part.resize((size, size), filter))
    edges = min(right / factor, width), min(bottom / factor, height)
    edges = (box.left / factor, box.top / factor, *edges)
    return np.asarray(Image.fromarray(pixels).resize((size, size), filter, edges))


def _enlarge(pixels: np.ndarray, size: int) -> np.ndarray:
    """Pillow's bilinear interpolation in a third of its time, rounded as Pillow does, twice."""
    for shape in ((size, len(pixels)), (size, size)):  # along the rows, then the columns
        exact = cv2.resize(pixels.astype(np.float32), shape, interpolation=cv2.INTER_LINEAR)
        pixels = cv2.convertScaleAbs(exact, beta=1e-3)  # halves are rounded upwards
    return pixels


def _middle(length: int, resized: int, size: int) -> tuple[float, float]:
    """Where the `size` centre pixels of the resized length begin and end before resizing."""
    start = round((resized - size) / 2)
    return start * length / resized, (start + size) * length / resized


def _decode(data: bytes, reason: str) -> np.ndarray:
    if not data:
        raise DamagedImageError("it is empty")
    try:
        scale = _netpbm_scale(data)
        flags = _FLAGS if scale == 1 else _FLAGS | cv2.IMREAD_ANYDEPTH
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error as error:
        if error.func == "validateInputImageSize":
            reason = "it has too many pixels, or its height or width is damaged"
            raise DamagedImageError(reason) from error
        raise DamagedImageError(str(error.err or error)) from error
    if pixels is None:
        is_jpeg = data.startswith(b"\xff\xd8")
        raise DamagedImageError(reason if is_jpeg else "not an image, or a truncated one")
    return pixels if scale == 1 else cv2.convertScaleAbs(pixels, alpha=scale)


def _netpbm_scale(data: bytes) -> float:
    """The factor from a PGM's or PPM's maximum to 255, if OpenCV does not apply it."""
    if not (header := _NETPBM.match(data)):
        return 1
    is_text, maximum = header[1] in b"23", int(header[4])
    is_scaled = maximum in (0, 255, 65535) or (is_text and maximum < 255)
    return 1 if is_scaled else 255 / maximum

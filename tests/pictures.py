"""Image files of every kind that the tests read, made here, and ways to damage them."""

import io
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import simplejpeg
from PIL import Image


def make_pixels(seed: int = 0, height: int = 90, width: int = 120) -> np.ndarray:
    """(h, w, 3) uint8: smooth, so that JPEG keeps it to a grey level or two."""
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    smooth = cv2.GaussianBlur(noise, (0, 0), 9)
    low, high = smooth.min(), smooth.max()
    return ((smooth - low) * (200.0 / (high - low)) + 20).astype(np.uint8)


def encode(image: Any, form: str = "JPEG", **options: Any) -> bytes:
    """An array or a Pillow image as a file's content."""
    picture = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    content = io.BytesIO()
    if form in ("JPEG", "WEBP"):
        options.setdefault("quality", 95)
    if form == "JPEG":
        options.setdefault("subsampling", 0)
    picture.save(content, form, **options)
    return content.getvalue()


def kinds(pixels: np.ndarray) -> dict[str, bytes]:
    """The same picture in every form that a data set may hold."""
    picture = Image.fromarray(pixels)
    turned = Image.Exif()
    turned[0x112] = 6  # orientation: to be shown turned by 90 degrees
    inverted = np.ascontiguousarray(255 - np.asarray(picture.convert("CMYK")))
    with_alpha = picture.copy()
    with_alpha.putalpha(128)
    palette, others = picture.quantize(256), [picture.rotate(180)]
    return {
        "jpeg": encode(picture),
        "progressive jpeg": encode(picture, progressive=True),
        "4:2:0 jpeg": encode(picture, subsampling=2),
        "turned jpeg": encode(picture, exif=turned),
        "CMYK jpeg": encode(picture.convert("CMYK")),
        "YCCK jpeg": simplejpeg.encode_jpeg(
            inverted, quality=95, colorspace="CMYK", colorsubsampling="444"
        ),
        "jpeg with extraneous bytes": _with_extraneous_bytes(encode(picture)),
        "png": encode(picture, "PNG"),
        "palette png": encode(palette, "PNG"),
        "transparent palette png": encode(palette, "PNG", transparency=bytes(range(256))),
        "alpha png": encode(with_alpha, "PNG"),
        "16-bit png": _png16(pixels),
        "webp": encode(picture, "WEBP"),
        "animated webp": encode(picture, "WEBP", save_all=True, append_images=others),
        "animated gif": encode(palette, "GIF", save_all=True, append_images=[others[0].quantize()]),
        "bmp": encode(picture, "BMP"),
        "tiff": encode(picture, "TIFF"),
        "ppm": encode(picture, "PPM"),
        "avif": encode(picture, "AVIF", quality=95),
    }


def grey_kinds(pixels: np.ndarray) -> dict[str, bytes]:
    """The same picture without its colours; (h, w, 3) in Pillow's weights of them."""
    grey = Image.fromarray(pixels).convert("L")
    return {
        "grey jpeg": encode(grey),
        "grey png": encode(grey, "PNG"),
        "grey png with alpha": encode(grey.convert("LA"), "PNG"),
        "16-bit grey png": _png16(np.asarray(grey)),
    }


def damaged(content: bytes) -> dict[str, bytes]:
    """What is left of a file after an accident."""
    return {
        "empty": b"",
        "zeros": bytes(len(content)),
        "text": b"404 Not Found\n" * 20,
        "a tenth": content[: len(content) // 10],
        "a half": content[: len(content) // 2],
        "all but 2 bytes": content[:-2],
        "the end": content[len(content) // 2 :],
    }


def make_folder(root: Path, splits: dict[str, dict[str, int]], size: int = 40) -> Path:
    """root/split/class/number.png, each image of one colour that no other has."""
    number = 0
    for split, classes in splits.items():
        for name, count in classes.items():
            (root / split / name).mkdir(parents=True)
            for place in range(count):
                number += 1
                pixels = np.full((size, size + 8, 3), (number % 256, number // 256, 77), np.uint8)
                (root / split / name / f"{place:03d}.png").write_bytes(encode(pixels, "PNG"))
    return root


def _png16(pixels: np.ndarray) -> bytes:
    channels_of_opencv = pixels[..., ::-1] if pixels.ndim == 3 else pixels
    return cv2.imencode(".png", channels_of_opencv.astype(np.uint16) * 257)[1].tobytes()


def _with_extraneous_bytes(jpeg: bytes) -> bytes:
    """A restart marker's worth of nonsense before the end, which decoders only warn of."""
    return jpeg[:-2] + bytes(range(1, 60)) + jpeg[-2:]

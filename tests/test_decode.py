"""Files of every kind become the same RGB pixels; damaged ones say what is wrong."""

import io
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from tests.pictures import damaged, encode, grey_kinds, kinds, make_pixels
from tests.torch_or_none import import_torchvision
from train.data.decode import FACTORS, Box, DamagedImageError, Picture

PIXELS = make_pixels()
KINDS, GREY_KINDS = kinds(PIXELS), grey_kinds(PIXELS)


def pixels_of(content: bytes) -> np.ndarray:
    return Picture(content).cut(Box(0, 0, 90, 90), 90)  # nothing is resized


@pytest.mark.parametrize("kind", KINDS)
def test_any_kind_becomes_rgb(kind):
    picture = Picture(KINDS[kind])
    assert (picture.height, picture.width) == (90, 120)  # a turned one, too, is as it is stored
    difference = np.abs(pixels_of(KINDS[kind]).astype(int) - PIXELS[:, :90])
    lossless = "png" in kind or kind in ("bmp", "tiff", "ppm")
    assert difference.mean() < (0.6 if lossless and "palette" not in kind else 4)


@pytest.mark.parametrize("kind", GREY_KINDS)
def test_grey_becomes_rgb(kind):
    grey = np.asarray(Image.fromarray(PIXELS).convert("L"))[:, :90, None]
    assert np.abs(pixels_of(GREY_KINDS[kind]).astype(int) - grey).mean() < 2


@pytest.mark.parametrize("maximum", [1, 100, 255, 1000, 4095, 65535])
@pytest.mark.parametrize("kind", ["P2", "P3", "P5", "P6"])
def test_the_maximum_of_a_netpbm_file_is_white(kind, maximum):
    channels = 3 if kind in ("P3", "P6") else 1
    values = np.random.default_rng(maximum).integers(0, maximum + 1, (90, 120, channels))
    header = f"{kind}\n# 255 255\n120 90 # 255\n{maximum}\n".encode()
    if kind in ("P2", "P3"):
        content = header + "\n".join(map(str, [*values.ravel(), ""])).encode()
    else:
        content = header + values.astype(">u2" if maximum > 255 else np.uint8).tobytes()
    assert np.abs(pixels_of(content) - values[:, :90] * (255 / maximum)).max() <= 1


@pytest.mark.parametrize("kind", ["jpeg", "progressive jpeg", "CMYK jpeg", "png", "webp", "bmp"])
def test_a_damaged_file_says_what_is_wrong(kind):
    for accident, content in damaged(KINDS[kind]).items():
        with pytest.raises(DamagedImageError) as caught:
            pixels_of(content)
        assert str(caught.value), accident
    with pytest.raises(DamagedImageError, match="empty"):
        Picture(b"")
    with pytest.raises(DamagedImageError, match="Premature end"):
        pixels_of(KINDS["jpeg"][:-2])


def test_a_header_that_promises_too_much_is_not_believed():
    content = bytearray(encode(PIXELS))
    size = (90).to_bytes(2, "big") + (120).to_bytes(2, "big")
    place = content.index(size)
    content[place : place + 4] = b"\xff\x00\xff\x00"
    with pytest.raises(DamagedImageError, match="65280 x 65280"):
        Picture(bytes(content))


_READS = """
import resource, sys
from train.data.decode import DamagedImageError, Picture
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for path in sys.argv[1:]:
    try:
        Picture(open(path, "rb").read())
    except DamagedImageError as error:
        print(error)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_a_bomb_is_refused_before_it_fills_the_memory(tmp_path):
    bombs = {
        "flat.png": encode(Image.new("1", (30_000, 30_000)), "PNG"),
        "short.pgm": b"P5 30000 30000 255\n" + bytes(100),
        "wide.ppm": b"P6 2000000 1 255\n" + bytes(100),
    }
    for name, content in bombs.items():
        (tmp_path / name).write_bytes(content)
    command = [sys.executable, "-c", _READS, *(tmp_path / name for name in bombs)]
    *said, kilobytes = subprocess.check_output(command, text=True).splitlines()
    assert [line.partition(",")[0] for line in said] == ["it has too many pixels"] * 3
    assert int(kilobytes) < 500_000  # 900 million pixels are 2.7 GB, and as much to make them


@pytest.mark.parametrize("factor", FACTORS)
@pytest.mark.parametrize("form", ["JPEG", "PNG"])
def test_a_reduced_image_is_the_mean_of_the_pixels_it_stands_for(factor, form):
    pixels = make_pixels(height=211, width=333)
    size = 211 // factor - 1
    box = Box(factor, 3 * factor, size * factor, size * factor)
    reduced = Picture(encode(pixels, form)).cut(box, size).astype(float)
    part = pixels[factor : factor + size * factor, 3 * factor : (3 + size) * factor]
    mean = part.reshape(size, factor, size, factor, 3).mean((1, 3))
    assert np.abs(reduced - mean).mean() < 1
    assert abs((reduced - mean).mean()) < 0.4


def test_no_jpeg_is_decoded_to_less_than_is_needed_or_to_much_more(monkeypatch):
    seen = []
    decode = simplejpeg.decode_jpeg

    def record(data: bytes, *, min_factor: int, **least: Any) -> np.ndarray:
        pixels = decode(data, min_factor=min_factor, **least)
        assert pixels.shape[:2] == (-(-400 // min_factor), -(-600 // min_factor))
        seen.append(min_factor)
        return pixels

    monkeypatch.setattr(simplejpeg, "decode_jpeg", record)
    picture = Picture(encode(make_pixels(height=400, width=600)))
    for height, width in [(400, 600), (399, 401), (224, 100), (100, 300), (31, 31), (8, 9), (1, 1)]:
        for size in (7, 25, 31, 50, 100, 224):
            assert picture.cut(Box(0, 0, height, width), size).shape == (size, size, 3)
            least = min(height, width)
            assert seen[-1] == 1 or least // seen[-1] >= size
            assert seen[-1] == 8 or least < 2 * seen[-1] * size
    assert set(seen) == {1, 2, 4, 8}


@pytest.mark.torch
@pytest.mark.parametrize(
    ("height", "width"), [(90, 120), (375, 500), (333, 250), (300, 300), (230, 1000), (70, 60)]
)
@pytest.mark.parametrize(("shorter_side", "size"), [(256, 224), (64, 64), (73, 70)])
@pytest.mark.parametrize("form", ["JPEG", "PNG"])
def test_the_middle_is_torchvisions(form, height, width, shorter_side, size):
    content = encode(make_pixels(height=height, width=width), form)
    ours = Picture(content).middle(shorter_side, size).astype(int)
    import_torchvision()
    from torchvision import transforms

    whole = Image.open(io.BytesIO(content))
    theirs = transforms.CenterCrop(size)(transforms.Resize(shorter_side)(whole))
    difference = np.abs(ours - np.asarray(theirs))
    if form == "JPEG" and min(height, width) >= 4 * shorter_side:  # decoded in part
        assert difference.mean() < 1
    else:
        assert difference.max() <= 2  # of roundings in either direction
        assert difference.mean() < 0.3


def test_a_line_of_pixels_is_an_image_too():
    for shape in ((1, 20_000), (20_000, 1), (1, 1)):
        content = encode(np.full((*shape, 3), 99, np.uint8), "PNG")
        np.testing.assert_array_equal(Picture(content).middle(256, 224), 99)
        np.testing.assert_array_equal(Picture(content).cut(Box(0, 0, *shape), 224), 99)

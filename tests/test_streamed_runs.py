"""Runs on images that are decoded as they are needed: resumed, and over two processes."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.commands import run
from tests.run_folders import largest_difference, metrics
from tests.test_processes import in_two
from tests.test_run import train

SHORT = (
    *("imagenet", "--data", "folder:images", "--image-size", "16", "--global-batch-size", "16"),
    *("--model", "WideResNet16-1-0.0", "--log-every-steps", "1", "--max-steps", "5"),
    *("--warmup-epochs", "1", "--warmup-learning-rate", "0.01", "--precision", "f64"),
)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """40 images to train and 11 to test on, one of each damaged, in the folder `images`."""
    generator = np.random.default_rng(0)
    for split, count in (("train", 20), ("test", 5)):
        for name in ("a", "b"):
            folder = tmp_path / "images" / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = generator.integers(0, 256, (24, 30, 3), np.uint8)
                Image.fromarray(pixels).save(folder / f"{number:02}.jpg")
        (folder / "00.jpg").write_bytes(b"no image")
    pixels = generator.integers(0, 256, (24, 30, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "images" / "test" / "b" / "more.png")
    return tmp_path


@pytest.mark.slow
def test_a_resumed_run_on_streamed_images_is_the_uninterrupted_one_bit_for_bit(images):
    train(images, *SHORT, "--run-dir", "whole", devices=2)
    train(images, *SHORT, "--max-steps", "2", "--run-dir", "a", devices=2)
    output = train(images, "--resume", "--run-dir", "a", "--max-steps", "5", devices=2)
    assert "resumed at 2" in output
    lines = [line for line in metrics(images / "a") if line["step"] != 2 or line["kind"] == "train"]
    assert lines == metrics(images / "whole")
    assert largest_difference(images / "a", images / "whole") == 0
    result = json.loads((images / "a" / "result.json").read_text())
    assert result["images"] == 10  # of 11, one is damaged
    assert [Path(name).name for name in result["skipped_images"]].count("00.jpg") >= 1
    assert "left out" in output


@pytest.mark.slow
def test_a_damaged_image_whose_name_is_not_utf8_is_left_out_like_another(images):
    name = os.path.join(os.fsencode(images), b"images", b"train", b"b", b"\xe9.png")
    Path(os.fsdecode(name)).write_bytes(b"no image")
    result = run(*("train", *SHORT, "--run-dir", "a"), cwd=images, PYTHONIOENCODING="utf-8:strict")
    assert result.returncode == 0, result.stderr
    assert r"left out train/b/\udce9.png" in result.stdout
    skipped = json.loads((images / "a" / "result.json").read_text())["skipped_images"]
    assert os.fsdecode(b"train/b/\xe9.png") in skipped


@pytest.mark.slow
def test_two_processes_stream_the_same_images_as_one(images):
    train(images, *SHORT, "--run-dir", "one", devices=8)
    for parallel in ("pmap", "jit"):
        both = in_two(images, *SHORT, "--run-dir", parallel, "--parallel", parallel)
        assert [code for code, _, _ in both] == [0, 0], both
        assert largest_difference(images / parallel, images / "one") < 1e-9
    counted = [
        json.loads((images / name / "result.json").read_text())["images"]
        for name in ("one", "pmap", "jit")
    ]
    assert counted == [10, 10, 10]


@pytest.mark.slow
def test_a_profile_is_of_steps_ten_to_twenty(tmp_path):
    arguments = ("digits", "--model", "WideResNet16-1-0.0", "--max-steps", "22", "--profile")
    train(tmp_path, *arguments, "--run-dir", "a")
    assert list((tmp_path / "a" / "profile").rglob("*.xplane.pb"))

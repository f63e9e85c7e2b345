"""Exported folders in timm and transformers: the same pixels and errors, as a command says."""

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from convert.folders import write_folder
from convert.layouts import LAYOUTS
from convert.weights import Weights
from tests import pixels_table
from tests.commands import assert_refused, run_here
from tests.model_folders import PREPROCESSING, change, weights_of
from tests.pictures import encode, make_pixels

# Shorter sides of 67 and more, rests of every kind, one picture that is enlarged.
SHAPES = ((90, 134), (135, 67), (101, 77), (76, 99), (60, 50), (88, 121))


@pytest.fixture(scope="module")
def weights() -> Weights:
    found, _ = weights_of("ResNet18")
    two = ("class0", "class1", "class2")
    return dataclasses.replace(
        found, preprocessing=dataclasses.replace(PREPROCESSING, class_names=two)
    )


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """JPEGs of noise on smooth colours, one class in each of train/ and test/ folders."""
    root = tmp_path_factory.mktemp("pictures")
    for split, shapes in (("train", (*SHAPES, *SHAPES[:2])), ("test", SHAPES)):
        for number, shape in enumerate(shapes):  # a training image for each of eight devices
            place = root / split / f"class{number % 3}"
            place.mkdir(parents=True, exist_ok=True)
            (place / f"{number}.jpg").write_bytes(encode(noisy(number, *shape)))
    return root


def noisy(seed: int, height: int, width: int) -> np.ndarray:
    noise = np.random.default_rng(seed).integers(-60, 60, (height, width, 3))
    return np.clip(make_pixels(seed, height, width) + noise, 0, 255).astype(np.uint8)


@pytest.mark.parametrize("package", ["timm", "transformers"])
def test_a_folder_is_checked_in_its_package(package, weights, pictures, request, tmp_path):
    request.getfixturevalue(package)
    write_folder(tmp_path / "f", weights, LAYOUTS[package])
    command = ("check", tmp_path / "f", "--data", f"folder:{pictures}")
    result = run_here("convert", *command, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert f"{package} on 6 test pictures, by its own pipeline: error" in result.stdout
    errors = re.findall(r"(\d+\.\d+)%", result.stdout)
    assert errors[0] == errors[1]
    assert ", 0 predictions differ" in result.stdout
    assert mean_and_largest(result.stdout)[0] < 0.05
    if package == "timm":
        return
    theirs = {"image_processor_type": "BitImageProcessorPil"}  # which transformers chooses itself
    change(tmp_path / "f" / "preprocessor_config.json", theirs)
    config = json.loads((tmp_path / "f" / "config.json").read_text())
    del config["pretrained_cfg"], config["image_processor_type"]
    (tmp_path / "f" / "config.json").write_text(json.dumps(config))
    result = run_here("convert", *command, "--images", "4", cwd=tmp_path)
    assert "on 4 test pictures" in result.stdout, result.stderr
    assert mean_and_largest(result.stdout)[0] > 1


def mean_and_largest(output: str) -> tuple[float, float]:
    (found,) = re.findall(r"pixels differ by (\S+) grey levels on average, (\S+) at most", output)
    return float(found[0]), float(found[1])


def test_what_cannot_be_checked_is_refused(transformers, weights, pictures, tmp_path):
    silent = dataclasses.replace(weights, preprocessing=None)
    write_folder(tmp_path / "f", weights, LAYOUTS["transformers"])
    write_folder(tmp_path / "silent", silent, LAYOUTS["transformers"])
    for folder, data, part in (
        ("silent", f"folder:{pictures}", "does not say how its images are prepared"),
        ("f", "digits", "digits is not imagenet2012 or folder:PATH"),
        ("f", f"folder:{tmp_path}", "folder:"),
        ("g", f"folder:{pictures}", "g"),
        (pictures, f"folder:{pictures}", "checkpoint"),
    ):
        refused = run_here("convert", "check", folder, "--data", data, cwd=tmp_path)
        assert_refused(refused, part)


def test_every_row_of_the_table_of_pixels_is_ours_but_of_transformers_own_processor(
    timm, transformers
):
    """A picture that is enlarged by a bicubic filter may differ by a rounding more."""
    contents = [encode(noisy(9, 500, 333)), encode(noisy(8, 375, 500)), encode(noisy(7, 170, 160))]
    own = []
    for said in pixels_table.CASES:
        found = pixels_table.differences(said, contents)
        own.append(found.pop("transformers without timm")[0])
        for package, (mean, largest) in found.items():
            assert mean < 0.05, (said, package)
            assert largest <= 2, (said, package)
    assert max(own) > 1


@pytest.mark.slow
def test_the_end_of_a_run_on_pictures_says_what_other_packages_make_of_them(
    timm, transformers, pictures, tmp_path
):
    arguments: tuple[Any, ...] = ("--model", "ResNet18", "--data", f"folder:{pictures}")
    arguments += ("--image-size", "64", "--max-steps", "1", "--global-batch-size", "8")
    result = run_here("train", "imagenet", *arguments, "--run-dir", "run", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    saved = json.loads((tmp_path / "run" / "result.json").read_text())
    found = {other["package"]: other for other in saved["other_packages"]}
    assert found.keys() == {"timm", "transformers"}
    for package, other in found.items():
        assert f"{package} on 6 test pictures, by its own pipeline: error" in result.stdout
        assert other["error"] == other["our_error"] == saved["parity"]["torch_error"]
        assert other["different_predictions"] == 0
        assert other["pixel_difference"] < 0.05

"""Hugging Face folders: the peers' own loaders open ours, and ours reads theirs."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open

import convert
import torch_resnet
from convert.files import Weights
from convert.folders import (
    PACKAGES,
    is_model_folder,
    read_folder,
    transformers_config,
    write_folder,
)
from convert.layouts import LAYOUTS
from convert.models import arrays_of, describe
from resnet_spec import ClassifierSpec, find_spec
from tests.model_folders import PREPROCESSING, logits, weights_of
from tests.peers import import_torchvision
from tests.pictures import make_pixels
from tests.twins import assert_same_state, randomise, relative_error


@pytest.fixture(scope="module")
def resnet18() -> tuple[Weights, torch.nn.Module]:
    return weights_of("ResNet18")


def open_folder(package: Any, folder: Path) -> Any:
    if package.__name__ == "timm":
        return package.create_model(f"local-dir:{folder}", pretrained=True)
    return package.ResNetForImageClassification.from_pretrained(folder)


@pytest.mark.parametrize("layout", PACKAGES)
def test_the_packages_own_loader_opens_our_folder(layout, request, resnet18, tmp_path):
    package, (weights, model) = request.getfixturevalue(layout), resnet18
    write_folder(tmp_path / "f", weights, LAYOUTS[layout])
    theirs = open_folder(package, tmp_path / "f")
    assert relative_error(logits(theirs), logits(model)) <= 1e-5
    with safe_open(tmp_path / "f" / "model.safetensors", framework="np") as file:
        assert file.metadata() == {"format": "pt"}
        assert set(file.keys()) == set(theirs.state_dict())
    assert [path.name for path in tmp_path.iterdir()] == ["f"]


@pytest.mark.parametrize("layout", PACKAGES)
def test_a_folder_comes_back_bit_for_bit_with_its_preprocessing(layout, resnet18, tmp_path):
    weights, _ = resnet18
    write_folder(tmp_path / "f", weights, LAYOUTS[layout])
    again = read_folder(tmp_path / "f")
    assert (again.classifier, again.preprocessing) == (weights.classifier, PREPROCESSING)
    assert_same_state(again.arrays, weights.arrays)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("layout", "name", "changes"),
    [
        ("timm", "ResNet50", {"in_planes": 1}),
        ("timm", "PreActResNet18", {}),
        ("timm", "PreActResNet50", {}),
        ("timm", "WideResNet50-2", {}),
        ("transformers", "ResNet50", {}),
        ("transformers", "ResNet50", {"bottleneck_stride": "1x1", "in_planes": 1}),
    ],
)
def test_every_kind_of_network_opens_there(layout, name, changes, request, tmp_path):
    package = request.getfixturevalue(layout)
    weights, model = weights_of(name, **changes)
    channels = changes.get("in_planes", 3)
    mean, std = PREPROCESSING.mean[:channels], PREPROCESSING.std[:channels]
    preprocessing = dataclasses.replace(PREPROCESSING, mean=mean, std=std)
    weights = dataclasses.replace(weights, preprocessing=preprocessing)
    write_folder(tmp_path / "f", weights, LAYOUTS[layout])
    theirs = open_folder(package, tmp_path / "f")
    assert relative_error(logits(theirs, channels), logits(model, channels)) <= 1e-5
    again = read_folder(tmp_path / "f")
    assert (again.classifier, again.preprocessing) == (weights.classifier, preprocessing)
    assert_same_state(again.arrays, weights.arrays)


@pytest.mark.parametrize("layout", PACKAGES)
def test_a_model_without_a_head_opens_there_too(layout, request, tmp_path):
    package, model = request.getfixturevalue(layout), torch_resnet.ResNet18()
    randomise(model)
    preprocessing = dataclasses.replace(PREPROCESSING, class_names=None)
    weights = Weights(arrays_of(model), describe(model), preprocessing)
    write_folder(tmp_path / "f", weights, LAYOUTS[layout])
    theirs = open_folder(package, tmp_path / "f")
    features = logits(theirs).reshape(2, -1)  # transformers keeps (n, c, 1, 1)
    assert relative_error(features, logits(model.eval())) <= 1e-5
    assert read_folder(tmp_path / "f").classifier == weights.classifier


def test_timm_takes_the_preprocessing_and_the_names_from_our_folder(timm, resnet18, tmp_path):
    write_folder(tmp_path / "f", resnet18[0], LAYOUTS["timm"])
    model = open_folder(timm, tmp_path / "f")
    data = timm.data.resolve_data_config({}, model=model)
    assert tuple(data["input_size"]) == (3, 64, 64)
    assert (tuple(data["mean"]), tuple(data["std"])) == (PREPROCESSING.mean, PREPROCESSING.std)
    assert (data["interpolation"], data["crop_pct"]) == ("bicubic", 0.95)
    assert tuple(model.pretrained_cfg["label_names"]) == PREPROCESSING.class_names


@pytest.mark.parametrize(
    ("size", "fraction", "interpolation"),
    [
        (224, 0.875, "bilinear"),
        (224, 0.95, "bicubic"),  # 235 - 224 is 3 modulo 4
        (400, 0.95, "lanczos"),  # from 384 on ConvNeXT's processor squeezes
        (160, 0.875, "box"),
        (64, 1.0, "hamming"),
        (64, 0.95, "nearest"),
    ],
)
def test_transformers_computes_our_pixels_from_our_folder(
    transformers, resnet18, tmp_path, size, fraction, interpolation
):
    """Those of torchvision's `Resize` and `CenterCrop`, bit for bit; pictures of every rest."""
    transforms = import_torchvision().transforms
    preprocessing = dataclasses.replace(
        PREPROCESSING, image_size=size, crop_fraction=fraction, interpolation=interpolation
    )
    weights = dataclasses.replace(resnet18[0], preprocessing=preprocessing)
    write_folder(tmp_path / "f", weights, LAYOUTS["transformers"])
    assert read_folder(tmp_path / "f").preprocessing == preprocessing
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / "f", backend="pil")
    mode = transforms.InterpolationMode(interpolation)
    theirs = transforms.Compose(
        [transforms.Resize(int(size / fraction), mode), transforms.CenterCrop(size)]
    )
    for seed, shape in enumerate(((500, 377), (375, 500), (333, 451), (512, 513), (60, 47))):
        picture = Image.fromarray(make_pixels(seed, *shape))
        (prepared,) = processor(picture)["pixel_values"].numpy()
        kept = np.asarray(theirs(picture)) / 255
        expected = (kept - np.array(PREPROCESSING.mean)) / np.array(PREPROCESSING.std)
        assert relative_error(prepared, expected.transpose(2, 0, 1)) <= 1e-6, shape
    config = transformers.AutoConfig.from_pretrained(tmp_path / "f")
    assert config.id2label == dict(enumerate(PREPROCESSING.class_names or ()))
    model = transformers.AutoModelForImageClassification.from_pretrained(tmp_path / "f")
    assert isinstance(model, transformers.ResNetForImageClassification)


def test_transformers_own_processor_opens_the_folder_where_timm_is_not_installed(
    transformers, resnet18, tmp_path
):
    """It cuts at half the rest rounded down: the same where the rest is not 3 modulo 4."""
    write_folder(tmp_path / "f", resnet18[0], LAYOUTS["transformers"])
    one, other = (
        kind.from_pretrained(tmp_path / "f")
        for kind in (transformers.BitImageProcessorPil, transformers.AutoImageProcessor)
    )
    picture = Image.fromarray(make_pixels(0, 67, 134))  # the rests are 3 and 70
    shifted = [p(picture, return_tensors="pt")["pixel_values"][0].numpy() for p in (one, other)]
    np.testing.assert_allclose(shifted[0][:, 1:], shifted[1][:, :-1], atol=1e-5)


def test_every_pair_of_a_crop_and_a_side_goes_in_and_out_unchanged():
    """Read from transformers' BiT processor as from the fraction that timm has."""
    read, write = transformers_config.read_preprocessing, transformers_config.write
    config, processor = {"num_channels": 3, "id2label": {}}, {"image_processor_type": "BitImage"}
    processor |= {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    classifier = ClassifierSpec(find_spec("ResNet18"), None)
    for side in range(1, 513):
        for crop in range(1, side + 1):
            files = {"config.json": config, "preprocessor_config.json": processor}
            processor |= {"size": {"shortest_edge": side}, "crop_size": crop}
            found = read(files)
            assert found is not None
            assert (found.shorter_side, found.image_size) == (side, crop)
            if (side * 7 + crop) % 50 == 0:
                assert read(write(classifier, found)) == found


def test_a_folder_with_a_file_of_ours_needs_no_configuration(resnet18, tmp_path):
    weights, model = resnet18
    convert.save(tmp_path / "model.safetensors", model, preprocessing=PREPROCESSING)
    (tmp_path / "config.json").write_text('{"config": {"model": "ResNet18"}}')
    again = read_folder(tmp_path)
    assert (again.classifier, again.preprocessing) == (weights.classifier, PREPROCESSING)
    assert is_model_folder(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    assert not is_model_folder(tmp_path)


def test_a_folder_appears_whole_or_not_at_all(resnet18, tmp_path, monkeypatch):
    weights, _ = resnet18
    biasless = torch_resnet.ResNet18()
    biasless.set_head(torch.nn.Linear(512, 3, bias=False))
    no_bias = Weights(arrays_of(biasless), describe(biasless), PREPROCESSING)
    used, folder = tmp_path / "used", tmp_path / "f"
    used.mkdir()
    (used / "thesis.txt").write_text("precious")
    for target, given, layout, part in (
        (used, weights, "timm", "not an empty folder"),
        (used / "thesis.txt", weights, "timm", "not an empty folder"),
        (folder, dataclasses.replace(weights, preprocessing=None), "timm", "ImageNet's mean"),
        (folder, weights_of("ResNet20")[0], "transformers", "cannot express"),
        (folder, dataclasses.replace(weights, classifier=None), "timm", "which model"),
        (folder, no_bias, "transformers", "bias"),
        (folder, weights, "torchvision", "timm or transformers"),
    ):
        with pytest.raises(convert.ConversionError, match=part):
            write_folder(target, given, LAYOUTS[layout])
    with pytest.raises(FileNotFoundError):
        write_folder(tmp_path / "no" / "f", weights, LAYOUTS["timm"])

    def fail(*_: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        write_folder(folder, weights, LAYOUTS["timm"])
    assert [path.name for path in tmp_path.rglob("*")] == ["used", "thesis.txt"]


def test_a_transformers_folder_without_preprocessing_has_no_processor(resnet18, tmp_path):
    (tmp_path / "f").mkdir()  # an empty folder is as good as none
    silent = dataclasses.replace(resnet18[0], preprocessing=None)
    write_folder(tmp_path / "f", silent, LAYOUTS["transformers"])
    names = {path.name for path in (tmp_path / "f").iterdir()}
    assert names == {"config.json", "model.safetensors"}
    assert read_folder(tmp_path / "f").preprocessing is None


@pytest.mark.parametrize("layout", PACKAGES)
def test_names_of_classes_that_only_count_are_written_too(resnet18, tmp_path, layout):
    names = ("LABEL_0", "LABEL_1", "LABEL_2")
    preprocessing = dataclasses.replace(PREPROCESSING, class_names=names)
    weights = dataclasses.replace(resnet18[0], preprocessing=preprocessing)
    write_folder(tmp_path / "f", weights, LAYOUTS[layout])
    again = convert.load_preprocessing(tmp_path / "f")
    assert again == dataclasses.replace(preprocessing, class_names=None)

"""Hugging Face folders: the peers' own loaders open ours, and ours reads theirs."""

import dataclasses
import errno
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import convert
import torch_resnet
from convert import folders
from convert.__main__ import main
from convert.arrays import to_numpy
from convert.files import Weights
from convert.folders import LAYOUTS, is_model_folder, read_folder, write_folder
from convert.inspection import inspect
from convert.layouts import find_layout
from convert.layouts.timm_config import ARCHITECTURES
from convert.models import arrays_of, build_torch, describe
from resnet_spec import PREPROCESSINGS, ClassifierSpec, find_spec
from tests.model_folders import PREPROCESSING, change
from tests.twins import assert_same_state, randomise, relative_error


def weights_of(name: str, **changes: Any) -> tuple[Weights, torch.nn.Module]:
    """Random weights of a model with three classes, and the torch twin."""
    model = torch_resnet.create(name, 3, **changes)
    randomise(model)
    return Weights(arrays_of(model), describe(model), PREPROCESSING), model.eval()


@pytest.fixture(scope="module")
def resnet18() -> tuple[Weights, torch.nn.Module]:
    return weights_of("ResNet18")


def logits(model: Any, channels: int = 3) -> np.ndarray:
    images = torch.randn(2, channels, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        output = model.eval()(images)
    return to_numpy(getattr(output, "logits", output))


def open_folder(package: Any, folder: Path) -> Any:
    if package.__name__ == "timm":
        return package.create_model(f"local-dir:{folder}", pretrained=True)
    return package.ResNetForImageClassification.from_pretrained(folder)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_packages_own_loader_opens_our_folder(layout, request, resnet18, tmp_path):
    package, (weights, model) = request.getfixturevalue(layout), resnet18
    write_folder(tmp_path / "f", weights, layout)
    theirs = open_folder(package, tmp_path / "f")
    assert relative_error(logits(theirs), logits(model)) <= 1e-5
    with safe_open(tmp_path / "f" / "model.safetensors", framework="np") as file:
        assert file.metadata() == {"format": "pt"}
        assert set(file.keys()) == set(theirs.state_dict())
    assert [path.name for path in tmp_path.iterdir()] == ["f"]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_folder_comes_back_bit_for_bit_with_its_preprocessing(layout, resnet18, tmp_path):
    weights, _ = resnet18
    write_folder(tmp_path / "f", weights, layout)
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
    write_folder(tmp_path / "f", weights, layout)
    theirs = open_folder(package, tmp_path / "f")
    assert relative_error(logits(theirs, channels), logits(model, channels)) <= 1e-5
    again = read_folder(tmp_path / "f")
    assert (again.classifier, again.preprocessing) == (weights.classifier, preprocessing)
    assert_same_state(again.arrays, weights.arrays)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_model_without_a_head_opens_there_too(layout, request, tmp_path):
    package, model = request.getfixturevalue(layout), torch_resnet.ResNet18()
    randomise(model)
    preprocessing = dataclasses.replace(PREPROCESSING, class_names=None)
    weights = Weights(arrays_of(model), describe(model), preprocessing)
    write_folder(tmp_path / "f", weights, layout)
    theirs = open_folder(package, tmp_path / "f")
    features = logits(theirs).reshape(2, -1)  # transformers keeps (n, c, 1, 1)
    assert relative_error(features, logits(model.eval())) <= 1e-5
    assert read_folder(tmp_path / "f").classifier == weights.classifier


def test_timm_takes_the_preprocessing_and_the_names_from_our_folder(timm, resnet18, tmp_path):
    write_folder(tmp_path / "f", resnet18[0], "timm")
    model = open_folder(timm, tmp_path / "f")
    data = timm.data.resolve_data_config({}, model=model)
    assert tuple(data["input_size"]) == (3, 64, 64)
    assert (tuple(data["mean"]), tuple(data["std"])) == (PREPROCESSING.mean, PREPROCESSING.std)
    assert (data["interpolation"], data["crop_pct"]) == ("bicubic", 0.95)
    assert tuple(model.pretrained_cfg["label_names"]) == PREPROCESSING.class_names


@pytest.mark.parametrize("size", [64, 400])
def test_transformers_prepares_a_picture_as_our_folder_says(transformers, resnet18, tmp_path, size):
    preprocessing = dataclasses.replace(PREPROCESSING, image_size=size)
    weights = dataclasses.replace(resnet18[0], preprocessing=preprocessing)
    write_folder(tmp_path / "f", weights, "transformers")
    assert read_folder(tmp_path / "f").preprocessing == preprocessing
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / "f", backend="pil")
    # of the size that the shorter side would get, so that it is only cut
    side, cut = int(size / 0.95), (int(size / 0.95) - size) // 2
    picture = np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)
    (prepared,) = processor(picture, return_tensors="np")["pixel_values"]
    kept = picture[cut : cut + size, cut : cut + size] / 255
    expected = (kept - np.array(PREPROCESSING.mean)) / np.array(PREPROCESSING.std)
    assert relative_error(prepared, expected.transpose(2, 0, 1)) <= 1e-5
    config = transformers.AutoConfig.from_pretrained(tmp_path / "f")
    assert config.id2label == dict(enumerate(PREPROCESSING.class_names or ()))


def test_a_folder_that_timm_wrote_is_read(timm, tmp_path):
    theirs = timm.create_model("resnetv2_18", num_classes=4, in_chans=1)
    randomise(theirs)
    timm.models.save_for_hf(theirs, tmp_path / "f", safe_serialization=False)
    assert (tmp_path / "f" / "pytorch_model.bin").is_file()
    config = json.loads((tmp_path / "f" / "config.json").read_text())
    config["pretrained_cfg"] |= {"mean": [0.25], "std": [0.5]}  # timm leaves its three numbers
    (tmp_path / "f" / "config.json").write_text(json.dumps(config))
    weights = read_folder(tmp_path / "f")
    spec = dataclasses.replace(find_spec("PreActResNet18"), in_planes=1)
    assert weights.classifier is not None
    assert weights.classifier == ClassifierSpec(spec, 4)
    assert weights.preprocessing is not None
    assert (weights.preprocessing.mean, weights.preprocessing.image_size) == ((0.25,), 224)
    model = build_torch(weights.classifier, weights.arrays)
    assert relative_error(logits(model, 1), logits(theirs, 1)) <= 1e-5


def test_a_folder_that_transformers_wrote_is_read(transformers, tmp_path):
    config = transformers.ResNetConfig(
        layer_type="basic", depths=[1, 1, 1, 1], hidden_sizes=[64, 128, 256, 512]
    )
    theirs = transformers.ResNetForImageClassification(config)
    randomise(theirs)
    theirs.save_pretrained(tmp_path / "f")
    weights = read_folder(tmp_path / "f")
    assert weights.preprocessing is None
    assert weights.classifier is not None
    assert weights.classifier.num_classes == 2
    assert weights.classifier.network.stage_depths == (1, 1, 1, 1)
    model = build_torch(weights.classifier, weights.arrays)
    assert relative_error(logits(model), logits(theirs)) <= 1e-5


def test_a_network_of_transformers_without_its_classifier_has_no_head(transformers, tmp_path):
    config = transformers.ResNetConfig(
        layer_type="basic", depths=[1, 1, 1, 1], hidden_sizes=[64, 128, 256, 512]
    )
    theirs = transformers.ResNetModel(config)
    randomise(theirs)
    theirs.save_pretrained(tmp_path / "f")
    weights = read_folder(tmp_path / "f")
    assert weights.classifier is not None
    assert weights.classifier.num_classes is None
    model = build_torch(weights.classifier, weights.arrays).eval()
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        features = theirs.eval()(images).pooler_output.flatten(1)
        assert relative_error(to_numpy(model(images)), to_numpy(features)) <= 1e-5


def test_a_backbone_of_transformers_is_the_same_network_without_a_head(transformers, tmp_path):
    config = transformers.ResNetConfig(
        layer_type="basic", depths=[1, 1, 1, 1], hidden_sizes=[64, 128, 256, 512]
    )
    theirs = transformers.ResNetBackbone(config)
    randomise(theirs)
    theirs.save_pretrained(tmp_path / "f")
    weights = read_folder(tmp_path / "f")
    assert weights.classifier is not None
    assert weights.classifier.num_classes is None
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = theirs.eval()(images).feature_maps[-1].mean((2, 3))
        actual = build_torch(weights.classifier, weights.arrays).eval()(images)
    assert relative_error(to_numpy(actual), to_numpy(expected)) <= 1e-5


@pytest.mark.parametrize("is_prepared", [True, False])
@pytest.mark.parametrize("has_head", [True, False])
def test_a_model_of_timms_that_transformers_wrote_is_read(
    transformers, timm, has_head, is_prepared, tmp_path
):
    """Its wrapper's folder, which may say nothing of how images were prepared."""
    config = transformers.TimmWrapperConfig(
        architecture="resnet18", id2label={0: "cat", 1: "dog", 2: "eel"}
    )
    if is_prepared:
        config.pretrained_cfg = {"mean": [0.1, 0.2, 0.3], "input_size": [3, 96, 96]}
    kind = "TimmWrapperForImageClassification" if has_head else "TimmWrapperModel"
    theirs = getattr(transformers, kind)(config)
    randomise(theirs)
    theirs.save_pretrained(tmp_path / "f")
    weights = read_folder(tmp_path / "f")
    assert weights.classifier == ClassifierSpec(find_spec("ResNet18"), 3 if has_head else None)
    notes, names = " ".join(weights.notes), ("cat", "dog", "eel") if has_head else None
    assert "every name began with 'timm_model.'" in notes
    if is_prepared:
        assert weights.preprocessing is not None
        assert weights.preprocessing.class_names == names
        assert (weights.preprocessing.mean, weights.preprocessing.image_size) == (
            (0.1, 0.2, 0.3),
            96,
        )
    else:
        assert weights.preprocessing is None
        assert ("the names of the classes in config.json" in notes) == has_head
    assert weights.classifier is not None
    model, plain = build_torch(weights.classifier, weights.arrays), theirs.timm_model
    assert relative_error(logits(model), logits(plain)) <= 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_timms_architecture_is_our_network_tensor_for_tensor(timm, architecture):
    classifier = ClassifierSpec(find_spec(ARCHITECTURES[architecture]), 7)
    model = timm.create_model(architecture, num_classes=7, device="meta")
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    theirs = find_layout("timm").tensors(classifier)
    ours = {theirs[name]: shape for name, shape in classifier.tensors().items()}
    if classifier.network.preact:
        ours["head.fc.weight"] += (1, 1)
    assert shapes == ours


def test_a_folder_with_a_file_of_ours_needs_no_configuration(resnet18, tmp_path):
    weights, model = resnet18
    convert.save(tmp_path / "model.safetensors", model, preprocessing=PREPROCESSING)
    (tmp_path / "config.json").write_text('{"config": {"model": "ResNet18"}}')
    again = read_folder(tmp_path)
    assert (again.classifier, again.preprocessing) == (weights.classifier, PREPROCESSING)
    assert is_model_folder(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    assert not is_model_folder(tmp_path)


def test_a_head_of_another_size_than_described_is_refused(resnet18, tmp_path):
    write_folder(tmp_path / "f", resnet18[0], "transformers")
    change(tmp_path / "f" / "config.json", {"id2label": {"0": "LABEL_0"}})
    (tmp_path / "f" / "preprocessor_config.json").unlink()
    with pytest.raises(convert.ConversionError, match=r"head of 1 classes.*one of 3"):
        read_folder(tmp_path / "f")


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
            write_folder(target, given, layout)
    with pytest.raises(FileNotFoundError):
        write_folder(tmp_path / "no" / "f", weights, "timm")

    def fail(*_: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        write_folder(folder, weights, "timm")
    assert [path.name for path in tmp_path.rglob("*")] == ["used", "thesis.txt"]


def test_a_transformers_folder_without_preprocessing_has_no_processor(resnet18, tmp_path):
    (tmp_path / "f").mkdir()  # an empty folder is as good as none
    silent = dataclasses.replace(resnet18[0], preprocessing=None)
    write_folder(tmp_path / "f", silent, "transformers")
    names = {path.name for path in (tmp_path / "f").iterdir()}
    assert names == {"config.json", "model.safetensors"}
    assert read_folder(tmp_path / "f").preprocessing is None


def test_a_preprocessing_that_the_table_cannot_say_is_left_out_where_it_is_not_needed(
    resnet18, tmp_path, capsys
):
    folder, out = tmp_path / "f", tmp_path / "x.safetensors"
    write_folder(folder, resnet18[0], "transformers")
    change(folder / "preprocessor_config.json", {"do_rescale": False})
    assert main(["import", str(folder), "-o", str(out)]) == 2
    assert "do_rescale is false" in capsys.readouterr().err
    found = inspect(folder)
    assert found["preprocessing"] is None
    assert any("left out: its preprocessing" in note for note in found["notes"])
    for choice, preprocessing in (("none", None), ("imagenet", PREPROCESSINGS["imagenet"])):
        assert main(["import", str(folder), "--preprocessing", choice, "-o", str(out)]) == 0
        assert "do_rescale is false" in capsys.readouterr().out
        assert convert.load_preprocessing(out) == preprocessing
    with pytest.raises(convert.ConversionError, match="do_rescale is false"):
        convert.load_preprocessing(folder)


def test_a_configuration_that_cannot_be_read_is_no_preprocessing_that_is_left_out(
    resnet18, tmp_path, monkeypatch
):
    write_folder(tmp_path / "f", resnet18[0], "transformers")
    read = folders._read_json

    def fail(path: Path) -> dict[str, Any]:
        if path.name == "preprocessor_config.json":
            raise OSError(errno.EIO, "Input/output error", str(path))
        return read(path)

    monkeypatch.setattr(folders, "_read_json", fail)
    for needs in (True, False):
        with pytest.raises(OSError, match=r"preprocessor_config\.json"):
            read_folder(tmp_path / "f", needs_preprocessing=needs)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_counters_that_are_no_counts_are_reset_with_a_note(layout, resnet18, tmp_path):
    write_folder(tmp_path / "f", resnet18[0], layout)
    file = tmp_path / "f" / "model.safetensors"
    save_file({n: t.to(torch.bfloat16) for n, t in load_file(file).items()}, file)
    with pytest.raises(convert.ConversionError, match="--reset-counters"):
        read_folder(tmp_path / "f")
    notes = read_folder(tmp_path / "f", reset_counters=True).notes
    assert "taken as zero: 20 num_batches_tracked, missing or no int64" in notes


@pytest.mark.parametrize("layout", LAYOUTS)
def test_names_of_classes_that_only_count_are_written_too(resnet18, tmp_path, layout):
    names = ("LABEL_0", "LABEL_1", "LABEL_2")
    preprocessing = dataclasses.replace(PREPROCESSING, class_names=names)
    write_folder(
        tmp_path / "f", dataclasses.replace(resnet18[0], preprocessing=preprocessing), layout
    )
    again = convert.load_preprocessing(tmp_path / "f")
    assert again == dataclasses.replace(preprocessing, class_names=None)


def test_folders_without_weights_say_what_was_looked_for(tmp_path):
    with pytest.raises(convert.ConversionError, match=r"pytorch_model\.bin"):
        read_folder(tmp_path)
    save_file({"a": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(convert.ConversionError, match=r"no config\.json"):
        read_folder(tmp_path)


def test_what_of_a_folder_is_left_out_or_missing_is_said(resnet18, tmp_path):
    folder = tmp_path / "f"
    write_folder(folder, resnet18[0], "transformers")
    (folder / "preprocessor_config.json").unlink()
    state = {
        name: tensor
        for name, tensor in load_file(folder / "model.safetensors").items()
        if not name.endswith("num_batches_tracked")
    }
    save_file(state, folder / "model.safetensors")
    notes = inspect(folder)["notes"]
    assert "taken as zero: 20 num_batches_tracked, missing or no int64" in notes
    assert any("the names of the classes in config.json" in note for note in notes)
    with pytest.raises(convert.ConversionError, match="--reset-counters"):
        read_folder(folder)
    change(folder / "config.json", {"id2label": {str(n): f"LABEL_{n}" for n in range(3)}})
    assert not any("names of the classes" in note for note in inspect(folder)["notes"])

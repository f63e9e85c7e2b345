"""Hugging Face folders that others wrote: read, or what of them is left out or refused."""

import dataclasses
import errno
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import convert
from convert.__main__ import main
from convert.arrays import to_numpy
from convert.files import Weights
from convert.folders import PACKAGES, model_folder, read_folder, write_folder
from convert.inspection import inspect
from convert.layouts import LAYOUTS, find_layout
from convert.layouts.timm import ARCHITECTURES
from convert.models import build_torch
from resnet_spec import PREPROCESSINGS, ClassifierSpec, find_spec
from tests.fuzz_cases import write_model_folder
from tests.model_folders import change, logits, weights_of
from tests.twins import randomise, relative_error


@pytest.fixture(scope="module")
def resnet18() -> tuple[Weights, torch.nn.Module]:
    return weights_of("ResNet18")


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


@pytest.mark.parametrize("kind", ["ResNetModel", "ResNetBackbone"])
def test_the_inner_networks_of_transformers_have_no_head(kind, transformers, tmp_path):
    config = transformers.ResNetConfig(
        layer_type="basic", depths=[1, 1, 1, 1], hidden_sizes=[64, 128, 256, 512]
    )
    theirs = getattr(transformers, kind)(config)
    randomise(theirs)
    theirs.save_pretrained(tmp_path / "f")
    weights = read_folder(tmp_path / "f")
    assert weights.classifier is not None
    assert weights.classifier.num_classes is None
    model = build_torch(weights.classifier, weights.arrays).eval()
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        output, features = theirs.eval()(images), model(images)
    maps = output.feature_maps[-1] if kind == "ResNetBackbone" else output.pooler_output
    assert relative_error(to_numpy(features), to_numpy(maps.mean((2, 3)))) <= 1e-5


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


def test_a_head_of_another_size_than_described_is_refused(resnet18, tmp_path):
    write_folder(tmp_path / "f", resnet18[0], LAYOUTS["transformers"])
    change(tmp_path / "f" / "config.json", {"id2label": {"0": "LABEL_0"}})
    (tmp_path / "f" / "preprocessor_config.json").unlink()
    with pytest.raises(convert.ConversionError, match=r"head of 1 classes.*one of 3"):
        read_folder(tmp_path / "f")


def test_a_preprocessing_that_the_table_cannot_say_is_left_out_where_it_is_not_needed(
    resnet18, tmp_path, capsys
):
    folder, out = tmp_path / "f", tmp_path / "x.safetensors"
    write_folder(folder, resnet18[0], LAYOUTS["transformers"])
    theirs = {"image_processor_type": "BitImageProcessor", "do_rescale": False}
    change(folder / "preprocessor_config.json", theirs)
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
    write_folder(tmp_path / "f", resnet18[0], LAYOUTS["transformers"])
    read = model_folder._read_json

    def fail(path: Path) -> dict[str, Any]:
        if path.name == "preprocessor_config.json":
            raise OSError(errno.EIO, "Input/output error", str(path))
        return read(path)

    monkeypatch.setattr(model_folder, "_read_json", fail)
    with pytest.raises(OSError, match=r"preprocessor_config\.json"):
        read_folder(tmp_path / "f")


@pytest.mark.parametrize("layout", PACKAGES)
def test_counters_that_are_no_counts_are_reset_with_a_note(layout, resnet18, tmp_path):
    write_folder(tmp_path / "f", resnet18[0], LAYOUTS[layout])
    file = tmp_path / "f" / "model.safetensors"
    save_file({n: t.to(torch.bfloat16) for n, t in load_file(file).items()}, file)
    with pytest.raises(convert.ConversionError, match="--reset-counters"):
        read_folder(tmp_path / "f")
    notes = read_folder(tmp_path / "f", reset_counters=True).notes
    assert "taken as zero: 20 num_batches_tracked, missing or no int64" in notes


def test_folders_without_weights_say_what_was_looked_for(tmp_path):
    with pytest.raises(convert.ConversionError, match=r"pytorch_model\.bin"):
        read_folder(tmp_path)
    save_file({"a": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(convert.ConversionError, match=r"no config\.json"):
        read_folder(tmp_path)


def test_what_of_a_folder_is_left_out_or_missing_is_said(resnet18, tmp_path):
    folder = tmp_path / "f"
    write_folder(folder, resnet18[0], LAYOUTS["transformers"])
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


@pytest.mark.parametrize("number", [2**63 - 1, 2**70])
def test_a_size_that_no_array_can_have_is_refused_as_any_other(number, tmp_path):
    write_model_folder(tmp_path / "m", "transformers")
    path = tmp_path / "m" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "num_channels": number}))
    with pytest.raises(convert.ConversionError, match=str(number)):
        read_folder(tmp_path / "m")

"""Configurations of Hugging Face folders: read as the packages do, others refused by name."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import convert
from convert.folders import PACKAGES, timm_config, transformers_config
from convert.sources import read_source
from resnet_spec import ClassifierSpec, Preprocessing, find_spec
from tests.model_folders import PREPROCESSING, change


@pytest.fixture
def folders(tmp_path: Path) -> dict[str, Path]:
    """A folder of each layout for ResNet18, of whose weights only the number counts."""
    preprocessing = dataclasses.replace(PREPROCESSING, image_size=224)
    classifier = ClassifierSpec(find_spec("ResNet18"), 3)
    tensors = {f"n{number}": torch.zeros(1) for number in range(9)}
    for layout, module in (("timm", timm_config), ("transformers", transformers_config)):
        (tmp_path / layout).mkdir()
        save_file(tensors, tmp_path / layout / "model.safetensors")
        for name, content in module.write(classifier, preprocessing).items():
            (tmp_path / layout / name).write_text(json.dumps(content))
    theirs = {"image_processor_type": "ConvNextImageProcessor", "crop_pct": 0.95}  # the Hub's
    theirs |= {"size": {"shortest_edge": 224}}
    change(tmp_path / "transformers" / "preprocessor_config.json", theirs)
    return {layout: tmp_path / layout for layout in PACKAGES}


UNSUPPORTED = [
    ("timm", {"architecture": "resnet50d"}, ("'resnet50d'", "average-pooled", "resnet50")),
    ("timm", {"architecture": "seresnet50"}, ("squeeze-and-excitation",)),
    ("timm", {"architecture": "resnetv2_50x1_bit"}, ("standardised",)),
    ("timm", {"architecture": "vit_base"}, ("'vit_base'", "none of the papers")),
    ("timm", {"global_pool": "max"}, ("global_pool is 'max', here 'avg'",)),
    (
        "timm",
        {"model_args": {"output_stride": 8, "stem_type": "deep", "drop_rate": 0.5}},
        ("output_stride is 8, here 32", "stem_type is 'deep'"),
    ),
    ("timm", {"pretrained_cfg": {"input_size": [3, 64, 48]}}, ("64 by 48",)),
    ("timm", {"pretrained_cfg": {"crop_mode": "squash", "label_offset": 1}}, ("squash", "offset")),
    ("timm", {"pretrained_cfg": {"mean": None, "std": [1, 2, "3"]}}, ("timm",)),
    ("timm", {"pretrained_cfg": {"mean": [0.5, 0.5]}}, ("mean has 2 channels",)),
    ("timm", {"pretrained_cfg": 5}, ("timm",)),
    ("timm", {"label_names": ["a"]}, ("1 class names for a head of 3",)),
    ("timm", {"architecture": ["resnet18"]}, ("timm",)),
    ("timm", {"num_classes": -1}, ("num_classes",)),
    (
        "transformers",
        {"hidden_act": "gelu", "downsample_in_first_stage": True},
        ("hidden_act is 'gelu', here 'relu'", "downsample_in_first_stage"),
    ),
    ("transformers", {"model_type": "timm_wrapper"}, ("'timm_wrapper'",)),
    ("transformers", {"architectures": ["ResNetMine"]}, ("'ResNetMine'", "ResNetModel")),
    ("transformers", {"layer_type": "fire"}, ("'fire'",)),
    ("transformers", {"quantization_config": {}}, ("quantised",)),
    ("transformers", {"layer_type": "bottleneck", "hidden_sizes": [65, 4]}, ("divide by 4",)),
    ("transformers", {"depths": [10**12, 1, 1, 1]}, ("10000000000",)),
    ("transformers", {"depths": "abcd"}, ("transformers",)),
    ("transformers", {"id2label": {"0": "a", "2": "b"}}, ("transformers",)),
    ("transformers", {"id2label": {"0": 5}}, ("class_names",)),
    ("transformers", {"num_channels": 1}, ("3 channels, the model 1",)),
]


@pytest.mark.parametrize(("layout", "changes", "parts"), UNSUPPORTED)
def test_what_the_table_has_not_is_named(folders, layout, changes, parts):
    change(folders[layout] / "config.json", changes)
    with pytest.raises(convert.ConversionError) as caught:
        read_source(folders[layout]).judged()
    for part in (str(folders[layout]), *parts):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"do_normalize": False}, "do_normalize is false"),
        ({"rescale_factor": 1}, "rescale_factor is 1"),
        ({"image_processor_type": "ViTImageProcessor"}, "ViTImageProcessor"),
        (
            {"image_processor_type": "ViTImageProcessor", "size": {"height": 224, "width": 224}},
            "ViTImageProcessor is neither ConvNext",
        ),
        ({"size": {"shortest_edge": 384}}, "squeezed to 384"),
        ({"size": {"height": 224}}, "as transformers writes it"),
        (
            {"image_processor_type": "BitImageProcessor", "crop_size": 300},
            "no square within 224",
        ),
        ({"resample": 17}, "as transformers writes it"),
        ({"image_std": [0, 1, 1]}, "std must be positive"),
        ({"crop_pct": float("nan")}, "crop_fraction"),
    ],
)
def test_a_processor_that_does_something_else_is_named(folders, changes, part):
    change(folders["transformers"] / "preprocessor_config.json", changes)
    with pytest.raises(convert.ConversionError, match=part):
        read_source(folders["transformers"]).judged()


def test_all_that_a_configuration_has_otherwise_is_listed_at_once(folders):
    changes = {"hidden_act": "gelu"}
    change(folders["transformers"] / "config.json", changes)
    change(folders["transformers"] / "preprocessor_config.json", {"do_normalize": False})
    changes = {"global_pool": "max", "pretrained_cfg": {"crop_mode": "squash"}}
    change(folders["timm"] / "config.json", changes)
    for layout, parts in (
        ("transformers", ("hidden_act is 'gelu'", "do_normalize is false")),
        ("timm", ("global_pool is 'max'", "crop_mode is 'squash'")),
    ):
        with pytest.raises(convert.ConversionError) as caught:
            read_source(folders[layout]).judged()
        assert all(part in str(caught.value) for part in parts)


def read_without(
    folder: Path, file: str, *names: str, **changes: Any
) -> tuple[dict, Preprocessing]:
    """What a folder describes that is silent of some entries, at any depth."""
    module = timm_config if folder.name == "timm" else transformers_config
    files = {path.name: json.loads(path.read_text()) for path in folder.glob("*.json")}
    files[file] |= changes
    for entries in (files[file], files[file].get("pretrained_cfg", {})):
        for name in names:
            entries.pop(name, None)
    preprocessing = module.read_preprocessing(files)
    assert preprocessing is not None
    return module.read_network(files["config.json"]), preprocessing


def test_what_a_timm_folder_leaves_out_is_timms_default(timm, folders):
    names = ("interpolation", "crop_pct", "mean", "std", "input_size", "crop_mode")
    _, preprocessing = read_without(folders["timm"], "config.json", *names)
    usual = timm.models.PretrainedCfg()
    assert preprocessing.interpolation == usual.interpolation
    assert preprocessing.crop_fraction == usual.crop_pct
    assert (preprocessing.mean, preprocessing.std) == (usual.mean, usual.std)
    assert (3, preprocessing.image_size, preprocessing.image_size) == usual.input_size


def test_timms_arguments_count_before_its_preprocessing_and_names_by_their_numbers(folders):
    names = {str(number): f"class {number}" for number in range(12)}
    labels = dict(sorted(names.items()))  # 0, 1, 10, 11, 2, ...
    changes = {"model_args": {"in_chans": 1}, "num_classes": 12, "label_names": labels}
    fields, preprocessing = read_without(folders["timm"], "config.json", **changes)
    assert fields["network"]["in_planes"] == 1
    assert preprocessing.class_names == tuple(names.values())


def test_what_a_transformers_folder_leaves_out_is_its_processors_default(transformers, folders):
    file = "preprocessor_config.json"
    changes = {"image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": 224}}
    names = ("resample", "crop_pct", "crop_size", "do_center_crop")
    _, preprocessing = read_without(folders["transformers"], file, *names, **changes)
    usual = transformers.ConvNextImageProcessor()
    assert preprocessing.interpolation == usual.resample.name.lower()
    assert preprocessing.crop_fraction == usual.crop_pct


@pytest.mark.parametrize(
    "processor",
    [
        {"image_processor_type": "BitImageProcessor", "size": {"shortest_edge": 256}},
        {"image_processor_type": "BitImageProcessor", "size": 256, "crop_size": 192},
        {"image_processor_type": "ConvNextImageProcessor", "size": 224, "crop_size": 200},
        {"image_processor_type": "ConvNextImageProcessor", "size": 160, "crop_pct": 0.8},
    ],
)
def test_a_processor_is_read_as_transformers_reads_it(transformers, folders, processor):
    """The same pixels of a picture are kept, up to how the two resize it."""
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 12, 3), np.uint8))
    picture = picture.resize((400, 300), Image.Resampling.BICUBIC)
    theirs = getattr(transformers, processor["image_processor_type"])(**processor)
    expected = theirs(picture, return_tensors="np")["pixel_values"][0].transpose(1, 2, 0)
    config = json.loads((folders["transformers"] / "config.json").read_text())
    files = {"config.json": config, "preprocessor_config.json": theirs.to_dict() | processor}
    ours = transformers_config.read_preprocessing(files)
    assert ours is not None
    edge = int(ours.image_size / ours.crop_fraction)
    resampling = Image.Resampling[ours.interpolation.upper()]
    resized = picture.resize((edge * 400 // 300, edge), resampling)
    left, top = ((side - ours.image_size) // 2 for side in resized.size)
    box = (left, top, left + ours.image_size, top + ours.image_size)
    actual = (np.asarray(resized.crop(box)) / 255 - ours.mean) / ours.std
    assert actual.shape == expected.shape
    assert np.abs(actual - expected).mean() < 0.02


def test_what_a_folder_says_is_not_lost_silently_with_one_of_its_files(folders):
    for folder in folders.values():
        notes = read_source(folder / "model.safetensors").weights.notes
        assert any(str(folder) in note for note in notes)


@pytest.mark.parametrize(
    "content", ["", "[]", "{", "[" * 200_000, "3", '{"a": 1}', '{"architecture": 1e999}']
)
@pytest.mark.parametrize("layout", PACKAGES)
def test_hostile_configurations_are_one_clear_error(folders, layout, content):
    (folders[layout] / "config.json").write_text(content)
    with pytest.raises(convert.ConversionError, match=layout):
        read_source(folders[layout]).judged()

"""Preprocessing: what it may be, and that files, checkpoints and runs carry it to the last bit."""

import dataclasses
import json
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import save_file

import convert
import torch_resnet
from convert.files import Weights, read_weights, write_weights
from convert.inspection import as_text, inspect
from convert.models import arrays_of, describe
from convert.runs.saved_run import read_run, write_run
from resnet_spec import PREPROCESSINGS, ClassifierSpec, Preprocessing, find_spec
from resnet_spec.classifier import DESCRIPTION_KEY
from resnet_spec.preprocessing import AKAMASTER_CIFAR10

# Numbers that no decimal notation of fewer than 17 digits keeps.
AWKWARD = Preprocessing(
    mean=(0.1 + 0.2, 1 / 3, 5e-324),
    std=(np.nextafter(1, 2), 2**0.5, 1e300),
    image_size=24,
    class_names=("a", "b\n", "\u00e9", "\U0001f600", '"', "", "a", "8", "9", "10"),
    interpolation="lanczos",
    crop_fraction=0.9500000000000001,
)


@pytest.fixture(scope="module")
def model() -> Any:
    small = torch_resnet.ResNet([(1, 4), (1, 4)], torch_resnet.BasicBlock, small_images=True)
    small.set_head(torch.nn.Linear(small.out_planes, 10))
    return small


@pytest.mark.parametrize("preprocessing", [AWKWARD, *PREPROCESSINGS.values()])
def test_json_keeps_every_bit(preprocessing):
    again = Preprocessing.from_json(json.loads(json.dumps(preprocessing.to_json())))
    assert again == preprocessing
    assert hash(again) == hash(preprocessing)


def test_numbers_of_numpy_and_lists_become_pythons():
    given: Any = [np.float32(0.5)], (1,), np.int64(8), ["0"]
    preprocessing = Preprocessing(*given)
    assert preprocessing == Preprocessing((0.5,), (1.0,), 8, ("0",))
    assert type(preprocessing.mean[0]) is float
    assert type(preprocessing.image_size) is int


@pytest.mark.parametrize(
    ("field", "value", "part"),
    [
        ("mean", (), "mean"),
        ("mean", (0.5, float("nan"), 0.5), "finite"),
        ("mean", ("0.5", 0.5, 0.5), "mean"),
        ("mean", "abc", "mean"),
        ("mean", (10**400, 0, 0), "finite"),
        ("mean", (0.5, 0.5), "2 channels, std 3"),
        ("std", (1, 1, 0), "positive"),
        ("std", (1, 1, float("inf")), "finite"),
        ("std", (1, 1, True), "finite"),
        ("std", 1, "std"),
        ("image_size", 0, "image_size"),
        ("image_size", 32.0, "image_size"),
        ("image_size", True, "image_size"),
        ("class_names", "cat", "class_names"),
        ("class_names", (1, 2), "class_names"),
        ("interpolation", "cubic", "bicubic"),
        ("interpolation", ["bilinear"], "interpolation"),
        ("crop_fraction", 0, "crop_fraction"),
        ("crop_fraction", 1.1, "crop_fraction"),
        ("crop_fraction", None, "crop_fraction"),
    ],
)
def test_what_is_out_of_range_is_named(field, value, part):
    fields = {**AWKWARD.to_json(), field: value}
    with pytest.raises(ValueError, match=part):
        Preprocessing.from_json(fields)


def test_all_problems_are_named_at_once_and_fields_are_exact():
    with pytest.raises(ValueError, match=r"mean.*std.*image_size.*crop_fraction"):
        Preprocessing((), (), -1, crop_fraction=2)
    fields = AWKWARD.to_json()
    for wrong in ({**fields, "gamma": 1}, {"mean": [1]}, {}, [], None, 3):
        with pytest.raises(ValueError, match="class_names, crop_fraction"):
            Preprocessing.from_json(wrong)  # type: ignore[arg-type]


def test_the_published_numbers():
    imagenet, cifar10 = PREPROCESSINGS["imagenet"], PREPROCESSINGS["cifar10"]
    assert (imagenet.mean, imagenet.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert cifar10.mean == (0.49140, 0.48216, 0.44653)
    assert cifar10.std == (0.24703, 0.24349, 0.26159)
    # akamaster's CIFAR-10 weights were trained with ImageNet's numbers
    assert (AKAMASTER_CIFAR10.mean, AKAMASTER_CIFAR10.std) == (imagenet.mean, imagenet.std)
    assert (AKAMASTER_CIFAR10.image_size, AKAMASTER_CIFAR10.class_names) == (
        32,
        cifar10.class_names,
    )


def test_a_preprocessing_of_another_model_is_refused(model, tmp_path):
    gray = Preprocessing((0.5,), (0.5,), 28)
    three = dataclasses.replace(AWKWARD, class_names=("a", "b", "c"))
    headless = torch_resnet.ResNet20()
    for given, preprocessing, part in (
        (model, gray, "1 channels, the model 3"),
        (model, three, "3 class names for a head of 10"),
        (headless, AWKWARD, "10 class names for a head of None"),
    ):
        with pytest.raises(convert.ConversionError, match=part):
            convert.save(tmp_path / "m.safetensors", given, preprocessing=preprocessing)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".pth"])
def test_a_file_carries_its_preprocessing(model, tmp_path, suffix):
    path = tmp_path / f"m{suffix}"
    convert.save(path, model)
    assert convert.load_preprocessing(path) is None
    convert.save(path, model, preprocessing=AWKWARD)
    assert convert.load_preprocessing(path) == AWKWARD
    assert read_weights(path).preprocessing == AWKWARD
    assert convert.load(path, backend="torch").spec == model.spec


def test_whatever_carries_a_preprocessing_is_asked_alike(model, tmp_path):
    """Runs and models for inference, not only files of weights; folders in test_folders.py."""
    preprocessing = dataclasses.replace(AWKWARD, image_size=8)
    weights = Weights(arrays_of(model), describe(model), preprocessing)
    write_run(tmp_path / "run", weights)
    convert.export_onnx(weights, tmp_path / "m.onnx")
    convert.export_program(weights, tmp_path / "m.pt2")
    for name in ("run", "m.onnx", "m.pt2"):
        assert convert.load_preprocessing(tmp_path / name) == weights.preprocessing
        text = as_text(inspect(tmp_path / name))
        for part in (
            "images of 8 pixels",
            "lanczos, the shorter side to 8",
            "6 more",
            "head of 10",
        ):
            assert part in text
    for suffix in ("onnx", "pt2"):
        path = tmp_path / f"m.{suffix}"
        for content in (path.read_bytes()[:-300], b"", b"\n\x00"):
            path.write_bytes(content)
            with pytest.raises(convert.ConversionError, match=f"no whole .{suffix} file"):
                convert.load_preprocessing(path)
        with pytest.raises(FileNotFoundError):
            convert.load_preprocessing(tmp_path / f"n.{suffix}")
        with pytest.raises(convert.ConversionError, match="is a program"):
            inspect(path, entry="state_dict")
    (tmp_path / "run").rename(tmp_path / "run.onnx")
    assert inspect(tmp_path / "run.onnx")["preprocessing"] == preprocessing.to_json()


def test_a_file_says_over_which_batches_its_statistics_were_taken_where_it_was_told(
    model, tmp_path
):
    path = tmp_path / "m.safetensors"
    convert.save(path, model, statistics_batch_size=128)
    assert convert.load_statistics_batch_size(path) == 128
    convert.save(path, convert.load(path, backend="flax"))  # which may have trained on since
    assert convert.load_statistics_batch_size(path) is None
    with pytest.raises(ValueError, match="statistics_batch_size must be a positive integer"):
        convert.save(path, model, statistics_batch_size=0)


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_the_preprocessing_is_read_from_a_file_whose_weights_are_damaged(model, tmp_path, suffix):
    path = tmp_path / f"m{suffix}"
    convert.save(path, model, preprocessing=AWKWARD)
    whole = read_weights(path).arrays["stages.0.0.conv2.weight"].tobytes()
    content = path.read_bytes()
    assert content.count(whole) == 1
    path.write_bytes(content.replace(whole, b"\xff" * len(whole)))  # a checksum would notice
    assert convert.load_preprocessing(path) == AWKWARD


def test_a_file_in_foreign_names_carries_it_too(model, tmp_path):
    path = tmp_path / "m.safetensors"
    arrays = {f"module.{name}": array for name, array in arrays_of(model).items()}
    write_weights(path, Weights(arrays, None, AWKWARD))
    weights = read_weights(path)
    assert (weights.classifier, weights.preprocessing) == (None, AWKWARD)
    with pytest.raises(convert.ConversionError, match="does not say which model"):
        convert.load(path, backend="torch")
    write_weights(path, Weights(arrays, None, None))
    with safe_open(path, framework="np") as file:
        assert file.metadata() == {"format": "pt"}


HOSTILE = {
    "no list": {"preprocessing": 3},
    "a list": {"preprocessing": [1]},
    "NaN": {"preprocessing": {**AWKWARD.to_json(), "mean": [float("nan")] * 3}},
    "an enormous integer": {"preprocessing": {**AWKWARD.to_json(), "mean": [10**400] * 3}},
    "a field more": {"preprocessing": {**AWKWARD.to_json(), "code": "import os"}},
    "a field less": {"preprocessing": {"mean": [0.5], "std": [0.5]}},
    "other channels": {"preprocessing": {**AWKWARD.to_json(), "mean": [0.5], "std": [0.5]}},
    "nested": {"preprocessing": {**AWKWARD.to_json(), "class_names": [["a"]] * 10}},
    "nothing": {},
}


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_content_is_one_clear_error(tmp_path, suffix, kind):
    fields = {"version": 1, "model": None, **HOSTILE[kind]}
    if kind == "other channels":
        fields["model"] = ClassifierSpec(find_spec("ResNet20"), 10).to_json()
    path, text = tmp_path / f"m{suffix}", json.dumps(fields)
    names = [f"n{number}" for number in range(100)]  # as many tensors as blocks are described
    if suffix == ".safetensors":
        save_file({n: np.zeros(1) for n in names}, path, metadata={DESCRIPTION_KEY: text})
    else:
        state: Any = torch.nn.ParameterDict({n: torch.zeros(1) for n in names}).state_dict()
        state._metadata = {"": {DESCRIPTION_KEY: text}}
        torch.save(state, path)
    for read in (convert.load_preprocessing, read_weights):
        with pytest.raises(convert.ConversionError, match=r"m\.\w+ describes its model wrongly"):
            read(path)


def test_an_imported_run_carries_it(model, tmp_path):
    weights = Weights(arrays_of(model), describe(model), AWKWARD)
    write_run(tmp_path / "a", weights)
    assert read_run(tmp_path / "a").preprocessing == AWKWARD
    write_run(tmp_path / "b", dataclasses.replace(weights, preprocessing=None))
    assert read_run(tmp_path / "b").preprocessing is None

"""Models for inference elsewhere: what is written computes the twin's logits, or is not there."""

import dataclasses
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

import convert
import torch_resnet
from convert import inference
from convert.files import Weights
from convert.models import arrays_of, describe
from resnet_spec import PREPROCESSINGS, ClassifierSpec, Preprocessing, find_spec
from tests.commands import assert_refused, run, run_here
from tests.twins import make_twins, random_images, randomise, relative_error, run_torch, to_nchw

NAMES = tuple("abcde")
PREPROCESSING = Preprocessing((0.1 + 0.2, 0.5, 0.4), (0.2, 1 / 3, 0.3), 12, class_names=NAMES)


def small_model(preact: bool, **options: Any) -> Any:
    """A network of two blocks with a head of five classes, random in every leaf."""
    base = torch_resnet.PreActResNet if preact else torch_resnet.ResNet
    block = torch_resnet.PreActBottleneck if preact else torch_resnet.BasicBlock
    model = base([(1, 4), (1, 4), (1, 8)], block, **options)
    model.set_head(torch.nn.Linear(model.out_planes, 5))
    randomise(model)
    return model.eval()


def run_onnx(path: Path, images: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (logits,) = session.run(["logits"], {"images": to_nchw(images).numpy()})
    return np.asarray(logits)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """`m.onnx` and `m.pt2` of one model, and the model."""
    folder, model = tmp_path_factory.mktemp("written"), small_model(False, small_images=True)
    for export, name in (
        (convert.export_onnx, "m.onnx"),
        (convert.export_program, "m.pt2"),
    ):
        done = export(model, folder / name, preprocessing=PREPROCESSING)
        assert done.path == folder / name
        assert done.image_size == 12
        assert done.largest_difference <= 1e-5
    assert {path.name for path in folder.iterdir()} == {"m.onnx", "m.pt2"}  # nothing beside them
    return folder, model


@pytest.mark.parametrize("count", [1, 2, 5])
def test_both_forms_compute_the_twins_logits_for_any_batch(written, count):
    folder, model = written
    images = random_images(count, 12, "float32")
    expected = run_torch(model, images)
    assert relative_error(run_onnx(folder / "m.onnx", images), expected) <= 1e-5
    module: Any = torch.export.load(folder / "m.pt2").module()
    with torch.no_grad():
        logits = module(to_nchw(images)).numpy()
    assert relative_error(logits, expected) <= 1e-6


def test_both_forms_carry_the_model_and_the_preprocessing(written):
    folder, model = written
    session = onnxruntime.InferenceSession(folder / "m.onnx", providers=["CPUExecutionProvider"])
    extra = {"flax_resnet": ""}
    torch.export.load(folder / "m.pt2", extra_files=extra)
    for metadata in (session.get_modelmeta().custom_metadata_map, extra):
        description = json.loads(metadata["flax_resnet"])
        assert Preprocessing.from_json(description["preprocessing"]) == PREPROCESSING
        assert ClassifierSpec.from_json(description["model"]) == describe(model)


def test_an_onnx_file_says_what_goes_in_and_what_comes_out(written):
    folder, _ = written
    graph = onnx.load(folder / "m.onnx").graph

    def shapes(values: Any) -> dict[str, list[Any]]:
        return {
            v.name: [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim]
            for v in values
        }

    assert shapes(graph.input) == {"images": ["batch", 3, 12, 12]}
    assert shapes(graph.output) == {"logits": ["batch", 5]}
    assert graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT


def test_no_form_tells_the_paths_of_the_machine_it_was_made_on(written):
    folder, _ = written
    for name in ("m.onnx", "m.pt2"):
        assert str(Path(torch_resnet.__file__).parent).encode() not in (folder / name).read_bytes()


DIALECTS = {
    "pre-activation, gray": (True, {"in_planes": 1}),
    "large images": (False, {}),
    "SAME padding, 1x1 stride": (
        True,
        {"padding": "same", "stem_padding": "same", "bottleneck_stride": "1x1"},
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", DIALECTS)
def test_other_networks_are_exported_too(tmp_path, kind):
    preact, options = DIALECTS[kind]
    model = small_model(preact, **options)
    inference.export_onnx(model, tmp_path / "m.onnx", image_size=34)
    inference.export_program(model, tmp_path / "m.pt2", image_size=34)
    images = random_images(3, 34, "float32", channels=options.get("in_planes", 3))
    assert relative_error(run_onnx(tmp_path / "m.onnx", images), run_torch(model, images)) <= 1e-5


@pytest.mark.slow
def test_a_flax_twin_of_the_table_is_exported_by_way_of_its_torch_twin(tmp_path):
    flax_model, torch_model = make_twins("ResNet20", dtype="float32")
    inference.export_onnx(flax_model, tmp_path / "m.onnx", preprocessing=PREPROCESSINGS["cifar10"])
    images = random_images(2, 32, "float32")
    logits = run_onnx(tmp_path / "m.onnx", images)
    assert relative_error(logits, run_torch(torch_model.eval(), images)) <= 1e-5


@pytest.fixture
def precisions() -> Iterator[Any]:
    """CuDNN's flags, which are afterwards as they were."""
    cudnn: Any = torch.backends.cudnn
    before = cudnn.conv.fp32_precision, cudnn.rnn.fp32_precision
    yield cudnn
    cudnn.conv.fp32_precision, cudnn.rnn.fp32_precision = before


@pytest.mark.parametrize("flags", [("ieee", "tf32"), ("ieee", "ieee"), ("tf32", "ieee")])
def test_flags_of_precision_do_not_keep_torch_from_tracing_and_stay_as_they_are(
    flags, precisions, tmp_path
):
    """As `diff` advises to set them, and in other combinations."""
    precisions.conv.fp32_precision, precisions.rnn.fp32_precision = flags
    for export, name in ((convert.export_onnx, "m.onnx"), (convert.export_program, "m.pt2")):
        done = export(small_model(True), tmp_path / name, image_size=16)
        assert done.largest_difference <= (1e-5 if name == "m.onnx" else 1e-6)
    assert (precisions.conv.fp32_precision, precisions.rnn.fp32_precision) == flags


def test_the_size_of_the_images_is_said_known_or_the_networks_usual_one():
    def size(weights: Weights, given: int | None = None) -> int:
        return inference.describe_export(weights, None, given)[1]

    arrays: dict[str, np.ndarray] = {}
    cifar = Weights(arrays, ClassifierSpec(find_spec("ResNet20"), 5))
    assert size(cifar) == 32
    assert size(Weights(arrays, ClassifierSpec(find_spec("ResNet50")))) == 224
    known = dataclasses.replace(cifar, preprocessing=PREPROCESSING)
    assert size(known) == 12
    weights, other = inference.describe_export(known, None, 48)
    assert other == 48
    assert weights.preprocessing == dataclasses.replace(PREPROCESSING, image_size=48)
    with pytest.raises(ValueError, match="image size"):
        size(cifar, 0)


def test_a_file_that_computes_something_else_does_not_appear(tmp_path, monkeypatch):
    """What is traced is another model than what is compared: nothing remains."""
    model, path = small_model(False, small_images=True), tmp_path / "m.pt2"
    path.write_bytes(b"old")

    trace = inference.trace

    def trace_another(twin: torch.nn.Module, image_shape: tuple[int, int, int]) -> Any:
        other = small_model(False, small_images=True)
        with torch.no_grad():
            other.get_buffer("stages.1.0.bn2.running_mean")[3] += 0.01
        return trace(other, image_shape)

    monkeypatch.setattr(inference, "trace", trace_another)
    with pytest.raises(convert.ConversionError, match="differs from the torch twin by"):
        inference.export_program(model, path, image_size=8)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_models_that_cannot_be_exported_are_one_clear_error(tmp_path):
    infinite = small_model(False, small_images=True)
    with torch.no_grad():
        infinite.get_parameter("head.weight")[0, 0] = float("nan")
    unnamed = Weights(arrays_of(infinite), None)
    gray = Preprocessing((0.5,), (0.5,), 28)
    cases: tuple[tuple[Any, str, dict[str, Any], str], ...] = (
        (infinite, "m.pt2", {"image_size": 8}, "not finite"),
        (unnamed, "m.pt2", {}, "which model"),
        (torch.nn.Linear(1, 1), "m.pt2", {}, "own"),
        (infinite, "m.onnx", {}, r"m\.onnx.*\.pt2"),
        (infinite, "m.pt2", {"preprocessing": gray}, "another model"),
    )
    for model, path, options, part in cases:
        with pytest.raises(convert.ConversionError, match=part):
            inference.export_program(model, tmp_path / path, **options)
    assert not list(tmp_path.iterdir())


def test_a_missing_package_is_named_with_the_extra_that_brings_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(convert.ConversionError, match=r"onnxscript.*flax-resnet\[torch,onnx\]"):
        inference.export_onnx(small_model(False), tmp_path / "m.onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("form", [(), ("--format", "onnx")], ids=["by its name", "as asked"])
def test_the_command_line_writes_a_checked_program_quietly(form, tmp_path):
    model = small_model(False, small_images=True)
    convert.save(tmp_path / "m.safetensors", model, preprocessing=PREPROCESSING)
    arguments = ("m.safetensors", "--image-size", "10", *form, "-o", "m.onnx")
    result = run("convert", "export", *arguments, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    (line,) = result.stdout.splitlines()
    assert line.startswith("wrote m.onnx: images (batch, 3, 10, 10) float32 to logits")
    assert result.stderr == ""
    images = random_images(2, 10, "float32")
    assert relative_error(run_onnx(tmp_path / "m.onnx", images), run_torch(model, images)) <= 1e-5


def test_a_users_mistake_is_one_clear_sentence_and_no_file(tmp_path):
    convert.save(tmp_path / "m.safetensors", small_model(False, small_images=True))
    for arguments, parts in (
        (("--format", "onnx", "-o", "m.pt2"), ("m.pt2", ".onnx")),
        (("--format", "onxx", "-o", "m.onnx"), ("onxx", "program")),
        (("--layout", "torchvision", "-o", "m.onnx"), ("--layout", "m.onnx")),
        (("--image-size", "-1", "-o", "m.pt2"), ("image size", "-1")),
        (("--image-size", "32", "-o", "m.pt"), ("--image-size", "m.pt")),
        (("-o", "no/m.onnx"), ("folder no",)),
    ):
        result = run_here("convert", "export", "m.safetensors", *arguments, cwd=tmp_path)
        assert_refused(result, *parts)
    assert [path.name for path in tmp_path.iterdir()] == ["m.safetensors"]

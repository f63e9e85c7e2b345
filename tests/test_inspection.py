"""What `resnet-convert inspect` says of a file, and heads that are kept, dropped or drawn anew."""

import dataclasses
import json

import numpy as np
import pytest
import torch

import convert
import torch_resnet
from convert.files import Weights, read_weights, write_weights
from convert.guess import guess
from convert.importing import change_head
from convert.inspection import as_text, inspect
from convert.layouts import LAYOUTS, find_layout, layout_spec, write_layout
from convert.models import arrays_of, describe
from resnet_spec import PREPROCESSINGS, ClassifierSpec
from tests.commands import run_here
from tests.twins import make_twins, random_images, run_torch


def shapes_of(layout: str, model: str, num_classes: int = 7) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a model's tensors in a layout."""
    classifier = ClassifierSpec(layout_spec(model, layout), num_classes)
    ours = {n: np.broadcast_to(np.int8(0), s) for n, s in classifier.tensors().items()}
    return {
        name: a.shape for name, a in write_layout(ours, classifier, find_layout(layout)).items()
    }


CASES = [
    ("flax-resnet", "WideResNet16-7"),
    ("torchvision", "WideResNet50-2"),
    ("timm", "PreActResNet34"),
    ("transformers", "ResNet101"),
    ("torch-resnet", "PreActResNet56"),
    ("cifar", "ResNet110"),
    ("cifar", "ResNet34-small"),
    ("flax-imagenet", "ResNet50"),
    ("bonsai", "ResNet152"),
    ("keras", "ResNet101"),
    ("haiku", "PreActResNet50"),
    ("wide-resnet", "PreActWideResNet40-2"),
]


@pytest.mark.parametrize(("layout", "model"), CASES)
def test_layout_model_and_head_are_found_from_names_and_shapes(layout, model):
    found = guess(shapes_of(layout, model))
    assert (layout, model) in [(one.layout.name, one.model) for one in found]
    assert {one.model for one in found} == {model}
    for one in found:
        assert (one.share, one.classifier.num_classes, one.has_counters) == (1.0, 7, True)
        assert not one.layout.problems(one.classifier.network)


def test_every_layout_is_guessed_in_the_cases_above():
    assert {layout for layout, _ in CASES} == set(LAYOUTS)


def test_a_file_that_fits_nothing_gets_the_nearest_model_and_how_near():
    shapes = shapes_of("torchvision", "ResNet50")
    del shapes["layer4.2.bn3.bias"]
    shapes["extra"] = (3,)
    (nearest,) = guess(shapes)
    assert nearest.model == "ResNet50"
    assert 0.9 < nearest.share < 1
    assert guess({"a": (3,)}) == []
    assert guess({}) == []


@pytest.mark.parametrize(
    ("architecture", "model", "sign"),
    [
        ("seresnet50", "ResNet50", "attention in the blocks"),
        ("resnet50d", "ResNet50", "three 3x3 convolutions"),
        ("ecaresnet50d", "ResNet50", "average pooling or a normalisation of its own"),
        ("resnet34_gn", "ResNet34", "GroupNorm"),
        ("resnext50_32x4d", "WideResNet50-2", "grouped convolutions"),
        ("resnetv2_50d", "PreActResNet50", "three 3x3 convolutions"),
    ],
)
def test_what_makes_a_file_another_network_than_the_nearest_is_said(
    timm, architecture, model, sign
):
    with torch.device("meta"):
        if architecture == "resnet34_gn":
            theirs = timm.create_model("resnet34", norm_layer="groupnorm")
        else:
            theirs = timm.create_model(architecture)
    (nearest,) = guess({name: tuple(t.shape) for name, t in theirs.state_dict().items()})
    assert (nearest.layout.name, nearest.model) == ("timm", model)
    assert nearest.share < 1
    assert any(sign in problem for problem in nearest.problems)


def test_a_network_is_found_without_its_first_convolution_and_not_without_most_of_its_layers():
    shapes = shapes_of("torchvision", "ResNet50")
    without = {name: s for name, s in shapes.items() if not name.startswith("layer1.0.conv1.")}
    (found,) = guess(without)
    assert found.model == "ResNet50"
    assert found.problems == ("missing: layer1.0.conv1.weight (64, 64, 1, 1)",)
    cut = {name: s for name, s in shapes.items() if not name.startswith(("layer3", "layer4"))}
    assert not guess(cut)


def test_the_options_that_are_said_import_a_file_without_counters(tmp_path):
    _, model = make_twins("ResNet20", dtype="float32")
    theirs: dict = convert.to_layout(dict(model.state_dict()), "ResNet20", "torch-resnet")
    kept = {name: tensor for name, tensor in theirs.items() if "num_batches" not in name}
    torch.save(kept, tmp_path / "m.pth")
    (match,) = inspect(tmp_path / "m.pth")["matches"]
    assert match["options"] == "--layout torch-resnet --model ResNet20 --reset-counters"
    arguments = ("convert", "import", "m.pth", *match["options"].split(), "-o", "x.pt")
    assert run_here(*arguments, cwd=tmp_path).returncode == 0


def test_missing_counters_and_images_of_one_channel_are_seen():
    shapes = shapes_of("cifar", "ResNet20")
    shapes["conv1.weight"] = (16, 1, 3, 3)
    without = {name: s for name, s in shapes.items() if "num_batches" not in name}
    for given, has_counters in ((shapes, True), (without, False)):
        (found,) = guess(given)
        assert found.has_counters is has_counters
        assert found.classifier.network.in_planes == 1
        assert "shortcut='centred_identity'" in found.undecided


def test_inspect_says_format_layout_model_head_dtypes_and_parameters(tmp_path):
    _, model = make_twins("ResNet20", dtype="float32")
    theirs = convert.to_layout(model.state_dict(), "ResNet20", "torch-resnet")
    wrapped = {f"module.{name}": tensor for name, tensor in theirs.items()}
    torch.save({"state_dict": wrapped, "best_prec1": 91.7}, tmp_path / "theirs.th")
    result = run_here("convert", "inspect", "theirs.th", "--json", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    (match,) = found["matches"]
    assert (match["layout"], match["model"]) == ("torch-resnet", "ResNet20")
    assert match["num_classes"] == 10
    assert found["parameters"] == sum(p.numel() for p in model.parameters())
    assert found["dtypes"] == {"float32": len(theirs) - 21, "int64": 21}
    assert any("module." in note for note in found["notes"])
    assert any("best_prec1" in note for note in found["notes"])
    text = as_text(found)
    for part in ("ResNet20", "torch-resnet", "head of 10", "every name and shape fits", ".th"):
        assert part in text


def test_inspect_believes_a_file_of_ours_and_reports_bad_values(tmp_path):
    _, model = make_twins("ResNet20", dtype="float32", padding="same")
    model.stem.conv.weight.data[0, 0, 0, 0] = float("nan")
    path = tmp_path / "m.safetensors"
    convert.save(path, model, allow_nonfinite=True)
    found = inspect(path)
    assert found["matches"][0]["sure"] == "the file says so"
    assert found["matches"][0]["spec"]["padding"] == "same"
    assert any("stem.conv.weight" in note for note in found["notes"])


def test_a_head_is_kept_dropped_or_new_and_the_rest_stays(tmp_path):
    _, model = make_twins("ResNet20", dtype="float32")
    path = tmp_path / "m.safetensors"
    convert.save(path, model)
    weights = read_weights(path)
    assert change_head(weights, "keep") is weights
    dropped, new = change_head(weights, "drop"), change_head(weights, "new:100")
    images = random_images(2, 32, "float32")
    features = torch_resnet.create("ResNet20").eval()
    body = {n: t for n, t in model.state_dict().items() if not n.startswith("head.")}
    features.load_state_dict(body)
    for choice, changed, shape in (("drop", dropped, (2, 64)), ("new", new, (2, 100))):
        write_weights(tmp_path / f"{choice}.pt", changed)
        built = convert.load(tmp_path / f"{choice}.pt", backend="torch")
        assert run_torch(built, images).shape == shape
        built.set_head(torch.nn.Identity())
        np.testing.assert_array_equal(run_torch(built, images), run_torch(features, images))
    again = change_head(weights, "new:100")
    np.testing.assert_array_equal(again.arrays["head.weight"], new.arrays["head.weight"])
    drawn = new.arrays["head.weight"]  # evenly from -1/8 to 1/8, for 64 inputs
    assert 0.12 < drawn.max() <= 1 / 8
    assert -1 / 8 <= drawn.min() < -0.12
    assert abs(drawn.mean()) < 0.005
    with pytest.raises(convert.ConversionError, match="no head"):
        change_head(dropped, "drop")


def test_a_new_head_of_the_same_size_has_no_names_of_the_old_classes():
    _, model = make_twins("ResNet20", dtype="float32")
    names = tuple(f"class {number}" for number in range(10))
    preprocessing = dataclasses.replace(PREPROCESSINGS["cifar10"], class_names=names)
    weights = Weights(arrays_of(model), describe(model), preprocessing)
    changed = change_head(weights, f"new:{len(model.state_dict()['head.bias'])}").preprocessing
    assert changed is not None
    assert changed.class_names is None


def test_import_takes_dialects_heads_and_preprocessing_and_records_them(tmp_path):
    _, model = make_twins("ResNet20", dtype="float32", shortcut="centred_identity")
    theirs = convert.to_layout(model.state_dict(), "ResNet20", "cifar")
    torch.save({"state_dict": theirs}, tmp_path / "theirs.th")
    result = run_here(
        *("convert", "import", "theirs.th", "--layout", "cifar", "--model", "ResNet20"),
        *("--preprocessing", "akamaster-cifar10", "--padding", "even", "--head", "new:5"),
        *("--statistics-batch-size", "128", "-o", "ours.npz"),
        cwd=tmp_path,
    )
    assert result.returncode == 0, result.stderr
    weights = read_weights(tmp_path / "ours.npz")
    assert weights.classifier is not None
    assert weights.preprocessing is not None
    assert weights.classifier.network.shortcut == "centred_identity"
    assert weights.classifier.num_classes == 5
    assert weights.classifier.statistics_batch_size == 128
    assert "over batches of 128" in as_text(inspect(tmp_path / "ours.npz"))
    assert weights.preprocessing.mean == (0.485, 0.456, 0.406)
    assert weights.preprocessing.class_names is None

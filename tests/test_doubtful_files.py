"""Files that say of themselves what they are not taken for, or hold what no network computes."""

import argparse
from pathlib import Path
from typing import Any

import pytest
import torch

import convert
import torch_resnet
from convert.__main__ import main
from convert.inspection import inspect
from resnet_spec import PREPROCESSINGS, Preprocessing
from tests.peers import import_timm
from tests.twins import randomise

KEPT = tuple("abcdefghij")  # names of ten classes, none of CIFAR's


def run_import(source: Path, *options: str, output: str = "out.safetensors") -> int:
    return main(["import", str(source), *options, "-o", str(source.with_name(output))])


@pytest.fixture
def blurred(tmp_path: Path) -> Path:
    """As timm's `train.py` keeps a network with the tensors of a plain one."""
    model = import_timm().create_model("resnetblur50", num_classes=3)
    content = {"epoch": 1, "arch": "resnetblur50", "state_dict": model.state_dict()}
    torch.save(content, tmp_path / "last.pth.tar.pth")
    return tmp_path / "last.pth.tar.pth"


def test_a_checkpoint_that_names_another_network_is_refused_by_command_and_function(
    blurred, capsys
):
    assert run_import(blurred, "--layout", "timm", "--model", "ResNet50") == 2
    error = capsys.readouterr().err
    for part in ("'resnetblur50'", "it blurs before it subsamples", "re-save its state dict alone"):
        assert part in error
    assert not blurred.with_name("out.safetensors").exists()
    content = torch.load(blurred)
    with pytest.raises(convert.ConversionError, match="blurs before it subsamples"):
        convert.from_layout(content, "ResNet50", "timm")
    with pytest.raises(convert.ConversionError, match="blurs before it subsamples"):
        inspect(blurred)
    assert convert.from_layout(content["state_dict"], "ResNet50", "timm")  # who trusts it, says so


@pytest.mark.parametrize(
    "said",
    [
        {"hyper_parameters": {"arch": "resnetblur50", "lr": 0.1}},  # Lightning
        {"args": {"model": "resnetblur50"}},  # vars(args)
        {"args": argparse.Namespace(model="resnetblur50")},  # timm's `train.py`
        {"config": {"model_name": "resnetblur50"}},
        {"model": "resnetblur50"},
        {"arch": "ResNetBlur50"},
        {"arch": "resnet50", "hyper_parameters": {"model": "resnetblur50"}},
    ],
)
def test_wherever_a_checkpoint_names_another_network_it_is_heard(said, blurred, capsys):
    state = {f"model.{name}": t for name, t in torch.load(blurred)["state_dict"].items()}
    torch.save({"state_dict": state, **said}, blurred)
    assert run_import(blurred, "--layout", "timm", "--model", "ResNet50") == 2
    assert "it blurs before it subsamples" in capsys.readouterr().err
    with pytest.raises(convert.ConversionError, match="blurs before it subsamples"):
        convert.from_layout(torch.load(blurred, weights_only=False), "ResNet50", "timm")


@pytest.mark.parametrize("name", ["resnet50", "tv_resnet50", "my_network", "resnet50.a1_in1k"])
def test_a_checkpoint_that_names_its_own_network_or_none_of_timms_is_taken(name, blurred):
    content = torch.load(blurred) | {"arch": name}
    assert convert.from_layout(content, "ResNet50", "timm")
    torch.save(content, blurred)
    assert run_import(blurred, "--layout", "timm", "--model", "ResNet50") == 0


@pytest.mark.parametrize("layout", ["torchvision", "flax-imagenet"])
def test_variances_below_zero_are_no_weights(layout, tmp_path, capsys):
    spec = convert.layout_spec("ResNet18", layout)
    model = torch_resnet.from_spec(spec, 3)
    randomise(model)
    stages: Any = model.stages
    stages[1][0].bn1.running_var[:2] *= -1
    state = dict(model.state_dict())
    with pytest.raises(convert.ConversionError, match=r"negative: .* has 2 variances below zero"):
        convert.to_layout(state, "ResNet18", layout)
    theirs: Any = convert.to_layout(state, "ResNet18", layout, allow_nonfinite=True)
    with pytest.raises(convert.ConversionError, match=r"negative: .* has 2 variances below zero"):
        convert.from_layout(theirs, "ResNet18", layout)
    with pytest.raises(convert.ConversionError, match="has 2 variances below zero"):
        convert.save(tmp_path / "m.pt", model)
    torch.save(state, tmp_path / "plain.pt")
    assert run_import(tmp_path / "plain.pt", "--model", "ResNet18") == 2
    assert "stages.1.0.bn1.running_var has 2 variances below zero" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ((), KEPT),
        (("--preprocessing", "imagenet"), KEPT),
        (("--preprocessing", "cifar10"), KEPT),
        (("--preprocessing", "cifar10", "--head", "new:10"), None),
        (("--head", "new:10"), None),
    ],
    ids=["kept", "imagenet", "cifar10", "new head", "new head alone"],
)
def test_names_of_classes_are_those_of_the_head_and_not_of_the_pictures(options, names, tmp_path):
    model = torch_resnet.create("ResNet20", 10)
    said = Preprocessing(mean=(0.5,) * 3, std=(0.5,) * 3, image_size=40, class_names=KEPT)
    convert.save(tmp_path / "m.safetensors", model, preprocessing=said)
    assert run_import(tmp_path / "m.safetensors", *options, output="out.npz") == 0
    found = convert.load_preprocessing(tmp_path / "out.npz")
    assert found is not None
    assert found.class_names == names
    usual = PREPROCESSINGS[options[1]] if "--preprocessing" in options else said
    assert (found.mean, found.image_size) == (usual.mean, usual.image_size)


def test_a_head_without_names_takes_those_that_are_asked_for(tmp_path):
    convert.save(tmp_path / "m.safetensors", torch_resnet.create("ResNet20", 10))
    arguments = ("--preprocessing", "cifar10")
    assert run_import(tmp_path / "m.safetensors", *arguments, output="out.npz") == 0
    assert convert.load_preprocessing(tmp_path / "out.npz") == PREPROCESSINGS["cifar10"]


def test_the_inner_network_of_transformers_is_taken_from_any_file(transformers, tmp_path):
    config = transformers.ResNetConfig(
        layer_type="basic", hidden_sizes=[64, 128, 256, 512], depths=[2, 2, 2, 2]
    )
    inner = transformers.ResNetModel(config)
    randomise(inner)
    torch.save(inner.state_dict(), tmp_path / "inner.pt")
    (match,) = inspect(tmp_path / "inner.pt")["matches"]
    assert (match["layout"], match["model"]) == ("transformers", "ResNet18")
    arguments = ("--layout", "transformers", "--model", "ResNet18")
    assert run_import(tmp_path / "inner.pt", *arguments) == 0
    ours = convert.load(tmp_path / "out.safetensors", backend="torch")
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = inner.eval()(images).pooler_output.flatten(1)
        assert torch.allclose(ours(images), expected, rtol=1e-5, atol=1e-5 * float(expected.max()))


def test_an_export_says_which_shortcut_its_reader_must_state(tmp_path, capsys):
    model = torch_resnet.create("ResNet20", 10)
    convert.save(tmp_path / "m.pt", model)
    arguments = ["--layout", "cifar", "-o", str(tmp_path / "cifar.pt")]
    assert main(["export", str(tmp_path / "m.pt"), *arguments]) == 0
    assert "what `import` takes as --shortcut projection\n" in capsys.readouterr().out
    known = ("--layout", "cifar", "--model", "ResNet20", "--shortcut", "projection")
    assert run_import(tmp_path / "cifar.pt", *known) == 0
    assert convert.load(tmp_path / "out.safetensors", backend="torch").spec == model.spec

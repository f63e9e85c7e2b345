"""Recipes as they stand, but for fewer steps and smaller networks, on real images."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import convert
import torch_resnet
from tests.commands import assert_refused, run, run_here
from tests.run_folders import assert_same, metrics
from tests.test_data import link_a_part, needs_cifar10, needs_cifar100
from tests.test_run import train
from tests.torch_or_none import import_torchvision
from tests.twins import randomise
from train.run.run_folder import locked

IMAGENET = Path(os.environ.get("TFDS_DATA_DIR", "")) / "imagenet2012"
has_imagenet = pytest.mark.skipif(
    not IMAGENET.is_dir(), reason="TFDS_DATA_DIR holds no imagenet2012"
)
SMALL_IMAGES = ("--image-size", "32", "--global-batch-size", "16")
SMALL_100 = ("--model", "WideResNet16-1-0.0", "--global-batch-size", "32")
PREACT_100 = ("--model", "PreActWideResNet16-1-0.0", "--global-batch-size", "32")
SMALL = (*SMALL_IMAGES, "--model", "WideResNet16-1-0.0")  # which compiles sooner


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipe", "changes", "images"),
    [
        pytest.param("cifar10-he2015", ("--global-batch-size", "32"), 1250, marks=needs_cifar10),
        pytest.param(
            "cifar10-preact",
            ("--model", "PreActResNet20", "--global-batch-size", "32", "--precision", "bf16"),
            1250,
            marks=needs_cifar10,
        ),
        pytest.param(
            "cifar10-wide",
            ("--model", "PreActWideResNet16-1", "--global-batch-size", "32"),
            1250,
            marks=needs_cifar10,
        ),
        pytest.param("cifar10-fast", ("--global-batch-size", "32"), 1250, marks=needs_cifar10),
        pytest.param("cifar100", SMALL_100, 2500, marks=needs_cifar100),
        pytest.param("cifar100-preact", PREACT_100, 2500, marks=needs_cifar100),
        pytest.param("cifar100-wide", PREACT_100, 2500, marks=needs_cifar100),
        pytest.param("imagenet", (*SMALL_IMAGES, "--model", "ResNet18"), 60, marks=has_imagenet),
        pytest.param("imagenet-modern", SMALL, 60, marks=has_imagenet),
        pytest.param("imagenet-lars", SMALL, 60, marks=has_imagenet),
    ],
)
def test_a_recipe_trains_for_twenty_steps_and_its_export_is_the_same_in_torch(
    recipe, changes, images, tmp_path
):
    arguments = (recipe, *changes, "--max-steps", "20", "--log-every-steps", "5")
    if recipe.startswith("cifar"):
        name = recipe.partition("-")[0]
        assert link_a_part(name, tmp_path / "data")["test"] == images
        arguments += ("--data-dir", "data")
    train(tmp_path, *arguments, "--run-dir", "a", devices=2)
    result = json.loads((tmp_path / "a" / "result.json").read_text())
    assert result["step"] == 20
    assert result["images"] == result["parity"]["images"] == images  # each one once
    assert result["parity"]["different_predictions"] == 0
    lines = metrics(tmp_path / "a")
    assert [line["step"] for line in lines if line["kind"] == "train"] == [5, 10, 15, 20]
    assert all(np.isfinite(line["loss"]) for line in lines)


@pytest.mark.slow
@needs_cifar10
def test_torchvisions_weights_are_tuned_on_cifar10_from_end_to_end(tmp_path):
    peer = import_torchvision().models.resnet18(num_classes=1000)
    randomise(peer)
    torch.save(peer.state_dict(), tmp_path / "resnet18.pth")
    arguments = ("cifar10", "--model", "ResNet18", "--init-from", "resnet18.pth")
    arguments += ("--frozen-stages", "2", "--max-steps", "10", "--global-batch-size", "16")
    link_a_part("cifar10", tmp_path / "data")
    arguments += ("--data-dir", "data")
    output = train(tmp_path, *arguments, "--run-dir", "a")
    assert "layout torchvision" in output
    assert "a new head of 10 classes, not 1000" in output
    tuned = convert.load(tmp_path / "a" / "model.safetensors", backend="torch").state_dict()
    theirs = convert.to_layout(tuned, "ResNet18", "torchvision")
    for name, tensor in peer.state_dict().items():
        if name.startswith("fc."):
            continue
        is_frozen = name.startswith(("conv1.", "bn1.", "layer1.", "layer2."))
        assert np.array_equal(theirs[name], tensor.numpy()) == is_frozen, name
    assert theirs["fc.weight"].shape == (10, 512)
    result = json.loads((tmp_path / "a" / "result.json").read_text())
    assert result["parity"]["different_predictions"] == 0


@pytest.mark.slow
def test_a_run_from_weights_that_saved_nothing_yet_starts_from_them_again(tmp_path):
    model = torch_resnet.create("WideResNet16-1-0.0", 10, in_planes=1)
    randomise(model)
    convert.save(tmp_path / "w.safetensors", model)
    arguments = ("digits", "--model", "WideResNet16-1-0.0", "--init-from", "w.safetensors")
    train(tmp_path, *arguments, "--frozen-stages", "2", "--max-steps", "2", "--run-dir", "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    shutil.rmtree(tmp_path / "a" / "checkpoints")
    train(tmp_path, "--resume", "--run-dir", "a")
    assert_same(tmp_path / "a", tmp_path / "b")
    body = convert.load(tmp_path / "a" / "model.safetensors", backend="torch").state_dict()
    frozen = [name for name in body if name.startswith(("stem.", "stages.0.", "stages.1."))]
    assert all(torch.equal(body[name], model.state_dict()[name]) for name in frozen)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "a").rglob("*")}
    again = ((*arguments, "--overwrite"), ("--resume", "--max-steps", "4"))
    with locked(tmp_path / "a"):
        for asked in again:
            refused = run("train", *asked, "--run-dir", "a", cwd=tmp_path)
            assert_refused(refused, "another process is training this run")
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "a").rglob("*")} == before
    assert_refused(
        run("train", "--resume", "--run-dir", "a", "--max-steps", "1", cwd=tmp_path), "beyond"
    )
    assert_refused(run("train", *arguments, "--frozen-stages", "4", cwd=tmp_path), "has 3 stages")


def test_weights_that_do_not_fit_are_refused_with_the_reason(tmp_path):
    model = torch_resnet.create("ResNet20", 10, in_planes=1, padding="same")
    convert.save(tmp_path / "same.safetensors", model)
    (tmp_path / "no.pth").write_bytes(b"no weights")
    for file, parts in (
        ("same.safetensors", ("padding", "same")),
        ("no.pth", ("no.pth",)),
        ("nowhere.pth", ("nowhere.pth",)),
    ):
        arguments = ("digits", "--init-from", file, "--run-dir", "a")
        assert_refused(run_here("train", *arguments, cwd=tmp_path), "--init-from", *parts)
        assert not (tmp_path / "a").exists()

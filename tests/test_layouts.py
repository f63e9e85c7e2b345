"""Other packages' names: their own models give their own logits from both twins."""

import subprocess
import sys
from typing import Any

import jax.numpy as jnp
import pytest
import torch
from flax import nnx

import convert
import flax_resnet
import torch_resnet
from convert.layouts import LAYOUTS
from resnet_spec import find_spec
from tests.peers import import_torchvision
from tests.twins import (
    assert_same_state,
    random_images,
    randomise,
    relative_error,
    run_torch,
    to_nchw,
)


def torchvision_model(name: str) -> torch.nn.Module:
    """Torchvision's own model, random in every leaf."""
    theirs = {"WideResNet50-2": "wide_resnet50_2", "WideResNet101-2": "wide_resnet101_2"}
    function = theirs.get(name, name.lower())
    model = getattr(import_torchvision().models, function)(weights=None)
    randomise(model)
    return model.eval()


@pytest.mark.parametrize(
    "name",
    [
        "ResNet18",
        "ResNet50",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("ResNet34", "ResNet101", "ResNet152", "WideResNet50-2", "WideResNet101-2")
        ),
    ],
)
def test_torchvisions_weights_give_torchvisions_logits_in_both_twins(name):
    theirs = torchvision_model(name)
    state = convert.from_layout(theirs.state_dict(), name, "torchvision")
    torch_model = torch_resnet.create(name, 1000)
    torch_model.load_state_dict(state, strict=True)
    torch_model.eval()
    flax_model = flax_resnet.create(name, 1000, rngs=nnx.Rngs(0))
    convert.torch_to_flax(state, flax_model)
    flax_model.eval()
    images = random_images(2, 64, "float32")
    with torch.no_grad():
        expected = theirs(to_nchw(images)).numpy()
    assert relative_error(run_torch(torch_model, images), expected) <= 1e-5
    assert relative_error(flax_model(jnp.asarray(images)), expected) <= 1e-5
    back = convert.to_layout(convert.flax_to_torch(flax_model), name, "torchvision")
    assert_same_state(back, theirs.state_dict())


def test_a_layout_lists_all_that_does_not_fit_by_its_own_names():
    state = dict(torchvision_model("ResNet18").state_dict())
    del state["layer1.0.bn1.weight"]
    state["layer9.conv"] = torch.zeros(1)
    state["conv1.weight"] = torch.zeros(64, 3, 3, 3)
    with pytest.raises(convert.ConversionError) as caught:
        convert.from_layout(state, "ResNet18", "torchvision")
    assert len(caught.value.problems) == 3
    for part in ("layer1.0.bn1.weight", "layer9.conv", "conv1.weight should be (64, 3, 7, 7)"):
        assert part in str(caught.value)


def test_missing_counters_are_reset_only_when_asked():
    state = {
        name: tensor
        for name, tensor in torchvision_model("ResNet18").state_dict().items()
        if "num_batches_tracked" not in name
    }
    with pytest.raises(convert.ConversionError, match="reset_counters"):
        convert.from_layout(state, "ResNet18", "torchvision")
    ours = convert.from_layout(state, "ResNet18", "torchvision", reset_counters=True)
    assert int(ours["stem.bn.num_batches_tracked"]) == 0
    assert len(ours) == len(state) + 20
    torch_resnet.create("ResNet18", 1000).load_state_dict(ours, strict=True)


@pytest.mark.parametrize(
    ("name", "reason"),
    [("PreActResNet18", "pre-activation"), ("ResNet18-small", "small"), ("ResNet20", "planes")],
)
def test_a_layout_refuses_what_it_cannot_express(name, reason):
    with pytest.raises(convert.ConversionError, match=reason):
        convert.from_layout({}, name, "torchvision")


def test_unknown_layouts_and_models_offer_the_nearest():
    with pytest.raises(ValueError, match="did you mean torchvision"):
        convert.from_layout({}, "ResNet18", "torch-vision")
    with pytest.raises(ValueError, match="did you mean ResNet18"):
        convert.from_layout({}, "resnet18", "torchvision")


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ["ResNet18", "ResNet152", "WideResNet50-2"])
def test_a_layout_is_a_bijection_of_all_layers(layout, name):
    pairs = list(LAYOUTS[layout](find_spec(name)))
    ours, theirs = zip(*pairs, strict=True)
    assert len(set(ours)) == len(set(theirs)) == len(pairs)
    spec = find_spec(name)
    expected = {path for path, _ in spec.convolutions()} | {path for path, _ in spec.norms()}
    assert set(ours) == expected | {"head"}


_SEED = """
import importlib, sys, torch
sys.path.insert(0, sys.argv[1])
import torch_resnet
assert torch_resnet.__file__.startswith(sys.argv[1]), torch_resnet.__file__
assert importlib.metadata.version("torch-resnet") == "0.0.4"
for name, shortcut in (line.split() for line in sys.stdin):
    torch.manual_seed(0)
    model = getattr(torch_resnet, name)(shortcut=getattr(torch_resnet, shortcut))
    initial = [p.detach().clone() for p in model.parameters()]
    for tensor in model.state_dict().values():
        if not tensor.is_floating_point():
            tensor.fill_(7)
        elif tensor.ndim == 1:  # convolutions are random as they are
            tensor.uniform_(0.5, 1.0)
    images = torch.randn(2, 3, 32, 32)
    model.eval()
    with torch.no_grad():
        content = {"state": model.state_dict(), "images": images, "features": model(images)}
    torch.save({**content, "initial": initial}, f"{sys.argv[2]}/{name}-{shortcut}.pt")
"""

SEED_SHORTCUTS = {
    "projection": "ProjectionShortcut",
    "identity": "IdentityShortcut",
    "full_projection": "FullProjectionShortcut",
    "convolution": "ConvolutionShortcut",
}
SEED_MODELS = [
    "ResNet20",
    "PreActResNet20",
    "ResNet18",
    "PreActResNet50",
    "ResNet164",
    "WideResNet16",
]


uses_seed = pytest.mark.xdist_group("seed")  # one worker installs and runs it for all


@pytest.fixture(scope="module")
def seed_files(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Models of PyPI's torch-resnet 0.0.4, run in a process of their own."""
    folder = tmp_path_factory.mktemp("seed")
    package = folder / "package"
    install = ["-m", "pip", "install", "--quiet", "--no-deps", "--target", str(package)]
    subprocess.run([sys.executable, *install, "torch-resnet==0.0.4"], check=True)
    wanted = [f"{name} {cls}" for name in SEED_MODELS for cls in SEED_SHORTCUTS.values()]
    subprocess.run(
        [sys.executable, "-c", _SEED, str(package), str(folder)],
        input="\n".join(wanted),
        text=True,
        check=True,
    )
    return folder


@uses_seed
@pytest.mark.parametrize("shortcut", SEED_SHORTCUTS)
@pytest.mark.parametrize("name", SEED_MODELS)
def test_the_seeds_weights_give_the_seeds_features_in_both_twins(seed_files, name, shortcut):
    theirs = torch.load(seed_files / f"{name}-{SEED_SHORTCUTS[shortcut]}.pt")
    ours = convert.from_layout(theirs["state"], name, "torch-resnet", shortcut=shortcut)
    torch_model = torch_resnet.create(name, shortcut=shortcut)
    torch_model.load_state_dict(ours, strict=True)
    torch_model.eval()
    with torch.no_grad():
        features = torch_model(theirs["images"])
    expected = theirs["features"].numpy()
    assert relative_error(features.numpy(), expected) <= 1e-5
    flax_model = flax_resnet.create(name, rngs=nnx.Rngs(0), shortcut=shortcut)
    convert.torch_to_flax(ours, flax_model)
    flax_model.eval()
    images = jnp.asarray(theirs["images"].numpy().transpose(0, 2, 3, 1))
    assert relative_error(flax_model(images), expected) <= 1e-5
    back = convert.to_layout(
        convert.flax_to_torch(flax_model), name, "torch-resnet", shortcut=shortcut
    )
    assert_same_state(back, theirs["state"])


@uses_seed
@pytest.mark.parametrize("name", SEED_MODELS)
def test_one_seed_of_torch_draws_the_seeds_initial_weights(seed_files, name):
    theirs = torch.load(seed_files / f"{name}-ProjectionShortcut.pt")["initial"]
    torch.manual_seed(0)
    model = getattr(torch_resnet, name)()
    for parameter, expected in zip(model.parameters(), theirs, strict=True):
        assert torch.equal(parameter, expected)

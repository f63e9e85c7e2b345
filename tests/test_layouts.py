"""Other packages' names: their own models give their own logits from both twins.

A run ends with the matrix of layouts, models and directions (`tests/conftest.py` prints it).
"""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

import convert
import flax_resnet
import torch_resnet
from benchmarks.peers import torch_resnet_package
from convert.layouts import LAYOUTS, find_layout, layout_spec
from convert.layouts.translate import flatten
from convert.wrappers import without_training_state
from resnet_spec import MODELS, find_spec
from tests.peers import Peer, import_timm, make_peer
from tests.twins import (
    assert_same_state,
    image_size,
    random_images,
    relative_error,
    run_torch,
    to_nchw,
)

Record = Callable[[str, object], None]

IMAGENET = ["ResNet18", "ResNet34", "ResNet50", "ResNet101", "ResNet152"]
WIDE = ["WideResNet50-2", "WideResNet101-2"]
CIFAR = ["ResNet20", "ResNet32", "ResNet44", "ResNet56", "ResNet110", "ResNet1202"]
PEERS: dict[str, list[str]] = {
    "torchvision": ["ResNet18", "ResNet50", "ResNet34", "ResNet101", "ResNet152", *WIDE],
    "timm": [
        *("ResNet18", "PreActResNet18", "PreActResNet50"),
        *("ResNet34", "ResNet50", "ResNet101", "ResNet152", "ResNet200", *WIDE),
        *("PreActResNet34", "PreActResNet101", "PreActResNet152"),
    ],
    "transformers": ["ResNet18", "ResNet50", "ResNet34", "ResNet101", "ResNet152"],
    "cifar": [*CIFAR, "ResNet18-small", "ResNet34-small"],
    "flax-imagenet": ["ResNet18", "ResNet50", "ResNet34", "ResNet101", "ResNet152", "ResNet200"],
    "bonsai": ["ResNet50", "ResNet152"],
    "keras": ["ResNet50", "ResNet152"],
    "haiku": ["ResNet18", "PreActResNet50"],
    "wide-resnet": ["PreActWideResNet40-1", "PreActWideResNet16-4"],
}
QUICK = {
    *(("torchvision", "ResNet50"), ("timm", "ResNet18"), ("timm", "PreActResNet18")),
    *(("transformers", "ResNet18"), ("cifar", "ResNet20"), ("cifar", "ResNet18-small")),
    *(("flax-imagenet", "ResNet18"), ("bonsai", "ResNet50")),
    *(("keras", "ResNet50"), ("haiku", "ResNet18"), ("wide-resnet", "PreActWideResNet40-1")),
}


def cases() -> list[Any]:
    found = []
    for layout, models in PEERS.items():
        for model in models:
            # one worker imports a peer's package, and compiles a model's shapes, for all
            marks = [pytest.mark.xdist_group(layout)]
            if (layout, model) not in QUICK:
                marks.append(pytest.mark.slow)
            found.append(pytest.param(layout, model, id=f"{layout}-{model}", marks=marks))
    return found


@pytest.mark.parametrize(("layout", "model"), cases())
def test_a_peers_weights_give_its_logits_in_both_twins_and_come_back_bit_for_bit(
    record_property, layout, model
):
    check_directions(record_property, make_peer(layout, model), layout, model)


@pytest.mark.xdist_group("transformers")
def test_transformers_v1_networks_have_the_stride_on_the_first_1x1(record_property):
    peer = make_peer("transformers", "ResNet50", downsample_in_bottleneck=True)
    check_directions(record_property, peer, "transformers", "ResNet50", bottleneck_stride="1x1")


def check_directions(record: Record, peer: Peer, layout: str, model: str, **changes: Any) -> None:
    state = convert.from_layout(peer.tensors, model, layout, **changes)
    images = random_images(2, image_size(model), "float32")
    expected = peer.logits(images)
    torch_model = convert.build(state, "torch")
    flax_model = convert.build(state, "flax")
    errors = [
        relative_error(run_torch(torch_model, images), expected),
        relative_error(flax_model(jnp.asarray(images)), expected),
    ]
    back = convert.to_layout(convert.flax_to_torch(flax_model), model, layout, **changes)
    assert max(errors) <= 1e-5
    to_torch, to_flax = errors
    errors_text = f"torch twin {to_torch:.1e}   Flax twin {to_flax:.1e}   back: same bits"
    if not find_layout(layout).has_conv_bias:
        theirs, _ = without_training_state(flat(peer.tensors, layout))
        if layout == "haiku":  # which names a network as the user's module does
            theirs = find_layout(layout).whole_names(theirs)
        assert_same_state(flat(back, layout), theirs)
    else:  # other values of the same network
        again = convert.from_layout(back, model, layout, **changes)
        returned = relative_error(run_torch(convert.build(again, "torch"), images), expected)
        assert returned <= 1e-5
        errors_text = errors_text.replace("same bits", f"{returned:.1e}")
    name = " ".join([model, *map(str, changes.values())])
    record("matrix", f"{layout:16}{name:36}{errors_text}")


def flat(tensors: Any, layout: str) -> dict[str, Any]:
    return flatten(tensors, find_layout(layout))


def torchvision_model(name: str) -> torch.nn.Module:
    return make_peer("torchvision", name).model


def test_a_twin_of_another_dialect_refuses_the_weights():
    """Renamed weights alone would load, and compute something else."""
    state = convert.from_layout(make_peer("cifar", "ResNet20").tensors, "ResNet20", "cifar")
    other = torch_resnet.create("ResNet20", 10, shortcut="identity")
    with pytest.raises(RuntimeError, match="shortcut: 'centred_identity', not 'identity'"):
        other.load_state_dict(state)
    flax_model = convert.build(state, "flax")
    described = convert.flax_to_torch(flax_model)
    with pytest.raises(RuntimeError, match="centred_identity"):
        other.load_state_dict(described)

    other_flax = flax_resnet.create("ResNet20", 10, rngs=nnx.Rngs(0), shortcut="identity")
    with pytest.raises(convert.ConversionError, match="centred_identity"):
        convert.torch_to_flax(state, other_flax)
    with pytest.raises(convert.ConversionError, match="shortcut"):
        convert.to_layout(state, "ResNet20", "torch-resnet", shortcut="identity")
    torch_resnet.create("ResNet20", 10, shortcut="centred_identity").load_state_dict(state)


@pytest.mark.xdist_group("timm")
@pytest.mark.parametrize(
    ("theirs", "model", "sign"),
    [
        ("resnet18d", "ResNet18", "stem: three 3x3"),
        ("resnetv2_50d", "PreActResNet50", "stem: three 3x3"),
        ("resnet50_gn", "ResNet50", "GroupNorm"),
        ("resnext50_32x4d", "ResNet50", "grouped"),
        ("resnet26d", "ResNet50", "average pooling"),
    ],
)
def test_timms_other_networks_are_refused_with_the_difference(theirs, model, sign):
    state = import_timm().create_model(theirs).state_dict()
    with pytest.raises(convert.ConversionError, match=sign):
        convert.from_layout(state, model, "timm")


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
    [
        ("PreActResNet18", "preact=True: torchvision has only False"),
        ("ResNet18-small", "small_images=True"),
        ("ResNet20", "stage_planes"),
    ],
)
def test_a_layout_refuses_what_it_cannot_express(name, reason):
    with pytest.raises(convert.ConversionError, match=reason):
        convert.from_layout({}, name, "torchvision")


@pytest.mark.parametrize(
    ("layout", "model", "changes"),
    [
        ("torchvision", "ResNet50", {"padding": "same"}),
        ("torchvision", "ResNet50", {"bottleneck_stride": "1x1"}),
        ("flax-imagenet", "ResNet18", {"padding": "even"}),
        ("cifar", "ResNet20", {"shortcut": "identity"}),
        ("torch-resnet", "ResNet20", {"shortcut": "centred_identity"}),
    ],
)
def test_a_difference_in_what_is_computed_is_refused_by_its_name(layout, model, changes):
    (name,) = changes
    with pytest.raises(convert.ConversionError, match=f"{name}="):
        convert.from_layout({}, model, layout, **changes)


def test_unknown_layouts_and_models_offer_the_nearest():
    with pytest.raises(ValueError, match="did you mean torchvision"):
        convert.from_layout({}, "ResNet18", "torch-vision")
    with pytest.raises(ValueError, match="did you mean ResNet18"):
        convert.from_layout({}, "resnet18", "torchvision")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_layout_is_a_bijection_of_all_layers_of_all_models_that_it_can_express(layout):
    models = [m for m in MODELS if not find_layout(layout).problems(layout_spec(m, layout))]
    assert len(models) >= 4
    for model in models:
        assert_bijection(layout, model)


def assert_bijection(layout: str, model: str) -> None:
    spec = layout_spec(model, layout)
    pairs = list(find_layout(layout).names(spec))
    ours, theirs = zip(*pairs, strict=True)
    assert len(set(ours)) == len(set(theirs)) == len(pairs)
    expected = {path for path, _ in spec.convolutions()} | {path for path, _ in spec.norms()}
    assert set(ours) == expected | {"head"}


_SEED = """
import importlib.metadata, sys, numpy, torch
sys.path.insert(0, sys.argv[1])
import torch_resnet
assert torch_resnet.__file__.startswith(sys.argv[1]), torch_resnet.__file__
assert importlib.metadata.version("torch-resnet") == "0.0.4"
for name, shortcut, size in (line.split() for line in sys.stdin):
    torch.manual_seed(0)
    model = getattr(torch_resnet, name)(shortcut=getattr(torch_resnet, shortcut))
    initial = [p.detach().clone() for p in model.parameters()]
    for tensor in model.state_dict().values():
        if not tensor.is_floating_point():
            tensor.fill_(7)
        elif tensor.ndim == 1:  # convolutions are random as they are
            tensor.uniform_(0.5, 1.0)
    blocks = [block for stage in model.layers for block in stage]
    for block in blocks:  # else the sum of 600 residuals overflows
        last = getattr(block, "conv3", block.conv2) if "PreAct" in name else None
        last = last or getattr(block, "bn3", block.bn2)
        last.weight.data /= len(blocks) ** 0.5
    images = torch.from_numpy(numpy.load(f"{sys.argv[2]}/{size}.npy"))
    model.eval()
    with torch.no_grad():
        content = {"state": model.state_dict(), "features": model(images)}
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
ALL_SEED_MODELS = [name for name in MODELS if "-" not in name]

uses_seed = pytest.mark.xdist_group("seed")  # one worker installs and runs it for all


class Seed:
    """PyPI's torch-resnet 0.0.4, whose import name is ours too: it runs in its own processes."""

    def __init__(self, folder: Path):
        self.folder, self.package = folder, folder / "package"
        torch_resnet_package.install(self.package)
        for size in {image_size(name) for name in ALL_SEED_MODELS}:
            np.save(folder / f"{size}.npy", to_nchw(random_images(2, size, "float32")).numpy())

    def run(self, models: list[str], shortcuts: list[str]) -> None:
        """Writes the state, features and initial weights of every model and shortcut."""
        lines = [
            f"{name} {SEED_SHORTCUTS[shortcut]} {image_size(name)}"
            for name in models
            for shortcut in shortcuts
        ]
        subprocess.run(
            [sys.executable, "-c", _SEED, str(self.package), str(self.folder)],
            input="\n".join(lines),
            text=True,
            check=True,
        )

    def load(self, name: str, shortcut: str) -> Any:
        path = self.folder / f"{name}-{SEED_SHORTCUTS[shortcut]}.pt"
        if not path.exists():
            self.run([name], [shortcut])
        return torch.load(path)


@pytest.fixture(scope="module")
def seed(tmp_path_factory: pytest.TempPathFactory) -> Seed:
    package = Seed(tmp_path_factory.mktemp("seed"))
    package.run(SEED_MODELS, list(SEED_SHORTCUTS))
    return package


@uses_seed
@pytest.mark.parametrize(
    ("name", "shortcut"),
    [
        *((name, shortcut) for name in SEED_MODELS for shortcut in SEED_SHORTCUTS),
        *(
            pytest.param(name, "projection", marks=pytest.mark.slow)
            for name in ALL_SEED_MODELS
            if name not in SEED_MODELS
        ),
    ],
)
def test_the_seeds_weights_give_the_seeds_features_in_both_twins(
    record_property, seed, name, shortcut
):
    theirs = seed.load(name, shortcut)
    peer = Peer(None, theirs["state"], lambda images: theirs["features"].numpy())
    check_directions(record_property, peer, "torch-resnet", name, shortcut=shortcut)


@uses_seed
@pytest.mark.parametrize("name", SEED_MODELS)
def test_one_seed_of_torch_draws_the_seeds_initial_weights(seed, name):
    theirs = seed.load(name, "projection")["initial"]
    torch.manual_seed(0)
    model = getattr(torch_resnet, name)()
    for parameter, expected in zip(model.parameters(), theirs, strict=True):
        assert torch.equal(parameter, expected)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_of_the_other_packages_only_flaxs_keep_the_biased_variance(layout):
    row = find_spec("ResNet50" if layout != "cifar" else "ResNet20")
    biased: dict[str, str] = dict.fromkeys(("flax-imagenet", "bonsai", "keras", "haiku"), "biased")
    assert LAYOUTS[layout].adapt(row).running_variance == biased.get(layout, "unbiased")

"""Files under names that nobody here knows come in by one command, bit for bit, or are refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

import convert
import torch_resnet
from convert.arrays import to_numpy
from convert.leaves import flax_name, to_flax
from convert.models import describe
from resnet_spec import ResNetSpec
from tests.commands import assert_refused, run_here
from tests.test_structure import (
    BLOCKS,
    LAYERS,
    OUTSIDE,
    REFUSED,
    SHORTCUT_NAMES,
    Names,
    renamed,
    scheme,
)
from tests.twins import assert_same_state, make_twins, random_images, randomise, run_torch

State = dict[str, torch.Tensor]
LETTERS = {"conv1": "a", "bn1": "b", "conv2": "c", "bn2": "d"}


def numbered_scheme(number: int) -> Names:
    block, layer = BLOCKS[number % len(BLOCKS)], LAYERS[number % len(LAYERS)]
    shortcut = SHORTCUT_NAMES[number % len(SHORTCUT_NAMES)]
    return scheme(block, layer, shortcut, OUTSIDE[number % len(OUTSIDE)])


def theirs_of(model: Any, rename: Names, order: str = "definition") -> tuple[State, dict[str, str]]:
    """A torch twin's state dict under an author's names, in an order; these names by ours."""
    shapes, truth = renamed(describe(model), rename, order)
    ours, state = {theirs: name for name, theirs in truth.items()}, model.state_dict()
    return {name: state[ours[name]].clone() for name in shapes}, truth


def torchvisions(model: Any) -> State:
    """Names close to torchvision's, which `REFUSED` changes."""
    return theirs_of(model, scheme("layer{S}.{b}.", str, SHORTCUT_NAMES[0], OUTSIDE[0]))[0]


def take(folder: Path, file: str, *options: str, output: str = "ours.pt") -> str:
    """What the import of a file says; it must succeed."""
    result = run_here("convert", "import", file, *options, "-o", output, cwd=folder)
    assert result.returncode == 0, result.stderr
    return result.stdout


def assert_is(path: Path, model: Any) -> None:
    """The file holds the very tensors of a network, and they compute the same."""
    loaded = convert.load(path, backend="torch")
    assert not loaded.spec.differences(model.spec)
    assert_same_state(loaded.state_dict(), model.state_dict())
    images = random_images(2, 32, "float32", model.spec.in_planes)
    expected = run_torch(model.eval(), images)
    assert np.abs(run_torch(loaded, images) - expected).max() <= 1e-5 * np.abs(expected).max()


CORPUS = [
    ("ResNet20", "projection", 1, "definition", "theirs.pt"),
    ("ResNet20", "identity", 2, "sorted", "theirs.pt"),
    ("ResNet20", "convolution", 3, "shortcut first", "theirs.safetensors"),
    ("PreActResNet20", "projection", 4, "head first", "theirs.pt"),
    ("PreActResNet20", "full_projection", 9, "definition", "theirs.safetensors"),
    ("ResNet18-small", "projection", 6, "sorted", "theirs.safetensors"),
    ("ResNet18", "full_projection", 7, "definition", "theirs.pt"),
    ("WideResNet16-4", "projection", 8, "shortcut first", "theirs.pt"),
    ("ResNet164", "projection", 10, "definition", "theirs.safetensors"),
    ("PreActResNet164", "projection", 12, "definition", "theirs.pt"),
]


@pytest.mark.parametrize(("name", "shortcut", "number", "order", "file"), CORPUS)
def test_a_file_under_any_names_comes_in_bit_for_bit(name, shortcut, number, order, file, tmp_path):
    _, model = make_twins(name, dtype="float32", shortcut=shortcut)
    state, truth = theirs_of(model, numbered_scheme(number), order)
    if file.endswith(".pt"):
        torch.save({"state_dict": state}, tmp_path / file)
    else:
        safetensors.torch.save_file(state, tmp_path / file)
    said = take(tmp_path, file)
    assert "recognised by structure: " in said
    assert "taken as residual connections around all blocks" in said
    assert_is(tmp_path / "ours.pt", model)
    result = run_here("convert", "inspect", file, "--names", "--json", cwd=tmp_path)
    assert json.loads(result.stdout)["names"] == truth


@pytest.mark.parametrize(
    ("depths", "block"), [((1, 1, 1), "basic"), ((2, 3, 1), "basic"), ((3, 2), "bottleneck")]
)
def test_a_depth_that_is_not_in_the_table_comes_in(depths, block, tmp_path):
    planes = (16, 32, 64)[: len(depths)]
    spec = ResNetSpec(block, depths, planes, 16, small_images=True, in_planes=1)
    model = torch_resnet.from_spec(spec, 5)
    randomise(model)
    torch.save(theirs_of(model, numbered_scheme(3))[0], tmp_path / "theirs.pt")
    assert "a network without a name in the table" in take(tmp_path, "theirs.pt")
    assert_is(tmp_path / "ours.pt", model)


@pytest.mark.parametrize(
    ("layout", "name", "said"),
    [
        ("torchvision", "ResNet18", "--layout torchvision --model ResNet18"),
        ("cifar", "ResNet20", "--layout cifar --model ResNet20"),
        ("torch-resnet", "ResNet20", "--layout torch-resnet --model ResNet20"),
        ("flax-resnet", "PreActResNet20", "--layout flax-resnet --model PreActResNet20"),
    ],
)
def test_a_known_layout_that_fits_whole_is_taken_and_said(layout, name, said, tmp_path):
    shortcut = convert.layout_spec(name, layout).shortcut
    _, model = make_twins(name, dtype="float32", shortcut=shortcut)
    state = dict(convert.to_layout(model.state_dict(), name, layout))
    torch.save(state, tmp_path / "theirs.pt")
    assert f"taken with {said}: every name and shape fits" in take(tmp_path, "theirs.pt")
    assert_is(tmp_path / "ours.pt", model)


@pytest.mark.parametrize("layout", ["torchvision", None])
def test_counters_that_a_file_lacks_are_zero_and_said(layout, tmp_path):
    _, model = make_twins("ResNet18", dtype="float32")
    if layout is None:
        state, _ = theirs_of(model, numbered_scheme(5))
    else:
        state = dict(convert.to_layout(model.state_dict(), "ResNet18", layout))
    kept = {name: tensor for name, tensor in state.items() if "num_batches" not in name}
    torch.save(kept, tmp_path / "theirs.pth")
    assert "taken as zero: 20 num_batches_tracked, which the file" in take(tmp_path, "theirs.pth")
    for name, tensor in model.state_dict().items():
        if "num_batches" in name:
            tensor.zero_()
    assert_is(tmp_path / "ours.pt", model)


def as_linens(state: State) -> dict[str, Any]:
    """A state dict with linen's collections, leaves and axes, without counters."""
    arrays = {}
    for name, tensor in state.items():
        if "num_batches" not in name:
            theirs = flax_name(name, tensor.ndim)
            kind = "batch_stats" if theirs.endswith(("mean", "var")) else "params"
            arrays[f"{kind}/{theirs.replace('.', '/')}"] = to_flax(theirs, to_numpy(tensor))
    return arrays


def test_networks_of_flax_come_in_with_the_advice_to_state_their_padding(tmp_path):
    """No tensor shows it, and the usual one is not torch's."""
    model = torch_resnet.create("ResNet20", 10, padding="same")
    randomise(model)
    state = theirs_of(model, numbered_scheme(4))[0]
    torch.save(state, tmp_path / "theirs.pt")
    np.savez(tmp_path / "theirs.npz", **as_linens(state))
    advice = "Flax and Keras, whose networks usually pad as TensorFlow does"
    assert advice in take(tmp_path, "theirs.npz")
    assert advice not in take(tmp_path, "theirs.npz", "--padding", "same")
    assert convert.load(tmp_path / "ours.pt", "torch").spec == model.spec
    assert advice not in take(tmp_path, "theirs.pt")


def test_kernels_of_flax_and_a_head_of_1x1_are_turned(tmp_path):
    """Linen's collections and leaves; and a head that is a convolution."""
    _, model = make_twins("ResNet20", dtype="float32")
    arrays = as_linens(theirs_of(model, numbered_scheme(4))[0])
    np.savez(tmp_path / "theirs.npz", **arrays)
    assert "num_batches_tracked" not in take(tmp_path, "theirs.npz")
    for name, tensor in model.state_dict().items():
        if "num_batches" in name:
            tensor.zero_()
    assert_is(tmp_path / "ours.pt", model)
    state, truth = theirs_of(model, numbered_scheme(4))
    state[truth["head.weight"]] = state[truth["head.weight"]][:, :, None, None]
    torch.save(state, tmp_path / "theirs.pt")
    take(tmp_path, "theirs.pt")
    assert_is(tmp_path / "ours.pt", model)


def test_what_a_user_states_of_an_unknown_file_must_fit_its_tensors(tmp_path):
    _, model = make_twins("ResNet20", dtype="float32", shortcut="centred_identity", padding="even")
    torch.save(theirs_of(model, numbered_scheme(2))[0], tmp_path / "theirs.pt")
    said = take(tmp_path, "theirs.pt", "--model", "ResNet20", "--shortcut", "centred_identity")
    assert "shortcut=" not in said.partition("taken as")[2]
    assert_is(tmp_path / "ours.pt", model)
    for options, parts in (
        (("--model", "ResNet32"), ("theirs.pt holds another network", "--model ResNet32")),
        (("--shortcut", "projection"), ("another network", "shortcut: 'identity'")),
        (("--model", "ResNt20"), ("did you mean",)),
    ):
        arguments = ("import", "theirs.pt", *options, "-o", "x.pt")
        assert_refused(run_here("convert", *arguments, cwd=tmp_path), *parts)
    said = take(tmp_path, "theirs.pt", "--head", "new:3")
    assert "left out: fcOut.weight, fcOut.bias, the head" in said


SAID = {
    "GroupNorm": "no layer of a ResNet of ours has layer1.0.bn1.weight",
    "squeeze and excitation": "layer1.0.se.fc1.bias",
    "grouped convolutions": "layer1.0.conv2.weight should be (64, 64, 3, 3), is (64, 2, 3, 3)",
    "learned activations": "no layer of a ResNet of ours has layer1.0.act.weight",
    "layer scale": "no layer of a ResNet of ours has layer1.0.gamma",
    "a bias of another width": "layer1.0.conv1.bias",
    "spectral normalisation": "layer1.0.conv1.weight_u",
    "truncated": "missing: layer4.0.conv2.weight (512, 512, 3, 3)",
    "two heads": "beside the network: fc.weight, aux.weight: --head drop",
    "three stems": "left over: conv0.weight (64, 3, 3, 3)",
    "another kernel": "is (128, 64, 5, 5)",
    "another width": "is (250, 256, 3, 3)",
    "one more layer": "left over: layer3.1.conv3.weight",
    "a transposed kernel": "is (3, 3, 128, 256)",
    "a mean of another width": "bn1.running_mean",
    "nothing": "missing: conv1.weight",
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_no_network_of_ours_is_refused_by_the_files_own_names(what, tmp_path):
    _, model = make_twins("ResNet18", dtype="float32")
    state = torchvisions(model)
    for name, shape in REFUSED[what].items():
        if shape is None:
            del state[name]
        else:
            state[name] = torch.ones(shape)
    torch.save(state, tmp_path / "theirs.pt")
    result = run_here("convert", "import", "theirs.pt", "-o", "x.pt", cwd=tmp_path)
    way = "more than a network of ours" if what == "two heads" else "give --model"
    assert_refused(result, way, "theirs.pt", SAID[what], "inspect")
    assert not (tmp_path / "x.pt").exists()


def test_bad_values_are_reported_by_the_files_own_names(tmp_path):
    _, model = make_twins("ResNet20", dtype="float32")
    state, truth = theirs_of(model, numbered_scheme(3))
    name = truth["stages.1.0.bn2.running_var"]
    state[name][0] = -1
    torch.save(state, tmp_path / "theirs.pt")
    result = run_here("convert", "import", "theirs.pt", "-o", "x.pt", cwd=tmp_path)
    assert_refused(result, f"negative: {name} has 1 variances below zero")
    assert "stages.1" not in result.stderr


def narrow_resnet18() -> Any:
    """Four stages with three shortcuts, random in every leaf."""
    model = torch_resnet.from_spec(ResNetSpec("basic", (2, 2, 2, 2), (8, 16, 32, 64), 8), 10)
    randomise(model)
    return model


def open_file(folder: Path) -> tuple[Any, dict[str, str]]:
    """A file in which nothing tells a shortcut's normalisation from its block's last one."""
    model = narrow_resnet18()
    rename = scheme("layer{S}.{b}.", LETTERS.__getitem__, {"conv": "e", "bn": "f"}, OUTSIDE[1])
    state, truth = theirs_of(model, rename, "sorted")
    torch.save(state, folder / "theirs.pt")
    return model, truth


def test_what_nothing_decides_is_shown_and_decided_by_names(tmp_path):
    model, truth = open_file(tmp_path)
    result = run_here("convert", "import", "theirs.pt", "-o", "ours.pt", cwd=tmp_path)
    assert_refused(result, "not which of its layers is which", "--names MAP.json", "--rename")
    order = "are stages.1.0.bn1, stages.1.0.bn2, stages.1.0.shortcut_bn, in an order that is not"
    assert f"layer2.0.b, layer2.0.d, layer2.0.f {order}" in result.stderr
    looked = run_here("convert", "inspect", "theirs.pt", cwd=tmp_path)
    assert "recognised by structure (but not which layer is which)" in looked.stdout
    assert order in looked.stdout
    some = {
        "stages.1.0.bn1": "layer2.0.b",  # layers, and a tensor
        "stages.1.0.bn2": "layer2.0.d",
        "stages.2.0.shortcut_bn.running_mean": "layer3.0.f.running_mean",  # the others by letters
    }
    map_file = tmp_path / "map.json"
    map_file.write_text(json.dumps(some))
    result = run_here(
        "convert", "import", "theirs.pt", "--names", "map.json", "-o", "ours.pt", cwd=tmp_path
    )
    assert_refused(result, "stages.3.0.bn2")
    assert "stages.1.0.bn2" not in result.stderr
    map_file.write_text(json.dumps({**some, "stages.3.0.bn1": "layer4.0.b"}))
    result = run_here(
        "convert", "import", "theirs.pt", "--names", "map.json", "-o", "ours.pt", cwd=tmp_path
    )
    assert_refused(result, "layer4.0.d is stages.3.0.bn2", "layer4.0.f is", "other way round")
    map_file.write_text(json.dumps({**some, "stages.3.0.shortcut_bn": "layer4.0.f"}))
    take(tmp_path, "theirs.pt", "--names", "map.json")
    assert_is(tmp_path / "ours.pt", model)
    map_file.write_text(json.dumps(truth))  # all of them, though some would do
    take(tmp_path, "theirs.pt", "--names", "map.json")
    assert_is(tmp_path / "ours.pt", model)


def test_text_in_names_is_replaced_in_order(tmp_path):
    model, _ = open_file(tmp_path)
    take(tmp_path, "theirs.pt", "--rename", ".f.=.g.", "--rename", "0.g.=0.shortcut.")
    assert_is(tmp_path / "ours.pt", model)
    looked = run_here(
        *("convert", "inspect", "theirs.pt", "--names", "--rename", ".f.=.skip."), cwd=tmp_path
    )
    assert "every tensor has its place" in looked.stdout
    assert "layer2.0.skip.weight" in looked.stdout
    for option, part in (
        ("layer9=x", "no name has 'layer9' in it"),
        ("layer2", "'layer2' is not OLD=NEW"),
        ("layer2=layer1", "2 tensors would be called 'layer1.1.a.weight'"),
    ):
        arguments = ("import", "theirs.pt", "--rename", option, "-o", "x.pt")
        assert_refused(run_here("convert", *arguments, cwd=tmp_path), part)


def test_wrong_names_are_refused_all_at_once(tmp_path):
    _, truth = open_file(tmp_path)
    file = tmp_path / "map.json"
    wrong = {
        "stages.1.0.bn9": "layer2.0.d",
        "stages.1.0.bn2": "layer2.0.z",
        "stages.1.0.conv1": "layer2.0.c",
        "stages.3.0.bn2": "layer4.0.f",
        "stages.3.0.shortcut_bn": "layer4.0.f",
    }
    for text, parts in (
        (
            json.dumps(wrong),
            (
                "stages.1.0.bn9 is no layer or tensor of this network",
                "layer2.0.z is no layer of the file",
                "stages.1.0.conv1 cannot be layer2.0.c: conv (16, 8, 3, 3)",
                "layer4.0.f is used 2 times",
            ),
        ),
        ("[1]", ("no JSON object of names",)),
        ("{", ("not JSON",)),
        ('{"head": "linear", "head": "linear"}', ("names that are there twice", "head")),
    ):
        file.write_text(text)
        arguments = ("import", "theirs.pt", "--names", "map.json", "-o", "x.pt")
        assert_refused(run_here("convert", *arguments, cwd=tmp_path), *parts)
    file.write_text(json.dumps(truth))
    arguments = ("import", "theirs.pt", "--names", "map.json", "--layout", "cifar", "-o", "x.pt")
    assert_refused(run_here("convert", *arguments, cwd=tmp_path), "leave out --names")


def lists_of_layers(model: Any) -> tuple[State, dict[str, str]]:
    """All convolutions in one list, all normalisations in another: no name has a block."""
    counts: dict[str, int] = {}
    paths: dict[str, str] = {}

    def rename(path: str) -> str:
        kind = "fc" if path == "head" else "bns" if "bn" in path or path == "norm" else "convs"
        if path not in paths:
            counts[kind] = counts.get(kind, -1) + 1
            paths[path] = kind if kind == "fc" else f"{kind}.{counts[kind]}"
        return paths[path]

    return theirs_of(model, rename)


def test_two_networks_of_the_same_tensors_are_shown_and_the_user_says_which(tmp_path):
    _, model = make_twins("ResNet20", dtype="float32", shortcut="identity")
    torch.save(lists_of_layers(model)[0], tmp_path / "theirs.pt")
    result = run_here("convert", "import", "theirs.pt", "-o", "x.pt", cwd=tmp_path)
    assert_refused(
        result,
        "can be more than one network",
        "\n  ResNet20, shortcut=identity: ",
        "\n  PreActResNet20, shortcut=identity: ",
        "--names MAP.json",
    )
    looked = run_here("convert", "inspect", "theirs.pt", cwd=tmp_path)
    assert "one of 2 networks that have these tensors" in looked.stdout
    take(tmp_path, "theirs.pt", "--model", "ResNet20")
    assert_is(tmp_path / "ours.pt", model)
    (tmp_path / "map.json").write_text('{"stem.bn": "bns.0"}')
    take(tmp_path, "theirs.pt", "--names", "map.json")
    assert_is(tmp_path / "ours.pt", model)


def test_names_alone_give_a_bijection_that_nothing_else_shows(tmp_path):
    """Layers called by words in a random order: only the whole map tells what they are."""
    _, model = make_twins("ResNet20", dtype="float32")
    paths = list(dict.fromkeys(name.rpartition(".")[0] for name in model.state_dict()))
    order = np.random.default_rng(0).permutation(len(paths))
    words = {
        path: "".join(chr(97 + int(d)) for d in str(i))
        for path, i in zip(paths, order, strict=True)
    }
    state, truth = theirs_of(model, words.__getitem__, "sorted")
    torch.save(state, tmp_path / "theirs.pt")
    result = run_here("convert", "import", "theirs.pt", "-o", "x.pt", cwd=tmp_path)
    assert_refused(result, "give --model")
    (tmp_path / "map.json").write_text(json.dumps(truth))
    take(tmp_path, "theirs.pt", "--names", "map.json")
    assert_is(tmp_path / "ours.pt", model)


def test_the_order_of_a_safetensors_file_is_not_taken_for_the_authors(tmp_path):
    """It is sorted by dtype, then by name, so that counters come first."""
    model = narrow_resnet18()
    rename = scheme("layer{S}.{b}.", LETTERS.__getitem__, {"conv": "e", "bn": "B"}, OUTSIDE[1])
    state, _ = theirs_of(model, rename)
    torch.save(state, tmp_path / "theirs.pt")
    take(tmp_path, "theirs.pt")  # here the order decides
    assert_is(tmp_path / "ours.pt", model)
    safetensors.torch.save_file(state, tmp_path / "theirs.safetensors")
    result = run_here("convert", "import", "theirs.safetensors", "-o", "x.pt", cwd=tmp_path)
    assert_refused(result, "not which of its layers is which")
    half = {n: t.half() if t.ndim == 4 else t for n, t in state.items()}  # three dtypes
    safetensors.torch.save_file(half, tmp_path / "half.safetensors")
    result = run_here("convert", "import", "half.safetensors", "-o", "x.pt", cwd=tmp_path)
    assert_refused(result, "not which of its layers is which")


BESIDE = {  # what lies beside a network, and what is said of it
    "criterion.weight": (10,),
    "train_acc.total": (),
    "normalize.mean": (3,),
    "normalize.std": (1, 3, 1, 1),
    "sigma": (1, 3, 1, 1),
}


@pytest.mark.parametrize(("layout", "prefix"), [(None, "model.net."), ("cifar", "encoder.")])
@pytest.mark.parametrize(
    "beside",
    [("criterion.weight", "train_acc.total"), ("normalize.mean", "normalize.std"), ("sigma",)],
)
def test_what_is_of_no_network_is_left_out_and_said(layout, prefix, beside, tmp_path):
    _, model = make_twins("ResNet20", dtype="float32", shortcut="centred_identity")
    state = theirs_of(model, numbered_scheme(5))[0]
    if layout is not None:
        state = dict(convert.to_layout(model.state_dict(), "ResNet20", layout))
    state = {f"{prefix}{name}": tensor for name, tensor in state.items()}
    torch.save(state | {n: torch.ones(BESIDE[n]) for n in beside}, tmp_path / "theirs.ckpt")
    said = take(tmp_path, "theirs.ckpt", "--shortcut", "centred_identity")
    assert f"left out: {', '.join(beside)}, which lie beside the network" in said
    assert ("normalises its images itself" in said) == ("criterion.weight" not in beside)
    assert_is(tmp_path / "ours.pt", model)


def test_of_several_networks_in_a_file_each_is_named(tmp_path):
    _, model = make_twins("ResNet20", dtype="float32")
    state, _ = theirs_of(model, numbered_scheme(5))
    both = {f"model.{name}": t + 1 for name, t in state.items()}
    both |= {f"average.{name}": t for name, t in state.items()}
    torch.save(both, tmp_path / "theirs.pt")
    result = run_here("convert", "import", "theirs.pt", "-o", "x.pt", cwd=tmp_path)
    assert_refused(
        result,
        "behind 'model.' is ResNet20: --prefix model.",
        "behind 'average.' is ResNet20: --prefix average.",
    )
    take(tmp_path, "theirs.pt", "--prefix", "average.")
    assert_is(tmp_path / "ours.pt", model)


def test_a_learned_activation_within_a_network_does_not_lie_beside_it(tmp_path):
    _, model = make_twins("ResNet20", dtype="float32")
    state = torchvisions(model)
    torch.save({**state, "layer1.0.act.weight": torch.ones(1)}, tmp_path / "theirs.pt")
    result = run_here("convert", "import", "theirs.pt", "-o", "x.pt", cwd=tmp_path)
    assert_refused(result, "no layer of a ResNet of ours has layer1.0.act.weight")


CIFAR_NAMES = {  # of the layout `cifar`, also for networks that it does not have
    "block": "layer{S}.{b}.",
    "layer": str,
    "shortcut": SHORTCUT_NAMES[1],
    "outside": {"stem.conv": "conv1", "stem.bn": "bn1", "norm": "bn", "head": "linear"},
}


@pytest.mark.parametrize(
    ("name", "shortcut"),
    [("ResNet20", "identity"), ("ResNet20", "convolution"), ("PreActResNet20", "projection")],
)
def test_networks_that_a_layout_does_not_have_come_in_under_its_names(name, shortcut, tmp_path):
    _, model = make_twins(name, dtype="float32", shortcut=shortcut)
    torch.save(theirs_of(model, scheme(**CIFAR_NAMES))[0], tmp_path / "theirs.pt")
    take(tmp_path, "theirs.pt", "--shortcut", shortcut)
    assert_is(tmp_path / "ours.pt", model)


def test_a_head_in_another_container_than_the_network_is_kept(tmp_path):
    """As MMClassification has it."""
    _, model = make_twins("ResNet18-small", dtype="float32")
    state = torchvisions(model)
    theirs = {f"{'head' if n.startswith('fc.') else 'backbone'}.{n}": t for n, t in state.items()}
    torch.save({"state_dict": theirs, "meta": {}}, tmp_path / "theirs.pth")
    take(tmp_path, "theirs.pth")
    assert_is(tmp_path / "ours.pt", model)


def test_what_is_missing_has_the_files_words(tmp_path):
    _, model = make_twins("ResNet18-small", dtype="float32")
    state = torchvisions(model)
    del state["layer2.0.downsample.0.weight"]
    torch.save(state, tmp_path / "theirs.pth")
    told = ("--layout", "cifar", "--model", "ResNet18-small", "-o", "x.pt")
    result = run_here("convert", "import", "theirs.pth", *told, cwd=tmp_path)
    assert_refused(result, "missing: layer2.0.downsample.0.weight (128, 64, 1, 1)")
    half = {name: tensor for name, tensor in state.items() if not name.startswith("layer4")}
    torch.save(half, tmp_path / "theirs.pth")
    result = run_here("convert", "import", "theirs.pth", *told, cwd=tmp_path)
    assert_refused(result, "and 21 more tensors: 26 missing in all")
    assert len(result.stderr.splitlines()) == 7

"""Files in the shape of well-known checkpoints come in by one command, or are refused and named."""

import argparse
import pickle
import sys
import types
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import torch_resnet
from convert.files import read_weights
from resnet_spec import ResNetSpec
from tests.commands import assert_refused, run_here
from tests.payloads import PAYLOADS
from tests.test_any_names import (
    State,
    assert_is,
    numbered_scheme,
    take,
    theirs_of,
    torchvisions,
)
from tests.test_structure import OUTSIDE, numbered, scheme
from tests.twins import make_twins, randomise

SPEC = ResNetSpec("bottleneck", (1, 2, 1, 1), (8, 16, 32, 64), 8)
PLANES = SPEC.out_planes


def make_network(num_classes: int | None = None, seed: int = 0, **changes: Any) -> Any:
    """A narrow ResNet, random in every leaf."""
    model = torch_resnet.from_spec(ResNetSpec.from_json({**SPEC.to_json(), **changes}), num_classes)
    randomise(model, seed)
    return model


def behind(prefix: str, state: State) -> State:
    return {prefix + name: tensor for name, tensor in state.items()}


def mlp(prefix: str) -> State:
    """Two linear layers and a normalisation between them."""
    statistics = {"running_mean": torch.ones(9), "running_var": torch.ones(9)}
    first = {"0.weight": torch.ones(9, PLANES), "0.bias": torch.ones(9)}
    last = {"2.weight": torch.ones(4, 9), "2.bias": torch.ones(4)}
    norm = {"1.weight": torch.ones(9), "1.bias": torch.ones(9), **behind("1.", statistics)}
    return behind(prefix, {**first, **norm, **last})


def conv(prefix: str, inside: int = 8) -> State:
    return {f"{prefix}.weight": torch.ones(8, inside, 3, 3), f"{prefix}.bias": torch.ones(8)}


def without_counters(state: State) -> State:
    return {name: tensor for name, tensor in state.items() if "num_batches" not in name}


def detectrons(state: State) -> State:
    """Detectron2's names: `stem.conv1.norm.weight`, `res2.0.shortcut.weight`."""
    renamed = {}
    for name, tensor in without_counters(state).items():
        name = name if name.startswith("layer") else f"stem.{name}"
        for stage in range(1, 5):
            name = name.replace(f"layer{stage}.", f"res{stage + 1}.").replace(
                f"bn{stage}.", f"conv{stage}.norm."
            )
        name = name.replace("downsample.0", "shortcut").replace("downsample.1", "shortcut.norm")
        renamed[name] = tensor
    return renamed


Maker = Callable[[State, State], Any]
MOCO_QUEUE = {"module.queue": torch.ones(4, 90), "module.queue_ptr": torch.zeros(1).long()}
DETECTOR = {**conv("backbone.fpn_lateral2"), **conv("proposal_generator.rpn_head.conv")}
BACKBONES: dict[str, tuple[Maker, tuple[str, ...]]] = {
    "MoCo v2": (
        lambda one, other: {
            "arch": "resnet50",
            "state_dict": {
                **behind("module.encoder_q.", {**one, **mlp("fc.")}),
                **behind("module.encoder_k.", {**other, **mlp("fc.")}),
                **MOCO_QUEUE,
            },
        },
        (),
    ),
    "MoCo v3": (
        lambda one, other: {
            **behind("module.base_encoder.", {**one, **mlp("fc.")}),
            **behind("module.momentum_encoder.", {**other, **mlp("fc.")}),
            **mlp("module.predictor."),
        },
        (),
    ),
    "BYOL": (
        lambda one, other: {
            **behind("net.", one),
            **behind("online_encoder.", {**behind("net.", one), **mlp("projector.")}),
            **behind("target_encoder.", {**behind("net.", other), **mlp("projector.")}),
            **mlp("online_predictor."),
        },
        (),
    ),
    "SimSiam": (
        lambda one, _: {
            **behind("module.encoder.", {**one, **mlp("fc.")}),
            **mlp("module.predictor."),
        },
        (),
    ),
    "SwAV": (
        lambda one, _: behind(
            "module.",
            {**one, **mlp("projection_head."), "prototypes.weight": torch.ones(30, 4)},
        ),
        (),
    ),
    "DINO": (
        lambda one, other: {
            "teacher": {**behind("backbone.", one), **mlp("head.mlp.")},
            "student": behind("module.", {**behind("backbone.", other), **mlp("head.mlp.")}),
            "args": argparse.Namespace(arch="resnet50"),
        },
        ("--entry", "teacher"),
    ),
    "Barlow Twins": (
        lambda one, _: {
            "epoch": 1,
            "model": behind("module.", {**behind("backbone.", one), **mlp("projector.")})
            | {"module.bn.running_mean": torch.ones(4), "module.bn.running_var": torch.ones(4)},
        },
        (),
    ),
    "SimCLR": (
        lambda one, _: {"state_dict": behind("backbone.", {**one, **mlp("fc.")})},
        ("--head", "drop"),
    ),
    "VISSL": (
        lambda one, _: {
            "classy_state_dict": {
                "base_model": {
                    "model": {"trunk": behind("_feature_blocks.", one), "heads": mlp("0.clf.")}
                }
            },
            "loss": "none",
        },
        ("--head", "drop"),
    ),
    "Detectron2": (
        lambda one, _: {
            "model": {**behind("backbone.bottom_up.", detectrons(one)), **DETECTOR}
            | {"pixel_mean": torch.ones(3, 1, 1), "pixel_std": torch.ones(3, 1, 1)},
            "iteration": 5,
        },
        (),
    ),
    "MMDetection": (
        lambda one, _: {
            "meta": {"config": "..."},
            "state_dict": {
                **behind("backbone.", one),
                **conv("neck.fpn_convs.0.conv"),
                **conv("bbox_head.retina_cls"),
            },
        },
        (),
    ),
    "torchvision's detection": (
        lambda one, _: {
            **behind("backbone.body.", without_counters(one)),
            **conv("backbone.fpn.inner_blocks.0.0"),
            **mlp("roi_heads.box_head."),
        },
        (),
    ),
    "DETR": (
        lambda one, _: {
            **behind("backbone.0.body.", without_counters(one)),
            **{"input_proj.weight": torch.ones(8, PLANES, 1, 1), "input_proj.bias": torch.ones(8)},
            **mlp("transformer."),
        },
        (),
    ),
    "FSDP": (lambda one, _: {"model": behind("_fsdp_wrapped_module.", one)}, ()),
}


def reset_counters(model: Any) -> Any:
    for name, tensor in model.state_dict().items():
        if "num_batches" in name:
            tensor.zero_()
    return model


@pytest.mark.parametrize("what", BACKBONES)
def test_a_backbone_is_taken_from_what_was_trained_around_it(what, tmp_path):
    make, options = BACKBONES[what]
    one, other = make_network(), make_network(seed=1)
    torch.save(make(torchvisions(one), torchvisions(other)), tmp_path / "theirs.pth")
    said = take(tmp_path, "theirs.pth", *options)
    if what not in ("FSDP",):
        assert "which lie beside the network" in said
    if "num_batches_tracked, which the file lacks" in said:
        reset_counters(one)
    assert_is(tmp_path / "ours.pt", one)
    looked = run_here("convert", "inspect", "theirs.pth", *options[:2], cwd=tmp_path)
    assert options[:1] == ("--head",) or "every tensor has its place" in looked.stdout


def test_the_network_that_follows_is_named_and_taken_by_its_prefix(tmp_path):
    make, _ = BACKBONES["MoCo v2"]
    one, other = make_network(), make_network(seed=1)
    torch.save(make(torchvisions(one), torchvisions(other)), tmp_path / "theirs.pth")
    said = take(tmp_path, "theirs.pth")
    assert "taken: the network behind 'encoder_q.'" in said
    assert "follows this one in training, is behind 'encoder_k.': --prefix encoder_k." in said
    take(tmp_path, "theirs.pth", "--prefix", "encoder_k.", "--head", "drop")
    assert_is(tmp_path / "ours.pt", other)


def test_mmcvs_moving_average_is_left_out_and_the_head_kept(tmp_path):
    model = make_network(5)
    state = torchvisions(model)
    parts = {f"{'head' if n.startswith('fc.') else 'backbone'}.{n}": t for n, t in state.items()}
    averages = {f"ema_{n.replace('.', '_')}": t + 1 for n, t in parts.items()}
    torch.save({"meta": {}, "state_dict": {**parts, **averages}}, tmp_path / "theirs.pth")
    assert "left out: ema_backbone_conv1_weight" in take(tmp_path, "theirs.pth")
    assert_is(tmp_path / "ours.pt", model)


def norm(prefix: str, channels: int) -> State:
    """A trained BatchNorm."""
    leaves = ("weight", "bias", "running_mean", "running_var")
    generator = torch.Generator().manual_seed(0)
    return {f"{prefix}.{leaf}": torch.rand(channels, generator=generator) + 0.5 for leaf in leaves}


NOT_ALONE = {
    "a BatchNorm of the images": (
        lambda state: {**norm("bn_in", 3), **behind("backbone.", state)},
        "bn_in.running_mean, bn_in.running_var are of a BatchNorm in front of the network or "
        "behind it: --prefix backbone. takes the rest",
    ),
    "a BatchNorm of the features": (
        lambda state: {**behind("backbone.", state), **norm("neck1d", PLANES)},
        "--prefix backbone. takes the rest",
    ),
    "a BatchNorm of the features and a head": (
        lambda state: {
            **behind("base.", state),
            **norm("bottleneck", PLANES),
            "classifier.weight": torch.rand(4, PLANES),
        },
        "bottleneck.running_mean, bottleneck.running_var are of a BatchNorm",
    ),
    "a head of two layers": (lambda state: {**state, **mlp("fc.")}, "--head drop takes the rest"),
    "fast.ai": (
        lambda state: {**behind("0.", state), **mlp("1.")},
        "--head drop takes the rest, --head new:N makes another head",
    ),
    "segmentation": (
        lambda state: {**behind("backbone.", state), **conv("classifier.0")},
        "dilate the last stages instead of striding",
    ),
    "MMSegmentation": (
        lambda state: {**behind("backbone.", state), **conv("decode_head.convs.0.conv")},
        "--prefix backbone. takes the rest",
    ),
    "a transformer of the images before it": (
        lambda state: {**behind("resnet.", state), **conv("stn.localization.0", 3)},
        "stn.localization.0.weight may be a part of the network: --prefix resnet.",
    ),
    "two encoders": (
        lambda state: {
            **behind("left.", state),
            **behind("right.", {n: t + 1 for n, t in state.items()}),
        },
        "behind 'left.' is a network without a name in the table",
    ),
}


@pytest.mark.parametrize("what", NOT_ALONE)
def test_what_may_belong_to_a_network_is_not_left_out_unasked(what, tmp_path):
    make, said = NOT_ALONE[what]
    torch.save(make(torchvisions(make_network())), tmp_path / "theirs.pth")
    result = run_here("convert", "import", "theirs.pth", "-o", "x.pt", cwd=tmp_path)
    assert_refused(result, "theirs.pth holds more than a network of ours", said)
    looked = run_here("convert", "inspect", "theirs.pth", cwd=tmp_path)
    assert said in looked.stdout


def test_a_batch_norm_beside_a_network_is_left_out_where_the_user_says_so(tmp_path):
    """Dropping the head does not say so: the layer may be in front of the network."""
    model = make_network()
    state = {**norm("bn_in", 3), **behind("base.", torchvisions(model))}
    torch.save({**state, "classifier.weight": torch.rand(4, PLANES)}, tmp_path / "theirs.pth")
    command = ("convert", "import", "theirs.pth", "-o", "x.pt", "--head", "drop")
    assert_refused(run_here(*command, cwd=tmp_path), "--prefix base. takes the rest")
    assert "bn_in.weight" in take(tmp_path, "theirs.pth", "--prefix", "base.")
    assert_is(tmp_path / "ours.pt", model)


def without_statistics(model: Any) -> Any:
    """As networks of Caffe's, whose scales and biases have the statistics in them."""
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.zero_()
            module.running_var.fill_(1 - 1e-5)
    return model


@pytest.mark.parametrize("stride", ["1x1", "3x3"])
def test_the_stride_of_caffes_networks_must_be_said(stride, tmp_path):
    model = without_statistics(make_network(bottleneck_stride=stride))
    theirs = {**behind("backbone.bottom_up.", detectrons(torchvisions(model))), **DETECTOR}
    torch.save({"model": theirs}, tmp_path / "model_final.pth")
    result = run_here("convert", "import", "model_final.pth", "-o", "x.pt", cwd=tmp_path)
    assert_refused(result, "blue, green, red", "--bottleneck-stride 1x1 or 3x3 says it")
    assert "blue, green" in take(tmp_path, "model_final.pth", "--bottleneck-stride", stride)
    assert_is(tmp_path / "ours.pt", reset_counters(model))


def test_a_network_that_was_never_trained_is_not_taken_for_caffes(tmp_path):
    model = torch_resnet.from_spec(SPEC, 5).eval()
    torch.save(torchvisions(model), tmp_path / "theirs.pth")
    assert "blue, green" not in take(tmp_path, "theirs.pth")
    assert_is(tmp_path / "ours.pt", model)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("package", ["detectron2", "paddle"])
def test_a_pickle_of_arrays_is_read_in_every_protocol(package, protocol, tmp_path):
    """Detectron2's `R-50.pkl`, and Paddle's `.pdparams`, whose linear layers are transposed."""
    model = make_network(5)
    state = without_counters(torchvisions(model))
    if package == "detectron2":
        arrays = {name: tensor.numpy() for name, tensor in detectrons(state).items()}
        content = {"model": arrays, "__author__": "torchvision", "matching_heuristics": True}
        file = "R-50.pkl"
    else:
        words = {"running_mean": "_mean", "running_var": "_variance"}
        content = {}
        for name, tensor in state.items():
            path, _, leaf = name.rpartition(".")
            array = tensor.numpy().T if tensor.ndim == 2 else tensor.numpy()
            content[f"{path}.{words.get(leaf, leaf)}"] = array
        content["StructuredToParameterName@@"] = {name: f"{name}_0" for name in content}
        file = "resnet.pdparams"
    (tmp_path / file).write_bytes(pickle.dumps(content, protocol))
    assert ("Paddle's names" in take(tmp_path, file)) == (package == "paddle")
    assert_is(tmp_path / "ours.pt", reset_counters(model))


def test_every_array_of_a_pickle_is_read_as_numpy_reads_it(tmp_path):
    draw = np.random.default_rng(0).standard_normal((3, 5))
    arrays = {
        **{kind: draw.astype(kind) for kind in ("f2", "f4", "f8", "i1", "i8", "u4", "bool")},
        **{"fortran": np.asfortranarray(draw), "big": draw.astype(">f4"), "scalar": draw[0, 0:1]},
        **{"strided": draw[::2, ::2], "long": np.arange(3000), "no axis": np.array(2.5)},
    }
    for protocol in (2, 3, 4, 5):
        (tmp_path / "m.pkl").write_bytes(pickle.dumps(arrays, protocol))
        read = read_weights(tmp_path / "m.pkl").arrays
        assert list(read) == list(arrays)
        assert all(np.array_equal(read[name], array) for name, array in arrays.items())
        native = {name: array.dtype.newbyteorder("=") for name, array in arrays.items()}
        assert all(read[name].dtype == dtype for name, dtype in native.items())


@pytest.mark.parametrize("name", PAYLOADS)
def test_code_in_a_pickle_of_arrays_is_not_run(name, tmp_path):
    canary = tmp_path / "canary"
    (tmp_path / "m.pkl").write_bytes(PAYLOADS[name](canary))
    result = run_here("convert", "inspect", "m.pkl", cwd=tmp_path)
    assert_refused(result, "m.pkl")
    assert not canary.exists()


def test_damaged_arrays_of_a_pickle_are_refused(tmp_path):
    content = pickle.dumps({"a.weight": np.arange(6.0), "b.weight": np.ones((2, 3))}, 4)
    for old, new in ((b"f8", b"O8"), (b"K\x06", b"K\x07"), (content[-30:], b"")):
        assert old in content
        (tmp_path / "m.pkl").write_bytes(content.replace(old, new))
        assert_refused(run_here("convert", "inspect", "m.pkl", cwd=tmp_path), "m.pkl")


def test_hydras_configuration_beside_weights_is_not_built(tmp_path, monkeypatch):
    model = make_network(5)
    module = "omegaconf.dictconfig"
    configuration = type("DictConfig", (), {"__module__": module})
    for name in ("omegaconf", module):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setattr(sys.modules[module], "DictConfig", configuration, raising=False)
    torch.save(
        {"state_dict": torchvisions(model), "cfg": configuration()}, tmp_path / "theirs.ckpt"
    )
    said = take(tmp_path, "theirs.ckpt")
    assert "left out: 'cfg', of type omegaconf.dictconfig.DictConfig" in said
    assert_is(tmp_path / "ours.pt", model)


def test_the_port_of_wide_resnets_that_strides_elsewhere_is_refused(tmp_path):
    """Its tensors are those of the table's network, with biases in all convolutions."""
    _, model = make_twins("PreActWideResNet16-4", dtype="float32")
    state = {}
    for name, tensor in model.state_dict().items():
        path, _, leaf = name.rpartition(".")
        path = path.replace("stem.conv", "conv1").replace("head", "linear")
        path = "bn1" if path == "norm" else path.replace("shortcut.conv", "shortcut.0")
        for stage in (2, 1, 0):
            path = path.replace(f"stages.{stage}.", f"layer{stage + 1}.")
        state[f"{path}.{leaf}"] = tensor
        if tensor.ndim == 4:
            state[f"{path}.bias"] = torch.ones(len(tensor))
    torch.save({"net": state, "acc": 95.0}, tmp_path / "wide-resnet-16x4.t7")
    result = run_here("convert", "import", "wide-resnet-16x4.t7", "-o", "x.pt", cwd=tmp_path)
    assert_refused(result, "meliketoy/wide-resnet.pytorch", "stride in the second convolution")


@pytest.mark.parametrize("block", ["basic", "bottleneck"])
def test_pre_activation_networks_whose_shortcuts_take_the_raw_input_are_refused(block, tmp_path):
    """Bearpaw's preresnet; the same names may also be those of a network of the table."""
    spec = ResNetSpec(block, (1, 2, 1), (8, 16, 32), 8, preact=True, small_images=True)
    model = torch_resnet.from_spec(spec, 5)
    randomise(model)
    layers = numbered("{k}{n}")
    names = scheme("layer{S}.{b}.", layers, {"conv": "downsample.0"}, OUTSIDE[0])
    state, _ = theirs_of(model, names)
    torch.save({"state_dict": behind("module.", state)}, tmp_path / "theirs.pth.tar")
    command = ("convert", "import", "theirs.pth.tar", "-o", "x.pt")
    result = run_here(*command, cwd=tmp_path)
    assert_refused(result, "preresnet", "takes the input of its block", "--model")
    assert "preresnet" in run_here("convert", "inspect", "theirs.pth.tar", cwd=tmp_path).stdout
    (tmp_path / "stem.json").write_text('{"stem.conv": "conv1"}')
    said = take(tmp_path, "theirs.pth.tar", "--names", "stem.json")
    assert "shortcuts that begin behind the first BatchNorm and ReLU" in said
    assert_is(tmp_path / "ours.pt", model)


@pytest.mark.parametrize(("name", "is_open"), [("PreActResNet20", True), ("ResNet20", False)])
def test_where_a_shortcut_of_pre_activation_begins_is_said_to_be_assumed(name, is_open, tmp_path):
    _, model = make_twins(name, dtype="float32", shortcut="projection")
    torch.save(theirs_of(model, numbered_scheme(3))[0], tmp_path / "theirs.pt")
    said = take(tmp_path, "theirs.pt")
    assert ("shortcuts that begin behind the first BatchNorm and ReLU" in said) == is_open


@pytest.mark.parametrize(
    ("first", "last", "name", "said"),
    [
        (b"\x12\x01" + bytes(20), b"", "resnet50_v1-0000.params", "is of MXNet"),
        (
            b"\n\x98\x01\n\x0cconv1.weight\x12\x87\x01\x08\x40\x12\x07Float32\x1a",
            b"",
            "resnet50.ckpt",
            "is of MindSpore",
        ),
        (b"\0\0\x1b\x08", b"\x57\xfb\x80\x8b\x24\x75\x47\xdb", "m.ckpt", "is of TensorFlow"),
        (b"\x9a\x12", b"", "model.ckpt-9.data-00000-of-00001", "is of TensorFlow"),
        (b"\n\x1c\n\x05input\x12\x0bPlaceholder", b"", "frozen.pb", "is of TensorFlow"),
    ],
)
def test_files_of_other_frameworks_are_named_with_what_to_do(first, last, name, said, tmp_path):
    (tmp_path / name).write_bytes(first + bytes(100) + last)
    for command in (("inspect", name), ("import", name, "-o", "x.pt")):
        assert_refused(run_here("convert", *command, cwd=tmp_path), name, said, "numpy.savez")


def test_a_folder_of_tensorflows_is_named(tmp_path):
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "saved_model.pb").write_bytes(b"weights")
    result = run_here("convert", "import", "saved", "-o", "x.pt", cwd=tmp_path)
    assert_refused(result, "saved is of TensorFlow")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("visual.attnpool.positional_embedding", "CLIP's ResNets have a stem of three"),
        ("resnet/block1/unit01/a/standardized_conv2d/kernel", "GroupNorm and standardised weights"),
        ("res2_0_branch2a_bn_s", "Caffe2's names"),
        ("conv1_1._conv.weight", "ResNet-C, -D, -vd"),
    ],
)
def test_networks_that_people_often_have_are_named_where_they_are_refused(name, said, tmp_path):
    state = torchvisions(make_network(5))
    del state["conv1.weight"]
    torch.save({**state, name: torch.ones(3, 4)}, tmp_path / "theirs.pth")
    result = run_here("convert", "import", "theirs.pth", "-o", "x.pt", cwd=tmp_path)
    assert_refused(result, said)

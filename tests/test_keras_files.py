"""Files that Keras itself wrote, in each of its forms, and such files that nobody should trust."""

import shutil
import zipfile
from pathlib import Path
from typing import Any

import h5py
import jax.numpy as jnp
import numpy as np
import pytest

import convert
from convert.__main__ import main
from convert.errors import ConversionError
from convert.files import read_file
from convert.layouts import find_layout
from convert.layouts.translate import flatten
from tests.peers import Peer, import_keras, make_peer
from tests.twins import random_images, relative_error, run_torch

pytestmark = [
    pytest.mark.xdist_group("keras"),
    # Keras's own, of its variables as NumPy's arrays
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]


@pytest.fixture(scope="module")
def peer() -> Peer:
    return make_peer("keras", "ResNet50")


@pytest.fixture(scope="module")
def folder(peer: Peer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ResNet50 in all forms, the first also as releases before Keras 3.10 wrote it."""
    folder = tmp_path_factory.mktemp("keras")
    peer.model.save_weights(folder / "new.weights.h5")
    peer.model.save(folder / "whole.keras")
    peer.model.save(folder / "old.h5")
    shutil.copy(folder / "new.weights.h5", folder / "early.weights.h5")
    with h5py.File(folder / "early.weights.h5", "r+") as file:
        layers: Any = file["layers"]
        for group in layers.values():
            group["vars"].attrs.pop("name")
    return folder


FORMS = ("new.weights.h5", "whole.keras", "old.h5", "early.weights.h5")


@pytest.mark.parametrize("name", FORMS)
def test_every_form_of_file_holds_the_models_arrays_bit_for_bit(peer, folder, name):
    layout = find_layout("keras")
    arrays = layout.whole_names(read_file(folder / name).arrays)
    expected = flatten(peer.tensors, layout)
    assert set(arrays) == set(expected)
    assert all(np.array_equal(arrays[key], expected[key]) for key in arrays)


def test_import_without_options_gives_the_logits_of_keras(peer, folder, tmp_path, capsys):
    output = tmp_path / "m.safetensors"
    assert main(["import", str(folder / "early.weights.h5"), "-o", str(output)]) == 0
    printed = capsys.readouterr().out
    for part in ("--layout keras --model ResNet50", "biases of 53 conv", "epsilon 1.001e-05"):
        assert part in printed
    model = convert.load(output, "torch")
    assert model.spec.bottleneck_stride == "1x1"
    images = random_images(2, 64, "float32")
    assert relative_error(run_torch(model, images), peer.logits(images)) <= 1e-5


def test_a_nested_model_has_its_own_prefix_and_an_optimizer_is_left_out(tmp_path):
    keras = import_keras()
    inner = keras.Sequential(
        [keras.layers.Conv2D(4, 3, name="conv"), keras.layers.BatchNormalization(name="norm")],
        name="body",
    )
    model = keras.Sequential(
        [keras.Input((8, 8, 3)), inner, keras.layers.Flatten(), keras.layers.Dense(2, name="top")]
    )
    model.compile("adam", "mse")
    model.fit(np.zeros((2, 8, 8, 3)), np.zeros((2, 2)), verbose=0)
    model.save(tmp_path / "m.keras")
    weights = read_file(tmp_path / "m.keras")
    assert set(weights.arrays) == {
        *(f"body/conv/{leaf}" for leaf in ("kernel", "bias")),
        *(f"body/norm/{leaf}" for leaf in ("gamma", "beta", "moving_mean", "moving_variance")),
        *(f"top/{leaf}" for leaf in ("kernel", "bias")),
    }
    assert "left out: 'optimizer', part of a training state" in weights.notes
    np.testing.assert_array_equal(weights.arrays["body/conv/kernel"], inner.layers[0].kernel)


def test_a_resnet_v2_of_keras_is_refused_with_the_difference(tmp_path, capsys):
    state = {"conv2_block1_preact_bn": {"gamma": jnp.ones(64)}}
    with pytest.raises(convert.ConversionError, match="the last block of a stage has the stride"):
        convert.from_layout(state, "ResNet50", "keras")
    # its 53 convolutions and 49 BatchNorms, as releases before Keras 3.10 called them
    arrays: dict[str, Any] = {
        f"conv2d_{number}/kernel": np.ones((1, 1, 1, 1)) for number in range(53)
    }
    arrays |= {f"batch_normalization_{number}/gamma": np.ones(1) for number in range(49)}
    np.savez(tmp_path / "m.npz", **arrays)
    for options in ((), ("--model", "PreActResNet50")):
        assert main(["import", str(tmp_path / "m.npz"), "-o", "x.pt", *options]) == 2
        assert "a ResNetV2 of keras.applications" in capsys.readouterr().err


def write(path: Path, what: str) -> None:
    """An HDF5 file with one thing that no file of Keras has."""
    with h5py.File(path, "w") as file:
        variables: Any = file.create_group("layers/conv2d/vars")
        match what:
            case "soft":
                variables["0"] = h5py.SoftLink("/layers")
            case "external":
                variables["0"] = h5py.ExternalLink("/etc/hostname", "/")
            case "circle":
                variables["0"] = file["layers"]
            case "virtual":
                layout = h5py.VirtualLayout((4,), "f4")
                layout[:] = h5py.VirtualSource("other.h5", "x", (4,))
                variables.create_virtual_dataset("0", layout)
            case "raw":
                variables.create_dataset("0", (4,), "f4", external=[("/etc/hostname", 0, 16)])
            case "compressed":
                variables.create_dataset("0", data=np.zeros(10**6), compression="gzip")
            case "unwritten":
                variables.create_dataset("0", (10**12,), "f4")
            case "text":
                variables["0"] = "words"


@pytest.mark.parametrize(
    ("what", "reason"),
    [
        ("soft", "is a link"),
        ("external", "is a link"),
        ("circle", "more than 16 deep"),
        ("virtual", "not whole in this file"),
        ("raw", "not whole in this file"),
        ("compressed", "is compressed"),
        ("unwritten", "not whole in this file"),
        ("text", "is an array of object"),
    ],
)
def test_an_hdf5_file_that_reaches_out_of_itself_is_refused(what, reason, tmp_path):
    write(tmp_path / "m.h5", what)
    with pytest.raises(convert.ConversionError, match=reason):
        read_file(tmp_path / "m.h5")


def test_what_is_no_whole_file_of_keras_is_refused(tmp_path):
    write(tmp_path / "m.h5", "compressed")
    content = (tmp_path / "m.h5").read_bytes()
    (tmp_path / "cut.h5").write_bytes(content[:1000])
    with zipfile.ZipFile(tmp_path / "empty.keras", "w") as archive:
        archive.writestr("metadata.json", "{}")
    with zipfile.ZipFile(tmp_path / "bomb.keras", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("model.weights.h5", b"\0" * 10**6)
    for name, reason in (
        ("cut.h5", "truncated"),
        ("empty.keras", "no item"),
        ("bomb.keras", "comp"),
    ):
        with pytest.raises(convert.ConversionError, match=f"not a whole HDF5 file.*{reason}"):
            read_file(tmp_path / name)


@pytest.mark.parametrize("version", ["earliest", "latest"])
@pytest.mark.parametrize("is_archive", [False, True])
def test_a_name_whose_length_is_damaged_takes_no_memory(tmp_path, version, is_archive):
    """HDF5 takes as much as the length says, up to 4 GB, before it finds out."""
    path = tmp_path / "model.weights.h5"
    with h5py.File(path, "w", libver=version) as file:
        for layer in ("conv2d", "conv2d_1"):
            variables = file.create_group(f"layers/{layer}/vars")
            variables.attrs["name"] = f"{layer:_<25}"
            variables["0"] = np.ones((3, 3, 2, 4), np.float32)
    assert len(read_file(path).arrays) == 2
    content = bytearray(path.read_bytes())
    place = content.find((25).to_bytes(4, "little"), content.find(b"name\0"))
    content[place : place + 4] = (2_900_000_000).to_bytes(4, "little")
    path.write_bytes(content)
    if is_archive:
        with zipfile.ZipFile(tmp_path / "model.keras", "w") as archive:
            archive.write(path, path.name)
        path = tmp_path / "model.keras"
    with pytest.raises(ConversionError, match="the name of a layer has 2900000000 bytes"):
        read_file(path)

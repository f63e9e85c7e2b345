"""Files that hold more than one network, another form than their suffix says, or another head."""

import bz2
import gzip
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import convert
import torch_resnet
from convert.__main__ import main
from convert.files import read_weights
from convert.inspection import inspect
from tests.twins import assert_same_state, random_images, randomise, run_torch

TORCHVISION = ("--layout", "torchvision", "--model", "ResNet18")


@pytest.fixture
def theirs(tmp_path, monkeypatch) -> dict[str, Any]:
    """A state dict of torchvision's names."""
    monkeypatch.chdir(tmp_path)
    model = torch_resnet.create("ResNet18", 5)
    randomise(model)
    return convert.to_layout(dict(model.state_dict()), "ResNet18", "torchvision")


def run_import(source: str, *options: str) -> int:
    return main(["import", source, *options, "-o", "out.safetensors"])


def arrays_of(file: str) -> Mapping[str, np.ndarray]:
    return read_weights(Path(file)).arrays


def test_of_several_state_dicts_the_one_that_is_named_is_taken(theirs, capsys):
    """As timm's and torchvision's training scripts keep weights and their moving average."""
    average = {name: tensor + (tensor.ndim > 0) for name, tensor in theirs.items()}
    content = {"state_dict": theirs, "state_dict_ema": average, "epoch": 3, "arch": "resnet18"}
    torch.save(content, "last.pth.tar")
    for arguments in (["inspect"], ["import", *TORCHVISION, "-o", "out.safetensors"], ["diff"]):
        command, *options = arguments
        assert main([command, "last.pth.tar", *options]) == 2
        error = capsys.readouterr().err
        assert "--entry state_dict  (122 tensors)" in error
        assert "--entry state_dict_ema  (122 tensors)" in error
    for name, state in (("state_dict", theirs), ("state_dict_ema", average)):
        assert inspect(Path("last.pth.tar"), entry=name)["matches"][0]["model"] == "ResNet18"
        assert run_import("last.pth.tar", "--entry", name, *TORCHVISION) == 0
        assert f"the state dict is the entry '{name}'" in capsys.readouterr().out
        expected = convert.from_layout(state, "ResNet18", "torchvision")
        assert_same_state(arrays_of("out.safetensors"), expected)
    both = ("--entry-a", "state_dict", "--entry-b", "state_dict_ema", "--backend-b", "torch")
    usual = (*TORCHVISION, "--precision", "f64", "--size", "40")
    assert main(["diff", "last.pth.tar", "last.pth.tar", *both, *usual]) == 1
    assert main(["diff", "last.pth.tar", "--entry", "state_dict", *usual]) == 0


@pytest.mark.parametrize("backend", ["torch", "flax"])
def test_load_takes_one_of_several_twins_in_a_file(backend, tmp_path):
    models = {name: torch_resnet.create("ResNet20", 5) for name in ("model", "ema")}
    for seed, model in enumerate(models.values()):
        torch.manual_seed(seed)
        randomise(model)
    torch.save({name: m.state_dict() for name, m in models.items()}, tmp_path / "m.pt")
    with pytest.raises(convert.ConversionError, match="2 state dicts"):
        convert.load(tmp_path / "m.pt", backend=backend)
    for name, model in models.items():
        loaded = convert.load(tmp_path / "m.pt", backend=backend, entry=name)
        state = loaded.state_dict() if backend == "torch" else convert.flax_to_torch(loaded)
        assert_same_state(state, model.state_dict())


def test_an_entry_that_is_not_there_and_a_file_without_entries_are_named(theirs, capsys):
    torch.save({"model": theirs}, "m.pth")
    assert run_import("m.pth", "--entry", "ema", *TORCHVISION) == 2
    assert "no state dict 'ema' among its entries: 'model'" in capsys.readouterr().err
    np.savez("m.npz", **{name: tensor.numpy() for name, tensor in theirs.items()})
    assert run_import("m.npz", "--entry", "model", *TORCHVISION) == 2
    assert "--entry is for what torch.save wrote" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("form", "suffix", "part"),
    [
        ("tar", ".tar", "a tar archive: unpack it"),
        ("gzip", ".pth", "gunzip < FILE > NEW"),
        ("bzip2", ".gz", "bunzip2 < FILE > NEW"),
        ("npy", ".npz", "a single array"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0",
            ".pth",
            "Git LFS pointer: `git",
        ),
        (b"\n<!DOCTYPE html><html><head>", ".pth", "a web page: download the file itself"),
        (b"<?xml version='1.0'?><Error/>", ".safetensors", "is XML, such as a server's message"),
        (b'{"metadata": {}, "weight_map": {}}', ".bin", "JSON text, a configuration or an index"),
        (b"\x83\xa4step\x01\xa6params\x80", ".ckpt", "not a whole msgpack file"),
        (b"\xde\x00\x10\xa6params\x80", "", "not a whole msgpack file"),
        (b"weights", ".model", "weights are in .safetensors, .pt"),
        (b"weights", "", "weights are in .safetensors, .pt"),
    ],
)
def test_what_a_file_without_weights_is_is_said_in_one_sentence(form, suffix, part, theirs, capsys):
    file = Path(f"wrong{suffix}")
    if isinstance(form, bytes):
        file.write_bytes(form)
    elif form == "npy":
        with file.open("wb") as stream:
            np.save(stream, np.ones(3))
    else:
        Path("m.pt").write_bytes(b"weights")
        pack = {"gzip": gzip.compress, "bzip2": bz2.compress}.get(form)
        if pack is None:
            with tarfile.open(file, "w") as archive:
                archive.add("m.pt")
        else:
            file.write_bytes(pack(b"weights"))
    assert main(["inspect", str(file)]) == 2
    error = capsys.readouterr().err
    assert part in error
    assert len(error.splitlines()) == 1


@pytest.mark.parametrize(
    ("form", "name"),
    [
        (".safetensors", "m.bin"),
        (".safetensors", "checkpoint_1"),
        (".pt", "m.model"),
        (".pt", "m.safetensors"),
        (".npz", "m.h5"),
        ("legacy", "m.npz"),
    ],
)
def test_a_file_is_read_by_its_content_whatever_it_is_called(form, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = torch_resnet.create("ResNet20", 10)
    if form == "legacy":
        torch.save(model.state_dict(), name, _use_new_zipfile_serialization=False)
    else:
        convert.save(f"written{form}", model)
        Path(f"written{form}").rename(name)
    assert main(["import", name, "-o", "out.pt"]) == 0
    assert_same_state(convert.load("out.pt", backend="torch").state_dict(), model.state_dict())


def test_a_head_that_alone_does_not_fit_is_said_with_what_to_do(theirs, capsys):
    biasless = {name: tensor for name, tensor in theirs.items() if name != "fc.bias"}
    body = {name: tensor for name, tensor in theirs.items() if not name.startswith("fc.")}
    deeper = body | {"fc.1.weight": theirs["fc.weight"], "fc.1.bias": theirs["fc.bias"]}
    for state in (biasless, deeper):
        torch.save(state, "m.pth")
        assert run_import("m.pth", *TORCHVISION) == 2
        error = capsys.readouterr().err
        assert "the head alone does not fit" in error
        assert "--head drop leaves it out" in error
        assert "a bias of zeros, where it has none) as fc.weight and fc.bias" in error
        assert run_import("m.pth", "--head", "drop", *TORCHVISION) == 0
        kept = body | {"fc.weight": theirs["fc.weight"], "fc.bias": torch.zeros(5)}
        torch.save(kept, "m.pth")  # as it says
        assert run_import("m.pth", *TORCHVISION) == 0
        capsys.readouterr()
    torch.save({n: t for n, t in biasless.items() if n != "bn1.bias"}, "m.pth")
    assert run_import("m.pth", *TORCHVISION) == 2
    assert "the head alone" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("model", "options"),
    [("ResNet18-small", ()), ("ResNet20", ("--shortcut", "projection"))],
)
def test_networks_of_cifar_under_torchvisions_names_are_recognised_and_taken(
    model, options, tmp_path, monkeypatch, capsys
):
    """`downsample` and `fc`, as where somebody has changed the stem of torchvision's."""
    monkeypatch.chdir(tmp_path)
    ours = torch_resnet.create(model, 10)
    randomise(ours)
    names = {"shortcut.conv": "downsample.0", "shortcut_bn": "downsample.1", "head": "fc"}
    names |= {"stem.conv": "conv1", "stem.bn": "bn1"}
    state: dict[str, Any] = {}
    for name, tensor in ours.state_dict().items():
        for one, other in names.items():
            name = name.replace(one, other)
        if name.startswith("stages."):
            _, stage, rest = name.split(".", 2)
            name = f"layer{int(stage) + 1}.{rest}"
        state[name] = tensor
    torch.save(state, "m.pth")
    (match,) = inspect(Path("m.pth"))["matches"]
    assert match["sure"] == "every name and shape fits"
    assert match["options"] == " ".join(("--layout", "cifar", "--model", model, *options))
    assert "no max pooling after the first convolution" in match["undecided"]
    assert run_import("m.pth", *match["options"].split()) == 0
    built = convert.load("out.safetensors", backend="torch")
    images = random_images(2, 32, "float32")
    np.testing.assert_array_equal(run_torch(built, images), run_torch(ours.eval(), images))
    capsys.readouterr()
    assert run_import("m.pth", "--layout", "torchvision", "--model", model) == 2
    assert "imported by --layout cifar" in capsys.readouterr().err
    state["linear.weight"], state["linear.bias"] = state.pop("fc.weight"), torch.zeros(10)
    del state["fc.bias"]
    torch.save(state, "m.pth")  # kin with half of the names
    assert run_import("m.pth", *match["options"].split()) == 0


def test_counters_that_are_no_counts_are_taken_as_zero_and_that_is_said(theirs, capsys):
    """A file that was cast to bfloat16 as a whole."""
    torch.save({name: tensor.to(torch.bfloat16) for name, tensor in theirs.items()}, "m.pth")
    assert run_import("m.pth", *TORCHVISION) == 2
    assert "--reset-counters" in capsys.readouterr().err
    assert run_import("m.pth", *TORCHVISION, "--reset-counters") == 0
    out = capsys.readouterr().out
    assert "taken as zero: 20 num_batches_tracked, missing or no int64" in out
    torch.save(theirs, "m.pth")
    assert run_import("m.pth", *TORCHVISION, "--reset-counters") == 0
    assert "taken as zero" not in capsys.readouterr().out
    expected = convert.from_layout(theirs, "ResNet18", "torchvision")
    assert_same_state(arrays_of("out.safetensors"), expected)

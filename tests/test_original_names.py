"""What an author called the tensors stays in the file, and is written back bit for bit."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

import convert
import torch_resnet
from convert.files import write_weights
from convert.models import arrays_of, describe
from convert.weights import Weights, decode_description, encode_description
from resnet_spec import PREPROCESSINGS, ClassifierSpec, find_spec
from tests.commands import assert_refused, run_here
from tests.test_any_names import State, as_linens, numbered_scheme, take, theirs_of
from tests.twins import make_twins, randomise


def back(folder, source: str = "ours.safetensors", output: str = "back.pt") -> str:
    arguments = ("export", source, "--names", "original", "-o", output)
    result = run_here("convert", *arguments, cwd=folder)
    assert result.returncode == 0, result.stderr
    return result.stdout


def assert_same_file(path, state: State) -> None:
    """Names, order, shapes, dtypes and bits."""
    read = torch.load(path)
    assert list(read) == list(state)
    for name, tensor in state.items():
        assert (read[name].shape, read[name].dtype) == (tensor.shape, tensor.dtype)
        assert torch.equal(read[name], tensor)


@pytest.mark.parametrize("output", ["ours.safetensors", "ours.pt", "ours.npz"])
def test_an_authors_names_prefix_and_order_come_back(output, tmp_path):
    _, model = make_twins("ResNet20", dtype="float32", shortcut="identity")
    state, truth = theirs_of(model, numbered_scheme(2), "head first")
    state = {f"module.net.{n}": t for n, t in state.items() if "num_batches" not in n}
    torch.save({"net": state, "acc": 91.0}, tmp_path / "theirs.pth")
    take(tmp_path, "theirs.pth", output=output)
    said = back(tmp_path, output)
    assert f"wrote {len(state)} tensors to back.pt in the author's naming" in said
    assert_same_file(tmp_path / "back.pt", state)
    looked = run_here("convert", "inspect", output, "--names", "--json", cwd=tmp_path)
    names = json.loads(looked.stdout)["names"]
    assert names == {o: f"module.net.{t}" for o, t in truth.items() if "num_batches" not in o}


@pytest.mark.parametrize(
    ("layout", "name", "options"),
    [
        ("torchvision", "ResNet18", ()),
        ("timm", "PreActResNet18", ("--layout", "timm", "--model", "PreActResNet18")),  # a 1x1 head
        ("transformers", "ResNet18", ("--rename", "resnet.=body.")),
    ],
)
def test_names_of_known_layouts_and_renamed_ones_come_back(layout, name, options, tmp_path):
    model = torch_resnet.create(name, 10)
    randomise(model)
    state = dict(convert.to_layout(model.state_dict(), name, layout))
    torch.save(state, tmp_path / "theirs.pt")
    take(tmp_path, "theirs.pt", *options, output="ours.safetensors")
    back(tmp_path)
    assert_same_file(tmp_path / "back.pt", state)


@pytest.mark.parametrize(
    ("name", "architecture"), [("ResNet18", "resnet18"), ("PreActResNet18", "resnetv2_18")]
)
def test_names_in_a_folder_that_transformers_wrote_of_a_model_of_timms_come_back(
    name, architecture, tmp_path
):
    model = torch_resnet.create(name, 10)
    randomise(model)
    state = dict(convert.to_layout(model.state_dict(), name, "timm"))
    state = {f"timm_model.{n}": tensor for n, tensor in state.items()}
    (tmp_path / "theirs").mkdir()
    torch.save(state, tmp_path / "theirs" / "pytorch_model.bin")
    config = {"model_type": "timm_wrapper", "architecture": architecture, "num_classes": 10}
    (tmp_path / "theirs" / "config.json").write_text(json.dumps(config))
    take(tmp_path, "theirs", output="ours.safetensors")
    assert f"wrote {len(state)} tensors" in back(tmp_path)
    assert_same_file(tmp_path / "back.pt", state)


def test_a_part_of_the_authors_file_is_not_written(tmp_path):
    """Files that were written by an earlier release may have names of other tensors."""
    model = torch_resnet.create("ResNet20", 10)
    randomise(model)
    names = {"stem.conv.weight": "net.stem.conv.weight", "norm.weight": "net.norm.weight"}
    weights = Weights(arrays_of(model), describe(model), names=names)
    write_weights(tmp_path / "ours.pt", weights)
    arguments = ("export", "ours.pt", "--names", "original", "-o", "back.pt")
    result = run_here("convert", *arguments, cwd=tmp_path)
    assert_refused(result, "import that file again", "absent: net.norm.weight")
    assert not (tmp_path / "back.pt").exists()


def test_kernels_of_flax_come_back_with_their_axes(tmp_path):
    _, model = make_twins("ResNet20", dtype="float32")
    arrays = as_linens(theirs_of(model, numbered_scheme(4))[0])
    np.savez(tmp_path / "theirs.npz", **arrays)
    take(tmp_path, "theirs.npz", output="ours.safetensors")
    back(tmp_path, output="back.npz")
    with np.load(tmp_path / "back.npz") as read:
        assert [name for name in read if not name.startswith("__")] == list(arrays)
        for name, array in arrays.items():
            np.testing.assert_array_equal(read[name], array)


def test_a_new_head_has_the_authors_name_and_a_dropped_one_is_said(tmp_path):
    _, model = make_twins("ResNet20", dtype="float32", shortcut="identity")
    state, truth = theirs_of(model, numbered_scheme(2))
    torch.save(state, tmp_path / "theirs.pt")
    take(tmp_path, "theirs.pt", "--head", "new:3", "--shortcut", "centred_identity")
    said = back(tmp_path, "ours.pt")
    assert "the author's naming has no place for" in said
    assert "--shortcut centred_identity" in said
    read = torch.load(tmp_path / "back.pt")
    assert list(read) == list(state)
    assert read[truth["head.weight"]].shape == (3, 64)
    take(tmp_path, "theirs.pt", "--head", "drop")
    assert f"left out: {truth['head.weight']}, " in back(tmp_path, "ours.pt")


def test_a_folded_bias_is_zero_in_the_authors_file(tmp_path):
    model = torch_resnet.create("ResNet20", 10)
    randomise(model)
    state, _ = theirs_of(model, numbered_scheme(7))
    name = next(n for n, t in state.items() if t.ndim == 4)[: -len("weight")] + "bias"
    state[name] = torch.ones(16)
    torch.save(state, tmp_path / "theirs.pt")
    take(tmp_path, "theirs.pt", output="ours.safetensors")
    assert f"zeros, because running means have them: {name}" in back(tmp_path)
    read = torch.load(tmp_path / "back.pt")
    assert list(read) == list(state)
    assert not read[name].any()


def test_where_no_names_are_known_none_are_written(tmp_path):
    _, model = make_twins("ResNet20", dtype="float32")
    convert.save(tmp_path / "ours.pt", model)
    torch.save(theirs_of(model, numbered_scheme(2))[0], tmp_path / "theirs.pt")
    said = take(tmp_path, "theirs.pt", "--epsilon", "1e-3", output="folded.pt")
    assert "the file's names are not kept" in said  # under them its network has another epsilon
    for source in ("ours.pt", "folded.pt"):
        arguments = ("export", source, "--names", "original", "-o", "x.pt")
        result = run_here("convert", *arguments, cwd=tmp_path)
        assert_refused(result, "these weights do not say what an author called them")
    arguments = ("export", "ours.pt", "--names", "original", "--layout", "cifar", "-o", "x.pt")
    result = run_here("convert", *arguments, cwd=tmp_path)
    assert_refused(result, "--names is for files of weights, without --layout")
    assert not (tmp_path / "x.pt").exists()


def test_names_for_which_a_description_has_no_room_are_left_out_of_it():
    classes = tuple(f"a class with a long name, number {n}" for n in range(20_000))
    preprocessing = dataclasses.replace(PREPROCESSINGS["imagenet"], class_names=classes)
    names = {f"ours {n}": f"an author's name of number {n}" for n in range(10_000)}
    classifier = ClassifierSpec(find_spec("ResNet20"), len(classes))
    short = Weights({}, classifier, preprocessing, names=dict([*names.items()][:10]))
    for weights, kept in ((short, True), (dataclasses.replace(short, names=names), False)):
        read = decode_description(Path("x"), encode_description(weights), 1000)
        assert read["preprocessing"] == preprocessing
        assert read["names"] == (weights.names if kept else {})

"""Weights of one network never pass for those of another, whatever way they come."""

import numpy as np
import pytest
import torch
from flax import nnx

import convert
import flax_resnet
import torch_resnet
from convert.checkpoints import read_run
from convert.files import read_weights
from convert.inspection import inspect
from convert.models import describe
from tests.commands import assert_refused, run
from tests.twins import make_twins


@pytest.fixture
def theirs() -> dict[str, torch.Tensor]:
    _, model = make_twins("ResNet20", dtype="float32", shortcut="centred_identity")
    return convert.to_layout(model.state_dict(), "ResNet20", "cifar")


def test_a_twins_own_state_dict_says_which_network_it_is_of():
    model = torch_resnet.create("ResNet20", 10, shortcut="identity")
    state = model.state_dict()
    centred = torch_resnet.create("ResNet20", 10, shortcut="centred_identity")
    with pytest.raises(RuntimeError, match="shortcut: 'identity', not 'centred_identity'"):
        centred.load_state_dict(state)
    with pytest.raises(convert.ConversionError, match="shortcut"):
        convert.to_layout(state, "ResNet20", "cifar")
    twin = flax_resnet.create("ResNet20", 10, rngs=nnx.Rngs(0), shortcut="centred_identity")
    with pytest.raises(convert.ConversionError, match="shortcut"):
        convert.torch_to_flax(state, twin)
    assert convert.build(state, "torch").spec == model.spec
    model.set_head(torch.nn.Sequential(torch.nn.Linear(64, 10)))  # the network is still known
    centred.set_head(torch.nn.Sequential(torch.nn.Linear(64, 10)))
    with pytest.raises(RuntimeError, match="shortcut"):
        centred.load_state_dict(model.state_dict())
    centred.load_state_dict(dict(model.state_dict()))  # a plain dictionary says nothing


def test_a_flax_twin_with_a_head_of_its_own_says_which_network_it_is_of():
    rngs = nnx.Rngs(0)
    model = flax_resnet.create("ResNet20", rngs=rngs, padding="same")
    model.set_head(nnx.Sequential(nnx.Linear(64, 10, rngs=rngs)))
    other = torch_resnet.create("ResNet20")
    other.set_head(torch.nn.Sequential(torch.nn.Linear(64, 10)))
    with pytest.raises(RuntimeError, match="padding: 'same', not 'even'"):
        other.load_state_dict(convert.flax_to_torch(model))


def test_all_that_is_wrong_with_foreign_tensors_is_listed_at_once(theirs):
    theirs["conv1.weight"][0, 0, 0, 0] = float("nan")
    theirs["bn1.weight"] = torch.ones(16, dtype=torch.int32)
    theirs["bn1.num_batches_tracked"] = torch.tensor(1.5)
    del theirs["linear.bias"]
    with pytest.raises(convert.ConversionError) as caught:
        convert.from_layout(theirs, "ResNet20", "cifar")
    assert [problem.partition(":")[0] for problem in caught.value.problems] == [
        *("missing", "non-finite", "dtype", "dtype"),
    ]
    theirs["bn1.bias"] = torch.zeros(16).to(torch.float8_e4m3fn)
    with pytest.raises(convert.ConversionError, match=r"bn1\.bias is not an array"):
        convert.from_layout(theirs, "ResNet20", "cifar")


def test_a_head_without_bias_is_no_head_of_packages_that_have_one():
    model = torch_resnet.create("ResNet18")
    model.set_head(torch.nn.Linear(512, 7, bias=False))
    with pytest.raises(convert.ConversionError, match="torchvision have a bias"):
        convert.to_layout(model.state_dict(), "ResNet18", "torchvision")
    kept = convert.to_layout(model.state_dict(), "ResNet18", "flax-resnet")
    assert "head.bias" not in kept


def test_what_a_training_script_puts_around_a_state_dict_is_taken_off(theirs):
    wrapped = {f"module.{name}": tensor for name, tensor in theirs.items()}
    content = {"state_dict": wrapped, "best_prec1": 91.7, "epoch": 3}
    ours = convert.from_layout(content, "ResNet20", "cifar")
    plain = convert.from_layout(theirs, "ResNet20", "cifar")
    assert all(torch.equal(ours[name], tensor) for name, tensor in plain.items())


def test_two_arrays_of_one_name_are_refused(theirs):
    theirs["bn1"] = {"weight": theirs["bn1.weight"]}  # pyright: ignore
    with pytest.raises(convert.ConversionError, match=r"two arrays are called bn1\.weight"):
        convert.from_layout(theirs, "ResNet20", "cifar")


def test_the_command_line_believes_the_file_and_says_what_it_replaces(tmp_path, theirs):
    _, model = make_twins("ResNet20", dtype="float32", padding="same", in_planes=1)
    convert.save(tmp_path / "same.safetensors", model)
    out = ("-o", "out.npz")
    result = run("convert", "import", "same.safetensors", "--model", "ResNet20", *out, cwd=tmp_path)
    assert_refused(result, "another network", "padding")
    options = ("--model", "ResNet20", "--padding", "even")
    result = run("convert", "import", "same.safetensors", *options, *out, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    weights = read_weights(tmp_path / "out.npz")
    assert weights.classifier is not None
    assert weights.classifier.network.padding == "even"  # as the user states it
    assert weights.classifier.network.in_planes == 1  # as the first convolution shows
    result = run("convert", "import", "same.safetensors", "-o", "run", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert read_run(tmp_path / "run").classifier == describe(model)
    options = ("--preprocessing", "cifar10", "-o", "run2")
    result = run("convert", "import", "same.safetensors", *options, cwd=tmp_path)
    assert_refused(result, "preprocessing of another model")
    assert not (tmp_path / "run2").exists()
    text = inspect(tmp_path / "same.safetensors")["matches"][0]["model"]
    assert text == "ResNet20, in_planes=1, padding=same"


def test_runs_with_nan_are_refused_or_named(tmp_path):
    _, model = make_twins("ResNet20", dtype="float32")
    model.get_parameter("stem.conv.weight").data[0, 0, 0, 0] = np.nan
    path = tmp_path / "nan.safetensors"
    with pytest.raises(convert.ConversionError, match=r"non-finite: stem\.conv\.weight"):
        convert.save(path, model)
    convert.save(path, model, allow_nonfinite=True)
    result = run("convert", "import", "nan.safetensors", "-o", "run", cwd=tmp_path)
    assert_refused(result, "non-finite: stem.conv.weight")
    arguments = ("nan.safetensors", "--allow-nonfinite", "-o", "run")
    assert run("convert", "import", *arguments, cwd=tmp_path).returncode == 0
    with pytest.raises(convert.ConversionError, match="non-finite"):
        read_run(tmp_path / "run")

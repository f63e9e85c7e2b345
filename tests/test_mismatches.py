"""Weights of one network never pass for those of another, whatever way they come."""

import copy
import gc
import json
from typing import Any

import jax
import numpy as np
import pytest
import torch
from flax import linen, nnx

import convert
import flax_resnet
import torch_resnet
from convert.__main__ import main
from convert.files import read_weights
from convert.inspection import inspect
from convert.models import describe
from convert.runs.saved_run import read_run
from tests.commands import assert_refused, run_here
from tests.peers import make_peer
from tests.twins import assert_same_state, make_twins


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


def test_a_part_of_the_weights_is_loaded_where_it_computes_the_same():
    """Deeper networks, other images, another head: what `strict=False` is for."""
    state: Any = torch_resnet.create("ResNet20", 10).state_dict()
    for name in ("stem.conv.weight", "head.weight", "head.bias"):
        del state[name]
    for changes in ({"in_planes": 1}, {"small_images": False}, {}):
        name = "ResNet20" if changes else "ResNet32"
        other = torch_resnet.create(name, 7, **changes)
        missing, unexpected = other.load_state_dict(state, strict=False)
        assert {"stem.conv.weight", "head.weight", "head.bias"} <= set(missing)
        assert not unexpected
        weight = "stages.2.2.conv2.weight"
        assert torch.equal(other.state_dict()[weight], state[weight])
    for options in ({"padding": "same"}, {"shortcut": "centred_identity"}):
        other = torch_resnet.create("ResNet32", 10, **options)
        with pytest.raises(RuntimeError, match=f"another network: {next(iter(options))}") as caught:
            other.load_state_dict(state, strict=False)
        assert "stage_depths" not in str(caught.value)
        assert "del state_dict._metadata" in str(caught.value)
    del state._metadata
    other.load_state_dict(state, strict=False)


def test_a_shallow_copy_of_a_torch_twin_outlives_it():
    model = torch_resnet.create("ResNet20", 10)
    state = model.state_dict()
    shallow = copy.copy(model)
    del model
    gc.collect()
    shallow.load_state_dict(state)
    with pytest.raises(RuntimeError, match="shortcut"):
        shallow.load_state_dict(
            torch_resnet.create("ResNet20", 10, shortcut="identity").state_dict()
        )


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


def test_all_that_is_wrong_with_a_file_is_listed_at_once_whoever_reads_it(tmp_path, capsys):
    """A name twice, one left over, one missing, a wrong shape, a wrong dtype, and NaN."""
    _, model = make_twins("ResNet20", dtype="float32")
    state = model.state_dict()
    state["stem.bn.weight"][0] = torch.nan
    path = tmp_path / "m.safetensors"
    convert.save(path, model, allow_nonfinite=True)
    content = path.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    header["stray"] = header.pop("head.bias")
    header["stem.conv.weight"]["shape"].reverse()
    header["stages.0.0.bn1.weight"]["dtype"] = "I32"
    twice = json.dumps("stem.bn.bias") + ": " + json.dumps(header["stem.bn.bias"])
    text = ("{" + twice + ", " + json.dumps(header)[1:]).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + content[end:])
    faults = (
        "duplicate: the header has stem.bn.bias more than once",
        "left over: stray",
        "missing: head.bias",
        "shape: stem.conv.weight",
        "dtype: stages.0.0.bn1.weight",
        "non-finite: stem.bn.weight has 1 NaN",
    )
    with pytest.raises(convert.ConversionError) as caught:
        convert.load(path, backend="torch")
    assert len(caught.value.problems) == len(faults)
    for command in ("import", "export"):
        assert main([command, str(path), "-o", str(tmp_path / "out.npz")]) == 2
        error = capsys.readouterr().err
        for fault in faults:
            assert fault in str(caught.value)
            assert fault in error
    assert main(["inspect", str(path)]) == 2
    assert "more than once" in capsys.readouterr().err
    del state["head.bias"]
    with pytest.raises(convert.ConversionError) as caught:
        convert.to_layout(dict(state), "ResNet20", "flax-resnet")
    assert "non-finite" in str(caught.value)


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
    result = run_here(
        "convert", "import", "same.safetensors", "--model", "ResNet20", *out, cwd=tmp_path
    )
    assert_refused(result, "another network", "padding")
    options = ("--model", "ResNet20", "--padding", "even")
    result = run_here("convert", "import", "same.safetensors", *options, *out, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    weights = read_weights(tmp_path / "out.npz")
    assert weights.classifier is not None
    assert weights.classifier.network.padding == "even"  # as the user states it
    assert weights.classifier.network.in_planes == 1  # as the first convolution shows
    result = run_here("convert", "import", "same.safetensors", "-o", "run", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert read_run(tmp_path / "run").classifier == describe(model)
    options = ("--preprocessing", "cifar10", "-o", "run2")
    result = run_here("convert", "import", "same.safetensors", *options, cwd=tmp_path)
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
    result = run_here("convert", "import", "nan.safetensors", "-o", "run", cwd=tmp_path)
    assert_refused(result, "non-finite: stem.conv.weight")
    arguments = ("nan.safetensors", "--allow-nonfinite", "-o", "run")
    assert run_here("convert", "import", *arguments, cwd=tmp_path).returncode == 0
    with pytest.raises(convert.ConversionError, match="non-finite"):
        read_run(tmp_path / "run")


class _Linen(linen.Module):
    """A network of Flax's older kind."""


@pytest.mark.parametrize(
    "other", [torch.nn.Conv2d(1, 1, 1), None, {}, {"a": torch.ones(1)}, _Linen(), 3], ids=repr
)
def test_what_is_no_model_of_nnx_has_no_weights_to_give(other):
    with pytest.raises(convert.ConversionError, match="this must be a model of Flax NNX"):
        convert.flax_to_torch(other)
    with pytest.raises(convert.ConversionError, match="this must be a model of Flax NNX"):
        convert.torch_to_flax({}, other)


def test_shapes_are_told_in_the_axes_of_the_layout():
    peer = make_peer("flax-imagenet", "ResNet18")
    tree = jax.tree.map(np.asarray, peer.tensors)
    tree["params"]["conv_init"]["kernel"] = np.ones((3, 3, 3, 64), np.float32)
    del tree["params"]["ResNetBlock_2"]["Conv_0"]
    tree["params"]["Dense_0"]["bias"] = np.ones((0,), np.float32)
    with pytest.raises(convert.ConversionError) as caught:
        convert.from_layout(tree, "ResNet18", "flax-imagenet")
    assert caught.value.problems == [
        "missing: params/ResNetBlock_2/Conv_0/kernel (3, 3, 64, 128)",
        "shape: params/conv_init/kernel should be (7, 7, 3, 64), is (3, 3, 3, 64)",
        "shape: params/Dense_0/bias should be (1000,), is (0,)",
        "empty: params/Dense_0/bias (0,) has no value",
    ]


def test_what_torchs_wrappers_put_before_all_names_is_taken_off_everywhere():
    _, model = make_twins("ResNet20", dtype="float32")
    wrapped = torch.nn.DataParallel(torch.nn.ModuleDict({"_orig_mod": model})).state_dict()
    assert all(name.startswith("module._orig_mod.") for name in wrapped)
    twin = make_twins("ResNet20", dtype="float32")[0]
    convert.torch_to_flax(wrapped, nnx.clone(twin))
    expected = convert.to_layout(model.state_dict(), "ResNet20", "torch-resnet")
    assert_same_state(convert.to_layout(wrapped, "ResNet20", "torch-resnet"), expected)
    assert_same_state(convert.build(wrapped, "torch").state_dict(), model.state_dict())


def test_of_two_state_dicts_none_is_chosen(theirs):
    content = {"state_dict": theirs, "state_dict_ema": dict(theirs), "epoch": 3}
    with pytest.raises(convert.ConversionError, match="2 state dicts, 'state_dict', 'state_dict_e"):
        convert.from_layout(content, "ResNet20", "cifar")


def _bad(kind: str, tensor: torch.Tensor) -> object:
    match kind:
        case "sparse":
            return tensor.to_sparse()
        case "float8":
            return tensor.to(torch.float8_e4m3fn)
        case "meta":
            return tensor.to("meta")
        case "nested":
            return {"weight": tensor}
    return None


@pytest.mark.parametrize("kind", ["sparse", "float8", "meta", "nested", "none"])
def test_values_that_numpy_cannot_hold_are_named_by_every_function(kind, tmp_path):
    flax_model, model = make_twins("ResNet20", dtype="float32")
    state = model.state_dict()
    state["stem.conv.weight"] = _bad(kind, state["stem.conv.weight"])
    calls = [
        lambda: convert.torch_to_flax(state, flax_model),
        lambda: convert.build(state, "torch"),
        lambda: convert.build(state, "flax"),
        lambda: convert.to_layout(state, "ResNet20", "torch-resnet"),
        lambda: convert.from_layout(dict(state) | {"a": [{}]}, "ResNet20", "flax-resnet"),
    ]
    for call in calls:
        with pytest.raises(convert.ConversionError, match="is not an array of numbers"):
            call()


@pytest.mark.parametrize("other", [None, 3, [torch.ones(1)], torch.ones(1)], ids=repr)
def test_what_is_no_state_dict_is_no_other_error(other):
    flax_model, _ = make_twins("ResNet20", dtype="float32")
    with pytest.raises(convert.ConversionError, match="a state dict is a mapping"):
        convert.torch_to_flax(other, flax_model)
    with pytest.raises(convert.ConversionError, match="a state dict is a mapping"):
        convert.to_layout(other, "ResNet20", "torch-resnet")
    with pytest.raises(convert.ConversionError, match="a state dict is a mapping"):
        convert.from_layout(other, "ResNet20", "torch-resnet")
    with pytest.raises(convert.ConversionError, match="does not say which network"):
        convert.build(other, "torch")


def test_models_without_values_have_none_to_save(tmp_path):
    with torch.device("meta"):
        on_meta = torch_resnet.create("ResNet20")
    shapes = nnx.eval_shape(lambda: flax_resnet.create("ResNet20", rngs=nnx.Rngs(0)))
    for model in (on_meta, shapes):
        with pytest.raises(convert.ConversionError, match=r"stem\.conv\.weight is not an array"):
            convert.save(tmp_path / "m.npz", model)
    with pytest.raises(convert.ConversionError, match="is not an array"):
        convert.flax_to_torch(shapes)
    assert not list(tmp_path.iterdir())

"""Files of `flax.serialization`: a training state or parameters, whatever the file is called."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import nnx, serialization

import convert
import torch_resnet
from convert.__main__ import main
from convert.files import read_file
from convert.layouts import find_layout, write_layout
from convert.layouts.translate import nest
from convert.leaves import flax_name, to_flax
from convert.models import arrays_of
from resnet_spec import ClassifierSpec
from tests.twins import assert_same_state, random_images, randomise, run_torch
from torch_resnet.network import ResidualNetwork


def linen_variables(model: ResidualNetwork) -> dict[str, Any]:
    """A network's arrays as a linen module with our names would have them."""
    arrays = {}
    for name, array in arrays_of(model).items():
        theirs = flax_name(name, array.ndim).replace(".", "/")
        if array.dtype != np.int64:
            collection = "batch_stats" if theirs.endswith(("/mean", "/var")) else "params"
            arrays[f"{collection}/{theirs}"] = to_flax(name_of_leaf(theirs), array)
    return nest(arrays, find_layout("flax-imagenet"))


def name_of_leaf(name: str) -> str:
    return name.replace("/", ".")


@pytest.fixture(scope="module")
def model() -> ResidualNetwork:
    model = torch_resnet.create("ResNet20", 10, shortcut="projection")
    randomise(model)
    return model.eval()


@pytest.mark.parametrize("name", ["checkpoint_100", "flax_model.msgpack", "weights.ckpt"])
def test_a_training_state_of_flax_comes_in_without_options(model, name, tmp_path, capsys):
    variables = linen_variables(model)
    state = {
        "step": 100,
        "params": variables["params"],
        "opt_state": serialization.to_state_dict(optax.sgd(0.1, 0.9).init(variables["params"])),
        "batch_stats": variables["batch_stats"],
        "dynamic_scale": None,
    }
    source, output = tmp_path / name, tmp_path / "m.safetensors"
    source.write_bytes(serialization.msgpack_serialize(state))
    assert main(["import", str(source), "-o", str(output)]) == 0
    assert "part of a training state" in capsys.readouterr().out
    images = random_images(2, 16, "float32")
    logits = run_torch(convert.load(output, "torch"), images)
    np.testing.assert_array_equal(logits, run_torch(model, images))


def test_every_dtype_of_flax_is_read_and_what_is_no_tree_is_refused(tmp_path):
    tree = {
        "a": jnp.ones((2, 3), jnp.bfloat16),
        "b": {"c": np.float16(2), "d": np.arange(4, dtype=np.int8), "e": True, "f": "words"},
    }
    path = tmp_path / "m.msgpack"
    path.write_bytes(serialization.msgpack_serialize(tree))
    weights = read_file(path)
    assert {name: str(array.dtype) for name, array in weights.arrays.items()} == {
        **{"a": "bfloat16", "b/c": "float16", "b/d": "int8", "b/e": "bool"},
    }
    assert weights.notes == ("left out: b/f, which is no array",)
    sound = path.read_bytes()
    for content in (sound[:-5], sound + b"\x80", b"\x81\xa1a" + b"\x81\xa1a" * 2000, b"\x93abc"):
        path.write_bytes(content)
        with pytest.raises(convert.ConversionError, match="not a whole msgpack file of Flax"):
            read_file(path)


def test_the_state_of_an_nnx_model_comes_in_without_options(model, tmp_path):
    folder, output = tmp_path / "theirs", tmp_path / "m.safetensors"
    flax_model = convert.build(model.state_dict(), "flax")
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder, nnx.state(flax_model))
    assert main(["import", str(folder), "-o", str(output)]) == 0
    images = random_images(2, 16, "float32")
    logits = run_torch(convert.load(output, "torch"), images)
    np.testing.assert_array_equal(logits, run_torch(model, images))


def test_a_network_of_haiku_within_a_users_module_comes_in_without_options(tmp_path, capsys):
    layout = find_layout("haiku")
    classifier = ClassifierSpec(layout.network("ResNet18"), 10)
    generator = np.random.default_rng(0)
    expected = {
        name: np.zeros((), np.int64) if not shape else generator.random(shape, np.float32)
        for name, shape in classifier.tensors().items()
    }
    theirs: dict[str, Any] = {
        name.replace("/res_net/", "/mine/~/res_net18/"): array
        for name, array in write_layout(expected, classifier, layout).items()
    }
    averages = [name for name in theirs if name.endswith("average")]
    theirs |= {name.replace("average", "hidden"): theirs[name] for name in averages}
    theirs |= {name.replace("average", "counter"): np.array(3, np.int32) for name in averages}
    np.savez(tmp_path / "theirs.npz", **theirs)
    output = tmp_path / "m.npz"
    assert main(["import", str(tmp_path / "theirs.npz"), "-o", str(output)]) == 0
    assert "--layout haiku --model ResNet18" in capsys.readouterr().out
    weights = read_file(output)
    assert weights.classifier == classifier
    assert_same_state(weights.arrays, expected)

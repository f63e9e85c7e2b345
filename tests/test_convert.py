"""The converter: bit for bit, strict, whole files or none, other packages' names."""

import dataclasses
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

import convert
import flax_resnet
import torch_resnet
from flax_resnet.layers import no_values
from flax_resnet.variables import named_parts, named_variables
from resnet_spec import find_spec
from tests.twins import (
    assert_same_state,
    make_twins,
    random_images,
    randomise,
    relative_error,
    run_torch,
)

MODELS = ["ResNet20", "PreActResNet20", "PreActResNet50-small", "WideResNet16-2"]
DTYPES = ["float64", "float32", "bfloat16"]


def random_bits(model: torch.nn.Module) -> None:
    """Every bit pattern is a value to carry: NaNs with payloads, infinities, denormals, -0."""
    generator = np.random.default_rng(0)
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            integers = {2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()]
            limits = torch.iinfo(integers)
            bits = generator.integers(limits.min, limits.max, tuple(tensor.shape), np.int64)
            tensor.view(integers).copy_(torch.from_numpy(np.asarray(bits)))


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shortcut", ["projection", "convolution"])
def test_there_and_back_keeps_every_bit(name, dtype, shortcut):
    with torch.device("meta"):  # initial values, which would take seconds, are not needed
        torch_model, twin = (torch_resnet.create(name, 10, shortcut=shortcut) for _ in range(2))
    torch_model.to(getattr(torch, dtype)).to_empty(device="cpu")
    for module in torch_model.modules():  # BatchNorm is float32 at least in the Flax twin
        if isinstance(module, torch.nn.BatchNorm2d) and dtype == "bfloat16":
            module.float()
    randomise(torch_model)
    random_bits(torch_model)
    with no_values():
        flax_model = flax_resnet.create(
            name, 10, rngs=nnx.Rngs(0), shortcut=shortcut, param_dtype=getattr(jnp, dtype)
        )
    convert.torch_to_flax(torch_model.state_dict(), flax_model)
    back = convert.flax_to_torch(flax_model)
    assert_same_state(back, torch_model.state_dict())
    twin.load_state_dict(back, strict=True, assign=True)


def test_kernels_of_any_rank_keep_their_axes_and_transposed_ones_are_refused():
    flax_model = nnx.Sequential(nnx.Conv(3, 3, (3,), rngs=nnx.Rngs(0)))
    torch_model = torch.nn.Sequential(torch.nn.Conv1d(3, 3, 3, padding=1))
    torch_model.load_state_dict(convert.flax_to_torch(flax_model), strict=True)
    x = np.random.default_rng(0).standard_normal((2, 7, 3)).astype(np.float32)
    with torch.no_grad():
        expected = torch_model(torch.from_numpy(x.transpose(0, 2, 1).copy())).numpy()
    assert relative_error(flax_model(jnp.asarray(x)), expected.transpose(0, 2, 1)) < 1e-6
    convert.torch_to_flax(torch_model.state_dict(), flax_model)
    assert relative_error(flax_model(jnp.asarray(x)), expected.transpose(0, 2, 1)) < 1e-6
    with pytest.raises(convert.ConversionError, match=r"layers\.0 is a transposed convolution"):
        convert.flax_to_torch(nnx.Sequential(nnx.ConvTranspose(3, 3, (3, 3), rngs=nnx.Rngs(0))))


def test_a_filled_model_goes_on_working_with_images_on_several_devices():
    from jax.sharding import Mesh, NamedSharding, PartitionSpec

    mesh = Mesh(np.array(jax.devices()[:2]), ("devices",))
    images = jax.device_put(jnp.ones((2, 16, 16, 3)), NamedSharding(mesh, PartitionSpec()))
    flax_model, torch_model = make_twins("ResNet20", dtype="float32")
    assert flax_model(images).shape == (2, 10)
    state = nnx.state(flax_model)
    nnx.update(flax_model, jax.device_put(state, NamedSharding(mesh, PartitionSpec())))
    convert.torch_to_flax(torch_model.state_dict(), flax_model)
    assert len(flax_model.head.kernel.get_value().devices()) == 2  # and stays where it was


def test_converted_tensors_own_their_memory():
    flax_model, torch_model = make_twins("ResNet20", dtype="float32")
    before = convert.flax_to_torch(flax_model)
    for tensor in convert.flax_to_torch(flax_model).values():
        tensor.zero_()
    for tensor in torch_model.state_dict().values():
        tensor.zero_()
    assert_same_state(convert.flax_to_torch(flax_model), before)


def test_a_built_model_owns_its_memory():
    _, torch_model = make_twins("ResNet20", dtype="float32")
    state = convert.from_layout(torch_model.state_dict(), "ResNet20", "flax-resnet")
    flax_model = convert.build(state, "flax")
    for tensor in state.values():
        tensor.zero_()
    assert_same_state(convert.flax_to_torch(flax_model), torch_model.state_dict())


def test_a_twin_is_built_within_a_trace():
    _, torch_model = make_twins("ResNet20", dtype="float32")
    state = torch_model.state_dict()
    shapes = nnx.state(nnx.eval_shape(lambda: convert.build(state, "flax")))
    assert jax.tree.leaves(shapes)
    traced = jax.jit(lambda: nnx.state(convert.build(state, "flax"), nnx.Param))()
    built = nnx.state(convert.build(state, "flax"), nnx.Param)
    jax.tree.map(np.testing.assert_array_equal, traced, built)


class Doubled(nnx.Param):
    def get_value(self, **options: Any) -> Any:
        return 2 * super().get_value(**options)


def with_hook(value: jax.Array) -> nnx.Param:
    with pytest.warns(UserWarning, match="deprecated"):
        return nnx.Param(value, on_get_value=lambda variable, value: 2 * value)


@pytest.mark.parametrize("make", [Doubled, with_hook])
def test_a_variable_is_converted_as_it_gives_its_value(make):
    linear = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
    kernel = linear.kernel.get_value()
    linear.kernel = make(kernel)
    converted = convert.flax_to_torch(nnx.Sequential(linear))["0.weight"]
    np.testing.assert_array_equal(converted.numpy(), 2 * np.asarray(kernel).T)


def test_all_that_does_not_fit_is_listed_at_once_and_nothing_is_changed():
    flax_model, torch_model = make_twins("ResNet20", dtype="float32")
    before = convert.flax_to_torch(flax_model)
    state = torch_model.state_dict()
    del state["stem.bn.running_mean"]
    del state["stages.0.1.bn2.num_batches_tracked"]
    state["stages.0.0.conv3.weight"] = torch.zeros(3)
    state["head.weight"] = torch.zeros(11, 64)
    state["stages.1.0.conv1.weight"] = state["stages.1.0.conv1.weight"].double()
    state["stages.2.0.bn1.num_batches_tracked"] = torch.tensor(2**40)
    with pytest.raises(convert.ConversionError) as caught:
        convert.torch_to_flax(state, flax_model)
    problems = caught.value.problems
    assert len(problems) == 6
    for part in (
        "missing: stem.bn.running_mean (16,)",
        "missing: stages.0.1.bn2.num_batches_tracked ()",
        "left over: stages.0.0.conv3.weight (3,)",
        "shape: head.weight should be (10, 64), is (11, 64)",
        "dtype: stages.1.0.conv1.weight is float64, the model holds float32",
        "dtype: stages.2.0.bn1.num_batches_tracked is int64, the model holds int32",
    ):
        assert part in problems
        assert part in str(caught.value)
    assert_same_state(convert.flax_to_torch(flax_model), before)


def test_a_transposed_kernel_of_square_shape_cannot_hide():
    """Random leaves and equal shapes: only the right axes give the right outputs."""
    flax_model, torch_model = make_twins("ResNet20")
    state = torch_model.state_dict()
    name = "stages.0.0.conv1.weight"
    state[name] = state[name].transpose(0, 1)
    convert.torch_to_flax(state, flax_model)
    flax_model.eval()
    torch_model.eval()
    images = random_images(2, 16)
    assert relative_error(flax_model(jnp.asarray(images)), run_torch(torch_model, images)) > 1e-3


def test_an_mlp_head_is_converted_by_its_numbers():
    """A projection head as in SimCLR (arXiv:2002.05709, section 2.1)."""
    rngs = nnx.Rngs(0)
    flax_model = flax_resnet.ResNet20(rngs=rngs)
    flax_model.set_head(
        nnx.Sequential(nnx.Linear(64, 32, rngs=rngs), nnx.relu, nnx.Linear(32, 8, rngs=rngs))
    )
    torch_model = torch_resnet.ResNet20()
    torch_model.set_head(
        torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Linear(32, 8))
    )
    randomise(torch_model)
    convert.torch_to_flax(torch_model.state_dict(), flax_model)
    assert_same_state(convert.flax_to_torch(flax_model), torch_model.state_dict())
    flax_model.eval()
    torch_model.eval()
    images = random_images(2, 16, "float32")
    assert relative_error(flax_model(jnp.asarray(images)), run_torch(torch_model, images)) < 1e-5


_MEMORY = """
    import sys, tempfile
    import jax, jax.numpy as jnp, torch
    from flax import nnx
    import convert, flax_resnet, torch_resnet

    def status(key):
        lines = open("/proc/self/status").read().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(key)) * 1024

    def extra(action):
        open("/proc/self/clear_refs", "w").write("5")  # resets the peak
        before = status("VmRSS")
        kept = action()
        return (status("VmHWM") - before) / weights

    small = flax_resnet.create("ResNet18-small", 10, rngs=nnx.Rngs(0))  # imports, thread pools
    convert.torch_to_flax(convert.flax_to_torch(small), small)
    model = flax_resnet.create("WideResNet50-2", 1000, rngs=nnx.Rngs(0))
    weights = sum(t.nbytes for t in convert.flax_to_torch(model).values())
    print(extra(lambda: convert.flax_to_torch(model)))
    state = convert.flax_to_torch(model)
    print(extra(lambda: convert.torch_to_flax(state, model)))
    path = sys.argv[1]
    print(extra(lambda: convert.save(path + ".safetensors", model)))
    print(extra(lambda: convert.save(path + ".pt", model)))
    del state, model  # a model that is loaded has no source in memory: add its own weights
    for suffix in (".safetensors", ".pt"):
        for backend in ("torch", "flax"):
            print(extra(lambda: convert.load(path + suffix, backend)) - 1)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc")
def test_memory_stays_below_2_2_times_the_weights(tmp_path):
    """The source holds the weights once; a conversion may add 1.2 times that."""
    code = textwrap.dedent(_MEMORY)
    run = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "m")],
        capture_output=True,
        text=True,
        check=True,
    )
    added = [float(line) for line in run.stdout.split()]
    print("peak memory, in weights:", [f"{1 + a:.2f}" for a in added])
    assert len(added) == 8
    assert max(added) <= 1.2


class Containers(nnx.Module):
    """Layers in every container that NNX looks into, one of them twice."""

    def __init__(self):
        rngs = nnx.Rngs(0)
        self.last, self.first = (nnx.Linear(2, 3, rngs=rngs) for _ in range(2))
        self.again = self.last
        self.list = nnx.List([nnx.BatchNorm(3, rngs=rngs) for _ in range(12)])
        self.dict = nnx.Dict(b=nnx.Linear(3, 1, rngs=rngs), a=nnx.Param(np.ones(2)))
        self.plain = nnx.data({"x": [nnx.Conv(1, 2, (1, 1), rngs=rngs)], "y": (nnx.Param(1.0),)})
        self.sequence = nnx.Sequential(nnx.Linear(3, 3, rngs=rngs), nnx.relu, nnx.Dropout(0.5))
        self.layers = nnx.List([nnx.Param(np.ones(1))])


@pytest.mark.parametrize(
    "build",
    [
        Containers,
        lambda: flax_resnet.create("ResNet18", 10, rngs=nnx.Rngs(0)),
        lambda: nnx.eval_shape(lambda: flax_resnet.create("WideResNet16-1", 3, rngs=nnx.Rngs(0))),
    ],
    ids=["containers", "ResNet18", "abstract"],
)
def test_named_parts_are_all_modules_and_variables_that_nnx_finds(build):
    model = build()
    nodes = list(nnx.iter_graph(model))
    variables, modules = named_parts(model)
    kept = [
        (path, node)
        for path, node in nodes
        if isinstance(node, nnx.Variable) and not isinstance(node, nnx.RngState)
    ]
    assert [id(node) for node in variables.values()] == [id(node) for _, node in kept]
    found = {".".join(map(str, path)): node for path, node in nodes if isinstance(node, nnx.Module)}
    assert modules.keys() == found.keys()
    assert all(modules[name] is module for name, module in found.items())
    names = [".".join(map(str, path)) for path, _ in kept]
    in_sequence = [name.replace("sequence.layers.", "sequence.") for name in names]
    assert list(variables) == in_sequence


class FlaxScaled(nnx.Module):
    """A block with a `scale` of its own, as of Fixup and SkipInit, beside that of a norm."""

    def __init__(self):
        self.norm, self.scale = flax_resnet.BatchNorm(3), nnx.Param(np.full(1, 0.3, np.float32))


class TorchScaled(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.scale = torch.nn.BatchNorm2d(3), torch.nn.Parameter(torch.ones(1))


def test_a_blocks_own_scale_has_one_name_in_both_twins():
    ours, theirs = FlaxScaled(), TorchScaled()
    theirs.load_state_dict(convert.flax_to_torch(ours))
    assert theirs.scale.item() == pytest.approx(0.3)
    theirs.scale.data.fill_(0.7)
    theirs.norm.weight.data.fill_(2)
    convert.torch_to_flax(theirs.state_dict(), ours)
    assert float(ours.scale.get_value()[0]) == pytest.approx(0.7)
    assert float(ours.norm.scale.get_value()[0]) == 2


def test_named_variables_leave_out_random_streams():
    model = flax_resnet.create("WideResNet16-1", 10, rngs=nnx.Rngs(0))
    assert find_spec("WideResNet16-1").drop_rate > 0
    names = named_variables(model)
    assert not any("rng" in name or "dropout" in name for name in names)
    without = dataclasses.replace(find_spec("WideResNet16-1"), drop_rate=0.0)
    assert set(names) == set(named_variables(flax_resnet.from_spec(without, 10, rngs=nnx.Rngs(0))))

"""The converter: bit for bit, strict, whole files or none, other packages' names."""

import dataclasses
import os
import subprocess
import sys
import textwrap
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
from convert.arrays import same_bits, to_numpy
from convert.layouts import LAYOUTS
from flax_resnet.variables import named_variables
from resnet_spec import find_spec
from tests.twins import make_twins, random_images, randomise, relative_error, run_torch, to_nchw

MODELS = ["ResNet20", "PreActResNet20", "PreActResNet50-small", "WideResNet16-2"]
DTYPES = ["float64", "float32", "bfloat16"]


def assert_same_state(one: Any, other: Any) -> None:
    assert set(one) == set(other)
    for name in one:
        assert same_bits(to_numpy(one[name]), to_numpy(other[name])), name


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
    torch_model = torch_resnet.create(name, 10, shortcut=shortcut)
    torch_model.to(getattr(torch, dtype))
    for module in torch_model.modules():  # statistics are float32 at least in the Flax twin
        if isinstance(module, torch.nn.BatchNorm2d) and dtype == "bfloat16":
            module.running_mean = torch.zeros(module.num_features)
            module.running_var = torch.ones(module.num_features)
    randomise(torch_model)
    random_bits(torch_model)
    flax_model = flax_resnet.create(
        name, 10, rngs=nnx.Rngs(0), shortcut=shortcut, param_dtype=getattr(jnp, dtype)
    )
    convert.torch_to_flax(torch_model.state_dict(), flax_model)
    back = convert.flax_to_torch(flax_model)
    assert_same_state(back, torch_model.state_dict())
    twin = torch_resnet.create(name, 10, shortcut=shortcut).to(getattr(torch, dtype))
    twin.load_state_dict(back, strict=True)


def test_converted_tensors_own_their_memory():
    flax_model, torch_model = make_twins("ResNet20", dtype="float32")
    before = convert.flax_to_torch(flax_model)
    for tensor in convert.flax_to_torch(flax_model).values():
        tensor.zero_()
    for tensor in torch_model.state_dict().values():
        tensor.zero_()
    assert_same_state(convert.flax_to_torch(flax_model), before)


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


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".pth"])
@pytest.mark.parametrize("source", ["flax", "torch"])
def test_a_file_knows_its_model_and_loads_as_either_twin(tmp_path, suffix, source):
    twins = dict(
        zip(
            ("flax", "torch"),
            make_twins("PreActResNet20", dtype="float32", shortcut="identity", in_planes=1),
            strict=True,
        )
    )
    path = tmp_path / f"model{suffix}"
    convert.save(path, twins[source])
    torch_model = convert.load(path, backend="torch")
    flax_model = convert.load(path, backend="flax")
    expected = twins["torch"].state_dict()
    assert_same_state(torch_model.state_dict(), expected)
    assert_same_state(convert.flax_to_torch(flax_model), expected)
    assert torch_model.spec == flax_model.spec == twins["flax"].spec
    assert not torch_model.training
    assert all(p.requires_grad for p in torch_model.parameters())
    images = random_images(2, 16, "float32", channels=1)
    twins["torch"].eval()
    np.testing.assert_array_equal(run_torch(torch_model, images), run_torch(twins["torch"], images))
    assert list(tmp_path.iterdir()) == [path]  # no temporary file is left


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_file_keeps_its_dtype(tmp_path, dtype):
    model = flax_resnet.create("ResNet20", 10, rngs=nnx.Rngs(0), param_dtype=getattr(jnp, dtype))
    path = tmp_path / "model.safetensors"
    convert.save(path, model)
    expected = convert.flax_to_torch(model)
    assert_same_state(convert.load(path, backend="torch").state_dict(), expected)
    assert_same_state(convert.flax_to_torch(convert.load(path, backend="flax")), expected)


def test_a_model_without_a_head_and_one_without_bias_load_again(tmp_path):
    for number, head in enumerate((None, torch.nn.Linear(64, 3, bias=False))):
        model = torch_resnet.ResNet20()
        if head is not None:
            model.set_head(head)
        path = tmp_path / f"{number}.safetensors"
        convert.save(path, model)
        assert_same_state(convert.load(path, backend="torch").state_dict(), model.state_dict())
        again = convert.flax_to_torch(convert.load(path, backend="flax"))
        assert_same_state(again, model.state_dict())


def test_torchs_own_loaders_read_our_files(tmp_path):
    from safetensors.torch import load_file

    _, model = make_twins("ResNet20", dtype="float32")
    convert.save(tmp_path / "m.safetensors", model)
    convert.save(tmp_path / "m.pt", model)
    for state in (load_file(tmp_path / "m.safetensors"), torch.load(tmp_path / "m.pt")):
        torch_resnet.create("ResNet20", 10).load_state_dict(state, strict=True)
        assert_same_state(state, model.state_dict())


def test_models_that_no_file_can_describe_are_refused(tmp_path):
    class Shortcut(torch_resnet.ProjectionShortcut):
        pass

    own = torch_resnet.ResNet20(shortcut=Shortcut)
    mlp = torch_resnet.ResNet20()
    mlp.set_head(torch.nn.Sequential(torch.nn.Linear(64, 2)))
    for model, match in ((own, "own"), (mlp, "Sequential"), (torch.nn.Linear(1, 1), "own")):
        with pytest.raises(convert.ConversionError, match=match):
            convert.save(tmp_path / "m.safetensors", model)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
@pytest.mark.parametrize("kept", [0.0, 0.001, 0.3, 0.99])
def test_a_truncated_file_is_one_clear_error(tmp_path, suffix, kept):
    _, model = make_twins("ResNet20", dtype="float32")
    path = tmp_path / f"m{suffix}"
    convert.save(path, model)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * kept)])
    for backend in ("torch", "flax"):
        with pytest.raises(convert.ConversionError, match=r"m\.\w+ is not a whole"):
            convert.load(path, backend=backend)


def test_bad_files_and_arguments_are_clear_errors(tmp_path):
    from safetensors.numpy import save_file

    _, model = make_twins("ResNet20", dtype="float32")
    foreign = tmp_path / "foreign.safetensors"
    save_file({"a": np.zeros(3)}, foreign)
    with pytest.raises(convert.ConversionError, match="does not say which model"):
        convert.load(foreign, backend="torch")
    with pytest.raises(FileNotFoundError):
        convert.load(tmp_path / "nothing.safetensors", backend="torch")
    with pytest.raises(convert.ConversionError, match=r"\.safetensors, \.pt, \.pth"):
        convert.save(tmp_path / "model.bin", model)
    with pytest.raises(ValueError, match="backend"):
        convert.load(foreign, backend="numpy")  # type: ignore[arg-type]
    with pytest.raises(FileNotFoundError):
        convert.save(tmp_path / "no" / "folder.safetensors", model)
    lying = tmp_path / "lying.safetensors"
    convert.save(lying, model)
    _replace_in_header(lying, b'\\"num_classes\\": 10', b'\\"num_classes\\": 11')
    with pytest.raises(convert.ConversionError, match=r"head\.weight should be"):
        convert.load(lying, backend="flax")
    _replace_in_header(lying, b'\\"num_classes\\": 11', b'\\"num_classes\\": -1')
    with pytest.raises(convert.ConversionError, match=r"describes its model wrongly.*num_classes"):
        convert.load(lying, backend="torch")


def _replace_in_header(path: Path, old: bytes, new: bytes) -> None:
    content = path.read_bytes()
    assert content.count(old) == 1
    path.write_bytes(content.replace(old, new))


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    _, model = make_twins("ResNet20", dtype="float32")
    path = tmp_path / "m.safetensors"
    path.write_bytes(b"old")

    def fail(*_: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        convert.save(path, model)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_float64_file_asks_for_jaxs_switch(tmp_path):
    _, model = make_twins("ResNet20")
    path = tmp_path / "m.safetensors"
    convert.save(path, model)
    code = f"import convert; convert.load({str(path)!r}, backend='flax')"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "ConversionError" in run.stderr
    assert "jax_enable_x64" in run.stderr


def torchvision_model(name: str) -> torch.nn.Module:
    """Torchvision's own model, random in every leaf."""
    from tests.peers import import_torchvision

    theirs = {"WideResNet50-2": "wide_resnet50_2", "WideResNet101-2": "wide_resnet101_2"}
    function = theirs.get(name, name.lower())
    model = getattr(import_torchvision().models, function)(weights=None)
    randomise(model)
    for parameter in model.parameters():  # of a last scale that keeps the sum of residuals small
        assert torch.isfinite(parameter).all()
    return model.eval()


@pytest.mark.parametrize(
    "name",
    [
        "ResNet18",
        "ResNet50",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("ResNet34", "ResNet101", "ResNet152", "WideResNet50-2", "WideResNet101-2")
        ),
    ],
)
def test_torchvisions_weights_give_torchvisions_logits_in_both_twins(name):
    theirs = torchvision_model(name)
    state = convert.from_layout(theirs.state_dict(), name, "torchvision")
    torch_model = torch_resnet.create(name, 1000)
    torch_model.load_state_dict(state, strict=True)
    torch_model.eval()
    flax_model = flax_resnet.create(name, 1000, rngs=nnx.Rngs(0))
    convert.torch_to_flax(state, flax_model)
    flax_model.eval()
    images = random_images(2, 64, "float32")
    with torch.no_grad():
        expected = theirs(to_nchw(images)).numpy()
    assert relative_error(run_torch(torch_model, images), expected) <= 1e-5
    assert relative_error(flax_model(jnp.asarray(images)), expected) <= 1e-5
    back = convert.to_layout(convert.flax_to_torch(flax_model), name, "torchvision")
    assert_same_state(back, theirs.state_dict())


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


@pytest.mark.parametrize(
    ("name", "reason"),
    [("PreActResNet18", "pre-activation"), ("ResNet18-small", "small"), ("ResNet20", "planes")],
)
def test_a_layout_refuses_what_it_cannot_express(name, reason):
    with pytest.raises(convert.ConversionError, match=reason):
        convert.from_layout({}, name, "torchvision")


def test_unknown_layouts_and_models_offer_the_nearest():
    with pytest.raises(ValueError, match="did you mean torchvision"):
        convert.from_layout({}, "ResNet18", "torch-vision")
    with pytest.raises(ValueError, match="did you mean ResNet18"):
        convert.from_layout({}, "resnet18", "torchvision")


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ["ResNet18", "ResNet152", "WideResNet50-2"])
def test_a_layout_is_a_bijection_of_all_layers(layout, name):
    pairs = list(LAYOUTS[layout](find_spec(name)))
    ours, theirs = zip(*pairs, strict=True)
    assert len(set(ours)) == len(set(theirs)) == len(pairs)
    spec = find_spec(name)
    expected = {path for path, _ in spec.convolutions()} | {path for path, _ in spec.norms()}
    assert set(ours) == expected | {"head"}


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
    print(extra(lambda: convert.save(sys.argv[1], model)))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc")
def test_memory_stays_below_2_2_times_the_weights(tmp_path):
    """The source holds the weights once; a conversion may add 1.2 times that."""
    code = textwrap.dedent(_MEMORY)
    run = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "m.safetensors")],
        capture_output=True,
        text=True,
        check=True,
    )
    added = [float(line) for line in run.stdout.split()]
    print("peak memory, in weights:", [f"{1 + a:.2f}" for a in added])
    assert len(added) == 3
    assert max(added) <= 1.2


def test_named_variables_leave_out_random_streams():
    model = flax_resnet.create("WideResNet16-1", 10, rngs=nnx.Rngs(0))
    assert find_spec("WideResNet16-1").drop_rate > 0
    names = named_variables(model)
    assert not any("rng" in name or "dropout" in name for name in names)
    without = dataclasses.replace(find_spec("WideResNet16-1"), drop_rate=0.0)
    assert set(names) == set(named_variables(flax_resnet.from_spec(without, 10, rngs=nnx.Rngs(0))))

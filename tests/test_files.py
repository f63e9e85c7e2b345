"""Files of weights: they know their model, are whole or not there, and load as either twin."""

import os
import struct
import subprocess
import sys
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
from convert.files import Weights, write_weights
from convert.models import describe
from tests.twins import assert_same_state, make_twins, random_images, relative_error, run_torch

DTYPES = ["float64", "float32", "bfloat16"]


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".npz"])
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
    flax_model, torch_model = (convert.load(path, backend=backend) for backend in ("flax", "torch"))
    assert_same_state(convert.flax_to_torch(flax_model), expected)
    images = random_images(2, 16, "float32")  # and the model runs
    inputs = torch.from_numpy(images.transpose(0, 3, 1, 2).copy()).to(getattr(torch, dtype))
    bounds = {"float64": 1e-6, "float32": 1e-5, "bfloat16": 5e-2}
    for module in (torch_model.eval(), torch_model.train()):
        assert module(inputs).dtype == getattr(torch, dtype)
    torch_model.eval()
    flax_logits = flax_model(jnp.asarray(images, getattr(jnp, dtype)))
    convert.torch_to_flax(expected, flax_model)
    with torch.no_grad():
        logits = convert.load(path, backend="torch")(inputs).double().numpy()
    assert relative_error(flax_logits, logits) <= bounds[dtype]


@pytest.mark.parametrize("norms", ["float32", "bfloat16"])
def test_a_file_of_two_dtypes_keeps_both(tmp_path, norms):
    model = torch_resnet.create("ResNet20", 10).bfloat16()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.to(getattr(torch, norms))
    convert.save(tmp_path / "m.safetensors", model)
    flax_model = convert.load(tmp_path / "m.safetensors", backend="flax")
    assert_same_state(convert.flax_to_torch(flax_model), model.state_dict())
    assert np.isfinite(flax_model(jnp.ones((1, 16, 16, 3), jnp.bfloat16))).all()


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


def test_a_model_that_is_not_as_it_was_built_is_refused_before_anything_is_written(tmp_path):
    gray = torch_resnet.ResNet20()
    gray.stem.conv = torch.nn.Conv2d(1, 16, 3, padding=1, bias=False)
    with pytest.raises(convert.ConversionError, match=r"stem\.conv\.weight should be"):
        convert.save(tmp_path / "m.safetensors", gray)
    assert not list(tmp_path.iterdir())


HOSTILE_TENSORS = {
    "float8": lambda: torch.zeros(3).to(torch.float8_e4m3fn),
    "sparse": lambda: torch.eye(3).to_sparse(),
    "meta": lambda: torch.zeros(3, device="meta"),
    "conjugate": lambda: torch.zeros(3, dtype=torch.complex64).conj(),
}


@pytest.mark.parametrize("kind", HOSTILE_TENSORS)
def test_tensors_that_numpy_cannot_hold_are_one_clear_error(tmp_path, kind):
    torch.save({"a": HOSTILE_TENSORS[kind]()}, tmp_path / "m.pt")
    with pytest.raises(convert.ConversionError, match=r"m\.pt"):
        convert.load(tmp_path / "m.pt", backend="torch")


@pytest.mark.parametrize(
    "content", [b"", b"\x80\x02s]\x8a", b"\x80\x02}q\x00.", b"PK\x03\x04", b"a" * 99]
)
def test_garbage_is_one_clear_error(tmp_path, content):
    for suffix in (".pt", ".safetensors", ".npz"):
        path = tmp_path / f"m{suffix}"
        path.write_bytes(content)
        with pytest.raises(convert.ConversionError):
            convert.load(path, backend="torch")


@pytest.mark.parametrize(
    "description",
    [
        "[" * 200_000,
        "1",
        '{"version": 1}',
        '{"version": 99, "model": {}}',
        '{"version": 1, "model": {"network": {"stage_depths": [10000000000, 1, 1]}}}',
        '{"version": 1, "model": {"network": {"stage_depths": "abc"}}}',
    ],
)
def test_hostile_descriptions_are_one_clear_error(tmp_path, description):
    from safetensors.numpy import save_file

    path = tmp_path / "m.safetensors"
    save_file({"a": np.zeros(3)}, path, metadata={"flax_resnet": description})
    with pytest.raises(convert.ConversionError, match=r"m\.safetensors"):
        convert.load(path, backend="torch")


def test_tensors_of_unknown_dtypes_in_a_safetensors_file_are_one_clear_error(tmp_path):
    header = b'{"a":{"dtype":"F8_E4M3","shape":[3],"data_offsets":[0,3]}}'
    path = tmp_path / "m.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + b"abc")
    with pytest.raises(convert.ConversionError):
        convert.load(path, backend="flax")


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".npz"])
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


@pytest.mark.parametrize("dtype", [torch.int32, torch.complex64, torch.bool])
def test_weights_that_are_no_floating_point_numbers_are_refused(tmp_path, dtype):
    _, model = make_twins("ResNet20", dtype="float32")
    state = model.state_dict()
    state["stem.conv.weight"] = state["stem.conv.weight"].to(dtype)
    state["stem.bn.num_batches_tracked"] = torch.tensor(3.5)
    write_weights(
        tmp_path / "m.pt", Weights({n: t.numpy() for n, t in state.items()}, describe(model))
    )
    for backend in ("torch", "flax"):
        with pytest.raises(convert.ConversionError) as caught:
            convert.load(tmp_path / "m.pt", backend=backend)
        for part in (r"stem.conv.weight should be floating", "num_batches_tracked should be int64"):
            assert part in str(caught.value)


@pytest.mark.parametrize("suffix", [".safetensors", ".th", ".npz"])
def test_a_disk_that_is_full_is_an_oserror_and_leaves_the_old_file(tmp_path, suffix):
    _, model = make_twins("ResNet20", dtype="float32")
    path = tmp_path / f"m{suffix}"
    convert.save(path, model)
    old = path.read_bytes()
    command = f"ulimit -f 200; {sys.executable} -m convert export m{suffix} -o m{suffix}"
    run = subprocess.run(
        ["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert run.returncode == 2
    assert "Traceback" not in run.stderr
    assert f"m{suffix}" in run.stderr
    assert path.read_bytes() == old
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_is_not_there_is_said_by_the_name_that_was_given(tmp_path):
    path = tmp_path / "nowhere" / "m.pt"
    with pytest.raises(FileNotFoundError) as caught:
        convert.save(path, torch_resnet.create("ResNet20", 10))
    assert caught.value.filename == str(path)


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

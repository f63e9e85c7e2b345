"""Equal weights are equal files, byte for byte, and have one digest in every form and layout."""

import dataclasses
import hashlib
import importlib.metadata
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

import convert
from convert.__main__ import main
from convert.files import write_weights
from convert.folders import write_folder
from convert.inspection import as_text, inspect
from convert.layouts import LAYOUTS
from convert.models import build_flax, build_torch, describe
from convert.weights import Weights
from resnet_spec import MODELS, PREPROCESSINGS, ClassifierSpec, Preprocessing, find_spec
from tests.commands import run_here
from tests.torch_or_none import torch, torch_resnet

# Of the network and the description below; they change where a form of file or the description of
# a model does, and then only on purpose.
HASHES = {
    ".safetensors": "1114a4e85c97f6860d209a7aaf5f2edd269e2a03eac113b4605bdf4fff0be91b",
    ".pt": "d63af82cf0a9d7b005d26711754b5bf181e9ec0f478257bbf771bf69c9a3f998",
    ".npz": "28a5fbb95d6b270d25ec04c8e1fa1c1c6f32512885bffa47d330c190f012b1eb",
}
# Of every file in a folder of the package.
FOLDER_HASHES = {
    "timm": {
        "config.json": "f81b5557da4094d1bf076fefe440b37644d7444aee47b60e4254bfec9144f8b6",
        "model.safetensors": "5d409eb9fae0ff3d1493ea238880a4dd9c9147b4e151c35df38afcc3c7c2162f",
    },
    "transformers": {
        "config.json": "e9245d6b501e79237876906ed1afa9ed481719e45c870b644b946c2bef49cf92",
        "model.safetensors": "c98db4d82b7a1cd49d376e9ae0609a89973546ce8415d660c27e62f65a737f81",
        "preprocessor_config.json": (
            "5b0ef16a8c3f538f0c780e4ddde293c2b25846c84abcfa109ca87e88c1c1553f"
        ),
    },
}
# By the versions of these packages, which write the file; torch's, with the build, is in it. Of
# versions that are not here only two processes are compared.
ONNX_WRITERS = ("onnx", "onnxscript", "onnx_ir")  # beside torch
ONNX_HASHES: dict[tuple[str, ...], str] = {
    ("2.13.0+cpu", "1.23.2", "0.7.2", "1.1.0"): (
        "72174be0c0bcd0d0f568ed10c3feae3db5d0f08497c8e63f2a8310321a58106f"
    ),
    ("2.14.1+cu130", "1.23.2", "0.7.2", "1.1.0"): (  # Python 3.12 and 3.13
        "13212f25c57030a85d787c2a84e681d6d653701c8f010249f0521621d0d93b0b"
    ),
}
MODEL = "WideResNet16-1-0.0"


def small_weights(
    model: str = MODEL, classes: int = 10, preprocessing: Preprocessing | None = None
) -> Weights:
    """Values in every leaf that need no generator of random numbers: those differ by release."""
    classifier = ClassifierSpec(find_spec(model), classes)
    arrays = {}
    for number, (name, shape) in enumerate(classifier.tensors().items()):
        values = ((np.arange(math.prod(shape)) * 37 + number) % 101).reshape(shape)
        is_counter = name.endswith("num_batches_tracked")
        arrays[name] = np.array(7) if is_counter else (values / 64 + 0.25).astype(np.float32)
    return Weights(arrays, classifier, preprocessing)


def small_model(build: Any) -> Any:
    weights = small_weights()
    return build(weights.classifier, weights.arrays)


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def write_all(folder: Path) -> dict[str, str]:
    """One file of each form: suffix -> hash."""
    folder.mkdir()
    for suffix in HASHES:
        weights = small_weights(preprocessing=PREPROCESSINGS["cifar10"])
        write_weights(folder / f"m{suffix}", weights)
    return {suffix: sha256(folder / f"m{suffix}") for suffix in HASHES}


def test_files_have_the_bytes_that_they_had(tmp_path):
    assert write_all(tmp_path / "here") == HASHES


@pytest.mark.parametrize("build", [build_flax, pytest.param(build_torch, marks=pytest.mark.torch)])
def test_either_twin_is_saved_to_these_bytes(build, tmp_path):
    model = small_model(build)
    for suffix, expected in HASHES.items():
        convert.save(tmp_path / f"m{suffix}", model, preprocessing=PREPROCESSINGS["cifar10"])
        assert sha256(tmp_path / f"m{suffix}") == expected


@pytest.mark.torch
@pytest.mark.parametrize("name", MODELS)
def test_tensors_are_in_the_order_of_torchs_state_dict(name):
    with torch.device("meta"):
        model = torch_resnet.create(name, 10)
    assert [*describe(model).tensors()] == [*model.state_dict()]


@pytest.mark.parametrize("package", ["timm", "transformers"])
def test_a_model_folder_has_the_bytes_that_it_had(package, tmp_path):
    weights = small_weights("ResNet18", 3, PREPROCESSINGS["imagenet"])
    write_folder(tmp_path / "f", weights, LAYOUTS[package])
    found = {path.name: sha256(path) for path in sorted((tmp_path / "f").iterdir())}
    assert found == FOLDER_HASHES[package]


def write_onnx(path: Path) -> str:
    convert.export_onnx(small_weights(), path, image_size=32)
    return sha256(path)


@pytest.mark.torch
@pytest.mark.slow
def test_an_onnx_file_has_the_same_bytes_in_two_processes_and_those_that_it_had(tmp_path):
    """The packages that wrote it are in it: there is a hash for each release that was seen."""
    here = write_onnx(tmp_path / "here.onnx")
    assert in_another_process("write_onnx", tmp_path / "there.onnx") == here
    versions = torch.__version__, *map(importlib.metadata.version, ONNX_WRITERS)
    assert here == ONNX_HASHES.get(versions, here)


def test_two_runs_of_one_seed_have_one_configuration_but_for_their_times(tmp_path):
    """And one digest: they compare by a line of their `result.json`."""
    found = []
    for _ in range(2):
        arguments = ("digits", "--model", MODEL, "--max-steps", "1", "--run-dir", "run")
        result = run_here("train", *arguments, "--overwrite", cwd=tmp_path)
        assert result.returncode == 0, result.stderr
        lines = (tmp_path / "run" / "config.json").read_bytes().splitlines()
        digest = json.loads((tmp_path / "run" / "result.json").read_text())["digest"]
        timeless = [line for line in lines if b'"when": ' not in line]
        assert len(timeless) < len(lines)
        found.append((timeless, digest, sha256(tmp_path / "run" / "model.safetensors")))
    assert found[0] == found[1]


def in_another_process(function: str, path: Path) -> str:
    """What a function here returns for a path, as text."""
    code = f"from tests.test_same_bytes import {function}; from pathlib import Path; "
    run = subprocess.run(
        [sys.executable, "-c", f"{code}print({function}(Path({str(path)!r})))"],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=True,
    )
    return run.stdout.strip()


def test_another_process_at_another_time_writes_the_same_bytes(tmp_path):
    assert in_another_process("write_all", tmp_path / "there") == str(HASHES)


def test_the_order_of_metadata_is_sorted_and_its_text_is_kept(tmp_path):
    """Characters that JSON escapes, and others that it does not, have one length."""
    from convert.formats.safetensors import write

    texts = {"z": 'quote " slash \\ / tab \t line \n', "a": "\x01\x7f é 漢 😀", "format": "pt"}
    arrays = {"w": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.zeros(2, np.float16)}
    contents, path = set(), tmp_path / "m.safetensors"
    for _ in range(10):
        write(path, arrays, texts)
        contents.add(path.read_bytes())
    assert len(contents) == 1
    with safe_open(path, framework="np") as file:
        assert file.metadata() == texts
    for name, array in load_file(path).items():
        np.testing.assert_array_equal(array, arrays[name])


def digest_of(path: Path) -> str:
    found = inspect(path)
    assert f"digest of the weights: {found['digest']}" in as_text(found)
    return found["digest"]


def test_the_digest_is_of_the_weights_alone_whatever_the_form_the_twin_and_the_layout(tmp_path):
    path = tmp_path / "m.safetensors"
    write_weights(path, small_weights("ResNet18", 5))
    expected = digest_of(path)
    assert len(expected) == 64
    convert.save(tmp_path / "flax.npz", convert.load(path, backend="flax"))
    assert digest_of(tmp_path / "flax.npz") == expected
    for layout in ("flax-resnet", "torchvision", "timm", "transformers"):
        out = tmp_path / f"{layout}.pt"
        assert main(["export", str(path), "--layout", layout, "-o", str(out)]) == 0
        assert digest_of(out) == expected, layout
    assert main(["import", str(path), "-o", str(tmp_path / "run")]) == 0
    assert digest_of(tmp_path / "run") == expected


@pytest.mark.parametrize("change", ["value", "dtype", "statistic"])
def test_another_digest_for_other_weights(change, tmp_path):
    weights = small_weights()
    arrays = dict(weights.arrays)
    if change == "value":
        arrays["head.bias"] = arrays["head.bias"] + np.float32(1e-6)
    if change == "dtype":
        arrays = {n: a.astype(np.float64) if a.dtype == "f4" else a for n, a in arrays.items()}
    if change == "statistic":
        arrays["stem.bn.running_var"] = arrays["stem.bn.running_var"] * np.float32(1.5)
    write_weights(tmp_path / "one.pt", weights)
    write_weights(tmp_path / "other.pt", dataclasses.replace(weights, arrays=arrays))
    assert digest_of(tmp_path / "one.pt") != digest_of(tmp_path / "other.pt")


def test_a_counter_of_batches_is_no_weight(tmp_path):
    weights = small_weights()
    arrays = {**weights.arrays, "stem.bn.num_batches_tracked": np.array(8)}
    write_weights(tmp_path / "one.pt", weights)
    write_weights(tmp_path / "other.pt", dataclasses.replace(weights, arrays=arrays))
    assert digest_of(tmp_path / "one.pt") == digest_of(tmp_path / "other.pt")


def test_where_the_network_is_not_known_there_is_no_digest(tmp_path):
    save_file({"w": np.zeros(3, np.float32)}, tmp_path / "m.safetensors")
    assert inspect(tmp_path / "m.safetensors")["digest"] is None
